/** Sequence lengths, full and causal, Tilewise beside standard attention. */
import { explain } from '../src/api/explain.ts';
import type { AttentionOptions } from '../src/api/options.ts';
import { type Measurement, measure } from '../src/cli/measure.ts';
import { randomTensor } from '../src/cli/shapes.ts';
import { progress } from '../src/cli/terminal.ts';
import type { HostTensor } from '../src/core/tensor.ts';
import type { Engine } from '../src/engine/contract.ts';
import type { Standard } from './opponent.ts';

const H = 8;
const D = 64;

export interface SweepTask {
  readonly n: number;
  readonly causal: boolean;
  readonly grads: boolean;
  /** Seconds to repeat a pass for. */
  readonly repeat: number;
  /** Seconds expected for each side, repetitions included. */
  readonly expected: number;
}

/** What one side came to: measured, or the reason why not. */
export type Outcome =
  | { readonly kind: 'measured'; readonly result: Measurement }
  /** Its matrices would not fit the budget. */
  | { readonly kind: 'refused' }
  | { readonly kind: 'left out'; readonly why: string };

export interface SweepRow {
  readonly task: SweepTask;
  readonly tilewise: Outcome;
  readonly standard: Outcome;
  /** Bytes that standard attention's N x N matrices take. */
  readonly matrices: number;
}

export interface SweepSettings {
  readonly engine: Engine;
  readonly standard: Standard;
  /** Bytes of N x N matrices that standard attention may have. */
  readonly budget: number;
  /** FLOP/s that forward was measured at. */
  readonly rate: number;
  /** performance.now() after which no task may be expected to end. */
  readonly deadline: number;
}

/** Lengths from short to long; the longest forward alone. `rate` in FLOP/s turns work into expected seconds. */
export function planSweep(quick: boolean, rate: number): SweepTask[] {
  const lengths = quick ? [128, 512, 1024, 4096, 16384] : [128, 512, 1024, 4096, 16384, 65536];
  const repeat = quick ? 0.3 : 1;
  return lengths.flatMap((n) =>
    [true, false].map((causal) => {
      const grads = n < lengths[lengths.length - 1];
      const once = (4 * H * n * n * D * (causal ? 0.5 : 1)) / rate;
      const passes = grads ? [once, 2.5 * once] : [once];
      const expected = passes.reduce((sum, s) => sum + s + (s < repeat ? repeat : 0), 0.05);
      return { n, causal, grads, repeat, expected };
    }),
  );
}

export async function sweep(tasks: readonly SweepTask[], settings: SweepSettings): Promise<SweepRow[]> {
  const { engine, standard, budget } = settings;
  const bar = progress('');
  const total = tasks.reduce((sum, t) => sum + 2 * t.expected, 0);
  const rows: SweepRow[] = [];
  let done = 0;
  try {
    for (const task of tasks) {
      const { n, causal, grads } = task;
      const data = inputs(n);
      const options: AttentionOptions = { causal };
      const what = `N = ${n} ${causal ? 'causal' : 'full'}`;
      const run = async (on: Engine, more: object, withGrads: boolean, who: string): Promise<Outcome> => {
        const onProgress = (share: number): void =>
          bar.update((done + share * task.expected) / total, `${who} ${what}`);
        onProgress(0);
        const call = { ...data, options: { ...options, ...more }, grads: withGrads };
        return { kind: 'measured', result: await measure(on, call, { seconds: task.repeat, onProgress }) };
      };
      const late = tooLate(task, settings);
      const tilewise: Outcome = late ?? (await run(engine, {}, grads, 'tilewise'));
      done += task.expected;
      const matrices = await matrixBytes(data, options, engine);
      let theirs: Outcome;
      if (matrices > budget) theirs = { kind: 'refused' };
      else if (n > standard.longest) theirs = { kind: 'left out', why: 'too slow' };
      else
        theirs =
          late ??
          tooLate(task, settings) ??
          (await run(standard.engine, standard.options, grads && standard.backward, 'standard'));
      done += task.expected;
      rows.push({ task, tilewise, standard: theirs, matrices });
    }
  } finally {
    bar.stop();
  }
  return rows;
}

function tooLate({ expected }: SweepTask, { deadline }: SweepSettings): Outcome | null {
  const left = (deadline - performance.now()) / 1000;
  if (expected <= left) return null;
  return { kind: 'left out', why: `about ${Math.ceil(expected)} s, ${Math.max(0, Math.floor(left))} s left` };
}

/** Bytes of the N x N matrices that standard attention would hold. */
async function matrixBytes({ q, k, v }: Inputs, options: AttentionOptions, engine: Engine): Promise<number> {
  return (await explain(q, k, v, { ...options, engine })).plan.standard.workspace;
}

interface Inputs {
  readonly q: HostTensor;
  readonly k: HostTensor;
  readonly v: HostTensor;
}

function inputs(n: number): Inputs {
  const shape = { dtype: 'f32', shape: [1, H, n, D] } as const;
  return { q: randomTensor(shape, 1), k: randomTensor(shape, 2), v: randomTensor(shape, 3) };
}
