/** The running softmax of rows kept in accumulators, in base 2, and its end: sum, sink and lse. */
import { LN2, LOG2E } from '../../../core/math.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { shuffleXor } from '../ptx/tensor.ts';
import type { Tile } from './fragments.ts';
import { take } from './parameters.ts';

/**
 * Turns scores into probabilities in place and brings each row's state up to date: `best` the maximum times log2(e), `sum`
 * this thread's part of the row sum. Rows are two a 16-row tile, as in `Grid`.
 *
 * @returns the factor of each row's old output, and whether any of this thread's rows found a new maximum.
 */
export function softmaxRows(
  asm: Assembler,
  tiles: readonly (readonly Tile[])[],
  best: readonly Reg<'f32'>[],
  sum: readonly Reg<'f32'>[],
  toLog2: Reg<'f32'>,
): { alphas: Reg<'f32'>[]; grew: Reg<'pred'> } {
  const grew = asm.reg('pred');
  const alphas: Reg<'f32'>[] = [];
  for (let r = 0; r < best.length; r++) {
    const own = tiles[r >> 1].flatMap((tile) => [tile[(r & 1) * 2], tile[(r & 1) * 2 + 1]]);
    let top = treeMax(asm, own);
    for (const lane of [1, 2]) top = asm.op('max.f32', top, shuffleXor(asm, top, lane));
    const next = asm.op('max.f32', best[r], asm.op('mul.f32', top, toLog2));
    const bigger = asm.op('setp.gt.f32', next, best[r]);
    if (r === 0) asm.set(grew, 'or.pred', bigger, bigger);
    else asm.set(grew, 'or.pred', grew, bigger);
    // A row that has seen nothing subtracts 0, so that exp2(-inf) = 0 and not NaN. Old and new sums are scaled by the very
    // number that was subtracted: its rounding cancels, and an unchanged row is scaled by exactly 1.
    const empty = asm.op('setp.eq.f32', next, Number.NEGATIVE_INFINITY);
    const subtracted = asm.op('selp.f32', 0, next, empty);
    const shift = asm.op('neg.f32', subtracted);
    const alpha = asm.op('ex2.approx.ftz.f32', asm.op('sub.f32', best[r], subtracted));
    alphas.push(alpha);
    for (const tile of tiles[r >> 1])
      for (const e of [(r & 1) * 2, (r & 1) * 2 + 1])
        tile[e] = asm.op('ex2.approx.ftz.f32', asm.op('fma.rn.f32', tile[e], toLog2, shift));
    const probabilities = tiles[r >> 1].flatMap((tile) => [tile[(r & 1) * 2], tile[(r & 1) * 2 + 1]]);
    asm.set(sum[r], 'fma.rn.f32', sum[r], alpha, treeSum(asm, probabilities));
    asm.set(best[r], 'mov.f32', next);
  }
  return { alphas, grew };
}

/** log2(e) times the sink of head h. `sink` is the parameter, where it has been taken already. */
export function sinkLogit(asm: Assembler, h: Reg<'b32'>, sink: Reg<'b64'> = take(asm, 'sink').sink): Reg<'f32'> {
  const at = asm.op('add.s64', sink, asm.op('mul.wide.u32', h, 4));
  return asm.op('mul.f32', asm.load('global', 'f32', at, 0, 'nc'), LOG2E);
}

/**
 * From a row's maximum (base 2) and sum to the factor of its output and its lse: l + 2^(sink - m) over a common maximum, so
 * that a sink far above every score does not overflow. `reciprocal` may be off by a unit in the last place where results are
 * rounded to halves. A row that attends to nothing gives factor 0 and lse -inf.
 */
export function finishRow(
  asm: Assembler,
  best: Reg<'f32'>,
  sum: Reg<'f32'>,
  sinkLog2: Reg<'f32'> | null,
  reciprocal: 'rcp.rn.f32' | 'rcp.approx.ftz.f32' = 'rcp.rn.f32',
): { scale: Reg<'f32'>; value: Reg<'f32'> } {
  const empty = asm.op('setp.eq.f32', best, Number.NEGATIVE_INFINITY);
  let [top, total, weight]: [Reg<'f32'>, Reg<'f32'>, Reg<'f32'> | null] = [best, sum, null];
  if (sinkLog2 !== null) {
    top = asm.op('max.f32', best, sinkLog2);
    weight = asm.op('ex2.approx.ftz.f32', asm.op('sub.f32', best, top));
    total = asm.op('fma.rn.f32', sum, weight, asm.op('ex2.approx.ftz.f32', asm.op('sub.f32', sinkLog2, top)));
  }
  const inverse = asm.op(reciprocal, total);
  const scale = weight === null ? inverse : asm.op('mul.f32', weight, inverse);
  const value = asm.op('mul.f32', asm.op('add.f32', top, asm.op('lg2.approx.f32', total)), LN2);
  return {
    scale: asm.op('selp.f32', 0, scale, empty),
    value: asm.op('selp.f32', Number.NEGATIVE_INFINITY, value, empty),
  };
}

function treeMax(asm: Assembler, values: readonly Reg<'f32'>[]): Reg<'f32'> {
  return values.reduce((x, y) => asm.op('max.f32', x, y));
}

/** Four sums side by side: shorter chains of dependent additions, and a smaller rounding error. */
function treeSum(asm: Assembler, values: readonly Reg<'f32'>[]): Reg<'f32'> {
  const lanes = values.slice(0, 4);
  for (let i = 4; i < values.length; i++) lanes[i % 4] = asm.op('add.f32', lanes[i % 4], values[i]);
  return lanes.reduce((x, y) => asm.op('add.f32', x, y));
}
