/** What decode makes of a problem before any code: packed rows, splits of the keys, and the blocks worth visiting. */
import { ceilDiv } from '../../../core/math.ts';
import type { Problem } from '../../../problem/problem.ts';
import { blockRuns } from '../../../problem/ranges.ts';
import type { CudaCaps } from '../kernel.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import type { RowSource } from './loader.ts';
import { baseOf, type Place, type StrideRegs } from './place.ts';
import { type Spec, specOf } from './spec.ts';

export interface DecodeConfig extends Readonly<Record<string, number | string | boolean>> {
  /** Queries of a sequence, at most. */
  readonly queries: number;
  readonly blockK: number;
  readonly warps: number;
  readonly stages: number;
  readonly perSm: number;
}

/** Query heads of a key head times queries: the rows of one product. */
export const packedRows = (spec: Spec, { queries }: DecodeConfig): number => spec.group * Math.max(queries, 1);

/** One warp reads the states of a row's splits at once, a few to a lane. */
export const MOST_SPLITS = 256;

/** How much faster than its share of the bandwidth a block of threads can read, when others leave it room. */
const ALONE = 1.1;
/** What a block of threads costs besides its keys, and joining the splits, in blocks of keys. */
const OVERHEAD = 2;

/** How many parts the keys of a head are cut into: the fewest that keep the memory busy. */
export function splitsOf(problem: Problem, c: DecodeConfig, { multiprocessors }: CudaCaps): number {
  const blocks = Math.max(ceilDiv(problem.Sk, c.blockK), 1);
  const heads = Math.max(problem.B * problem.Hkv, 1);
  const slots = multiprocessors * c.perSm;
  const most = Math.min(blocks, MOST_SPLITS, ceilDiv(2 * slots, heads));
  let best = { splits: 1, time: Number.POSITIVE_INFINITY };
  for (let splits = 1; splits <= most; splits++) {
    const each = ceilDiv(blocks, splits);
    const waves = ceilDiv(heads * splits, slots);
    // Blocks of threads that are all there from the beginning share the bandwidth, however many a multiprocessor has.
    const together = Math.max(each / ALONE, (heads * blocks) / multiprocessors);
    const time = (waves === 1 ? together : waves * c.perSm * each) + waves * OVERHEAD + (splits > 1 ? OVERHEAD : 0);
    if (time < best.time) best = { splits, time };
  }
  return best.splits;
}

/** Bytes of the splits' outputs, and with their states. */
export const partBytes = (problem: Problem, c: DecodeConfig, splits: number): { out: number; total: number } => {
  const spec = specOf(problem);
  const rows = problem.B * problem.Hkv * splits * packedRows(spec, c);
  return { out: rows * spec.padDv * 4, total: rows * (spec.padDv + 2) * 4 };
};

/** For every sequence the first block of keys any query attends to, and the one after the last. */
export function attendedBlocks(problem: Problem, blockK: number): Int32Array {
  const { rowStart, runs, rowOf } = blockRuns(problem, 'q', Math.max(problem.Sq, 1), blockK);
  const ranges = new Int32Array(problem.B * 2);
  for (let b = 0; b < problem.B; b++) {
    let [first, end] = [Number.MAX_SAFE_INTEGER, 0];
    for (let h = 0; h < problem.Hq; h++) {
      const row = rowOf(b, h, 0);
      if (rowStart[row] === rowStart[row + 1]) continue;
      first = Math.min(first, runs[rowStart[row] * 3]);
      end = Math.max(end, runs[rowStart[row + 1] * 3 - 2]);
    }
    ranges.set(end === 0 ? [0, 0] : [first, end], b * 2);
  }
  return ranges;
}

/** Rows of q, packed: row i is query i % queries of head h0 + i / queries. Rows past the sequence's end read its last. */
export function packedSource(
  asm: Assembler,
  spec: Spec,
  place: Place,
  h0: Reg<'b32'>,
  queries: number,
  tensor: Reg<'b64'>,
  strides: StrideRegs,
): RowSource {
  return {
    next: 'looked up',
    from: (bytes) => packedSource(asm, spec, place, h0, queries, asm.op('add.s64', tensor, bytes), strides),
    row: (index) => {
      const { h, q } = unpackRow(asm, index, h0, queries);
      const start = asm.op('add.s32', place.qStart, asm.op('min.s32', q, asm.op('sub.s32', place.lenQ, 1)));
      return baseOf(asm, tensor, strides, { b: place.b, h, start }, spec.size);
    },
  };
}

/** Head and query of a packed row. */
export function unpackRow(
  asm: Assembler,
  row: Reg<'b32'>,
  h0: Reg<'b32'>,
  queries: number,
): { h: Reg<'b32'>; q: Reg<'b32'> } {
  const head = asm.op('div.u32', row, queries);
  const q = asm.op('sub.s32', row, asm.op('mul.lo.s32', head, queries));
  return { h: asm.op('add.s32', h0, head), q };
}
