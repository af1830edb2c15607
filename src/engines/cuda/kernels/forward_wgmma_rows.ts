/**
 * The running softmax of the Hopper forward: a thread's two rows of every tile, exponents in base 2.
 *
 * A larger maximum is taken over only when some row of the warp reaches 2^SLACK times its own: until then powers grow past 1
 * instead, which costs no bits of a float, and neither lanes have to agree on a maximum nor the output to be scaled. Powers
 * up to 2^SLACK also are f16 numbers, and sums of them f32 numbers; lse is of the maximum that was subtracted.
 */
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { shuffleXor } from '../ptx/tensor.ts';
import type { Tile } from './fragments.ts';

/** Powers of two by which probabilities may exceed 1. */
const SLACK = 8;

/** Maxima and sums of a row found side by side: one after the other they would wait for each other. */
const CHAINS = 4;

export interface Rows {
  /** The number that is subtracted from a row's exponents, -inf where the row attends to nothing yet. */
  readonly best: readonly Reg<'f32'>[];
  /** This thread's part of a row's sum of powers. */
  readonly sum: readonly Reg<'f32'>[];
  /** Starts rows that have seen nothing. */
  start(): void;
  /** Takes maxima over where they have grown too far: the output is scaled with the sums. `tops` are from `topsOf`. */
  raise(tops: readonly Reg<'f32'>[], acc: readonly Reg<'f32'>[]): void;
  /** 2^(score * toLog2 + lift - best), added up. Scores of both rows come as tiles. */
  powers(tiles: readonly Tile[], toLog2: Reg<'f32'>, lifts: readonly Reg<'f32'>[] | null): Tile[];
}

/** This thread's largest exponent of each row; `lifts` are parts of exponents that a row has in common. */
export function topsOf(
  asm: Assembler,
  tiles: readonly Tile[],
  toLog2: Reg<'f32'>,
  lifts: readonly Reg<'f32'>[] | null,
): Reg<'f32'>[] {
  return [0, 1].map((r) => {
    const own = tiles.flatMap((tile) => tile.slice(2 * r, 2 * r + 2));
    const top = chained(own, (x, y) => asm.op('max.f32', x, y));
    return lifts === null ? asm.op('mul.f32', top, toLog2) : asm.op('fma.rn.f32', top, toLog2, lifts[r]);
  });
}

/** @param ceiling what is subtracted from all rows instead of their maxima, or null. */
export function rowsOf(asm: Assembler, ceiling: number | null): Rows {
  const best = asm.regs('f32', 2);
  const sum = asm.regs('f32', 2);
  /** Minus `best`, or 0 where that is -inf: exp2(-inf) is 0, and not NaN. */
  const shifts = asm.regs('f32', 2);
  const tooFar = (top: Reg<'f32'>, r: number): Reg<'pred'> =>
    asm.op('setp.gt.f32', top, asm.op('add.f32', best[r], SLACK));
  return {
    best,
    sum,
    start() {
      for (const r of [0, 1]) {
        asm.set(best[r], 'mov.f32', Number.NEGATIVE_INFINITY);
        asm.set(sum[r], 'mov.f32', 0);
        asm.set(shifts[r], 'mov.f32', 0);
      }
    },
    raise(tops, acc) {
      if (ceiling !== null) return;
      const settled = asm.label('settled');
      const any = asm.reg('pred');
      const here = asm.op('or.pred', tooFar(tops[0], 0), tooFar(tops[1], 1));
      asm.emit('vote.sync.any.pred', any.name, here.name, '-1');
      asm.branch(settled, any, { negate: true, uniform: true });
      for (const r of [0, 1]) {
        // The four lanes of a row agree on its maximum.
        let top = tops[r];
        for (const lane of [1, 2]) top = asm.op('max.f32', top, shuffleXor(asm, top, lane));
        const next = asm.op('selp.f32', top, best[r], tooFar(top, r));
        // Old sums are scaled by the very number that is subtracted: its rounding cancels.
        const empty = asm.op('setp.eq.f32', next, Number.NEGATIVE_INFINITY);
        const subtracted = asm.op('selp.f32', 0, next, empty);
        const alpha = asm.op('ex2.approx.ftz.f32', asm.op('sub.f32', best[r], subtracted));
        asm.set(shifts[r], 'neg.f32', subtracted);
        asm.set(best[r], 'mov.f32', next);
        asm.set(sum[r], 'mul.f32', sum[r], alpha);
        acc.forEach((x, i) => {
          if (((i >> 1) & 1) === r) asm.set(x, 'mul.f32', x, alpha);
        });
      }
      asm.place(settled);
    },
    powers(tiles, toLog2, lifts) {
      const out = tiles.map((tile) => [...tile]);
      for (const r of [0, 1]) {
        const own = ceiling === null ? shifts[r] : asm.constant('f32', -ceiling);
        const shift = lifts === null ? own : asm.op('add.f32', own, lifts[r]);
        out.forEach((tile, n) => {
          for (const e of [2 * r, 2 * r + 1])
            tile[e] = asm.op('ex2.approx.ftz.f32', asm.op('fma.rn.f32', tiles[n][e], toLog2, shift));
        });
        const row = out.flatMap((tile) => tile.slice(2 * r, 2 * r + 2));
        const total = chained(row, (x, y) => asm.op('add.f32', x, y));
        asm.set(sum[r], 'add.f32', sum[r], total);
      }
      return out;
    },
  };
}

function chained(values: readonly Reg<'f32'>[], join: (x: Reg<'f32'>, y: Reg<'f32'>) => Reg<'f32'>): Reg<'f32'> {
  const chains = values.slice(0, CHAINS);
  for (let i = CHAINS; i < values.length; i++) chains[i % CHAINS] = join(chains[i % CHAINS], values[i]);
  return chains.reduce(join);
}
