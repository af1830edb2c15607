/** Side tensors of cases, from a case's own random numbers. */
import { type FloatDType, fromFloat64 } from '../core/dtype.ts';
import { type HostTensor, sizeOf, tensor } from '../core/tensor.ts';
import type { Random } from './random.ts';

export function floats(rng: Random, shape: readonly number[], gain = 1, dtype: FloatDType = 'f32'): HostTensor {
  const values = Float64Array.from({ length: sizeOf(shape) }, () => rng.normal() * gain);
  return tensor(fromFloat64(dtype, values), shape, dtype);
}

/** Zeros and ones, one with probability `share`. */
export const flags = (rng: Random, shape: readonly number[], share = 0.6): HostTensor =>
  tensor(
    Uint8Array.from({ length: sizeOf(shape) }, () => Number(rng.uniform() < share)),
    shape,
  );

export const bytes = (shape: readonly number[], at: (i: number) => number): HostTensor =>
  tensor(
    Uint8Array.from({ length: sizeOf(shape) }, (_, i) => at(i)),
    shape,
  );

export const integers = (shape: readonly number[], at: (i: number) => number): HostTensor =>
  tensor(
    Int32Array.from({ length: sizeOf(shape) }, (_, i) => at(i)),
    shape,
  );

/** Slopes 2^-1, 2^-2, ... as ALiBi's, made a little uneven. */
export const slopes = (rng: Random, shape: readonly number[]): HostTensor =>
  tensor(
    Float32Array.from({ length: sizeOf(shape) }, (_, i) => 2 ** -(1 + (i % 8)) * (1 + rng.uniform() / 4)),
    shape,
  );

/** Finite numbers with -inf here and there, and everywhere in the rows that `blocked` names. */
export function holes(rng: Random, shape: readonly [number, number], blocked: readonly number[]): HostTensor {
  const bias = floats(rng, shape);
  for (let i = 0; i < bias.data.length; i++)
    if (blocked.includes(Math.floor(i / shape[1])) || rng.uniform() < 0.3) bias.data[i] = Number.NEGATIVE_INFINITY;
  return bias;
}
