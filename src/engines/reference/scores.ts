/** One head of standard attention: its rows in float64, its N x N scores and probabilities. */
import { type FloatDType, round } from '../../core/dtype.ts';
import type { Operands } from '../../engine/contract.ts';
import type { Point } from '../../mods/evaluate.ts';
import { keepScale, keeps } from '../../problem/philox.ts';
import type { Problem } from '../../problem/problem.ts';
import { keyRows, queryRows, type Sequence } from '../../problem/rows.ts';
import type { Expressions } from './expressions.ts';
import { DECODE, dataOf } from './memory.ts';
import { dots } from './products.ts';
import { gather } from './rows.ts';

/**
 * How the matrices between the operands are held: `exact` in float64, or each rounded to the storage type with float32 sums, which
 * is what standard attention does on devices and what the precision rule compares engines with.
 */
export interface Precision {
  /** Products and sums are rounded to float32. */
  readonly single: boolean;
  /** Rounds an element of a stored matrix. */
  readonly store: (x: number) => number;
  /** Rounds a step of the softmax. */
  readonly step: (x: number) => number;
}

const exactly = (x: number): number => x;
export const EXACT: Precision = { single: false, store: exactly, step: exactly };
export const stored = (dtype: FloatDType): Precision =>
  dtype === 'f64' ? EXACT : { single: true, store: (x) => round(dtype, x), step: Math.fround };

/** Float64 copies of what one query head reads. */
export interface Head {
  readonly at: Sequence;
  readonly h: number;
  /** [lenQ, D], [lenK, D], [lenK, Dv] */
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  /** The sink's logit, -inf without one. */
  readonly sink: number;
}

/** Every query head of one sequence; keys and values are converted once for the heads that share them. */
export function* headsOf(problem: Problem, at: Sequence, operands: Operands): Generator<Head> {
  const { Hq, Hkv, D, Dv, strides, dtype } = problem;
  const decode = DECODE[dtype];
  const sinks = operands.sink === null ? null : dataOf(operands.sink);
  for (let hkv = 0; hkv < Hkv; hkv++) {
    const k = gather(dataOf(operands.k), decode, keyRows(problem, at, strides.k, hkv), at.lenK, D);
    const v = gather(dataOf(operands.v), decode, keyRows(problem, at, strides.v, hkv), at.lenK, Dv);
    const group = Hq / Hkv;
    for (let h = hkv * group; h < (hkv + 1) * group; h++) {
      const q = gather(dataOf(operands.q), decode, queryRows(at, strides.q, h), at.lenQ, D);
      yield { at, h, q, k, v, sink: sinks === null ? Number.NEGATIVE_INFINITY : sinks[h] };
    }
  }
}

/** Row i of scale * Q K^T into scores[i * lenK ..]. */
export function scoreRow(problem: Problem, p: Precision, head: Head, i: number, scores: Float64Array): void {
  const { lenK } = head.at;
  const from = i * lenK;
  dots(head.q, i * problem.D, head.k, lenK, problem.D, scores, from, p.single);
  for (let j = from; j < from + lenK; j++) scores[j] = p.store(p.step(scores[j] * problem.scale));
}

/** Applies modifier and mask in place; what is masked becomes -inf. */
export function modifyRow(expressions: Expressions, p: Precision, head: Head, i: number, scores: Float64Array): void {
  const { mask, mod } = expressions;
  if (mask === null && mod === null) return;
  const { lenK } = head.at;
  const point = pointOf(head, i);
  for (let j = 0; j < lenK; j++) {
    const a = i * lenK + j;
    point.kv = j;
    point.score = scores[a];
    if (mask !== null && mask(point) === 0) scores[a] = Number.NEGATIVE_INFINITY;
    else if (mod !== null) scores[a] = p.store(mod(point));
  }
}

export const pointOf = (head: Head, q: number): Point => ({
  score: 0,
  b: head.at.b,
  h: head.h,
  q,
  kv: 0,
  lenQ: head.at.lenQ,
  lenK: head.at.lenK,
});

/**
 * Softmax of row i in place, the sink in its sum. Scores of -inf become probabilities of exactly 0, whatever else the row holds.
 *
 * @returns the natural log of the sum, -inf for a row that attends to nothing (its probabilities are then 0).
 */
export function softmaxRow(p: Precision, head: Head, i: number, scores: Float64Array): number {
  const { lenK } = head.at;
  const from = i * lenK;
  const to = from + lenK;
  let m = head.sink;
  let attends = false;
  for (let j = from; j < to; j++) {
    if (scores[j] === Number.NEGATIVE_INFINITY) continue;
    attends = true;
    if (scores[j] > m) m = scores[j];
  }
  if (!attends) {
    scores.fill(0, from, to);
    return Number.NEGATIVE_INFINITY;
  }
  let l = head.sink === Number.NEGATIVE_INFINITY ? 0 : p.step(Math.exp(p.step(head.sink - m)));
  for (let j = from; j < to; j++) {
    const e = scores[j] === Number.NEGATIVE_INFINITY ? 0 : p.step(Math.exp(p.step(scores[j] - m)));
    scores[j] = e;
    l = p.step(l + e);
  }
  for (let j = from; j < to; j++) if (scores[j] !== 0) scores[j] = p.store(p.step(scores[j] / l));
  return p.step(m + p.step(Math.log(l)));
}

/** What dropout multiplies row i of the probabilities by: 0 or what makes up for it. `factors` has lenK elements. */
export function dropoutRow(problem: Problem, head: Head, i: number, factors: Float64Array): void {
  const { dropout, Hq } = problem;
  if (dropout === null) return;
  const kept = keepScale(dropout.p);
  const bh = head.at.b * Hq + head.h;
  for (let j = 0; j < head.at.lenK; j++) factors[j] = keeps(dropout, bh, i, j) ? kept : 0;
}
