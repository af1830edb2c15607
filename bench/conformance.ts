/**
 * The conformance table on this machine's GPU, spread over processes because compiling takes longer than running. Each pass runs
 * twice, and both runs have to give the same bits.
 *
 *     node bench/conformance.ts OUT.json [engines=cuda*7,webgpu:base*3,webgpu:subgroup*3,webgpu:matrix*3] [every=cuda] [seconds=120]
 *                               [cases=REGEX]
 *
 * `cuda*7` shares an engine's cases among seven processes. With `every` a pass is run by every kernel that serves it, else by the
 * plan's. `webgpu:base` and `webgpu:subgroup` leave features of the device unused, so that those tiers are checked as well.
 */
import { fork } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openEngine } from '../src/api/registry.ts';
import { commit } from '../src/cli/machine.ts';
import { CASES } from '../src/conformance/cases.ts';
import { instantiate } from '../src/conformance/spec.ts';
import { type CaseResult, runCase } from '../src/conformance/suite.ts';
import type { Engine } from '../src/engine/contract.ts';

interface Share {
  readonly engine: string;
  readonly first: number;
  readonly step: number;
  readonly seconds: number;
  readonly cases: string;
  readonly every: boolean;
}

type Message =
  | { readonly kind: 'device'; readonly device: string }
  | { readonly kind: 'result'; readonly result: CaseResult }
  | { readonly kind: 'late'; readonly id: string };

const TIERS: Readonly<Record<string, readonly string[]>> = {
  base: ['subgroups', 'shader-f16', 'chromium-experimental-subgroup-matrix'],
  subgroup: ['chromium-experimental-subgroup-matrix'],
  matrix: [],
};

function opened(engine: string): Promise<Engine> {
  const [name, tier = 'matrix'] = engine.split(':');
  if (name === 'cuda') return openEngine('cuda', { cache: process.env.TILEWISE_CACHE });
  return openEngine('webgpu', {
    adapter: process.env.ADAPTER ?? 'NVIDIA',
    dawnFlags: ['enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia'],
    without: TIERS[tier],
  });
}

/** In a process of its own: every `step`th case. */
async function serve({ engine: name, first, step, seconds, cases, every }: Share): Promise<void> {
  const send = (message: Message): void => void process.send?.(message);
  const engine = await opened(name);
  const end = performance.now() + seconds * 1000;
  send({ kind: 'device', device: engine.caps.device });
  const mine = CASES.filter(({ id, spec }) => spec.dtype !== 'f64' && new RegExp(cases).test(id)).filter(
    (_, i) => i % step === first,
  );
  for (const one of mine) {
    const { problem } = instantiate(one.id, one.spec);
    const [forward, backward] = (['forward', 'backward'] as const).map((pass) =>
      every
        ? engine.kernels.filter((k) => k.pass === pass && k.refuse(problem, engine.caps) === null).map((k) => k.name)
        : [],
    );
    for (let i = 0; i < Math.max(forward.length, backward.length, 1); i++) {
      if (performance.now() > end) {
        send({ kind: 'late', id: one.id });
        continue;
      }
      const prefer = {
        ...(forward.length > 0 && { forward: { kernel: forward[i % forward.length] } }),
        ...(backward.length > 0 && { backward: { kernel: backward[i % backward.length] } }),
      };
      for (const result of await runCase(one, engine, { prefer })) send({ kind: 'result', result });
    }
  }
  await engine.close();
  process.exit(0);
}

interface Tally {
  readonly engine: string;
  device: string;
  passed: number;
  failed: number;
  skipped: number;
  /** Cases that time was not left for. */
  late: number;
  /** Passes by the kernel that served them. */
  readonly kernels: Record<string, number>;
  /** Largest error as a share of what is allowed. */
  closest: number;
  readonly failures: { id: string; pass: string; kernel?: string | undefined; message?: string | undefined }[];
  readonly refusals: Record<string, number>;
}

function count(tally: Tally, message: Message): void {
  if (message.kind === 'device') tally.device = message.device;
  else if (message.kind === 'late') tally.late++;
  else {
    const { id, pass, kernel, skipped, ok, maxError, allowed, message: text } = message.result;
    if (skipped !== undefined) {
      tally.skipped++;
      tally.refusals[skipped] = (tally.refusals[skipped] ?? 0) + 1;
    } else if (ok) {
      tally.passed++;
      if (kernel !== undefined) tally.kernels[kernel] = (tally.kernels[kernel] ?? 0) + 1;
      if (allowed > 0) tally.closest = Math.max(tally.closest, maxError / allowed);
    } else {
      tally.failed++;
      tally.failures.push({ id, pass, kernel, message: text });
      console.log(`FAILED ${tally.engine} ${pass} ${kernel ?? ''} ${id}: ${text?.slice(0, 200)}`);
    }
  }
}

async function main(out: string, words: readonly string[]): Promise<void> {
  const value = (name: string, otherwise: string): string =>
    words.find((w) => w.startsWith(`${name}=`))?.slice(name.length + 1) ?? otherwise;
  const asked = value('engines', 'cuda*7,webgpu:base*3,webgpu:subgroup*3,webgpu:matrix*3').split(',');
  const processes = new Map(
    asked.map((word): [string, number] => [word.split('*')[0], Number(word.split('*')[1] ?? 1)]),
  );
  const [seconds, cases] = [Number(value('seconds', '120')), value('cases', '')];
  const tallies = [...processes.keys()].map((engine): Tally => {
    const nothing = { device: '', passed: 0, failed: 0, skipped: 0, late: 0, closest: 0 };
    return { engine, ...nothing, kernels: {}, failures: [], refusals: {} };
  });
  const started = performance.now();
  await Promise.all(
    tallies.flatMap((tally) => {
      const { engine } = tally;
      const step = processes.get(engine) ?? 1;
      return Array.from({ length: step }, (_, first) => {
        const every = value('every', '').split(',').includes(engine);
        const share: Share = { engine, first, step, seconds, cases, every };
        const child = fork(fileURLToPath(import.meta.url), ['share', JSON.stringify(share)]);
        child.on('message', (message: Message) => count(tally, message));
        return new Promise<void>((done) => {
          child.on('exit', (code, signal) => {
            if (code !== 0) {
              tally.failed++;
              tally.failures.push({ id: `process ${first}`, pass: '', message: `ended with ${code ?? signal}` });
            }
            done();
          });
        });
      });
    }),
  );
  for (const { engine, passed, failed, skipped, late, kernels, closest } of tallies)
    console.log(
      `${engine}: ${passed} passed, ${failed} failed, ${skipped} refused, ${late} not reached; largest error ${closest.toFixed(2)} of what is allowed; ${JSON.stringify(kernels)}`,
    );
  const report = {
    format: 'tilewise-conformance-1',
    date: new Date().toISOString(),
    commit: process.env.COMMIT ?? commit(),
    seconds: Math.round((performance.now() - started) / 1000),
    engines: tallies,
  };
  writeFileSync(out, `${JSON.stringify(report, null, 1)}\n`);
  if (tallies.some(({ failed }) => failed > 0)) process.exitCode = 1;
}

const [first, ...rest] = process.argv.slice(2);
if (first === 'share') await serve(JSON.parse(rest[0]) as Share);
else await main(first, rest);
