import assert from 'node:assert/strict';
import { type DType, type FloatDType, fromFloat64, toFloat64 } from '../../src/core/dtype.ts';
import { ArgumentError, type TilewiseError } from '../../src/core/errors.ts';
import { type HostTensor, sizeOf, tensor } from '../../src/core/tensor.ts';

let state = 1;
/** Numbers in -1 .. 1 that repeat from run to run. */
function next(): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state / 2 ** 31 - 1;
}

export function rand(dtype: FloatDType, ...shape: number[]): HostTensor {
  return tensor(fromFloat64(dtype, Float64Array.from({ length: sizeOf(shape) }, next)), shape, dtype);
}
/** f32 values. */
export const r = (...shape: number[]): HostTensor => rand('f32', ...shape);
/** A u8 tensor where about `share` of the elements are 1. */
export const bits = (share: number, ...shape: number[]): HostTensor =>
  tensor(
    Uint8Array.from({ length: sizeOf(shape) }, () => Number(next() < 2 * share - 1)),
    shape,
  );
/** A u8 tensor from a predicate on the last two indices. */
export const where = (rows: number, columns: number, keep: (q: number, kv: number) => boolean): HostTensor =>
  tensor(
    Uint8Array.from({ length: rows * columns }, (_, i) => Number(keep(Math.floor(i / columns), i % columns))),
    [rows, columns],
  );

export const numbers = (t: HostTensor): Float64Array => toFloat64(t.dtype, t.data);

/** Largest difference; infinities and NaN must be equal. */
export function difference(a: HostTensor, b: HostTensor): number {
  assert.deepEqual(a.shape, b.shape);
  const [x, y] = [numbers(a), numbers(b)];
  let most = 0;
  for (let i = 0; i < x.length; i++) if (!Object.is(x[i], y[i])) most = Math.max(most, Math.abs(x[i] - y[i]));
  assert.ok(!Number.isNaN(most), 'NaN or infinity in one of the two');
  return most;
}
export function assertClose(a: HostTensor, b: HostTensor, tolerance = 2e-5): void {
  const most = difference(a, b);
  assert.ok(most <= tolerance, `differs by ${most}`);
}

/** [B, H, S, D] <-> [B, S, H, D] */
export function swap(t: HostTensor): HostTensor {
  const [B, X, Y, D] = t.shape;
  const data = t.data.slice();
  for (let b = 0; b < B; b++)
    for (let x = 0; x < X; x++)
      for (let y = 0; y < Y; y++) {
        const from = ((b * X + x) * Y + y) * D;
        data.set(t.data.subarray(from, from + D), ((b * Y + y) * X + x) * D);
      }
  return tensor(data, [B, Y, X, D], t.dtype as DType);
}

/** Rows [from, to) along an axis. */
export function rows(t: HostTensor, axis: number, from: number, to: number): HostTensor {
  const inner = sizeOf(t.shape.slice(axis + 1));
  const outer = sizeOf(t.shape.slice(0, axis));
  const n = t.shape[axis];
  const parts: number[] = [];
  for (let o = 0; o < outer; o++)
    for (let i = (o * n + from) * inner; i < (o * n + to) * inner; i++) parts.push(t.data[i]);
  const data = new (t.data.constructor as new (x: number[]) => HostTensor['data'])(parts);
  return tensor(data, [...t.shape.slice(0, axis), to - from, ...t.shape.slice(axis + 1)], t.dtype);
}

/** The call rejects with an error of this kind, about this argument. */
export async function rejects(
  call: () => unknown,
  kind: new (...args: never[]) => TilewiseError,
  argument?: string,
): Promise<void> {
  await assert.rejects(
    async () => call(),
    (error) => {
      assert.ok(error instanceof kind, `expected ${kind.name}, got ${String(error)}`);
      if (argument !== undefined && error instanceof ArgumentError)
        assert.equal(error.argument, argument, error.message);
      return true;
    },
  );
}
