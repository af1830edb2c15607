/**
 * Measures what the WebGPU engine is held to, every tier in one process, its peer right after on the same device.
 *
 *     node bench/webgpu_bars.ts OUT.json [peer=DIR] [commit=HASH] [date=DAY] [adapter=NAME] [h=16] [n=1024,4096] [d=64,128]
 *                               [long=16384] [decode=8192] [rounds=9] [only=forward,backward,window,decode,overhead]
 *
 * Tiers are what devices are: `base` without subgroups and f16, `subgroup` without subgroup matrices, `matrix` with all. The
 * tiers' results are compared before anything is timed. `peer` is a folder with ort_models.py and ort_chain.mjs, which need
 * python3 with onnx and the package onnxruntime-node.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type FloatDType, toFloat64 } from '../src/core/dtype.ts';
import type { Pass, Step } from '../src/engine/contract.ts';
import { open, type WebGpuEngine } from '../src/engines/webgpu/index.ts';
import { causal, slidingWindow } from '../src/mods/library.ts';
import { choosePlan } from '../src/plan/choose.ts';
import { countPairs, flopsOf } from '../src/problem/cost.ts';
import { problemOf } from './problem.ts';
import { type Entrant, entrantOf, median, type Owned, operandsOf, type Shape, timeInTurn } from './webgpu_cases.ts';
import { copies } from './webgpu_copies.ts';

const [out, ...words] = process.argv.slice(2);
const value = (name: string, otherwise: string): string =>
  words.find((w) => w.startsWith(`${name}=`))?.slice(name.length + 1) ?? otherwise;
const numbers = (name: string, otherwise: string): number[] => value(name, otherwise).split(',').map(Number);
const wants = (group: string): boolean => value('only', group).split(',').includes(group);

const MATRICES = 'chromium-experimental-subgroup-matrix';
const WITHOUT = { base: ['subgroups', 'shader-f16', MATRICES], subgroup: [MATRICES], matrix: [] } as const;
type Tier = keyof typeof WITHOUT;

/** A line of the result file. */
export interface WebGpuRow {
  readonly group: 'forward' | 'backward' | 'window' | 'decode' | 'overhead';
  /** `f32 n4096 d64 causal` */
  readonly name: string;
  readonly tier: Tier;
  readonly kernel: string;
  readonly config: Step['config'];
  /** Milliseconds of a call: see `timeInTurn`. */
  readonly ms: number;
  /** Of what the mask keeps: 2 pairs (D + Dv) forward, 2 pairs (3 D + 2 Dv) backward. */
  readonly tflops: number;
  /** Largest difference of an output from the first tier's; null when that one could not be trusted. */
  readonly difference: number | null;
  /** Share of all pairs that the mask keeps. */
  readonly density: number;
  /** Terabytes of K and V read a second, or copied (read and written) a second. */
  readonly tbs?: number;
}

export interface WebGpuPeer {
  /** mha or gqa (which is causal). */
  readonly op: string;
  readonly dtype: string;
  readonly n: number;
  readonly d: number;
  readonly ms: number;
  readonly tflops: number;
}

export interface WebGpuResults {
  readonly what: string;
  readonly date: string;
  readonly commit: string | null;
  /** What a reader of the rows should know, added by hand. */
  readonly note?: string;
  readonly device: string;
  readonly features: Readonly<Record<string, unknown>>;
  readonly rows: WebGpuRow[];
  readonly copies: { readonly name: string; readonly tbs: number }[];
  readonly peers: WebGpuPeer[];
}

const engines = {} as Record<Tier, WebGpuEngine>;
for (const tier of Object.keys(WITHOUT) as Tier[])
  engines[tier] = await open({
    adapter: value('adapter', '') || undefined,
    dawnFlags: ['enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia'],
    without: WITHOUT[tier],
  });
const results: WebGpuResults = {
  what: `bench/webgpu_bars.ts ${words.filter((w) => !/^(peer|date|commit)=/.test(w)).join(' ')}`.trim(),
  date: value('date', new Date().toISOString().slice(0, 10)),
  commit: value('commit', '') || null,
  device: engines.matrix.caps.device,
  features: engines.matrix.caps.features,
  rows: [],
  copies: [],
  peers: [],
};
/** After every group, so that a run that is cut short leaves what it has. */
const save = (): void => {
  if (out !== undefined) writeFileSync(out, `${JSON.stringify(results, null, 1)}\n`);
};

interface Asked {
  readonly name: string;
  readonly tier: Tier;
  readonly shape: Shape;
}

interface Ready extends Asked {
  readonly step: Step;
  readonly operands: Owned;
  readonly entrant: Entrant;
  difference: number;
}

const allShapes = new Map<string, Float64Array[]>();

/** Outputs of one run, compared with the first tier's of the same name. */
async function compare({ name, operands }: Ready, pass: Pass): Promise<number> {
  const tensors = pass === 'forward' ? [operands.out] : [operands.dq, operands.dk, operands.dv];
  const got: Float64Array[] = [];
  for (const t of tensors)
    if (t) {
      const { data, dtype } = await t.read();
      // Every seventh element: enough to see a wrong tile, in a seventh of the time.
      got.push(toFloat64(dtype, data.filter((_: number, i: number) => i % 7 === 0) as typeof data));
    }
  const first = allShapes.get(`${pass} ${name}`);
  if (first === undefined) {
    allShapes.set(`${pass} ${name}`, got);
    return got.every((x) => x.every(Number.isFinite)) ? 0 : Number.NaN;
  }
  let most = 0;
  got.forEach((x, k) => {
    for (const [i, y] of x.entries()) {
      const d = Math.abs(y - first[k][i]);
      if (!(d <= most)) most = d;
    }
  });
  return most;
}

/** Most that tiers may differ by: they sum in another order, and f16 results are rounded to 11 bits. */
const TOLERANCE: Readonly<Record<string, number>> = { f32: 2e-5, f16: 4e-3 };

async function measure(group: WebGpuRow['group'], pass: Pass, asked: readonly Asked[]): Promise<void> {
  const ready: Ready[] = await Promise.all(
    asked.map(async ({ name, tier, shape }) => {
      const engine = engines[tier];
      const problem = problemOf({ ...shape, grads: pass === 'backward' });
      const operands = operandsOf(engine, problem);
      const plan = choosePlan(problem, [engine]);
      const step = pass === 'forward' ? plan.forward : (plan.backward as Step);
      const forward = await engine.prepare(problem, plan.forward);
      const entrant = await entrantOf(engine, problem, operands, step);
      await forward.run(problem, operands);
      return { name, tier, shape, step, operands, entrant, difference: 0 };
    }),
  );
  for (const one of ready) {
    await one.entrant.once();
    await one.entrant.settle();
    one.difference = await compare(one, pass);
    if (!(one.difference <= TOLERANCE[one.shape.dtype]))
      console.log(`WRONG ${group} ${one.name} ${one.tier} ${one.step.kernel}: differs by ${one.difference}`);
  }
  allShapes.clear();
  const times = await timeInTurn(
    ready.map((r) => r.entrant),
    { rounds: Number(value('rounds', '9')) },
  );
  for (const [i, { name, tier, shape, step, operands, difference }] of ready.entries()) {
    operands.dispose();
    const problem = problemOf({ ...shape, grads: pass === 'backward' });
    const ms = times[i];
    const tflops = flopsOf(problem, pass) / ms / 1e9;
    const { B, Hq, Hkv, Sq, Sk, D } = problem;
    const density = countPairs(problem).pairs / (B * Hq * Sq * Sk);
    const bytes = 2 * B * Hkv * Sk * D * (shape.dtype === 'f32' ? 4 : 2);
    const tbs = group === 'decode' ? { tbs: bytes / ms / 1e9 } : {};
    results.rows.push({
      group,
      name,
      tier,
      kernel: step.kernel,
      config: step.config,
      ms,
      tflops,
      difference,
      density,
      ...tbs,
    });
    const rate = group === 'decode' ? `${(bytes / ms / 1e9).toFixed(3)} TB/s` : `${tflops.toFixed(2)} TFLOP/s`;
    const sizes = Object.values(step.config).join(',');
    console.log(`${group} ${name} ${tier} ${step.kernel} [${sizes}] ${ms.toFixed(3)} ms ${rate} (${difference})`);
  }
  save();
}

const Hq = Number(value('h', '16'));
const tiersOf = (dtype: FloatDType): Tier[] => (dtype === 'f16' ? ['subgroup', 'matrix'] : ['base', 'subgroup']);

for (const pass of ['forward', 'backward'] as const) {
  if (!wants(pass)) continue;
  for (const dtype of ['f32', 'f16'] as const)
    for (const D of numbers('d', '64,128')) {
      const asked = numbers('n', '1024,4096').flatMap((Sq) =>
        [undefined, causal()].flatMap((mask) =>
          tiersOf(dtype).map((tier) => ({
            name: `${dtype} n${Sq} d${D} ${mask === undefined ? 'full' : 'causal'}`,
            tier,
            shape: { Hq, Sq, D, dtype, mask },
          })),
        ),
      );
      await measure(pass, pass, asked);
    }
}
if (wants('window')) {
  const Sq = Number(value('long', '16384'));
  const masks = [
    ['full', undefined],
    ['causal', causal()],
    ['window 1024', slidingWindow(Math.min(1023, Sq >> 4), 0)],
  ] as const;
  for (const [dtype, tier] of [
    ['f32', 'subgroup'],
    ['f16', 'matrix'],
  ] as const)
    await measure(
      'window',
      'forward',
      masks.map(([label, mask]) => ({
        name: `${dtype} n${Sq} d64 ${label}`,
        tier,
        shape: { Hq: Math.ceil(Hq / 4), Sq, D: 64, dtype, mask },
      })),
    );
}
if (wants('decode')) {
  const Sk = Number(value('decode', '8192'));
  for (const dtype of ['f16', 'f32'] as const) {
    const shape = { B: Hq, Hq: 2 * Hq, Hkv: Hq / 2, Sq: 1, Sk, D: 128, dtype };
    await measure(
      'decode',
      'forward',
      (['base', 'subgroup'] as const).map((tier) => ({
        name: `${dtype} b${shape.B} hq${shape.Hq} hkv${shape.Hkv} n${Sk} d128`,
        tier,
        shape,
      })),
    );
  }
  results.copies.push(...(await copies(engines.matrix, Hq * (Hq / 2) * Sk * 128 * 2)));
  for (const { name, tbs } of results.copies) console.log(`${name} ${tbs.toFixed(3)} TB/s`);
  save();
}
if (wants('overhead')) {
  const shape = { Hq: 1, Sq: 16, D: 64, dtype: 'f32' as const };
  for (const tier of ['base', 'subgroup'] as const) {
    const engine = engines[tier];
    const problem = problemOf(shape);
    const operands = operandsOf(engine, problem);
    const { forward } = choosePlan(problem, [engine]);
    const program = await engine.prepare(problem, forward);
    const times: number[] = [];
    for (let i = 0; i < 2000; i++) {
      const start = performance.now();
      await program.run(problem, operands);
      times.push(performance.now() - start);
      if (i % 50 === 49) await engine.synchronize();
    }
    const ms = median(times.slice(500));
    const { kernel, config } = forward;
    results.rows.push({
      group: 'overhead',
      name: 'program ready',
      tier,
      kernel,
      config,
      ms,
      tflops: 0,
      difference: 0,
      density: 1,
    });
    console.log(`host overhead ${tier} ${(1000 * ms).toFixed(1)} us a call`);
    operands.dispose();
  }
  save();
}
for (const engine of Object.values(engines)) await engine.close();

const peer = value('peer', '');
if (peer !== '') {
  const models = mkdtempSync(join(tmpdir(), 'tilewise-ort-'));
  try {
    const made = spawnSync('python3', [join(peer, 'ort_models.py'), models], { encoding: 'utf8' });
    if (made.status !== 0) throw new Error(`ort_models.py: ${made.stderr}`);
    const ep = value('ep', 'webgpu');
    const { stdout, stderr } = spawnSync(process.execPath, [join(peer, 'ort_chain.mjs'), models, ep], {
      encoding: 'utf8',
      timeout: 90_000,
    });
    if (!stdout.includes('TFLOP/s')) console.log(stdout, stderr);
    for (const line of stdout.split('\n')) {
      const found = /^(\w+)_(f\d+)_(\d+)_(\d+)_(\d+) ([\d.-]+) ms\/op ([\d.-]+) TFLOP/.exec(line);
      if (found === null) continue;
      const [op, dtype] = [found[1], found[2]];
      const [n, , d, ms, tflops] = found.slice(3).map(Number);
      results.peers.push({ op, dtype, n, d, ms, tflops });
      console.log(`onnxruntime ${line}`);
    }
  } finally {
    rmSync(models, { recursive: true });
  }
  save();
}
