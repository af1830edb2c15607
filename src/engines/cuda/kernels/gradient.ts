/**
 * The middle of backward, between the products: from scores and dP of one tile to probabilities and score gradients
 * (Dao, "FlashAttention-2", 2023, algorithm 2), for either orientation of the tile.
 *
 *     P = 2^(s - lse2)    dS = P * (dP - delta)    dScore = dS * d mod / d score
 */

import { type Derivatives, derive } from '../../../mods/derive.ts';
import type { F32 } from '../../../mods/expr.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import type { Dropout } from './dropout.ts';
import type { Tile } from './fragments.ts';
import type { Grid, Scorer } from './scores.ts';
import type { Spec } from './spec.ts';

export interface GradientInput {
  readonly spec: Spec;
  readonly scorer: Scorer;
  readonly grid: Grid;
  /** q . k, unscaled. */
  readonly scores: readonly (readonly Tile[])[];
  /** dOut . v; null where only probabilities are wanted. */
  readonly dP: readonly (readonly Tile[])[] | null;
  /** By row and column index of the grid: whichever is the query. */
  readonly lse2: (row: number, column: number) => Reg<'f32'>;
  readonly delta: (row: number, column: number) => Reg<'f32'>;
  /** Whether positions may be masked or past the end. */
  readonly edge: boolean;
  readonly scale: Reg<'f32'>;
  /** Exponent of a score (folded) or of a modified score. */
  readonly toLog2: Reg<'f32'>;
  readonly dropout: Dropout | null;
}

export interface GradientTiles {
  /** Probabilities as forward multiplied them with V: dropped and rescaled. */
  readonly p: Tile[][];
  /** Gradient of the modified score. */
  readonly dModified: Tile[][];
  /** Gradient of scale * q . k. */
  readonly dScore: Tile[][];
  /** Values of the further expressions asked for. */
  readonly extra: Tile[][][];
}

const derivatives = new WeakMap<F32, Derivatives>();

/** The modifier's derivatives, worked out once. */
export function derivativesOf(mod: F32): Derivatives {
  let d = derivatives.get(mod);
  if (d === undefined) {
    d = derive(mod, () => false);
    derivatives.set(mod, d);
  }
  return d;
}

export function gradientTiles(asm: Assembler, input: GradientInput, extra: readonly F32[] = []): GradientTiles {
  const { spec, scorer, grid, scores, dP, lse2, delta, edge, scale, toLog2, dropout } = input;
  const shape = (): Tile[][] => scores.map((row) => row.map(() => []));
  const result = { p: shape(), dModified: shape(), dScore: shape() };
  let values = scores.map((row) => row.map((tile) => [...tile]));
  if (!spec.folded) values = values.map((row) => row.map((tile) => tile.map((s) => asm.op('mul.f32', s, scale))));
  let slopes: Tile[][] | null = null;
  let extras: Tile[][][] = [];
  if (spec.mod !== null) {
    const { value, dScore } = derivativesOf(spec.mod);
    const [v, d, ...rest] = scorer.modify(values, grid, [value, dScore, ...extra]);
    values = v;
    slopes = d;
    extras = rest;
  }
  const keep = dropout === null ? null : keepsOf(dropout, grid);
  values.forEach((row, m) => {
    row.forEach((tile, n) => {
      const attends = edge ? scorer.attends(grid, m, n) : null;
      const keeps = keep?.(m, n) ?? null;
      tile.forEach((s, e) => {
        const [r, c] = [2 * m + (e >> 1), 2 * n + (e & 1)];
        const exponent = asm.op('fma.rn.f32', s, toLog2, asm.op('neg.f32', lse2(r, c)));
        let p = asm.op('ex2.approx.ftz.f32', exponent);
        if (attends !== null) p = asm.op('selp.f32', p, 0, attends[e]);
        result.p[m][n].push(keeps === null ? p : kept(asm, p, dropout!, keeps[e]));
        if (dP === null) return;
        const dp = keeps === null ? dP[m][n][e] : kept(asm, dP[m][n][e], dropout!, keeps[e]);
        let ds = asm.op('mul.f32', p, asm.op('sub.f32', dp, delta(r, c)));
        // dP may be NaN where a masked value row is.
        if (attends !== null) ds = asm.op('selp.f32', ds, 0, attends[e]);
        result.dModified[m][n].push(ds);
        let inner = slopes === null ? ds : asm.op('mul.f32', ds, slopes[m][n][e]);
        if (slopes !== null && attends !== null) inner = asm.op('selp.f32', inner, 0, attends[e]);
        result.dScore[m][n].push(inner);
      });
    });
  });
  return { ...result, extra: extras };
}

const kept = (asm: Assembler, x: Reg<'f32'>, { keepScale }: Dropout, keep: Reg<'pred'>): Reg<'f32'> =>
  asm.op('selp.f32', asm.op('mul.f32', x, keepScale), 0, keep);

/** Dropout's decisions for the elements of tile [m][n]; two tiles side by side are drawn together. */
function keepsOf(dropout: Dropout, { rowsAre, rows, columns }: Grid): (m: number, n: number) => readonly Reg<'pred'>[] {
  let next: readonly Reg<'pred'>[] = [];
  return (m, n) => {
    if (n % 2 === 1) return next;
    const drawn =
      rowsAre === 'q'
        ? dropout.keepOctets(rows[2 * m], columns[2 * n])
        : dropout.keepQuads(rows[2 * m], columns[2 * n], columns[2 * n + 1]);
    const [here, there] = drawn.map((byRow) => byRow.flat());
    next = there;
    return here;
  };
}
