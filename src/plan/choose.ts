/**
 * From a problem and engines in order to a plan. Knows engines only through the contract: the first engine with a kernel
 * for every pass wins, and among its kernels and configurations the one measured fastest on this device, if somebody measured
 * them (tuned.ts), else the lowest predicted time. Refusals travel as values.
 */
import { type Refusal, UnsupportedError } from '../core/errors.ts';
import type { Config, Cost, Engine, Pass, Step } from '../engine/contract.ts';
import { standardCost } from '../problem/cost.ts';
import { planId } from '../problem/id.ts';
import type { Problem } from '../problem/problem.ts';
import type { Plan } from './plan.ts';
import { sameCandidate, type Tuned, tunedKey } from './tuned.ts';

/** Narrows a pass to one kernel, or to one configuration of it, for benches and tests. `refuse` still has its say. */
export interface StepPreference {
  readonly kernel?: string;
  /** Fields that a configuration must have, or, with `exact`, the whole configuration as it stands. */
  readonly config?: Config;
  readonly exact?: boolean;
}

export type Preferences = { readonly [P in Pass]?: StepPreference };

/** What one engine said to a problem. `plan` is null when a pass found no kernel; `refusals` are kept either way. */
export interface Attempt {
  readonly plan: Plan | null;
  readonly refusals: readonly Refusal[];
}

/**
 * The plan of the first engine, in the order given, that serves every pass the problem asks for.
 *
 * @throws UnsupportedError with every refusal when there is none.
 */
export function choosePlan(
  problem: Problem,
  engines: readonly Engine[],
  options: { readonly prefer?: Preferences; readonly tuned?: Tuned | null } = {},
): Plan {
  let refusals: readonly Refusal[] = [];
  for (const engine of engines) {
    const attempt = planOn(problem, engine, options.prefer, refusals, options.tuned);
    if (attempt.plan !== null) return attempt.plan;
    refusals = attempt.refusals;
  }
  throw new UnsupportedError('attention', refusals);
}

/**
 * Plans on one engine; `earlier` are the refusals of engines tried before, kept in front. A pass with a preference is not looked
 * up in `tuned`.
 */
export function planOn(
  problem: Problem,
  engine: Engine,
  prefer: Preferences = {},
  earlier: readonly Refusal[] = [],
  tuned: Tuned | null = null,
): Attempt {
  const refusals = [...earlier];
  const forward = bestStep(problem, engine, 'forward', prefer.forward, refusals, tuned);
  const backward =
    problem.grads === null || forward === null
      ? null
      : bestStep(problem, engine, 'backward', prefer.backward, refusals, tuned);
  if (forward === null || (problem.grads !== null && backward === null)) return { plan: null, refusals };
  const plan: Plan = Object.freeze({
    id: planId(engine.name, backward === null ? 'forward' : 'backward', problem),
    engine: engine.name,
    forward,
    backward,
    standard: standardCost(problem),
    refusals: Object.freeze(refusals),
  });
  return { plan, refusals };
}

function bestStep(
  problem: Problem,
  engine: Engine,
  pass: Pass,
  prefer: StepPreference | undefined,
  refusals: Refusal[],
  tuned: Tuned | null,
): Step | null {
  const steps = candidateSteps(problem, engine, pass, prefer, refusals);
  const record =
    tuned === null || tuned.size === 0 || prefer !== undefined || steps.length < 2
      ? null
      : tuned.find(tunedKey(engine, pass, problem, steps));
  const measured = record === null ? undefined : steps.find((step) => sameCandidate(step, record.winner));
  if (record !== null && measured !== undefined && fits(measured.cost, engine))
    return { ...measured, measured: record.seconds };
  return steps.reduce<Step | null>(
    (best, step) => (best === null || rank(step.cost, engine) < rank(best.cost, engine) ? step : best),
    null,
  );
}

/** Every kernel of a pass that serves the problem in every configuration it has for it; the others' reasons go to `refusals`. */
export function candidateSteps(
  problem: Problem,
  engine: Engine,
  pass: Pass,
  prefer: StepPreference | undefined,
  refusals: Refusal[],
): Step[] {
  const steps: Step[] = [];
  let tried = false;
  for (const kernel of engine.kernels) {
    if (kernel.pass !== pass || (prefer?.kernel !== undefined && kernel.name !== prefer.kernel)) continue;
    tried = true;
    const reason = kernel.refuse(problem, engine.caps);
    if (reason !== null) {
      refusals.push({ engine: engine.name, kernel: kernel.name, reason });
      continue;
    }
    const configs =
      prefer?.exact === true && prefer.config !== undefined
        ? [prefer.config]
        : kernel.configs(problem, engine.caps).filter((c) => matches(c, prefer?.config));
    if (configs.length === 0)
      refusals.push({ engine: engine.name, kernel: kernel.name, reason: 'has no such configuration' });
    for (const config of configs)
      steps.push({ pass, kernel: kernel.name, config, cost: kernel.cost(problem, config, engine.caps) });
  }
  if (!tried) {
    const wanted = prefer?.kernel === undefined ? '' : ` '${prefer.kernel}'`;
    refusals.push({ engine: engine.name, reason: `has no ${pass} kernel${wanted}` });
  }
  return steps;
}

const fits = (cost: Cost, engine: Engine): boolean => cost.workspace <= engine.caps.memory;

/** Scratch that cannot fit comes last, but is not refused: a part of the call may need less. */
const rank = (cost: Cost, engine: Engine): number => (fits(cost, engine) ? cost.seconds : Number.MAX_VALUE);

const matches = (config: Config, wanted: Config | undefined): boolean =>
  wanted === undefined || Object.entries(wanted).every(([name, value]) => config[name] === value);
