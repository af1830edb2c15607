/** Parameters that all attention kernels read: strides in bytes, scale, sink, pages, dropout state, side tensors. */
import { BYTES } from '../../../core/dtype.ts';
import type { TensorLike } from '../../../core/tensor.ts';
import { dropThreshold, keepScale } from '../../../problem/philox.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { FuncBuilder, Local } from '../asm/func.ts';
import { i32 } from '../asm/values.ts';
import type { Addresses, Heap } from '../kernel.ts';
import type { Side } from '../sides.ts';
import { layout } from './layout.ts';
import { scalingOf } from './softmax.ts';

/** What every exported phase takes: see kernel.ts. */
export const PHASE = { params: 'i32', index: 'i32', step: 'i32', scratch: 'i32' } as const;

export const PARAMS = layout(
  [
    'items',
    'strideQ',
    'strideK',
    'strideV',
    'strideOut',
    'heads',
    'sink',
    'table',
    'pageSize',
    'maxPages',
    'pageBytesK',
    'pageBytesV',
    'threshold',
    'seed0',
    'seed1',
    'offset',
    'more',
  ],
  ['scale', 'factor', 'slope', 'toScore', 'keepScale'],
);

/** Allocates and writes the record (`more` is the address of a kernel's own), with the addresses of the side tensors behind it. */
export function writeParams(problem: Problem, at: Addresses, heap: Heap, items: number, more = 0): number {
  const { strides, dtype, dropout, kv, Hq, sides } = problem;
  const bytes = BYTES[dtype];
  const params = heap.allocate(PARAMS.bytes + 4 * sides.length);
  const pages = kv.kind === 'paged' ? kv : { table: new Int32Array(0), pageSize: 0, maxPages: 0 };
  const table = heap.allocate(Math.max(4, 4 * pages.table.length));
  heap.i32.set(pages.table, table >>> 2);
  PARAMS.write(heap, params, {
    items,
    strideQ: strides.q.s * bytes,
    strideK: strides.k.s * bytes,
    strideV: strides.v.s * bytes,
    strideOut: strides.out.s * bytes,
    heads: Hq,
    sink: at.sink,
    table,
    pageSize: pages.pageSize,
    maxPages: pages.maxPages,
    pageBytesK: strides.k.b * bytes,
    pageBytesV: strides.v.b * bytes,
    threshold: dropout === null ? 0 : dropThreshold(dropout.p),
    seed0: dropout?.seed[0] ?? 0,
    seed1: dropout?.seed[1] ?? 0,
    offset: dropout?.offset ?? 0,
    more,
    scale: problem.scale,
    ...scalingOf(problem.scale, problem.mod !== null),
    keepScale: dropout === null ? 1 : keepScale(dropout.p),
  });
  heap.i32.set(at.sides, (params + PARAMS.bytes) >>> 2);
  return params;
}

/** Finds side tensors by their place in `sides`. */
export const sideReader =
  (f: FuncBuilder, params: Local<'i32'>, sides: readonly TensorLike[]) =>
  (tensor: TensorLike): Side => ({
    at: f.let(i32.load(params, PARAMS.bytes + 4 * sides.indexOf(tensor)), 'side'),
  });
