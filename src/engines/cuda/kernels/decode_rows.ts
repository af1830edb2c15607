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

/** How many parts the keys of a head are cut into: what fills the device's multiprocessors most evenly. */
export function splitsOf(problem: Problem, c: DecodeConfig, caps: CudaCaps): { splits: number; blocks: number } {
  const blocks = Math.max(ceilDiv(problem.Sk, c.blockK), 1);
  const heads = Math.max(problem.B * problem.Hkv, 1);
  const slots = caps.multiprocessors * c.perSm;
  // In blocks of keys: a split costs its own beginning and end besides.
  const OVERHEAD = 2;
  let best = { splits: 1, blocks, time: Number.POSITIVE_INFINITY };
  for (let splits = 1; splits <= Math.min(blocks, ceilDiv(2 * slots, heads)); splits++) {
    const each = ceilDiv(blocks, splits);
    const time = ceilDiv(heads * ceilDiv(blocks, each), slots) * (each + OVERHEAD) + (splits > 1 ? OVERHEAD : 0);
    if (time < best.time) best = { splits: ceilDiv(blocks, each), blocks: each, time };
  }
  return best;
}

/** Bytes of the splits' outputs, and with their states. */
export const partBytes = (problem: Problem, c: DecodeConfig, splits: number): { out: number; total: number } => {
  const rows = problem.B * problem.Hkv * splits * packedRows(specOf(problem), c);
  return { out: rows * problem.Dv * 4, total: rows * (problem.Dv + 2) * 4 };
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
    strideBytes: null,
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
