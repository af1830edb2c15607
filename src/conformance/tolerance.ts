/**
 * The precision rule: an engine's error against float64 is at most twice the error of standard attention computed in the same
 * storage type, plus a rounding floor; infinities and NaN are where float64 has them.
 */
import { type FloatDType, toFloat64, UNIT_ROUNDOFF } from '../core/dtype.ts';
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

/**
 * Sizes of the intermediates whose rounding reaches an output, by output name. Backward subtracts delta = rowsum(dOut * out) from
 * dP, and the two may cancel: what is left is only as good as one rounding of the terms of delta, whose root sum square this is.
 *
 * @param exact the forward results in float64.
 */
export function scalesOf(
  problem: Problem,
  inputs: Inputs,
  exact: ReadonlyMap<string, HostTensor>,
): (name: string) => number {
  const { dOut } = inputs;
  if (dOut === null) return (name) => (name === 'lse' ? 1 : 0);
  const out = exact.get('out')!.data;
  const given = toFloat64(dOut.dtype, dOut.data);
  let delta = 0;
  eachRow(problem, 'query', problem.strides.out, (a) => {
    let squares = 0;
    for (let d = 0; d < problem.Dv; d++) squares += (given[a + d] * out[a + d]) ** 2;
    delta = Math.max(delta, Math.sqrt(squares));
  });
  const reach = Math.abs(problem.scale) * delta;
  return (name) => {
    switch (name) {
      case 'out':
      case 'dv':
        return 0;
      case 'lse':
        return 1;
      case 'dq':
        return reach * largest(inputs.k);
      case 'dk':
        return reach * largest(inputs.q);
      default:
        return delta;
    }
  };
}

const largest = (t: HostTensor): number =>
  toFloat64(t.dtype, t.data).reduce((most, x) => Math.max(most, Math.abs(x) || 0), 0);

/**
 * Judges one output tensor. All tensors have the output's shape; `exact` is f64; `storage` is the problem's dtype and `scale` what
 * `scalesOf` says.
 */
export function judge(
  name: string,
  output: Output,
  got: HostTensor,
  exact: HostTensor,
  standard: HostTensor,
  storage: FloatDType,
  scale: number,
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
  const summed = UNIT_ROUNDOFF[storage === 'f64' ? 'f64' : 'f32'];
  const stored = name === 'lse' ? summed : UNIT_ROUNDOFF[storage];
  const floor = (STORED_STEPS * stored + SUMMED_STEPS * summed) * (top + scale);
  const allowed = ERRORS_OF_STANDARD * theirs + floor;
  const ok = error <= allowed;
  return {
    ok,
    error,
    allowed,
    message: ok ? null : `${name}: error ${error.toExponential(2)}, allowed ${allowed.toExponential(2)}`,
  };
}
