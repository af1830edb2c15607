/**
 * The error of a result on a few sampled rows and columns, against float64: linear in the sequence length a sample, so it
 * judges sizes at which the whole matrix could not be formed.
 */
import { toFloat64 } from '../core/dtype.ts';
import type { HostTensor } from '../core/tensor.ts';
import { derive } from '../mods/derive.ts';
import { compileEvaluator } from '../mods/evaluate.ts';
import type { Problem, Strides } from '../problem/problem.ts';

export interface ForwardTensors {
  readonly q: HostTensor;
  readonly k: HostTensor;
  readonly v: HostTensor;
  readonly out: HostTensor;
  readonly lse: HostTensor;
}

export interface BackwardTensors extends ForwardTensors {
  readonly dOut: HostTensor;
  readonly dq: HostTensor;
  readonly dk: HostTensor;
  readonly dv: HostTensor;
}

/** Largest absolute error of out or of the gradients, and the largest absolute value that it is to be seen beside. */
export interface SampledError {
  readonly error: number;
  readonly magnitude: number;
  /** Largest absolute error of the log-sum-exp; 0 for backward. */
  readonly lse: number;
}

/**
 * `samples` rows of out and lse, spread over batches, heads and positions.
 *
 * @param problem Without dropout; forward masks and mods of any kind.
 */
export function forwardError(problem: Problem, t: ForwardTensors, samples: number): SampledError {
  const view = new Rows(problem, t);
  const worst = new Worst();
  for (const [b, h, i] of spread(problem.B, problem.Hq, problem.Sq, samples)) {
    const { p, lse } = view.probabilities(b, h, i);
    const out = new Float64Array(problem.Dv);
    for (let j = 0; j < p.length; j++) if (p[j] !== 0) view.v.addTo(out, p[j], b, view.kvHead(h), j);
    worst.compare(out, view.out.row(b, h, i));
    worst.compareLse(lse, view.lse(b, h, i));
  }
  return worst;
}

/**
 * `samples` rows of dq, and as many of dk and dv. Those two need every query's probabilities, which are taken from the
 * result's own lse and out (judged by `forwardError`): their rounding is part of the error told.
 */
export function backwardError(problem: Problem, t: BackwardTensors, samples: number): SampledError {
  const view = new Rows(problem, t);
  const grads = new GradRows(problem, t, view);
  const worst = new Worst();
  for (const [b, h, i] of spread(problem.B, problem.Hq, problem.Sq, samples))
    worst.compare(grads.dq(b, h, i), new Accessor(t.dq, problem.strides.q, problem.D).row(b, h, i));
  for (const [b, h, j] of spread(problem.B, problem.Hkv, problem.Sk, Math.max(2, samples >> 2))) {
    const { dk, dv } = grads.dkv(b, h, j);
    worst.compare(dk, new Accessor(t.dk, problem.strides.k, problem.D).row(b, h, j));
    worst.compare(dv, new Accessor(t.dv, problem.strides.v, problem.Dv).row(b, h, j));
  }
  return worst;
}

class Worst implements SampledError {
  error = 0;
  magnitude = 0;
  lse = 0;

  compare(exact: ArrayLike<number>, got: ArrayLike<number>): void {
    for (let i = 0; i < exact.length; i++) {
      this.error = Math.max(this.error, difference(exact[i], got[i]));
      this.magnitude = Math.max(this.magnitude, Math.abs(exact[i]));
    }
  }

  compareLse(exact: number, got: number): void {
    this.lse = Math.max(this.lse, difference(exact, got));
  }
}

/** Equal infinities do not differ; a NaN is as wrong as can be. */
function difference(exact: number, got: number): number {
  const d = exact === got ? 0 : Math.abs(exact - got);
  return Number.isNaN(d) ? Number.POSITIVE_INFINITY : d;
}

/** Rows of a strided tensor as float64. */
class Accessor {
  readonly #data: Float64Array | HostTensor['data'];
  readonly #strides: Strides;
  readonly #size: number;

  constructor(t: HostTensor, strides: Strides, size: number) {
    this.#data = t.dtype === 'f32' || t.dtype === 'f64' ? t.data : toFloat64(t.dtype, t.data);
    this.#strides = strides;
    this.#size = size;
  }

  #at = (b: number, h: number, s: number): number => b * this.#strides.b + h * this.#strides.h + s * this.#strides.s;

  row(b: number, h: number, s: number): ArrayLike<number> {
    const at = this.#at(b, h, s);
    return this.#data.subarray(at, at + this.#size);
  }

  dot(x: ArrayLike<number>, b: number, h: number, s: number): number {
    const at = this.#at(b, h, s);
    let sum = 0;
    for (let d = 0; d < this.#size; d++) sum += x[d] * this.#data[at + d];
    return sum;
  }

  addTo(sum: Float64Array, factor: number, b: number, h: number, s: number): void {
    const at = this.#at(b, h, s);
    for (let d = 0; d < this.#size; d++) sum[d] += factor * this.#data[at + d];
  }
}

class Rows {
  readonly q: Accessor;
  readonly k: Accessor;
  readonly v: Accessor;
  readonly out: Accessor;
  readonly #problem: Problem;
  readonly #lse: HostTensor['data'];
  readonly #mod: ReturnType<typeof compileEvaluator> | null;
  readonly #mask: ReturnType<typeof compileEvaluator> | null;

  constructor(problem: Problem, t: ForwardTensors) {
    const { strides, D, Dv, mask, mod } = problem;
    this.#problem = problem;
    this.q = new Accessor(t.q, strides.q, D);
    this.k = new Accessor(t.k, strides.k, D);
    this.v = new Accessor(t.v, strides.v, Dv);
    this.out = new Accessor(t.out, strides.out, Dv);
    this.#lse = t.lse.data;
    this.#mod = mod === null ? null : compileEvaluator(mod.expr);
    this.#mask = mask === null ? null : compileEvaluator(mask.expr);
  }

  kvHead = (h: number): number => Math.floor(h / (this.#problem.Hq / this.#problem.Hkv));

  lse(b: number, h: number, i: number): number {
    const { strides } = this.#problem;
    return this.#lse[b * strides.lse.b + h * strides.lse.h + i];
  }

  /** scale * q . k, and the score after modifier and mask. */
  score(b: number, h: number, i: number, j: number): { raw: number; score: number } {
    const { scale, Sq: lenQ, Sk: lenK } = this.#problem;
    const at = { score: 0, b, h, q: i, kv: j, lenQ, lenK };
    if (this.#mask !== null && this.#mask(at) === 0) return { raw: 0, score: Number.NEGATIVE_INFINITY };
    const raw = scale * this.k.dot(this.q.row(b, h, i), b, this.kvHead(h), j);
    at.score = raw;
    return { raw, score: this.#mod === null ? raw : this.#mod(at) };
  }

  probabilities(b: number, h: number, i: number): { p: Float64Array; raw: Float64Array; lse: number } {
    const p = new Float64Array(this.#problem.Sk);
    const raw = new Float64Array(p.length);
    let max = Number.NEGATIVE_INFINITY;
    for (let j = 0; j < p.length; j++) {
      const one = this.score(b, h, i, j);
      raw[j] = one.raw;
      p[j] = one.score;
      max = Math.max(max, one.score);
    }
    if (max === Number.NEGATIVE_INFINITY) return { p: p.fill(0), raw, lse: max };
    let sum = 0;
    for (let j = 0; j < p.length; j++) sum += p[j] = Math.exp(p[j] - max);
    for (let j = 0; j < p.length; j++) p[j] /= sum;
    return { p, raw, lse: max + Math.log(sum) };
  }
}

class GradRows {
  readonly #problem: Problem;
  readonly #view: Rows;
  readonly #dOut: Accessor;
  readonly #slope: ReturnType<typeof compileEvaluator> | null;

  constructor(problem: Problem, t: BackwardTensors, view: Rows) {
    this.#problem = problem;
    this.#view = view;
    this.#dOut = new Accessor(t.dOut, problem.strides.out, problem.Dv);
    this.#slope = problem.mod === null ? null : compileEvaluator(derive(problem.mod.expr).dScore);
  }

  /** Gradient of q . k from that of the modified score. */
  #through(dScore: number, raw: number, b: number, h: number, i: number, j: number): number {
    const { scale, Sq: lenQ, Sk: lenK } = this.#problem;
    const slope = this.#slope === null ? 1 : this.#slope({ score: raw, b, h, q: i, kv: j, lenQ, lenK });
    return dScore * slope * scale;
  }

  dq(b: number, h: number, i: number): Float64Array {
    const { p, raw } = this.#view.probabilities(b, h, i);
    const dOut = this.#dOut.row(b, h, i);
    const kv = this.#view.kvHead(h);
    const dp = p.map((x, j) => (x === 0 ? 0 : this.#view.v.dot(dOut, b, kv, j)));
    const delta = p.reduce((sum, x, j) => sum + x * dp[j], 0);
    const dq = new Float64Array(this.#problem.D);
    for (let j = 0; j < p.length; j++)
      if (p[j] !== 0) this.#view.k.addTo(dq, this.#through(p[j] * (dp[j] - delta), raw[j], b, h, i, j), b, kv, j);
    return dq;
  }

  dkv(b: number, kv: number, j: number): { dk: Float64Array; dv: Float64Array } {
    const { Hq, Hkv, Sq, D, Dv } = this.#problem;
    const dk = new Float64Array(D);
    const dv = new Float64Array(Dv);
    const group = Hq / Hkv;
    for (let h = kv * group; h < (kv + 1) * group; h++)
      for (let i = 0; i < Sq; i++) {
        const { raw, score } = this.#view.score(b, h, i, j);
        if (score === Number.NEGATIVE_INFINITY) continue;
        const p = Math.exp(score - this.#view.lse(b, h, i));
        const dOut = this.#dOut.row(b, h, i);
        const delta = this.#view.out.row(b, h, i);
        let dot = 0;
        for (let d = 0; d < Dv; d++) dot += dOut[d] * delta[d];
        this.#dOut.addTo(dv, p, b, h, i);
        const dScore = p * (this.#view.v.dot(dOut, b, kv, j) - dot);
        this.#view.q.addTo(dk, this.#through(dScore, raw, b, h, i, j), b, h, i);
      }
    return { dk, dv };
  }
}

/** First and last positions, and others by a stride that visits heads and positions evenly. */
function* spread(B: number, H: number, S: number, samples: number): Generator<[b: number, h: number, s: number]> {
  const all = B * H * S;
  const n = Math.min(samples, all);
  for (let i = 0; i < n; i++) {
    const at = n === 1 ? all - 1 : Math.round((i * (all - 1)) / (n - 1));
    yield [Math.floor(at / (H * S)), Math.floor(at / S) % H, at % S];
  }
}
