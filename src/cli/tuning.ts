/** Times the candidates of a call's passes against each other on one engine: what `tilewise tune` keeps. */
import { attention } from '../api/attention.ts';
import { attentionWithGrads } from '../api/grads.ts';
import { createRequest } from '../api/request.ts';
import { toFloat64 } from '../core/dtype.ts';
import { type Refusal, UnsupportedError } from '../core/errors.ts';
import type { HostTensor } from '../core/tensor.ts';
import type { Engine, EngineTensor, Pass, Step } from '../engine/contract.ts';
import { candidateSteps, planOn } from '../plan/choose.ts';
import { type Candidate, sameCandidate, type TunedRecord, tunedKey } from '../plan/tuned.ts';
import { planId } from '../problem/id.ts';
import type { Problem } from '../problem/problem.ts';
import type { BenchTask } from './bench.ts';
import { randomTensor } from './shapes.ts';

/** One candidate. Times in seconds. */
export interface TuningRow extends Candidate {
  readonly predicted: number;
  /** Median over the rounds; null when it was not timed. */
  readonly seconds: number | null;
  readonly predictedBest: boolean;
  readonly winner: boolean;
  /** Why it was left out. */
  readonly error: string | null;
}

export interface Tuning {
  readonly id: string;
  readonly rows: readonly TuningRow[];
  /** What to keep; null when there is nothing to choose or nothing was timed. */
  readonly record: TunedRecord | null;
}

export interface TuningOptions {
  readonly rounds: number;
  readonly dry: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (share: number, what: string) => void;
}

/** A batch is repeated until it takes about this long, so that queueing and waiting weigh little. */
const BATCH_SECONDS = 0.02;
/** What the prediction would have chosen stays unless another is faster by more than noise. */
const NOISE = 1.01;
/** Candidates compute the same thing; more than this share of the largest value apart, one of them is wrong. */
const ROUGH = { f64: 1e-10, f32: 1e-4, f16: 1e-2, bf16: 6e-2 } as const;

/** The passes of a call, one after the other. @throws UnsupportedError when no engine serves it. */
export async function* tunings(
  engines: readonly Engine[],
  task: BenchTask,
  options: TuningOptions,
): AsyncGenerator<Tuning> {
  const { problem } = createRequest(task.q, task.k, task.v, task.options, task.grads ? {} : null);
  const refusals: Refusal[] = [];
  const engine = engines.find((e) => {
    const attempt = planOn(problem, e);
    refusals.push(...attempt.refusals);
    return attempt.plan !== null;
  });
  if (engine === undefined) throw new UnsupportedError('attention', refusals);
  const passes: readonly Pass[] = task.grads ? ['forward', 'backward'] : ['forward'];
  for (const [i, pass] of passes.entries()) {
    const steps = candidateSteps(problem, engine, pass, undefined, []);
    const predicted = planOn(problem, engine).plan?.[pass] as Step;
    const onProgress = (share: number): void =>
      options.onProgress?.((i + share) / passes.length, planId(engine.name, pass, problem));
    const timed =
      options.dry || steps.length < 2
        ? steps.map((): Timed => ({ seconds: null, error: null }))
        : await timeSteps(engine, task, pass, steps, { ...options, onProgress });
    yield tuningOf(engine, problem, pass, steps, predicted, timed);
  }
}

interface Timed {
  readonly seconds: number | null;
  readonly error: string | null;
}

function tuningOf(
  engine: Engine,
  problem: Problem,
  pass: Pass,
  steps: readonly Step[],
  predicted: Step,
  timed: readonly Timed[],
): Tuning {
  const secondsOf = (i: number): number => timed[i].seconds ?? Number.POSITIVE_INFINITY;
  const usual = steps.findIndex((s) => sameCandidate(s, predicted));
  let best = usual;
  for (const i of steps.keys()) if (secondsOf(i) * NOISE < secondsOf(best)) best = i;
  for (const i of steps.keys()) if (best !== usual && secondsOf(i) < secondsOf(best)) best = i;
  const id = planId(engine.name, pass, problem);
  const rows = steps.map(({ kernel, config, cost }, i) => ({
    ...{ kernel, config, predicted: cost.seconds, ...timed[i] },
    predictedBest: i === usual,
    winner: i === best && timed[i].seconds !== null,
  }));
  const { seconds } = timed[best];
  if (seconds === null) return { id, rows, record: null };
  const { kernel, config } = steps[best];
  const record: TunedRecord = {
    format: 'tilewise-tuned-1',
    key: tunedKey(engine, pass, problem, steps),
    winner: { kernel, config },
    seconds,
    measured: rows.map((r) => ({ kernel: r.kernel, config: r.config, seconds: r.seconds })),
    id,
    date: new Date().toISOString(),
  };
  return { id, rows, record };
}

/** A candidate that can be run again and again. `result` is a tensor of the last run, for comparing. */
interface Runner {
  run(): Promise<void>;
  result(): Promise<HostTensor>;
  dispose(): void;
}

/** Medians of interleaved rounds, so that what changes on the machine meanwhile meets every candidate alike. */
async function timeSteps(
  engine: Engine,
  task: BenchTask,
  pass: Pass,
  steps: readonly Step[],
  { rounds, signal, onProgress }: TuningOptions,
): Promise<Timed[]> {
  const resident = [task.q, task.k, task.v].map((t, i) => engine.upload(randomTensor(t, i + 1)));
  const runners: (Runner | null)[] = [];
  const errors: (string | null)[] = [];
  const times: number[][] = steps.map(() => []);
  const batches: number[] = [];
  let wanted: HostTensor | null = null;
  const timed = async (runner: Runner, times: number): Promise<number> => {
    const start = performance.now();
    for (let n = 0; n < times; n++) await runner.run();
    await engine.synchronize();
    return (performance.now() - start) / 1000 / times;
  };
  try {
    for (const [i, step] of steps.entries()) {
      signal?.throwIfAborted();
      onProgress?.(i / steps.length / 4, '');
      let runner: Runner | null = null;
      let error: string | null = null;
      try {
        runner = await runnerOf(engine, task, pass, step, resident);
        await timed(runner, 1);
        const result = await runner.result();
        wanted ??= result;
        if (!agree(result, wanted)) error = 'differs from the first one';
        else batches[i] = Math.max(1, Math.min(100, Math.round(BATCH_SECONDS / (await timed(runner, 1)))));
      } catch (cause) {
        error = cause instanceof Error ? cause.message.split('\n')[0] : String(cause);
      }
      if (error !== null) runner?.dispose();
      runners.push(error === null ? runner : null);
      errors.push(error);
    }
    for (let round = 0; round < rounds; round++)
      for (const i of steps.keys()) {
        signal?.throwIfAborted();
        // Each round starts with another one: nobody always follows the same neighbour.
        const at = (i + round) % steps.length;
        const runner = runners[at];
        if (runner !== null) times[at].push(await timed(runner, batches[at]));
        onProgress?.(0.25 + (0.75 * (round + (i + 1) / steps.length)) / rounds, '');
      }
  } finally {
    for (const runner of runners) runner?.dispose();
    for (const t of resident) t.dispose();
  }
  return steps.map((_, i) => {
    const sorted = times[i].sort((a, b) => a - b);
    return { seconds: sorted[sorted.length >> 1] ?? null, error: errors[i] };
  });
}

async function runnerOf(
  engine: Engine,
  task: BenchTask,
  pass: Pass,
  { kernel, config }: Step,
  [q, k, v]: readonly EngineTensor[],
): Promise<Runner> {
  const options = { ...task.options, engine, prefer: { [pass]: { kernel, config, exact: true } } };
  let last: readonly (EngineTensor | null)[] = [];
  const keep = (results: readonly (EngineTensor | null)[]): void => {
    for (const t of last) t?.dispose();
    last = results;
  };
  const result = (): Promise<HostTensor> => (last.find((t) => t !== null) as EngineTensor).read();
  if (pass === 'forward')
    return {
      run: async () => {
        const { out, lse } = await attention(q, k, v, options);
        keep([out, lse]);
      },
      result,
      dispose: () => keep([]),
    };
  const session = await attentionWithGrads(q, k, v, options);
  const dOut = engine.upload(randomTensor(session.out, 4));
  return {
    run: async () => {
      const { dq, dk, dv, dSink, dSides } = await session.backward(dOut);
      keep([dq, dk, dv, dSink, ...dSides.values()]);
    },
    result,
    dispose: () => {
      keep([]);
      for (const t of [dOut, session.out, session.lse]) t.dispose();
      session.dispose();
    },
  };
}

function agree(a: HostTensor, b: HostTensor): boolean {
  const [x, y] = [toFloat64(a.dtype, a.data), toFloat64(b.dtype, b.data)];
  let [largest, apart] = [0, 0];
  for (let i = 0; i < x.length; i++) {
    largest = Math.max(largest, Math.abs(y[i]));
    // NaN is never close.
    if (!(Math.abs(x[i] - y[i]) <= apart)) apart = Math.abs(x[i] - y[i]);
  }
  return apart <= ROUGH[a.dtype as keyof typeof ROUGH] * Math.max(largest, 1e-3);
}
