/**
 * Checks the WebGPU engine on this machine's adapter, then times its kernels.
 *
 *     node bench/webgpu.ts OUT.json [adapter=NAME] [dawn=FLAGS] [check[=REGEX]] [seconds=60] [forward] [backward] [decode] [overhead]
 *                          [tune] [dtype=f32,f16] [d=64,128] [n=1024,4096] [h=16] [without=subgroups]
 *
 * Times are of `timeInTurn`, all tiles of a problem interleaved. TFLOP/s count what the mask keeps: 2 pairs (D + Dv) forward,
 * 2 pairs (3 D + 2 Dv) backward. `tune` times every tile in TUNE instead of the plan's choice. See webgpu_bars.ts for the figures
 * that are published.
 */
import { writeFileSync } from 'node:fs';
import { CASES } from '../src/conformance/cases.ts';
import { runCase } from '../src/conformance/suite.ts';
import type { FloatDType } from '../src/core/dtype.ts';
import { open } from '../src/engines/webgpu/index.ts';
import { type TileConfig, tile } from '../src/engines/webgpu/kernels/tiles.ts';
import { causal, slidingWindow } from '../src/mods/library.ts';
import { choosePlan } from '../src/plan/choose.ts';
import { flopsOf } from '../src/problem/cost.ts';
import { problemOf } from './problem.ts';
import { type Entrant, entrantOf, median, operandsOf, type Shape, timeInTurn } from './webgpu_cases.ts';

const [out, ...words] = process.argv.slice(2);
const flag = (name: string): boolean => words.some((w) => w === name || w.startsWith(`${name}=`));
const value = (name: string, otherwise: string): string =>
  words.find((w) => w.startsWith(`${name}=`))?.slice(name.length + 1) ?? otherwise;
const numbers = (name: string, otherwise: string): number[] => value(name, otherwise).split(',').map(Number);

const engine = await open({
  adapter: flag('adapter') ? value('adapter', '') : undefined,
  dawnFlags: value('dawn', 'enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia').split('+'),
  without: flag('without') ? value('without', '').split(',') : undefined,
});
const report: { device: string; features: unknown; checks: unknown[]; rows: unknown[] } = {
  device: engine.caps.device,
  features: engine.caps.features,
  checks: [],
  rows: [],
};
console.log(JSON.stringify(engine.caps));

/** Tiles worth trying, by pass and head size. */
const TUNE: Readonly<Record<string, readonly TileConfig[]>> = {
  'forward 64': [
    tile(16, 8, 8, 64, 4, 16),
    tile(16, 8, 8, 64, 4, 16, 2),
    tile(16, 8, 8, 64, 4, 16, 4),
    tile(16, 8, 8, 64, 4, 8, 2),
    tile(8, 16, 8, 128, 4, 8, 2),
    tile(8, 8, 8, 64, 4, 16, 2),
  ],
  'forward 128': [
    tile(8, 16, 8, 128, 4, 4),
    tile(8, 16, 8, 128, 4, 4, 4),
    tile(8, 16, 8, 128, 4, 8, 2),
    tile(8, 16, 8, 64, 4, 4, 2),
    tile(16, 16, 4, 64, 4, 8, 2),
  ],
  'backward 64': [
    tile(16, 8, 4, 64, 8, 16, 2),
    tile(16, 8, 4, 64, 4, 16),
    tile(8, 16, 8, 64, 4, 8, 2),
    tile(16, 8, 8, 32, 4, 8),
  ],
  'backward 128': [
    tile(8, 16, 8, 64, 8, 8),
    tile(8, 16, 8, 64, 8, 8, 2),
    tile(8, 16, 8, 64, 4, 4),
    tile(16, 16, 4, 64, 8, 8),
  ],
};

/** Cases are run a few at a time: compiling is most of the work, and drivers do it on many threads. */
const TOGETHER = 8;

async function check(pattern: RegExp, seconds: number): Promise<void> {
  const end = performance.now() + seconds * 1000;
  let [passed, failed, skipped, left] = [0, 0, 0, 0];
  const cases = CASES.filter((one) => pattern.test(one.id) && one.spec.dtype !== 'f64');
  const work = async (): Promise<void> => {
    for (let one = cases.shift(); one !== undefined; one = cases.shift()) {
      if (performance.now() > end) {
        left++;
        continue;
      }
      for (const result of await runCase(one, engine)) {
        if (result.skipped !== undefined) skipped++;
        else if (result.ok) passed++;
        else failed++;
        if (!result.ok || result.skipped !== undefined)
          console.log(result.pass, result.kernel ?? '', result.id, result.message ?? result.skipped);
        report.checks.push(result);
      }
    }
  };
  await Promise.all(Array.from({ length: engine.caps.software ? 1 : TOGETHER }, work));
  console.log(`conformance: ${passed} passed, ${failed} failed, ${skipped} refused, ${left} cases not reached`);
}

async function row(
  name: string,
  shape: Shape,
  pass: 'forward' | 'backward',
  tiles: readonly TileConfig[] | null,
): Promise<void> {
  const problem = problemOf(shape);
  const operands = operandsOf(engine, problem);
  try {
    const plan = choosePlan(problem, [engine]);
    const chosen = pass === 'forward' ? plan.forward : plan.backward;
    if (chosen === null) return;
    if (pass === 'backward') await (await engine.prepare(problem, plan.forward)).run(problem, operands);
    const kernels = engine.kernels.filter((k) => k.pass === pass && k.refuse(problem, engine.caps) === null);
    const steps = !tiles
      ? [chosen]
      : kernels.flatMap((k) => {
          const configs = 'rt' in k.configs(problem, engine.caps)[0] ? tiles : k.configs(problem, engine.caps);
          return configs.map((config) => ({ ...chosen, kernel: k.name, config }));
        });
    const tried = await Promise.all(
      steps.map(async (step): Promise<{ step: typeof step; entrant: Entrant }[]> => {
        try {
          return [{ step, entrant: await entrantOf(engine, problem, operands, step) }];
        } catch (e) {
          console.log(`${pass} ${name} ${step.kernel} ${JSON.stringify(step.config)}: ${(e as Error).message}`);
          return [];
        }
      }),
    );
    const able = tried.flat();
    const times = await timeInTurn(able.map(({ entrant }) => entrant));
    for (const [i, { step }] of able.entries()) {
      const ms = times[i];
      const tflops = flopsOf(problem, pass) / ms / 1e9;
      report.rows.push({ name, pass, kernel: step.kernel, config: step.config, ms, tflops });
      const sizes = Object.values(step.config).join(',');
      console.log(`${pass} ${name} ${step.kernel} [${sizes}] ${ms.toFixed(3)} ms ${tflops.toFixed(2)} TFLOP/s`);
    }
  } finally {
    operands.dispose();
  }
}

if (flag('check')) await check(new RegExp(value('check', '')), Number(value('seconds', '60')));

const Hq = Number(value('h', '16'));
for (const pass of ['forward', 'backward'] as const) {
  if (!flag(pass)) continue;
  for (const dtype of value('dtype', 'f32').split(',') as FloatDType[])
    for (const D of numbers('d', '64,128'))
      for (const Sq of numbers('n', '1024,4096')) {
        const shape = { Hq, Sq, D, dtype, grads: pass === 'backward' };
        const tiles = flag('tune') ? (TUNE[`${pass} ${D}`] ?? []) : null;
        await row(`${dtype} n${Sq} d${D} full`, shape, pass, tiles);
        if (flag('tune')) continue;
        await row(`${dtype} n${Sq} d${D} causal`, { ...shape, mask: causal() }, pass, null);
      }
}
if (flag('window'))
  for (const mask of [undefined, slidingWindow(1024, 0)])
    await row(
      `f32 n16384 d64 ${mask?.label ?? 'full'}`,
      { Hq: 4, Sq: 16384, D: 64, dtype: 'f32', mask },
      'forward',
      [],
    );
if (flag('decode'))
  for (const dtype of ['f16', 'f32'] as const) {
    const shape = { B: 16, Hq: 32, Hkv: 8, Sq: 1, Sk: 8192, D: 128, dtype };
    await row(`decode ${dtype} b16 hq32 hkv8 n8192 d128`, shape, 'forward', flag('tune') ? [] : null);
    const bytes = 16 * 8 * 8192 * 256 * (dtype === 'f16' ? 2 : 4);
    const last = report.rows.at(-1) as { ms: number };
    console.log(`decode reads ${(bytes / last.ms / 1e9).toFixed(3)} TB/s`);
  }
if (flag('overhead')) {
  const problem = problemOf({ Hq: 1, Sq: 16, D: 64, dtype: 'f32' });
  const operands = operandsOf(engine, problem);
  const program = await engine.prepare(problem, choosePlan(problem, [engine]).forward);
  const times: number[] = [];
  for (let i = 0; i < 400; i++) {
    const start = performance.now();
    await program.run(problem, operands);
    times.push((performance.now() - start) * 1000);
    if (i % 50 === 49) await engine.synchronize();
  }
  const us = median(times);
  report.rows.push({ name: 'host overhead', us });
  console.log(`host overhead ${us.toFixed(1)} us a call, program ready`);
  operands.dispose();
}
if (out !== undefined) writeFileSync(out, `${JSON.stringify(report, null, 1)}\n`);
await engine.close();
