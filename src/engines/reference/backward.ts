/**
 * Standard attention, backward, from the same N x N matrices: with Z the dropout factors and D = rowsum(P * dP) - dLse,
 *
 *     dV = (P * Z)^T dO,  dP = Z * (dO V^T),  dS' = P * (dP - D),  dS = dS' * mod'(S),  dQ = scale * dS K,  dK = scale * dS^T Q
 *
 * P is recomputed from Q and K, so that nothing here depends on how forward's results were rounded.
 */
import { sizeOf } from '../../core/tensor.ts';
import type { Config, EngineTensor, Kernel, Operands } from '../../engine/contract.ts';
import { flopsOf } from '../../problem/cost.ts';
import type { Problem } from '../../problem/problem.ts';
import { keyRows, queryRows, sequencesOf } from '../../problem/rows.ts';
import { type ReferenceCaps, refuseWorkspace } from './caps.ts';
import { compileExpressions, type Expressions } from './expressions.ts';
import { DECODE, dataOf, store } from './memory.ts';
import { type HostRunOptions, Pace } from './pace.ts';
import { combine, dots, spread } from './products.ts';
import { gather, scatterAdd } from './rows.ts';
import { dropoutRow, type Head, headsOf, modifyRow, type Precision, pointOf, scoreRow, softmaxRow } from './scores.ts';

/** Float64 matrices of Sq x Sk held at once: P and dS, and the scores before the modifier when it has a derivative. */
const matrices = (problem: Problem): number => (problem.mod === null ? 2 : 3);

export const backward: Kernel<Config, ReferenceCaps> = {
  name: 'backward',
  pass: 'backward',
  refuse: (problem, caps) => refuseWorkspace(problem, matrices(problem), caps),
  configs: () => [{}],
  cost(problem, _config, caps) {
    const flops = flopsOf(problem, 'backward');
    const matrix = problem.Sq * problem.Sk * 8;
    const bytes = problem.B * problem.Hq * matrix * 8;
    const workspace = matrix * matrices(problem);
    return { flops, bytes, workspace, seconds: flops / caps.flops + bytes / caps.bandwidth };
  },
  emit: () => [],
};

/** Float64 sums of the gradients, as large as their tensors. */
interface Sums {
  readonly dq: Float64Array;
  readonly dk: Float64Array;
  readonly dv: Float64Array;
  /** By index of problem.sides; null where no gradient is asked. */
  readonly dSides: readonly (Float64Array | null)[];
  readonly dSink: Float64Array;
}

/** What a head's rows are worked out in; reused from head to head. */
interface Scratch {
  /** [lenQ, lenK]: scores, then probabilities. */
  readonly p: Float64Array;
  /** [lenQ, lenK]: dP, then dS. */
  readonly ds: Float64Array;
  /** [lenQ, lenK]: scores before the modifier; null when there is none. */
  readonly raw: Float64Array | null;
  /** [lenK] dropout factors of a row, and the dropped probabilities. */
  readonly factors: Float64Array;
  readonly weights: Float64Array;
}

export async function runBackward(
  problem: Problem,
  precision: Precision,
  operands: Operands,
  options: HostRunOptions,
): Promise<void> {
  const { D, Dv, Hq, Hkv, Sq, Sk, strides } = problem;
  const group = Hq / Hkv;
  const expressions = compileExpressions(problem, operands, true);
  const scratch: Scratch = {
    p: new Float64Array(Sq * Sk),
    ds: new Float64Array(Sq * Sk),
    raw: problem.mod === null ? null : new Float64Array(Sq * Sk),
    factors: new Float64Array(Sk).fill(1),
    weights: new Float64Array(Sk),
  };
  const zeros = (t: EngineTensor): Float64Array => new Float64Array(sizeOf(t.shape));
  const sums: Sums = {
    dq: zeros(operands.q),
    dk: zeros(operands.k),
    dv: zeros(operands.v),
    dSides: operands.sides.map((side, i) => (problem.grads?.sides[i] ? zeros(side) : null)),
    dSink: new Float64Array(Hq),
  };
  const sequences = sequencesOf(problem);
  const pace = new Pace(sequences.reduce((n, s) => n + 3 * s.lenQ, 0) * Hq, options);

  for (const at of sequences) {
    // Heads that share keys come one after the other; their sums are put where they belong after the last.
    let dk = new Float64Array(at.lenK * D);
    let dv = new Float64Array(at.lenK * Dv);
    for (const head of headsOf(problem, at, operands)) {
      const dqRow = queryRows(at, strides.q, head.h);
      const lse = await probabilities(problem, precision, expressions, head, scratch, pace);
      await scoreGradients(problem, precision, expressions, head, operands, lse, scratch, dv, sums, pace);
      for (let i = 0; i < at.lenQ; i++) {
        combine(scratch.ds, i * at.lenK, head.k, at.lenK, D, sums.dq, dqRow(i), precision.single);
        spread(scratch.ds, i * at.lenK, head.q, i * D, at.lenK, D, dk, precision.single);
        await pace.row();
      }
      if ((head.h + 1) % group !== 0) continue;
      const hkv = Math.floor(head.h / group);
      scatterAdd(dk, sums.dk, keyRows(problem, at, strides.k, hkv), D);
      scatterAdd(dv, sums.dv, keyRows(problem, at, strides.v, hkv), Dv);
      dk = new Float64Array(at.lenK * D);
      dv = new Float64Array(at.lenK * Dv);
    }
  }
  write(problem, sums, operands);
  pace.finish();
}

/** Fills `p` (and `raw`) for a head. Returns the lse of its rows. */
async function probabilities(
  problem: Problem,
  precision: Precision,
  expressions: Expressions,
  head: Head,
  { p, raw }: Scratch,
  pace: Pace,
): Promise<Float64Array> {
  const { lenQ, lenK } = head.at;
  const lse = new Float64Array(lenQ);
  for (let i = 0; i < lenQ; i++) {
    scoreRow(problem, precision, head, i, p);
    raw?.set(p.subarray(i * lenK, (i + 1) * lenK), i * lenK);
    modifyRow(expressions, precision, head, i, p);
    lse[i] = softmaxRow(precision, head, i, p);
    await pace.row();
  }
  return lse;
}

/** Fills `ds` for a head, and adds up what does not need its products: dv [lenK, Dv], side gradients, the sink's. */
async function scoreGradients(
  problem: Problem,
  precision: Precision,
  expressions: Expressions,
  head: Head,
  operands: Operands,
  lse: Float64Array,
  { p, ds, raw, factors, weights }: Scratch,
  dv: Float64Array,
  sums: Sums,
  pace: Pace,
): Promise<void> {
  const { at, h, sink } = head;
  const { lenQ, lenK } = at;
  const { Dv, strides, dtype } = problem;
  const { single, step } = precision;
  const dO = gather(dataOf(operands.dOut!), DECODE[dtype], queryRows(at, strides.out, h), lenQ, Dv);
  const dLse = rowGradients(operands.dLse ?? null, queryRows(at, strides.lse, h));
  for (let i = 0; i < lenQ; i++) {
    const from = i * lenK;
    dropoutRow(problem, head, i, factors);
    weighted(precision, p, from, factors, weights, lenK);
    spread(weights, 0, dO, i * Dv, lenK, Dv, dv, single);
    dots(dO, i * Dv, head.v, lenK, Dv, ds, from, single);
    const delta = softmaxGradient(precision, p, ds, from, factors, lenK, dLse(i));
    // The sink's probability is exp(sink - lse) and its dP is 0.
    if (lse[i] !== Number.NEGATIVE_INFINITY)
      sums.dSink[h] = step(sums.dSink[h] - step(Math.exp(sink - lse[i]) * delta));
    if (raw !== null) modGradient(expressions, precision, head, i, raw, ds, sums.dSides);
    await pace.row();
  }
}

/** dLse of a head's row; 0 when lse is not differentiated through. */
function rowGradients(dLse: EngineTensor | null, address: (i: number) => number): (i: number) => number {
  if (dLse === null) return () => 0;
  const data = dataOf(dLse);
  return (i) => data[address(i)];
}

/** The probabilities that met V in forward: dropped and scaled. */
function weighted(
  { store }: Precision,
  p: Float64Array,
  from: number,
  factors: Float64Array,
  weights: Float64Array,
  n: number,
): void {
  for (let j = 0; j < n; j++) weights[j] = store(p[from + j] * factors[j]);
}

/**
 * Turns a row of dO V^T into the gradient of the modified scores, in place; 0 wherever the probability is 0.
 *
 * @returns rowsum(P * dP) - dLse
 */
function softmaxGradient(
  { store, step }: Precision,
  p: Float64Array,
  ds: Float64Array,
  from: number,
  factors: Float64Array,
  n: number,
  dLse: number,
): number {
  let delta = 0;
  for (let j = 0; j < n; j++) {
    const a = from + j;
    if (p[a] === 0) continue;
    ds[a] = factors[j] === 0 ? 0 : store(ds[a] * factors[j]);
    delta = step(delta + step(p[a] * ds[a]));
  }
  delta = step(delta - dLse);
  for (let a = from; a < from + n; a++) ds[a] = p[a] === 0 ? 0 : store(step(p[a] * step(ds[a] - delta)));
  return delta;
}

/** Adds the gradients of the side tensors, and carries ds from the modified score back to the scaled one. */
function modGradient(
  expressions: Expressions,
  { store, step }: Precision,
  head: Head,
  i: number,
  raw: Float64Array,
  ds: Float64Array,
  dSides: readonly (Float64Array | null)[],
): void {
  const { dScore, loads } = expressions;
  const point = pointOf(head, i);
  for (let j = 0; j < head.at.lenK; j++) {
    const a = i * head.at.lenK + j;
    if (ds[a] === 0) continue;
    point.kv = j;
    point.score = raw[a];
    for (const { side, address, partial } of loads) {
      const sum = dSides[side];
      if (sum === null) continue;
      const to = address(point);
      sum[to] = step(sum[to] + step(ds[a] * partial(point)));
    }
    if (dScore !== null) ds[a] = store(ds[a] * dScore(point));
  }
}

/** Rounds the sums into the gradients that were asked for. */
function write(problem: Problem, sums: Sums, operands: Operands): void {
  const scaled = (x: Float64Array): Float64Array => x.map((g) => g * problem.scale);
  if (operands.dq) store(scaled(sums.dq), operands.dq);
  if (operands.dk) store(scaled(sums.dk), operands.dk);
  if (operands.dv) store(sums.dv, operands.dv);
  if (operands.dSink) store(sums.dSink, operands.dSink);
  operands.dSides?.forEach((target, i) => {
    const sum = sums.dSides[i];
    if (target !== null && sum !== null) store(sum, target);
  });
}
