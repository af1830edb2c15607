/** Shapes on the command line, for commands that plan or make random tensors. */
import { type Command, Option } from 'commander';
import { type FloatDType, fromFloat64 } from '../core/dtype.ts';
import { type HostTensor, sizeOf, type TensorLike, tensor } from '../core/tensor.ts';
import type { Layout } from '../problem/problem.ts';
import { integer } from './command.ts';

export interface ShapeFlags {
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads?: number;
  readonly seq: number;
  readonly kvSeq?: number;
  readonly dim: number;
  readonly dimV?: number;
  readonly dtype: FloatDType;
}

/** `--dtype`, one of the float types. */
export const dtypeOption = (words: string): Option =>
  new Option('--dtype <type>', words).choices(['f32', 'f16', 'bf16', 'f64'] satisfies FloatDType[]);

export const shapeOptions = (to: Command): Command =>
  to
    .option('-b, --batch <n>', 'batch', integer(0), 1)
    .option('-H, --heads <n>', 'query heads', integer(1), 8)
    .option('--kv-heads <n>', 'key and value heads; default: as many as query heads', integer(1))
    .option('-n, --seq <n>', 'query rows', integer(0), 1024)
    .option('--kv-seq <n>', 'key rows; default: as many as query rows', integer(0))
    .option('-d, --dim <n>', 'head size', integer(1), 64)
    .option('--dim-v <n>', 'head size of v and out; default: that of q', integer(1))
    .addOption(dtypeOption('element type of q, k, v and out').default('f32'));

/** Shapes of q, k and v in the given layout. */
export function shapesOf(flags: ShapeFlags, layout: Layout = 'bhnd'): { q: TensorLike; k: TensorLike; v: TensorLike } {
  const { batch, heads, seq, dim, dtype } = flags;
  const { kvHeads = heads, kvSeq = seq, dimV = dim } = flags;
  const shape = (h: number, s: number, d: number): TensorLike => ({
    dtype,
    shape: layout === 'bnhd' ? [batch, s, h, d] : [batch, h, s, d],
  });
  return { q: shape(heads, seq, dim), k: shape(kvHeads, kvSeq, dim), v: shape(kvHeads, kvSeq, dimV) };
}

/** Standard normal values from a seed, the same everywhere. */
export function randomTensor({ dtype, shape }: TensorLike, seed: number): HostTensor {
  // Numerical Recipes' 32-bit LCG is poor in its low bits, so uniforms take the high ones; pairs go through Box-Muller.
  let state = (seed * 0x9e3779b1) >>> 0;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return ((state >>> 8) + 0.5) / 2 ** 24;
  };
  const n = sizeOf(shape);
  const values = new Float64Array(n);
  for (let i = 0; i < n; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(uniform()));
    const angle = 2 * Math.PI * uniform();
    values[i] = radius * Math.cos(angle);
    if (i + 1 < n) values[i + 1] = radius * Math.sin(angle);
  }
  const type = dtype as FloatDType;
  return tensor(fromFloat64(type, values), shape, type);
}
