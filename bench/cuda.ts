/**
 * Times the CUDA kernels on this machine's GPU beside PyTorch's (FlashAttention-2, cuDNN, FlexAttention, math and memory-efficient
 * paths): device time by events, the L2 cache flushed before every launch, our process and theirs in turns cell by cell; medians.
 *
 *     node bench/cuda.ts OUT.json [grid] [portable] [mods] [decode] [f32] [host] [d=64,128] [n=512,8192] [rounds=4]
 *         [forward] [backward] [kernel=mma] [peers=none] [tune]
 *
 * With no part named, all; with a pass named, that pass, and the grid if no part is. TFLOP/s count 4 * pairs * D forward and 2.5 times that backward; `tune` times every configuration
 * of every kernel in the grid instead of the chosen one. `python3` with PyTorch is needed for peers.
 */
import { execFileSync, spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { attention } from '../src/api/attention.ts';
import { commit } from '../src/cli/machine.ts';
import type { Config, Kernel, Pass } from '../src/engine/contract.ts';
import { type CudaEngine, open } from '../src/engines/cuda/index.ts';
import { planOn } from '../src/plan/choose.ts';
import { countPairs } from '../src/problem/cost.ts';
import type { Problem } from '../src/problem/problem.ts';
import { type Cell, decodeCells, FLEX_CASES, f32Cells, gridCells, modCells, N_MODS } from './gpu/cells.ts';
import { type Contender, inTurns, Peers, Stopwatch } from './gpu/contenders.ts';
import { type Made, median, Noise, operandsOf, type Shape, serving, stepOf } from './gpu/setup.ts';
import { problemOf } from './problem.ts';

/** One contender in one cell. */
export interface GpuRow {
  readonly group: Cell['group'];
  /** `d64 causal n512` */
  readonly name: string;
  readonly pass: Pass;
  /** `tilewise`, `tilewise portable` (mma.sync), a peer, or `tilewise baseline`: the same without its modifier. */
  readonly who: string;
  readonly kernel?: string | undefined;
  readonly config?: Config | undefined;
  readonly ms: number;
  readonly best: number;
  readonly reps: number;
  readonly tflops: number;
  /** Terabytes a second of K and V and of queries and results, read and written once. */
  readonly tbs: number;
  readonly error?: string | undefined;
}

export interface GpuResults {
  readonly format: 'tilewise-gpu-1';
  readonly device: string;
  readonly driver: string;
  readonly date: string;
  readonly commit: string | null;
  /** What peers say of themselves. */
  readonly peers: Readonly<Record<string, unknown>>;
  /** What nvidia-smi said along the way: clocks in MHz, degrees Celsius, watts. */
  readonly clocks: readonly string[];
  /** Copy rate in TB/s, read plus written, and the rate of a bf16 product of 8192 x 8192 x 8192 in TFLOP/s, before and after. */
  readonly ceilings: readonly { readonly copy: number; readonly matmul: number }[];
  /** Microseconds of the host: finding the compiled program, queueing its launch, and the whole of `attention(q, k, v)`. */
  readonly host: { readonly prepare: number; readonly run: number; readonly call?: number } | null;
  readonly rows: readonly GpuRow[];
}

const [out, ...words] = process.argv.slice(2);
const PARTS = ['grid', 'portable', 'mods', 'decode', 'f32', 'host'] as const;
const named = PARTS.filter((part) => words.includes(part));
const value = (name: string): string | undefined => words.find((w) => w.startsWith(`${name}=`))?.slice(name.length + 1);
const list = (name: string, otherwise: number[]): number[] => value(name)?.split(',').map(Number) ?? otherwise;
const rounds = Number(value('rounds') ?? 4);
const asked = (['forward', 'backward'] as const).filter((pass) => words.includes(pass));
const passes: readonly Pass[] = asked.length === 0 ? ['forward', 'backward'] : asked;
const wants = (part: (typeof PARTS)[number]): boolean =>
  named.length > 0 ? named.includes(part) : asked.length === 0 || part === 'grid';
/** `kernel=mma,decode` keeps the kernels with one of the words in their name. */
const kept = value('kernel')?.split(',') ?? [''];
const available = (engine: CudaEngine, problem: Problem, pass: Pass): readonly Kernel[] =>
  serving(engine, problem, pass).filter(({ name }) => kept.some((part) => name.includes(part)));
const withPeers = value('peers') !== 'none';

const started = performance.now();
const say = (text: string): void =>
  console.log(`${((performance.now() - started) / 1000).toFixed(1).padStart(6)} ${text}`);

class Bench {
  readonly rows: GpuRow[] = [];
  private readonly engine: CudaEngine;
  private readonly processes: ReadonlyMap<string, Peers>;
  private readonly noise: Noise;
  private readonly watch: Stopwatch;

  constructor(engine: CudaEngine, processes: ReadonlyMap<string, Peers>) {
    this.engine = engine;
    this.processes = processes;
    this.noise = new Noise(engine);
    this.watch = new Stopwatch(engine);
  }

  async cell(cell: Cell): Promise<void> {
    const problem = this.problem(cell.shape, cell.passes);
    const made = operandsOf(this.engine, this.noise, problem);
    const bare = cell.baseline === undefined ? null : this.problem(cell.baseline, cell.passes);
    try {
      await this.attend(problem, made);
      for (const pass of cell.passes) {
        const ours = await this.ours(cell, problem, bare, made, pass);
        const { B, Hq, Hkv = Hq, Sq, Sk, D } = cell.shape;
        const shapes = { q: [B, Hq, Sq, D], k: [B, Hkv, Sk, D] };
        const theirs = cell.peers.flatMap(({ who, process, ask }) => {
          const peer = this.processes.get(process);
          return peer === undefined ? [] : [peer.contender(who, { ...ask, ...shapes, pass })];
        });
        const times = await inTurns(
          [...ours.map((o) => o.contender), ...theirs],
          cell.group === 'mods' ? Math.min(rounds, 2) : rounds,
        );
        for (const [who, { median: ms, best, reps, error }] of times) {
          const { kernel, config } = ours.find((o) => o.contender.who === who) ?? {};
          const fraction = who === 'tilewise baseline' ? this.fraction(bare) : cell.fraction;
          const flops = 4 * B * Hq * Sq * Sk * D * fraction * (pass === 'forward' ? 1 : 2.5);
          const bytes = (2 * B * Hkv * Sk * D + 2 * B * Hq * Sq * D) * (problem.dtype === 'f32' ? 4 : 2);
          const rates = { tflops: flops / ms / 1e9, tbs: bytes / ms / 1e9 };
          this.rows.push({
            group: cell.group,
            name: cell.name,
            pass,
            who,
            kernel,
            config,
            ms,
            best,
            reps,
            ...rates,
            error,
          });
        }
        this.tell(cell, pass);
      }
    } finally {
      made.dispose();
    }
  }

  /** Compiles what a cell needs, and leaves it in the cache. */
  async compile(cell: Cell): Promise<void> {
    const problem = this.problem(cell.shape, cell.passes);
    const bare = cell.baseline === undefined ? null : this.problem(cell.baseline, cell.passes);
    const { plan } = planOn({ ...problem, grads: null }, this.engine);
    if (plan !== null) await this.engine.prepare(problem, plan.forward);
    for (const pass of cell.passes) await this.ours(cell, problem, bare, null, pass);
  }

  private problem(shape: Shape, asked: readonly Pass[]): Problem {
    return problemOf({ ...shape, grads: asked.includes('backward') });
  }

  private fraction(problem: Problem | null): number {
    return problem === null ? 1 : countPairs(problem).pairs / (problem.B * problem.Hq * problem.Sq * problem.Sk);
  }

  /** Backward needs out and lse. */
  private async attend(problem: Problem, { operands }: Made): Promise<void> {
    const { plan } = planOn({ ...problem, grads: null }, this.engine);
    if (plan === null) throw new Error('no kernel serves this');
    await (await this.engine.prepare(problem, plan.forward)).run(problem, operands);
  }

  private async ours(cell: Cell, problem: Problem, bare: Problem | null, made: Made | null, pass: Pass) {
    const found: { contender: Contender; kernel: string; config: Config }[] = [];
    const add = async (who: string, of: Problem, kernel: Kernel, config: Config): Promise<void> => {
      const program = await this.engine.prepare(of, stepOf(this.engine, of, kernel, config));
      const contender = this.watch.contender(who, async () => {
        if (made !== null) await program.run(of, made.operands);
      });
      found.push({ contender, kernel: kernel.name, config });
    };
    const chosen = async (who: string, of: Problem, from = available(this.engine, of, pass)): Promise<void> => {
      const steps = from.flatMap((k) =>
        k.configs(of, this.engine.caps).map((c) => ({ k, step: stepOf(this.engine, of, k, c) })),
      );
      const { k, step } = steps.reduce((a, b) => (b.step.cost.seconds < a.step.cost.seconds ? b : a));
      await add(who, of, k, step.config);
    };
    if (words.includes('tune'))
      for (const kernel of available(this.engine, problem, pass))
        for (const config of kernel.configs(problem, this.engine.caps))
          await add(`${kernel.name} ${JSON.stringify(config)}`, problem, kernel, config);
    else await chosen('tilewise', problem);
    if (bare !== null) await chosen('tilewise baseline', bare);
    if (cell.portable)
      await chosen(
        'tilewise portable',
        problem,
        serving(this.engine, problem, pass).filter((k) => k.name.endsWith('_mma')),
      );
    return found;
  }

  private tell({ group, name }: Cell, pass: Pass): void {
    const cells = this.rows.filter((r) => r.name === name && r.pass === pass);
    const said = cells.map((r) => {
      const rate = group === 'decode' ? `${r.tbs.toFixed(2)} TB/s` : r.tflops.toFixed(0);
      return `${r.who} ${r.error === undefined ? rate : `(${r.error.slice(0, 80)})`}`;
    });
    say(`${name} ${pass}: ${said.join('  ')}`);
  }
}

const smi = (): string => {
  try {
    const query = 'clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active';
    return execFileSync('nvidia-smi', [`--query-gpu=${query}`, '--format=csv,noheader'], { encoding: 'utf8' }).trim();
  } catch {
    return 'unknown';
  }
};

const cells: readonly Cell[] = [
  ...(wants('grid')
    ? gridCells(list('d', [64, 128, 256]), list('n', [512, 1024, 2048, 4096, 8192, 16384]), passes, wants('portable'))
    : []),
  ...(wants('mods') ? modCells(passes) : []),
  ...(wants('decode') ? decodeCells() : []),
  ...(wants('f32') ? f32Cells() : []),
];

/** Processes that compile a share of the programs each, into the cache that all share. */
const HELPERS = 8;

function compileBeforehand(): Promise<unknown> {
  const run = (i: number): Promise<void> =>
    new Promise((resolve) => {
      const helper = [fileURLToPath(import.meta.url), out, ...words, `helper=${i}`];
      spawn(process.execPath, helper, { stdio: 'inherit' }).on('close', () => resolve());
    });
  return Promise.all(Array.from({ length: Math.min(HELPERS, cells.length) }, (_, i) => run(i)));
}

async function help(share: number): Promise<void> {
  const engine = await open({ cache: process.env.TILEWISE_CACHE });
  const bench = new Bench(engine, new Map());
  for (const [i, cell] of cells.entries())
    if (i % HELPERS === share) await bench.compile(cell).catch((e) => say(`${cell.name}: ${e.message}`));
  await engine.close();
}

async function main(): Promise<void> {
  const processes = new Map<string, Peers>();
  const clocks = [smi()];
  const ceilings: { copy: number; matmul: number }[] = [];
  // FlexAttention takes its time to compile: each case in a process of its own, all before anything is timed.
  const flex = withPeers && wants('mods') ? FLEX_CASES : [];
  for (const name of [...(withPeers ? ['torch'] : []), ...flex]) processes.set(name, new Peers());
  const peers = processes.get('torch') ?? null;
  const size = [1, 16, N_MODS, 128];
  const [about] = await Promise.all([
    peers === null ? {} : peers.ask({ do: 'hello' }),
    compileBeforehand().then(() => say('compiled')),
    ...flex.map(async (name) => {
      for (const pass of passes)
        await processes
          .get(name)
          ?.ask({ do: 'flex', case: name, pass, q: size, k: size, reps: 1 }, 150)
          .catch((e) => say(`flex ${name} ${pass}: ${e.message}`));
      say(`flex ${name} compiled`);
    }),
  ]);
  const engine = await open({ cache: process.env.TILEWISE_CACHE });
  const bench = new Bench(engine, processes);
  const ceiling = async (): Promise<void> => {
    if (peers === null) return;
    const [copy, matmul] = [await peers.ask({ do: 'copy', reps: 5 }), await peers.ask({ do: 'matmul', reps: 9 })];
    const rates = {
      copy: Number(copy.bytes) / median(copy.ms) / 1e9,
      matmul: Number(matmul.flops) / median(matmul.ms) / 1e9,
    };
    ceilings.push(rates);
    say(`copy ${rates.copy.toFixed(2)} TB/s, matmul ${rates.matmul.toFixed(0)} TFLOP/s; ${smi()}`);
  };
  await ceiling();
  let host: GpuResults['host'] = null;
  const save = (): void => {
    const { name, driver } = engine.device.info;
    const results: GpuResults = {
      format: 'tilewise-gpu-1',
      device: name,
      driver: `${driverVersion()} (CUDA ${driver})`.trim(),
      date: new Date().toISOString(),
      commit: process.env.COMMIT ?? commit(),
      peers: about,
      clocks,
      ceilings,
      host,
      rows: bench.rows,
    };
    writeFileSync(
      out,
      `${JSON.stringify(results, (_, x) => (typeof x === 'number' ? Number(x.toPrecision(5)) : x))}\n`,
    );
  };
  if (wants('host')) host = await overhead(engine);
  let group = '';
  for (const cell of cells) {
    if (cell.group !== group) clocks.push(smi());
    group = cell.group;
    await bench.cell(cell).catch((e) => say(`${cell.name}: ${e.message}`));
    save();
  }
  await ceiling();
  clocks.push(smi());
  save();
  for (const one of processes.values()) one.close();
  await engine.close();
}

/** The driver's own number, where the system tells. */
function driverVersion(): string {
  try {
    return /Module\s.*?\s(\d+\.[\d.]+)/.exec(readFileSync('/proc/driver/nvidia/version', 'utf8'))?.[1] ?? '';
  } catch {
    return '';
  }
}

async function overhead(engine: CudaEngine): Promise<{ prepare: number; run: number; call: number }> {
  const problem = problemOf({ B: 1, Hq: 8, Sq: 128, Sk: 128, D: 64 });
  const { plan } = planOn(problem, engine);
  if (plan === null) throw new Error('no kernel serves this');
  const { operands, dispose } = operandsOf(engine, new Noise(engine), problem);
  const [prepare, run, call]: [number[], number[], number[]] = [[], [], []];
  for (let i = 0; i < 2000; i++) {
    const before = performance.now();
    const program = await engine.prepare(problem, plan.forward);
    const middle = performance.now();
    await program.run(problem, operands);
    prepare.push((middle - before) * 1e3);
    run.push((performance.now() - middle) * 1e3);
    if (i % 100 === 0) await engine.synchronize();
  }
  const { q, k, v } = operands;
  for (let i = 0; i < 2000; i++) {
    const before = performance.now();
    const { out: o, lse } = await attention(q, k, v);
    call.push((performance.now() - before) * 1e3);
    o.dispose();
    lse.dispose();
    if (i % 100 === 0) await engine.synchronize();
  }
  await engine.synchronize();
  dispose();
  const found = { prepare: median(prepare), run: median(run), call: median(call) };
  say(
    `host: prepare ${found.prepare.toFixed(1)} us, run ${found.run.toFixed(1)} us, attention() ${found.call.toFixed(1)} us`,
  );
  return found;
}

const share = value('helper');
await (share === undefined ? main() : help(Number(share)));
