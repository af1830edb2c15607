import { readFile, writeFile } from 'node:fs/promises';
import type { Command } from 'commander';
import { explain } from '../api/explain.ts';
import type { AttentionOptions } from '../api/options.ts';
import { ArgumentError } from '../core/errors.ts';
import type { TensorLike } from '../core/tensor.ts';
import type { Caps, Engine } from '../engine/contract.ts';
import { command, interruptible, number } from './command.ts';
import { type BenchFile, type BenchRow, compareFiles, parseBench } from './compare.ts';
import { withEngines } from './engines.ts';
import { commit, machine } from './machine.ts';
import { type Measurement, measure, plausible, type Timing } from './measure.ts';
import { type PlannedFlags, plannedCall, plannedOptions } from './planned.ts';
import { randomTensor } from './shapes.ts';
import { mebibytes, milliseconds, print, printJson, progress, significant, table, toJson } from './terminal.ts';

interface Flags extends PlannedFlags {
  readonly suite?: boolean;
  readonly seconds: number;
  readonly json?: boolean;
  readonly save?: string;
}

export interface BenchTask {
  readonly q: TensorLike;
  readonly k: TensorLike;
  readonly v: TensorLike;
  readonly options: AttentionOptions;
  readonly grads: boolean;
}

/** Checks a call on sampled rows against float64, then times it; `bench compare` sets two result files side by side. */
export const bench = (): Command =>
  plannedOptions(
    command('bench', 'check, then time: random tensors of the given shapes, resident in the engine', [
      'tilewise bench -n 4096 --causal --grad',
      'tilewise bench --suite --threads 1 --save before.json',
      'tilewise bench compare before.json after.json',
    ]),
  )
    .option('--suite', 'the standard set of shapes instead: H=8 D=64 N=512...8192, H=16 D=128 N=2048, full and causal')
    .option('--seconds <s>', 'time to repeat each pass for', number, 1)
    .option('--save <file>', 'write the results as JSON')
    .option('--json', 'print JSON')
    .action((flags: Flags) => withEngines(flags, (engines) => run(flags, engines)))
    .addCommand(
      command('compare', 'two result files side by side', ['tilewise bench compare before.json after.json'])
        .argument('<base>', 'JSON of the one')
        .argument('<head>', 'JSON of the other')
        .option('--json', 'print JSON')
        // Also an option of the parent, which would keep it for itself.
        .action(async (base: string, head: string, _: object, self: Command) => {
          const { json } = self.optsWithGlobals() as { json?: boolean };
          const rows = compareFiles(await load(base), await load(head));
          if (json) printJson(rows);
          else
            print(
              table(
                ['id', 'pass', 'base ms', 'head ms', 'speed-up'],
                rows.map((r) => [r.id, r.pass, milliseconds(r.base), milliseconds(r.head), `${r.ratio.toFixed(2)}x`]),
              ),
            );
        }),
    );

async function load(path: string): Promise<BenchFile> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    throw new ArgumentError(
      'file',
      'a result file that can be read',
      `${path} (${(error as NodeJS.ErrnoException).code})`,
    );
  }
  return parseBench(text, path);
}

async function run(flags: Flags, engines: readonly Engine[]): Promise<void> {
  const tasks = flags.suite ? suite(flags) : [taskOf(flags)];
  const bar = progress('');
  const signal = interruptible();
  const rows: BenchRow[] = [];
  let caps = engines[0].caps;
  try {
    for (const [i, task] of tasks.entries()) {
      const { q, k, v } = task;
      const onProgress = (share: number): void =>
        bar.update(
          (i + share) / tasks.length,
          `${q.dtype} [${q.shape.join(', ')}]${task.options.causal ? ' causal' : ''}`,
        );
      const host = { q: randomTensor(q, 1), k: randomTensor(k, 2), v: randomTensor(v, 3) };
      const engine = await serving(engines, task);
      caps = engine.caps;
      const measured = await measure(engine, { ...task, ...host }, { seconds: flags.seconds, signal, onProgress });
      rows.push(...rowsOf(measured));
    }
  } finally {
    bar.stop();
  }
  const file = resultFile(caps, rows);
  if (flags.save !== undefined) await writeFile(flags.save, `${toJson(file)}\n`);
  if (flags.json) printJson(file);
  else show(file);
  if (rows.some((r) => !r.plausible)) process.exitCode = 1;
}

/** The engine that a plan would choose. @throws UnsupportedError */
async function serving(engines: readonly Engine[], { q, k, v, options, grads }: BenchTask): Promise<Engine> {
  const { plan } = await explain(q, k, v, { ...options, engine: engines, ...(grads && { grads: {} }) });
  for (const { engine, kernel, reason } of plan.refusals)
    if (engine !== plan.engine) process.stderr.write(`tilewise: ${engine}${kernel ? `/${kernel}` : ''}: ${reason}\n`);
  return engines.find((e) => e.name === plan.engine) ?? engines[0];
}

export function taskOf(flags: PlannedFlags): BenchTask {
  const { grads, ...rest } = plannedCall(flags);
  return { ...rest, grads: grads !== null };
}

/** The shapes that results are published for, with the other flags as they are. */
export function suite(flags: PlannedFlags): BenchTask[] {
  const shapes = [512, 1024, 2048, 4096, 8192].map((seq) => ({ heads: 8, dim: 64, seq }));
  return [...shapes, { heads: 16, dim: 128, seq: 2048 }].flatMap((shape) =>
    [false, true].map((causal) => {
      const { causal: _, ...others } = flags;
      return taskOf({ ...others, ...shape, ...(causal ? { causal: true as const } : {}) });
    }),
  );
}

/** What a measurement comes to in a result file. */
function rowsOf({ problem, plan, forward, backward }: Measurement): BenchRow[] {
  const row = (t: Timing): BenchRow => ({
    id: plan.id,
    pass: t.pass,
    kernel: t.kernel,
    config: (t.pass === 'forward' ? plan.forward : plan.backward)?.config ?? {},
    flops: t.flops,
    median: t.median,
    best: t.best,
    runs: t.runs,
    gflops: t.flops / t.median / 1e9,
    scratch: t.scratch,
    error: t.check?.error ?? null,
    plausible: t.check === null || plausible(problem.dtype, t.check),
  });
  return backward === null ? [row(forward)] : [row(forward), row(backward)];
}

const resultFile = (engine: Caps, rows: readonly BenchRow[]): BenchFile => ({
  format: 'tilewise-bench-1',
  date: new Date().toISOString(),
  commit: commit(),
  machine: machine(),
  engine,
  rows,
});

function show({ machine: m, engine, commit: at, rows }: BenchFile): void {
  print(`${m.cpu}, ${m.cores} cores, Node ${m.node}; ${engine.device}${at === null ? '' : `; ${at}`}`);
  const body = rows.map((r) => [
    r.id,
    r.pass,
    milliseconds(r.median),
    milliseconds(r.best),
    r.runs,
    significant(r.gflops),
    mebibytes(r.scratch),
    r.error === null ? '' : r.error.toExponential(1),
    r.plausible ? 'ok' : 'WRONG',
  ]);
  print(table(['id', 'pass', 'ms', 'best', 'runs', 'GFLOP/s', 'scratch MiB', 'max error', 'check'], body));
}
