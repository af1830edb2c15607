/**
 * The precision rule: an engine's error against float64 is at most twice the error of standard attention computed in the same
 * storage type, plus a rounding floor; infinities and NaN are where float64 has them.
 */
import { toFloat64, UNIT_ROUNDOFF } from '../core/dtype.ts';
import type { HostTensor } from '../core/tensor.ts';
import type { Problem } from '../problem/problem.ts';
import { eachRow, type Inputs, type Output } from './spec.ts';

export interface Verdict {
  readonly ok: boolean;
  /** Largest absolute error. */
  readonly error: number;
  readonly allowed: number;
  /** What is wrong, for people; null when ok. */
  readonly message: string | null;
}

/** Standard attention's error may vanish by luck (one key, one query); an engine's rounding does not, hence the floor. */
const ERRORS_OF_STANDARD = 2;
/** Roundoffs that are granted besides: of the storage type, and of the type sums are held in. */
const STORED_STEPS = 2;
const SUMMED_STEPS = 4;

/** The rounding floor of an output, by its name and its largest element. */
export type Floor = (name: string, largest: number) => number;

/**
 * The floor counts roundoffs of the largest result, and in backward of two things more that no engine can avoid. It subtracts
 * delta = rowsum(dOut * out) from dP, and the two may cancel: what is left is only as good as a rounding of the terms of delta, whose root
 * sum square `delta` is. And it recomputes probabilities as exp(score - lse) from an lse stored in float32, so that each is off by a
 * factor of roundoff * |lse|.
 *
 * @param exact the forward results in float64.
 */
export function floorOf(problem: Problem, inputs: Inputs, exact: ReadonlyMap<string, HostTensor>): Floor {
  const { dOut } = inputs;
  const summed = UNIT_ROUNDOFF[problem.dtype === 'f64' ? 'f64' : 'f32'];
  const forward = STORED_STEPS * UNIT_ROUNDOFF[problem.dtype] + SUMMED_STEPS * summed;
  const backward = forward + summed * largest(exact.get('lse')!);
  const delta = dOut === null ? 0 : largestDelta(problem, dOut, exact.get('out')!);
  const reach = Math.abs(problem.scale) * delta;
  return (name, top) => {
    switch (name) {
      case 'out':
        return forward * top;
      case 'lse':
        return (STORED_STEPS + SUMMED_STEPS) * summed * (top + 1);
      case 'dv':
        return backward * top;
      case 'dq':
        return backward * (top + reach * largest(inputs.k));
      case 'dk':
        return backward * (top + reach * largest(inputs.q));
      default:
        return backward * (top + delta);
    }
  };
}

/** Largest root sum square of dOut * out over the rows. */
function largestDelta(problem: Problem, dOut: HostTensor, out: HostTensor): number {
  const given = toFloat64(dOut.dtype, dOut.data);
  let most = 0;
  eachRow(problem, 'query', problem.strides.out, (a) => {
    let squares = 0;
    for (let d = 0; d < problem.Dv; d++) squares += (given[a + d] * out.data[a + d]) ** 2;
    most = Math.max(most, Math.sqrt(squares));
  });
  return most;
}

/** Largest finite absolute value. */
const largest = (t: HostTensor): number =>
  toFloat64(t.dtype, t.data).reduce((most, x) => (Number.isFinite(x) ? Math.max(most, Math.abs(x)) : most), 0);

/** Judges one output tensor. All tensors have the output's shape; `exact` is f64. */
export function judge(
  name: string,
  output: Output,
  got: HostTensor,
  exact: HostTensor,
  standard: HostTensor,
  floor: Floor,
): Verdict {
  const x = toFloat64(got.dtype, got.data);
  const y = toFloat64(exact.dtype, exact.data);
  const z = toFloat64(standard.dtype, standard.data);
  let error = 0;
  let theirs = 0;
  let top = 0;
  for (let a = 0; a < x.length; a++) {
    if (output.covered[a] === 0) continue;
    if (!Number.isFinite(y[a])) {
      if (Object.is(x[a], y[a])) continue;
      return { ok: false, error: Number.NaN, allowed: 0, message: `${name}[${a}]: expected ${y[a]}, got ${x[a]}` };
    }
    if (!Number.isFinite(x[a]))
      return { ok: false, error: Number.NaN, allowed: 0, message: `${name}[${a}]: expected ${y[a]}, got ${x[a]}` };
    error = Math.max(error, Math.abs(x[a] - y[a]));
    if (Number.isFinite(z[a])) theirs = Math.max(theirs, Math.abs(z[a] - y[a]));
    top = Math.max(top, Math.abs(y[a]));
  }
  const allowed = ERRORS_OF_STANDARD * theirs + floor(name, top);
  const ok = error <= allowed;
  return {
    ok,
    error,
    allowed,
    message: ok ? null : `${name}: error ${error.toExponential(2)}, allowed ${allowed.toExponential(2)}`,
  };
}
