/** Checks a call and times it on one engine, with tensors already there: what `bench` and the demo report. */
import { type AttentionResult, attention } from '../api/attention.ts';
import { explain } from '../api/explain.ts';
import { type AttentionWithGrads, attentionWithGrads, type GradientsOf } from '../api/grads.ts';
import type { AttentionOptions } from '../api/options.ts';
import { createRequest } from '../api/request.ts';
import type { FloatDType } from '../core/dtype.ts';
import { bytesOf, type HostTensor } from '../core/tensor.ts';
import type { Engine, EngineTensor, Pass } from '../engine/contract.ts';
import type { Plan } from '../plan/plan.ts';
import { flopsOf } from '../problem/cost.ts';
import type { Problem } from '../problem/problem.ts';
import { backwardError, forwardError, type SampledError } from './sampled.ts';
import { randomTensor } from './shapes.ts';

export interface Task {
  readonly q: HostTensor;
  readonly k: HostTensor;
  readonly v: HostTensor;
  readonly options: AttentionOptions;
  /** Backward too, for q, k, v and every other tensor that has a gradient. */
  readonly grads: boolean;
}

export interface MeasureOptions {
  /** Seconds to repeat a pass for, three times at least; a first run four times as long is the only one. Default 1. */
  readonly seconds?: number;
  /** Sampled rows that are checked; 0 checks nothing. Default 24. */
  readonly samples?: number;
  readonly signal?: AbortSignal;
  /** Share of the whole measurement, as far as it can be told. */
  readonly onProgress?: (share: number) => void;
}

/** One pass. Times in seconds, of runs after the first unless there was only one. */
export interface Timing {
  readonly pass: Pass;
  readonly kernel: string;
  readonly flops: number;
  readonly median: number;
  readonly best: number;
  readonly runs: number;
  /**
   * Most bytes the engine held during the first run beyond inputs, outputs and gradients; the plan's figure for engines
   * that do not count their workspace.
   */
  readonly scratch: number;
  /** Against float64 on sampled rows; null when not checked. */
  readonly check: SampledError | null;
}

export interface Measurement {
  readonly problem: Problem;
  readonly plan: Plan;
  readonly forward: Timing;
  readonly backward: Timing | null;
}

/** Errors beyond this share of the largest value are defects, not rounding; the conformance suite judges finely. */
const ROUGH: Readonly<Record<FloatDType, number>> = { f64: 1e-12, f32: 2e-5, f16: 4e-3, bf16: 3e-2 };

/** Whether a check is within what rounding explains. */
export const plausible = (dtype: FloatDType, { error, magnitude, lse }: SampledError): boolean =>
  error <= ROUGH[dtype] * Math.max(magnitude, 1e-3) && lse <= ROUGH[dtype];

/** @throws what the calls throw; nothing stays allocated. */
export async function measure(engine: Engine, task: Task, options: MeasureOptions = {}): Promise<Measurement> {
  const { samples = 24, seconds = 1, signal } = options;
  const settings = { ...task.options, engine, ...(signal && { signal }) };
  // Compiles, so that the first run is worth timing.
  const { plan } = await explain(task.q, task.k, task.v, { ...settings, ...(task.grads && { grads: {} }) });
  const { problem } = createRequest(task.q, task.k, task.v, task.options, task.grads ? {} : null);
  const sides = problem.sides.reduce((n, t) => n + bytesOf(t), 0);
  const live = new Set<EngineTensor>();
  const own = <T extends EngineTensor | null>(t: T): T => {
    if (t !== null) live.add(t);
    return t;
  };
  const drop = (t: EngineTensor | null): void => {
    if (t !== null && live.delete(t)) t.dispose();
  };
  const advance = (from: number) => (share: number) => options.onProgress?.((from + share) / (task.grads ? 2 : 1));
  let run: AttentionResult<EngineTensor> | AttentionWithGrads<EngineTensor> | undefined;
  const finish = (): void => {
    if (run !== undefined && 'dispose' in run) run.dispose();
    run = undefined;
  };
  try {
    const [q, k, v] = [task.q, task.k, task.v].map((t) => own(engine.upload(t)));
    const forward = await timed(engine, seconds, advance(0), async (watch) => {
      drop(run?.out ?? null);
      drop(run?.lse ?? null);
      finish();
      const call = { ...settings, ...watch };
      run = await (task.grads ? attentionWithGrads(q, k, v, call) : attention(q, k, v, call));
      return bytesOf(own(run.out)) + bytesOf(own(run.lse)) + sides;
    });
    const kept = run as AttentionResult<EngineTensor> | AttentionWithGrads<EngineTensor>;
    const host = { q: task.q, k: task.k, v: task.v, out: await kept.out.read(), lse: await kept.lse.read() };
    const first: Timing = {
      pass: 'forward',
      kernel: plan.forward.kernel,
      flops: flopsOf(problem, 'forward'),
      ...forward,
      scratch: forward.scratch || plan.forward.cost.workspace,
      check: samples === 0 ? null : forwardError(problem, host, samples),
    };
    if (!('backward' in kept)) return { problem, plan, forward: first, backward: null };

    const dOutHost = randomTensor(host.out, 4);
    const dOut = own(engine.upload(dOutHost));
    let grads: GradientsOf<EngineTensor> | undefined;
    const all = (): (EngineTensor | null)[] =>
      grads === undefined ? [] : [grads.dq, grads.dk, grads.dv, grads.dSink, ...grads.dSides.values()];
    const backward = await timed(engine, seconds, advance(1), async (watch) => {
      for (const t of all()) drop(t);
      grads = await kept.backward(dOut, null, { ...(signal && { signal }), ...watch });
      return all().reduce((n, t) => n + (own(t) === null ? 0 : bytesOf(t as EngineTensor)), 0);
    });
    const [dq, dk, dv] = await Promise.all(
      all()
        .slice(0, 3)
        .map((t) => (t as EngineTensor).read()),
    );
    const second: Timing = {
      pass: 'backward',
      kernel: plan.backward?.kernel ?? '',
      flops: flopsOf(problem, 'backward'),
      ...backward,
      scratch: backward.scratch || (plan.backward?.cost.workspace ?? 0),
      check: samples === 0 ? null : backwardError(problem, { ...host, dOut: dOutHost, dq, dk, dv }, samples),
    };
    return { problem, plan, forward: first, backward: second };
  } finally {
    finish();
    for (const t of [...live]) drop(t);
  }
}

interface Times {
  readonly median: number;
  readonly best: number;
  readonly runs: number;
  readonly scratch: number;
}

type Watch = { readonly onProgress?: (share: number) => void };

/** A first run, watched for memory, then runs until the time is spent. `run` tells the bytes of what it leaves behind. */
async function timed(
  engine: Engine,
  budget: number,
  advance: (share: number) => void,
  run: (watch: Watch) => Promise<number>,
): Promise<Times> {
  const before = engine.bytesInUse;
  let most = before;
  let kept = 0;
  const once = async (watch: Watch): Promise<number> => {
    const start = performance.now();
    kept = await run(watch);
    await engine.synchronize();
    return (performance.now() - start) / 1000;
  };
  const watch = (share: number): void => {
    most = Math.max(most, engine.bytesInUse);
    advance(share / 2);
  };
  const first = await once({ onProgress: watch });
  const scratch = Math.max(0, most - before - kept);
  const times: number[] = [];
  let spent = 0;
  // A first run that was a little long may have been unlucky, so it is not left alone; a very long one is.
  while ((first < budget && spent < budget && times.length < 1000) || (first < 4 * budget && times.length < 3)) {
    times.push(await once({}));
    spent += times[times.length - 1];
    advance(0.5 + Math.min(spent / budget, 1) / 2);
  }
  if (times.length === 0) times.push(first);
  const sorted = [...times].sort((a, b) => a - b);
  return { median: sorted[sorted.length >> 1], best: sorted[0], runs: times.length, scratch };
}
