/**
 * Bytes that one forward and one backward move through the GPU's memory, by Nsight Compute's counters, beside the cost model's
 * figure and standard attention's; memory held beyond inputs, outputs and gradients as N grows; and where the cycles go.
 *
 *     node bench/bytes.ts OUT.json [bytes] [memory] [stalls [quick]] [peers=FILE]
 *
 * Counters need `ncu` on the path, standard attention python3 with PyTorch. `peers=FILE` takes
 * standard attention's figures from an earlier result file of the same card. Clocks are left alone. KEEP=FOLDER keeps the sampled
 * instructions of `stalls` there.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { commit } from '../src/cli/machine.ts';
import type { Pass } from '../src/engine/contract.ts';
import { loadDriver } from '../src/engines/cuda/driver/library.ts';
import { type CudaEngine, open } from '../src/engines/cuda/index.ts';
import { causal } from '../src/mods/library.ts';
import { planOn } from '../src/plan/choose.ts';
import { standardCost, tiledBytes } from '../src/problem/cost.ts';
import type { Problem } from '../src/problem/problem.ts';
import { Noise, operandsOf } from './gpu/setup.ts';
import { type Account, accounts, csvRows } from './gpu/stalls.ts';
import { problemOf } from './problem.ts';

const [out, ...words] = process.argv.slice(2);

/** B, H, N, D and whether causal. */
export type Case = readonly [B: number, H: number, N: number, D: number, masked: boolean];

/** The fifth is GPT-2 medium as the FlashAttention paper measures it, but for the card. */
const BYTES: readonly Case[] = [
  [1, 16, 8192, 128, false],
  [1, 16, 8192, 128, true],
  [1, 16, 8192, 64, false],
  [1, 16, 8192, 64, true],
  [64, 16, 1024, 64, false],
  [1, 2, 65536, 128, false],
];
const STALLS: readonly Case[] = [
  [2, 32, 8192, 64, false],
  [2, 16, 8192, 128, false],
  [2, 8, 8192, 256, false],
];
/** Where standard attention is counted too. */
const STANDARD_CASES: readonly Case[] = [BYTES[0], BYTES[4]];
const LENGTHS = [4096, 8192, 16384, 32768, 65536, 131072];
const STANDARD_LENGTHS = LENGTHS.slice(0, 3);

/** Counters, the essential ones first. L2 counts what multiprocessors ask for, in sectors of 32 bytes. */
const DRAM = ['dram__bytes_read.sum', 'dram__bytes_write.sum', 'gpu__time_duration.sum'];
const L2 = ['lts__t_sectors_srcunit_tex.sum', 'lts__t_sectors_op_read.sum', 'lts__t_sectors_op_write.sum'];

const nameOf = ([B, H, N, D, masked]: Case): string => `B=${B} H=${H} N=${N} D=${D} ${masked ? 'causal' : 'full'}`;

const shapeOf = ([B, H, N, D, masked]: Case) => ({
  B,
  Hq: H,
  Sq: N,
  Sk: N,
  D,
  mask: masked ? causal() : undefined,
  grads: true,
});

/** What the file holds. */
export interface BytesResults {
  readonly device: string;
  readonly driver: string;
  readonly date: string;
  readonly commit?: string | null;
  readonly model: readonly {
    readonly name: string;
    readonly passes: readonly { readonly pass: Pass; readonly bytes?: number }[];
  }[];
  readonly bytes: readonly Moved[];
  readonly memory: readonly {
    readonly N: number;
    readonly who?: string;
    readonly operands?: number;
    readonly beyond?: number;
    readonly predicted?: number;
    readonly standard?: number;
  }[];
  readonly stalls?: readonly Stalls[];
}

/** An account of one kernel's samples, and counters of the whole of it by ncu's names. */
export interface Stalls extends Account {
  readonly name: string | undefined;
  readonly pass: Pass | undefined;
  readonly counters: Readonly<Record<string, number>>;
}

/** One launch of a kernel, by the order of launches. */
interface Launched {
  readonly name: string;
  readonly pass: Pass;
  readonly kernel: string;
}

/** Runs every case once, forward and backward, telling which launch belongs to which. For a process that is profiled. */
async function runOnce(cases: readonly Case[], labels: string): Promise<void> {
  const driver = await loadDriver();
  const launches: Launched[] = [];
  let now: Launched | null = null;
  const engine = await open({
    driver: {
      ...driver,
      cuLaunchKernelEx: (...words) => {
        if (now !== null) launches.push(now);
        return driver.cuLaunchKernelEx(...words);
      },
    },
    cache: process.env.TILEWISE_CACHE,
  });
  const noise = new Noise(engine);
  for (const one of cases) {
    const problem = problemOf(shapeOf(one));
    const { plan } = planOn(problem, engine);
    if (plan === null || plan.backward === null) throw new Error(`no plan for ${nameOf(one)}`);
    const made = operandsOf(engine, noise, problem);
    for (const step of [plan.forward, plan.backward]) {
      const program = await engine.prepare(problem, step);
      now = { name: nameOf(one), pass: step.pass, kernel: step.kernel };
      await program.run(problem, made.operands);
      await engine.synchronize();
    }
    made.dispose();
  }
  writeFileSync(labels, JSON.stringify(launches));
  await engine.close();
}

/** Rows of ncu's raw page, by column. */
function parseCsv(path: string): Record<string, string>[] {
  const [head, , ...rows] = csvRows(readFileSync(path, 'utf8'));
  return rows.map((row) => Object.fromEntries(row.map((cell, i) => [head[i], cell])));
}

const number = (cell: string | undefined): number => Number((cell ?? 'NaN').replaceAll(',', ''));

/** Counters of every kernel that `command` launches, in order. */
function profiled(command: readonly string[], metrics: readonly string[], words: readonly string[] = []) {
  const log = join(FOLDER, `ncu-${Math.random().toString(36).slice(2)}.csv`);
  const options = ['--clock-control', 'none', '--csv', '--page', 'raw', '--print-units', 'base', '--log-file', log];
  const { status, stdout, stderr } = spawnSync(
    'ncu',
    [...options, ...words, '--metrics', metrics.join(','), ...command],
    { encoding: 'utf8', timeout: 120_000 },
  );
  const said = existsSync(log) ? readFileSync(log, 'utf8') : '';
  if (status !== 0) console.error(`ncu exited with ${status}\n${said.slice(-800)}\n${stdout}\n${stderr}`);
  if (/Failed to find metric/i.test(said) && metrics.length > DRAM.length) return profiled(command, DRAM, words);
  return said.includes('"') ? parseCsv(log) : [];
}

interface Moved {
  readonly name: string;
  /** `tilewise`, `standard` (bf16 matrices by hand) or `math` (PyTorch's own). */
  readonly who: string;
  readonly pass: Pass;
  readonly kernels: number;
  /** Bytes. */
  read: number;
  written: number;
  /** Bytes that multiprocessors moved to and from the L2 cache. */
  l2: number;
  ms: number;
}

function add(rows: Moved[], at: Pick<Moved, 'name' | 'who' | 'pass'>, counters: Record<string, string>): void {
  let row = rows.find((r) => r.name === at.name && r.who === at.who && r.pass === at.pass);
  if (row === undefined) {
    row = { ...at, kernels: 0, read: 0, written: 0, l2: 0, ms: 0 };
    rows.push(row);
  }
  const mutable = row as { -readonly [K in keyof Moved]: Moved[K] };
  mutable.kernels++;
  mutable.read += number(counters['dram__bytes_read.sum']);
  mutable.written += number(counters['dram__bytes_write.sum']);
  mutable.l2 += 32 * number(counters['lts__t_sectors_srcunit_tex.sum']);
  mutable.ms += number(counters['gpu__time_duration.sum']) / 1e6;
}

const SELF = fileURLToPath(import.meta.url);
const STANDARD = fileURLToPath(new URL('./gpu/standard.py', import.meta.url));
const FOLDER = mkdtempSync(join(tmpdir(), 'tilewise-ncu-'));

function measureBytes(cases: readonly Case[]): Moved[] {
  const rows: Moved[] = [];
  const labels = join(FOLDER, 'labels.json');
  const own = profiled([process.execPath, SELF, labels, 'inside', JSON.stringify(cases)], [...DRAM, ...L2]);
  const launches: Launched[] = existsSync(labels) ? JSON.parse(readFileSync(labels, 'utf8')) : [];
  if (own.length !== launches.length) console.error(`${own.length} kernels counted, ${launches.length} launched`);
  for (const [i, { name, pass }] of launches.entries()) if (own[i]) add(rows, { name, who: 'tilewise', pass }, own[i]);
  report(rows);
  const known = earlier();
  if (known !== null) return [...rows, ...known.bytes.filter((r) => r.who !== 'tilewise')];

  // Sections of the peer's kernels are told apart by marker kernels between them: backward runs on a thread of its own.
  const sections = join(FOLDER, 'sections.json');
  const peer = profiled(
    ['python3', STANDARD, 'bytes', sections, JSON.stringify(STANDARD_CASES)],
    [...DRAM, ...L2],
    ['--profile-from-start', 'off'],
  );
  const names: { name: string; who: string; pass: Pass }[] = existsSync(sections)
    ? JSON.parse(readFileSync(sections, 'utf8'))
    : [];
  let at = -1;
  for (const counters of peer)
    if (/spin_kernel/.test(counters['Kernel Name'])) at++;
    else if (names[at] !== undefined) add(rows, names[at], counters);
  report(rows.filter((r) => r.who !== 'tilewise'));
  return rows;
}

/** Results that peers are taken from, where the command names some. */
function earlier(): BytesResults | null {
  const path = words.find((w) => w.startsWith('peers='))?.slice('peers='.length);
  return path === undefined ? null : (JSON.parse(readFileSync(path, 'utf8')) as BytesResults);
}

function report(rows: readonly Moved[]): void {
  for (const { name, who, pass, kernels, read, written, l2, ms } of rows)
    console.log(
      `${name} ${pass} ${who}: ${kernels} kernels, read ${(read / 1e9).toFixed(3)} GB, written ${(written / 1e9).toFixed(3)} GB, L2 ${(l2 / 1e9).toFixed(3)} GB, ${ms.toFixed(3)} ms`,
    );
}

/** What the plan of a case predicts, and the fewest bytes possible: every tensor once. */
function predictions(engine: CudaEngine, cases: readonly Case[]) {
  return cases.map((one) => {
    const problem: Problem = problemOf(shapeOf(one));
    const { plan } = planOn(problem, engine);
    const of = (pass: Pass) => ({
      pass,
      kernel: plan?.[pass]?.kernel,
      config: plan?.[pass]?.config,
      bytes: plan?.[pass]?.cost.bytes,
      once: tiledBytes(problem, pass, problem.Sq, problem.Sk),
    });
    const { bytes, workspace } = standardCost(problem);
    return { name: nameOf(one), passes: [of('forward'), of('backward')], standard: { bytes, workspace } };
  });
}

/** Device memory that forward and backward take beyond their operands, by the driver's count of free bytes. */
async function measureMemory(): Promise<unknown[]> {
  const rows: unknown[] = [];
  for (const N of LENGTHS) {
    const engine = await open({ cache: process.env.TILEWISE_CACHE });
    const noise = new Noise(engine);
    const problem = problemOf(shapeOf([1, 16, N, 128, false]));
    const { plan } = planOn(problem, engine);
    if (plan === null || plan.backward === null) throw new Error(`no plan for N=${N}`);
    const programs = [await engine.prepare(problem, plan.forward), await engine.prepare(problem, plan.backward)];
    const made = operandsOf(engine, noise, problem);
    const operands = engine.bytesInUse;
    await engine.synchronize();
    const before = engine.device.memory().free;
    const start = performance.now();
    for (const program of programs) {
      await program.run(problem, made.operands);
      await engine.synchronize();
    }
    const ms = performance.now() - start;
    const after = engine.device.memory().free;
    const row = {
      name: nameOf([1, 16, N, 128, false]),
      N,
      operands,
      beyond: before - after,
      predicted: Math.max(plan.forward.cost.workspace, plan.backward.cost.workspace),
      standard: standardCost(problem).workspace,
      ms,
    };
    rows.push(row);
    console.log(JSON.stringify(row));
    made.dispose();
    await engine.close();
  }
  const known = earlier();
  if (known !== null) return [...rows, ...known.memory.filter((r) => r.who !== undefined)];
  const peers = join(FOLDER, 'memory.json');
  const { status, stderr } = spawnSync('python3', [STANDARD, 'memory', peers, JSON.stringify(STANDARD_LENGTHS)], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  if (status !== 0) console.error(`python3 exited with ${status}: ${stderr.slice(-500)}`);
  if (existsSync(peers)) rows.push(...(JSON.parse(readFileSync(peers, 'utf8')) as unknown[]));
  return rows;
}

/** Counters of a kernel as a whole. */
const WHOLE = [
  'gpu__time_duration.sum',
  'sm__inst_executed_pipe_tensor_op_gmma.avg.pct_of_peak_sustained_active',
  'sm__pipe_tensor_op_gmma_cycles_active.avg.pct_of_peak_sustained_active',
  'sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active',
  'sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active',
  'smsp__issue_active.avg.pct_of_peak_sustained_active',
];

/** Where the warps of each kernel wait, by sampling: see gpu/stalls.ts. */
function measureStalls(cases: readonly Case[]): Stalls[] {
  const labels = join(FOLDER, 'stall-labels.json');
  const file = join(FOLDER, 'stalls');
  const ncu = (words: readonly string[]): string => {
    const { status, stdout, stderr } = spawnSync('ncu', [...words], {
      encoding: 'utf8',
      timeout: 120_000,
      maxBuffer: 2 ** 28,
    });
    if (status !== 0) console.error(`ncu exited with ${status}\n${stdout.slice(-800)}\n${stderr.slice(-800)}`);
    return stdout;
  };
  const sections = ['WarpStateStats', 'ComputeWorkloadAnalysis', 'SourceCounters', 'SpeedOfLight'];
  ncu([
    ...['--clock-control', 'none', '-f', '-o', file],
    ...sections.flatMap((s) => ['--section', s]),
    ...[process.execPath, SELF, labels, 'inside', JSON.stringify(cases)],
  ]);
  if (!existsSync(labels)) return [];
  const launches: Launched[] = JSON.parse(readFileSync(labels, 'utf8'));
  const from = ['--import', `${file}.ncu-rep`, '--csv', '--print-units', 'base', '--page'];
  const [head, , ...raw] = csvRows(ncu([...from, 'raw']));
  const wanted = (name: string): boolean =>
    WHOLE.includes(name) || /pipe_\w+\.avg\.pct_of_peak_sustained_active$/.test(name);
  const page = ncu([...from, 'source']);
  // For a closer look.
  if (process.env.KEEP !== undefined) writeFileSync(join(process.env.KEEP, 'source.csv'), page);
  return accounts(page).map((account, i) => {
    const counters = Object.fromEntries(
      (head ?? []).flatMap((name, column) => (wanted(name) ? [[name, number(raw[i]?.[column])]] : [])),
    );
    const { name, pass } = launches[i] ?? {};
    const shares = Object.entries(account.shares).map(([what, share]) => `${what} ${(100 * share).toFixed(0)} %`);
    console.log(`${name} ${pass} ${account.function}: ${account.samples} samples, ${shares.join(', ')}`);
    return { name, pass, ...account, counters };
  });
}

if (words[0] === 'inside') await runOnce(JSON.parse(words[1]) as Case[], out);
else {
  const engine = await open();
  const { name, driver } = engine.device.info;
  const results: Record<string, unknown> = {
    device: name,
    driver,
    date: new Date().toISOString(),
    commit: process.env.COMMIT ?? commit(),
  };
  results.model = predictions(engine, BYTES);
  await engine.close();
  const save = (): void => writeFileSync(out, JSON.stringify(results));
  if (words.includes('bytes')) results.bytes = measureBytes(BYTES);
  save();
  if (words.includes('memory')) results.memory = await measureMemory();
  save();
  if (words.includes('stalls')) results.stalls = measureStalls(words.includes('quick') ? STALLS.slice(1, 2) : STALLS);
  save();
}
rmSync(FOLDER, { recursive: true, force: true });
