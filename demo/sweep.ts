/** Sequence lengths, full and causal, Tilewise beside standard attention. */
import { createRequest } from '../src/api/request.ts';
import { type Measurement, measure } from '../src/cli/measure.ts';
import { randomTensor } from '../src/cli/shapes.ts';
import { milliseconds, progress } from '../src/cli/terminal.ts';
import type { HostTensor } from '../src/core/tensor.ts';
import type { Engine } from '../src/engine/contract.ts';
import type { WasmEngine } from '../src/engines/wasm/index.ts';
import { flopsOf } from '../src/problem/cost.ts';
import { SLOWNESS } from './opponent.ts';

const H = 8;
const D = 64;

export interface SweepTask {
  readonly n: number;
  readonly causal: boolean;
  readonly grads: boolean;
  /** Seconds to repeat a pass for. */
  readonly repeat: number;
  /** Seconds that each side is expected to take, repetitions included; 0 for a side that will not run. */
  readonly expected: { readonly tilewise: number; readonly standard: number };
  /** Bytes that standard attention's N x N matrices take. */
  readonly matrices: number;
  /** Why standard attention will not run, or null. */
  readonly without: Outcome | null;
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
}

export interface SweepSettings {
  readonly engine: Engine;
  readonly standard: Engine;
  /** performance.now() after which no task may be expected to end. */
  readonly deadline: number;
}

/**
 * Lengths from short to long; the longest forward alone.
 *
 * @param rate FLOP/s that Tilewise's forward was measured at: turns work into expected seconds.
 * @param budget Bytes of N x N matrices that standard attention may have.
 */
export function planSweep(quick: boolean, rate: number, standard: WasmEngine, budget: number): SweepTask[] {
  const lengths = quick ? [128, 512, 1024, 4096, 16384] : [128, 512, 1024, 4096, 16384, 65536];
  const repeat = quick ? 0.3 : 1;
  return lengths.flatMap((n) =>
    [true, false].map((causal): SweepTask => {
      const grads = n < lengths[lengths.length - 1];
      const shape = { dtype: 'f32', shape: [1, H, n, D] } as const;
      const { problem } = createRequest(shape, shape, shape, { causal }, null);
      const [kernel] = standard.kernels;
      const matrices = kernel.cost(problem, kernel.configs(problem, standard.caps)[0], standard.caps).workspace;
      const without: Outcome | null = matrices > budget ? { kind: 'refused' } : null;
      const once = flopsOf(problem, 'forward') / rate;
      const passes = grads ? [once, 2.5 * once] : [once];
      const seconds = (slowness: number): number =>
        passes.reduce((sum, s) => sum + s * slowness + (s * slowness < repeat ? repeat : 0), 0.05);
      const expected = { tilewise: seconds(1), standard: without === null ? seconds(SLOWNESS) : 0 };
      return { n, causal, grads, repeat, expected, matrices, without };
    }),
  );
}

export async function sweep(tasks: readonly SweepTask[], settings: SweepSettings): Promise<SweepRow[]> {
  const { engine, standard } = settings;
  const bar = progress('');
  const total = tasks.reduce((sum, { expected }) => sum + expected.tilewise + expected.standard, 0);
  const rows: SweepRow[] = [];
  let done = 0;
  try {
    for (const task of tasks) {
      const what = `N = ${task.n} ${task.causal ? 'causal' : 'full'}`;
      // Made when first needed: at the longest lengths this alone takes seconds.
      let data: Inputs | undefined;
      const run = async (who: 'tilewise' | 'standard', on: Engine) => {
        const seconds = task.expected[who];
        const left = (settings.deadline - performance.now()) / 1000;
        const why = `about ${Math.ceil(seconds)} s, ${Math.max(0, Math.floor(left))} s left`;
        if (seconds > left) return { kind: 'left out', why } as const;
        const onProgress = (share: number): void => bar.update((done + share * seconds) / total, `${who} ${what}`);
        onProgress(0);
        data ??= inputs(task.n);
        const call = { ...data, options: { causal: task.causal }, grads: task.grads };
        return { kind: 'measured', result: await measure(on, call, { seconds: task.repeat, onProgress }) } as const;
      };
      const tilewise: Outcome = await run('tilewise', engine);
      done += task.expected.tilewise;
      const theirs = task.without ?? (await run('standard', standard));
      done += task.expected.standard;
      rows.push({ task, tilewise, standard: theirs });
      bar.note(`${what}: ${summary(tilewise)}; standard ${summary(theirs)}`);
    }
  } finally {
    bar.stop();
  }
  return rows;
}

function summary(o: Outcome): string {
  if (o.kind === 'refused') return 'refused';
  if (o.kind === 'left out') return `left out (${o.why})`;
  const { forward, backward } = o.result;
  const both = [`forward ${milliseconds(forward.median)} ms`];
  if (backward !== null) both.push(`backward ${milliseconds(backward.median)} ms`);
  return both.join(', ');
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
