/** Runs cases of the conformance table on an engine: the same judge for the test runner and for `tilewise check`. */
import { openEngine } from '../api/registry.ts';
import { toFloat64 } from '../core/dtype.ts';
import type { Refusal } from '../core/errors.ts';
import { type HostTensor, tensor } from '../core/tensor.ts';
import type { Engine, Pass } from '../engine/contract.ts';
import { choosePlan, type Preferences, planOn } from '../plan/choose.ts';
import type { Plan } from '../plan/plan.ts';
import { createProblem, type Problem } from '../problem/problem.ts';
import type { Case } from './cases.ts';
import { checkSameBits, checkUntouched, type Outputs, type Results, Run } from './execute.ts';
import { SKIPS, type Skip } from './skips.ts';
import { type Inputs, instantiate, outputsOf } from './spec.ts';
import { type Floor, floorOf, judge } from './tolerance.ts';

/** What one pass of a case came to. */
export interface CaseResult {
  readonly id: string;
  readonly engine: string;
  readonly pass: Pass;
  readonly ok: boolean;
  /** Largest absolute error of the output that came closest to, or furthest over, what it is allowed. */
  readonly maxError: number;
  readonly allowed: number;
  /** Milliseconds of the second run. */
  readonly ms: number;
  /** Kernel that served it; absent when skipped. */
  readonly kernel?: string;
  /** Why it was not judged: the engine's refusal, or the skip list. */
  readonly skipped?: string;
  /** What is wrong, when not ok. */
  readonly message?: string;
}

/** Float64 and storage-precision results of a case, for any number of engines. */
interface Expected {
  readonly exact: Results;
  readonly standard: Results;
  readonly floor: Floor;
}

export interface RunCaseOptions {
  /** Instead of the skip list. */
  readonly skips?: readonly Skip[];
  /** Narrows the plan to a kernel or a configuration. */
  readonly prefer?: Preferences;
}

/**
 * Runs both passes of a case; forward alone when the case asks for no gradients, or when the engine has no kernel for backward, which is
 * then reported as skipped. @throws only when the harness itself is broken.
 */
export async function runCase(one: Case, engine: Engine, options: RunCaseOptions = {}): Promise<CaseResult[]> {
  const { skips = SKIPS, prefer } = options;
  const { problem, inputs } = instantiate(one.id, one.spec);
  const outputs = outputsOf(problem, one.spec);
  const listed = skips.find((skip) => skip.engine === engine.name && skip.id === one.id)?.reason ?? null;
  const whole = planOn(problem, engine, prefer);
  const results =
    whole.plan !== null
      ? await attempt(one, engine, whole.plan, problem, inputs, outputs)
      : await attemptForward(one, engine, problem, inputs, outputs, whole.refusals, prefer);
  if (listed === null) return results;
  if (results.every((r) => r.ok))
    return results.map((r) => ({ ...r, ok: false, message: `passes, but is on the skip list: ${listed}` }));
  return results.map((r) => skipped(one, engine, r.pass, listed));
}

async function attemptForward(
  one: Case,
  engine: Engine,
  problem: Problem,
  inputs: Inputs,
  outputs: Outputs,
  refusals: readonly Refusal[],
  prefer: Preferences | undefined,
): Promise<CaseResult[]> {
  const reason = (list: readonly Refusal[]): string =>
    list.map((r) => (r.kernel === undefined ? r.reason : `${r.kernel}: ${r.reason}`)).join('; ');
  if (problem.grads === null) return [skipped(one, engine, 'forward', reason(refusals))];
  const alone = createProblem({ ...problem, grads: null });
  const { plan, refusals: of } = planOn(alone, engine, prefer);
  const backward = skipped(one, engine, 'backward', reason(refusals));
  if (plan === null) return [skipped(one, engine, 'forward', reason(of)), backward];
  const given: Inputs = { ...inputs, dOut: null, dLse: null };
  return [...(await attempt(one, engine, plan, alone, given, { ...outputs, backward: new Map() })), backward];
}

async function attempt(
  one: Case,
  engine: Engine,
  plan: Plan,
  problem: Problem,
  inputs: Inputs,
  outputs: Outputs,
): Promise<CaseResult[]> {
  const expected = await expectedOf(one);
  const run = new Run(engine, problem, inputs, outputs);
  const results: CaseResult[] = [];
  try {
    for (const step of [plan.forward, plan.backward]) {
      if (step === null) continue;
      const base = { id: one.id, engine: engine.name, pass: step.pass, kernel: step.kernel };
      try {
        const first = await run.pass(step);
        const second = await run.pass(step);
        const verdict = judgeAll(outputs[step.pass], second.results, expected);
        const message =
          checkSameBits(first.results, second.results) ?? guards(outputs[step.pass], second.results) ?? verdict.message;
        const { error, allowed } = verdict;
        const result = { ...base, ok: message === null, maxError: error, allowed, ms: second.seconds * 1000 };
        results.push(message === null ? result : { ...result, message });
      } catch (error) {
        const message = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
        results.push({ ...base, ok: false, maxError: Number.NaN, allowed: 0, ms: 0, message });
      }
    }
  } finally {
    run.dispose();
  }
  return results;
}

const skipped = (one: Case, engine: Engine, pass: Pass, reason: string): CaseResult => ({
  id: one.id,
  engine: engine.name,
  pass,
  ok: true,
  maxError: 0,
  allowed: 0,
  ms: 0,
  skipped: reason,
});

function guards(outputs: Outputs[Pass], results: Results): string | null {
  for (const [name, output] of outputs) {
    const message = checkUntouched(name, output, results.get(name)!);
    if (message !== null) return message;
  }
  return null;
}

function judgeAll(outputs: Outputs[Pass], results: Results, { exact, standard, floor }: Expected) {
  let worst = { ok: true, error: 0, allowed: 0, message: null as string | null };
  let share = -1;
  for (const [name, output] of outputs) {
    const verdict = judge(name, output, results.get(name)!, exact.get(name)!, standard.get(name)!, floor);
    const used =
      verdict.error === 0
        ? 0
        : Number.isNaN(verdict.error)
          ? Number.POSITIVE_INFINITY
          : verdict.error / verdict.allowed;
    if (used > share) {
      share = used;
      worst = verdict;
    }
  }
  return worst;
}

const remembered = new WeakMap<Case, Promise<Expected>>();

function expectedOf(one: Case): Promise<Expected> {
  let expected = remembered.get(one);
  if (expected === undefined) {
    const { problem, inputs } = instantiate(one.id, one.spec);
    expected = expect(problem, inputs, outputsOf(problem, one.spec), one.spec.nanResults ?? false);
    remembered.set(one, expected);
  }
  return expected;
}

async function expect(problem: Problem, inputs: Inputs, outputs: Outputs, nan: boolean): Promise<Expected> {
  const wide = (t: HostTensor): HostTensor => tensor(toFloat64(t.dtype, t.data), t.shape, 'f64');
  const maybe = (t: HostTensor | null): HostTensor | null => t && wide(t);
  const wideInputs: Inputs = {
    q: wide(inputs.q),
    k: wide(inputs.k),
    v: wide(inputs.v),
    sides: inputs.sides,
    sink: maybe(inputs.sink),
    dOut: maybe(inputs.dOut),
    dLse: maybe(inputs.dLse),
  };
  const widen = (map: Outputs[Pass]): Outputs[Pass] =>
    new Map([...map].map(([name, output]) => [name, { ...output, dtype: 'f64' as const }]));
  const wideOutputs: Outputs = { forward: widen(outputs.forward), backward: widen(outputs.backward) };
  const exact = await resultsOf('float64', createProblem({ ...problem, dtype: 'f64' }), wideInputs, wideOutputs);
  const standard = await resultsOf('storage', problem, inputs, outputs);
  // Where a case does not mean to give NaN, an oracle with one would only let an engine's NaN pass.
  for (const [name, { covered }] of [...outputs.forward, ...outputs.backward])
    if (exact.get(name)!.data.some((x, i) => covered[i] === 1 && Number.isNaN(x)) && !nan)
      throw new Error(`the oracle's ${name} holds NaN`);
  return { exact, standard, floor: floorOf(problem, inputs, exact) };
}

async function resultsOf(
  intermediates: 'float64' | 'storage',
  problem: Problem,
  inputs: Inputs,
  outputs: Outputs,
): Promise<Results> {
  const engine = await openEngine('reference', { intermediates });
  try {
    const plan = choosePlan(problem, [engine]);
    const run = new Run(engine, problem, inputs, outputs);
    const { results } = await run.pass(plan.forward);
    if (plan.backward === null) return results;
    return new Map([...results, ...(await run.pass(plan.backward)).results]);
  } finally {
    await engine.close();
  }
}
