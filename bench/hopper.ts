/**
 * Checks and times the Hopper kernels against the portable ones in one process, every configuration interleaved.
 *
 *     node bench/hopper.ts OUT.json [check] [time] [backward] [d=64,128,256] [n=512,16384] [kinds=full,causal] [only=2/128]
 *         [tiles=2/128/2/1] [alone] [warm=2] [reps=9]
 *
 * `check` compares small problems with float64 on the host, with waits that trap instead of hanging; `time` reports device
 * time by events, the L2 cache flushed before every launch, medians, as TFLOP/s of 4 * pairs * D.
 */
import { writeFileSync } from 'node:fs';
import { fromBf16, toBf16 } from '../src/core/dtype.ts';
import { type HostTensor, tensor } from '../src/core/tensor.ts';
import type { Config, Operands } from '../src/engine/contract.ts';
import { Event } from '../src/engines/cuda/driver/stream.ts';
import { type CudaEngine, open } from '../src/engines/cuda/index.ts';
import type { CudaKernel } from '../src/engines/cuda/kernel.ts';
import { backwardMma } from '../src/engines/cuda/kernels/backward_mma.ts';
import { backwardWgmma } from '../src/engines/cuda/kernels/backward_wgmma.ts';
import { backwardWgmmaFused } from '../src/engines/cuda/kernels/backward_wgmma_fused.ts';
import { forwardMma } from '../src/engines/cuda/kernels/forward_mma.ts';
import { forwardWgmma } from '../src/engines/cuda/kernels/forward_wgmma.ts';
import { CudaProgram } from '../src/engines/cuda/program.ts';
import type { Mask, Mod } from '../src/mods/expr.ts';
import { alibi, and, causal, documents, slidingWindow, softcap } from '../src/mods/library.ts';
import { countPairs } from '../src/problem/cost.ts';
import type { Problem } from '../src/problem/problem.ts';
import { debugged } from './bounded.ts';
import { problemOf as denseProblem } from './problem.ts';

const [out, ...words] = process.argv.slice(2);
const value = (name: string): string | undefined => words.find((w) => w.startsWith(`${name}=`))?.slice(name.length + 1);
const list = (name: string, otherwise: number[]): number[] => value(name)?.split(',').map(Number) ?? otherwise;

interface Shape {
  readonly B: number;
  readonly Hq: number;
  readonly Hkv: number;
  readonly Sq: number;
  readonly Sk: number;
  readonly D: number;
  readonly kind: string;
}

/** What is timed by name, for `Hq` heads and `N` keys. */
function kindOf(kind: string, Hq: number, N: number): { mask?: Mask; mod?: Mod; dropout?: number } {
  const slopes = (): Mod =>
    alibi(
      tensor(
        Float32Array.from({ length: Hq }, (_, i) => 2 ** (-(i + 1) / 2)),
        [Hq],
      ),
    );
  const ids = (): Mask =>
    documents(
      tensor(
        Int32Array.from({ length: N }, (_, i) => Math.floor(i / 1500)),
        [1, N],
      ),
    );
  const dropout = 0.1;
  switch (kind) {
    case 'full':
      return {};
    case 'causal':
      return { mask: causal() };
    case 'alibi':
      return { mod: slopes() };
    case 'alibi-causal':
      return { mod: slopes(), mask: causal() };
    case 'softcap':
      return { mod: softcap(20) };
    case 'softcap-causal':
      return { mod: softcap(20), mask: causal() };
    case 'dropout':
      return { dropout };
    case 'dropout-causal':
      return { dropout, mask: causal() };
    case 'window':
      return { mask: and(causal(), slidingWindow(1024)) };
    case 'documents':
      return { mask: and(causal(), ids()) };
    default:
      throw new Error(`no kind of attention is called ${kind}`);
  }
}

function problemOf({ kind, ...shape }: Shape): Problem {
  return denseProblem({ ...shape, ...kindOf(kind, shape.Hq, shape.Sk), grads: true });
}

const normal = (): number => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
const NOISE = Uint16Array.from({ length: 1 << 20 }, () => toBf16(normal()));

function noise(engine: CudaEngine, shape: readonly number[]) {
  const data = new Uint16Array(shape.reduce((a, b) => a * b, 1));
  let [at, shift] = [0, Math.floor(Math.random() * 4096)];
  while (at < data.length) {
    const part = NOISE.subarray(shift, Math.min(NOISE.length, shift + data.length - at));
    data.set(part, at);
    at += part.length;
    shift = (shift + 7919) % 65536;
  }
  return { host: data, device: engine.upload(tensor(data, shape, 'bf16')) };
}

function operandsOf(engine: CudaEngine, { B, Hq, Hkv, Sq, Sk, D, sides: read }: Problem) {
  const [q, k, v] = [noise(engine, [B, Hq, Sq, D]), noise(engine, [B, Hkv, Sk, D]), noise(engine, [B, Hkv, Sk, D])];
  const poison = new Uint16Array(q.host.length).fill(0x7fc0);
  const out = engine.upload(tensor(poison, [B, Hq, Sq, D], 'bf16'));
  const lse = engine.upload(tensor(new Float32Array(B * Hq * Sq).fill(Number.NaN), [B, Hq, Sq], 'f32'));
  const forward = { q: q.device, k: k.device, v: v.device, out, lse };
  const backward = {
    dOut: noise(engine, [B, Hq, Sq, D]).device,
    dq: engine.allocate('bf16', [B, Hq, Sq, D]),
    dk: engine.allocate('bf16', [B, Hkv, Sk, D]),
    dv: engine.allocate('bf16', [B, Hkv, Sk, D]),
  };
  const sides = read.map((t) => engine.upload(t as HostTensor));
  const none = { dSides: sides.map(() => null), sink: null, dSink: null, dLse: null };
  const operands: Operands = { ...forward, ...backward, sides, ...none };
  const dispose = (): void => {
    for (const t of [...Object.values(forward), ...Object.values(backward), ...sides]) t.dispose();
  };
  return { q: q.host, k: k.host, v: v.host, operands, dispose };
}

/** Relative error of out against float64, and the largest of lse. */
async function errors(
  problem: Problem,
  masked: boolean,
  made: ReturnType<typeof operandsOf>,
): Promise<[number, number]> {
  const { B, Hq, Hkv, Sq, Sk, D, scale } = problem;
  const out = (await made.operands.out.read()).data as Uint16Array;
  const lse = (await made.operands.lse.read()).data as Float32Array;
  const [q, k, v] = [made.q, made.k, made.v].map((t) => Float32Array.from(t, fromBf16));
  let [difference, norm, worst] = [0, 0, 0];
  for (let bh = 0; bh < B * Hq; bh++) {
    const kv = (Math.floor(bh / Hq) * Hkv + Math.floor((bh % Hq) / (Hq / Hkv))) * Sk * D;
    for (let i = 0; i < Sq; i++) {
      const row = (bh * Sq + i) * D;
      const end = masked ? Math.max(0, Math.min(Sk, i + Sk - Sq + 1)) : Sk;
      const s = Array.from({ length: end }, (_, j) => {
        let x = 0;
        for (let d = 0; d < D; d++) x += q[row + d] * k[kv + j * D + d];
        return x * scale;
      });
      const top = s.reduce((x, y) => Math.max(x, y), Number.NEGATIVE_INFINITY);
      const p = s.map((x) => Math.exp(x - top));
      const total = p.reduce((x, y) => x + y, 0);
      const want = end === 0 ? Number.NEGATIVE_INFINITY : top + Math.log(total);
      if (want !== lse[bh * Sq + i]) worst = Math.max(worst, Math.abs(want - lse[bh * Sq + i]));
      if (Number.isNaN(lse[bh * Sq + i])) worst = Number.POSITIVE_INFINITY;
      for (let d = 0; d < D; d++) {
        let x = 0;
        for (let j = 0; j < end; j++) x += p[j] * v[kv + j * D + d];
        if (end > 0) x /= total;
        difference += (x - fromBf16(out[row + d])) ** 2;
        norm += x * x;
      }
    }
  }
  return [Math.sqrt(difference / norm), worst];
}

/** The first configuration of a portable kernel; all of a Hopper one, or those asked for. */
function configsOf(kernel: CudaKernel, problem: Problem): readonly Config[] {
  const all = kernel.configs(problem, engine.caps);
  if (kernel.name.endsWith('_mma')) return all.slice(0, 1);
  const tiles = kernel.pass === 'forward' ? value('tiles')?.split(',').map(tileOf) : undefined;
  return tiles ?? all;
}

/** `2/128/2/1` as a tile of the forward. */
function tileOf(text: string): Config {
  const [groups, blockK, stages, turns] = text.split('/').map(Number);
  return { groups, blockK, stages, turns: turns === 1 };
}

const nameOf = (config: Config): string => Object.values(config).join('/');
const engine = await open({ cache: process.env.TILEWISE_CACHE });
const rows: unknown[] = [];
const passes = [false, ...(words.includes('backward') ? [true] : [])].filter(
  (b) => b || !words.includes('only-backward'),
);

async function check(): Promise<void> {
  const shapes: Omit<Shape, 'D'>[] = [
    { B: 1, Hq: 1, Hkv: 1, Sq: 64, Sk: 64, kind: 'full' },
    { B: 1, Hq: 2, Hkv: 1, Sq: 200, Sk: 300, kind: 'full' },
    { B: 2, Hq: 4, Hkv: 2, Sq: 300, Sk: 700, kind: 'causal' },
    { B: 1, Hq: 2, Hkv: 2, Sq: 400, Sk: 200, kind: 'causal' },
    { B: 3, Hq: 60, Hkv: 60, Sq: 130, Sk: 130, kind: 'causal' },
  ];
  for (const D of list('d', [64, 128, 256, 40]))
    for (const shape of shapes) {
      const problem = problemOf({ ...shape, D });
      for (const config of forwardWgmma.configs(problem, engine.caps)) {
        const made = operandsOf(engine, problem);
        const kernel = debugged(forwardWgmma);
        const program = new CudaProgram(engine, kernel, '', config, problem);
        await program.run(problem, made.operands);
        const [out, lse] = await errors(problem, shape.kind === 'causal', made);
        const verdict = out < 6e-3 && lse < 1e-3 ? 'ok' : 'WRONG';
        console.log(
          `${verdict} D=${D} ${nameOf(config)} ${JSON.stringify(shape)} out ${out.toExponential(2)} lse ${lse.toExponential(2)}`,
        );
        made.dispose();
      }
    }
}

async function time(back: boolean): Promise<void> {
  const flush = engine.allocate('u8', [256 << 20]);
  const [start, end] = [new Event(engine.device, true), new Event(engine.device, true)];
  const reps = Number(value('reps') ?? 9);
  const only = value('only')?.split(',');
  const both = (back ? [backwardWgmmaFused, backwardWgmma, backwardMma] : [forwardWgmma, forwardMma]) as CudaKernel[];
  const kernels = words.includes('alone') ? both.filter(({ name }) => name.includes('wgmma')) : both;
  for (const D of list('d', [64, 128, 256]))
    for (const kind of value('kinds')?.split(',') ?? ['full', 'causal'])
      for (const N of list('n', [512, 1024, 2048, 4096, 8192, 16384])) {
        const H = Math.floor(2048 / D);
        const problem = problemOf({ B: 16384 / N, Hq: H, Hkv: H, Sq: N, Sk: N, D, kind });
        const made = operandsOf(engine, problem);
        const variants: { kernel: CudaKernel; config: Config }[] = [];
        for (const kernel of kernels.filter((k) => k.refuse(problem, engine.caps) === null))
          for (const config of configsOf(kernel, problem))
            if (only === undefined || kernel.name.endsWith('_mma') || only.some((o) => nameOf(config).startsWith(o)))
              variants.push({ kernel, config });
        const programs = variants.map(({ kernel, config }) => new CudaProgram(engine, kernel, '', config, problem));
        if (back) {
          const [config] = forwardWgmma.configs(problem, engine.caps);
          await new CudaProgram(engine, forwardWgmma as CudaKernel, '', config, problem).run(problem, made.operands);
        }
        const times: number[][] = programs.map(() => []);
        for (let rep = -Number(value('warm') ?? 2); rep < reps; rep++)
          for (const [i, program] of programs.entries()) {
            engine.device.driver.cuMemsetD8Async(flush.address, 0, 256 << 20, engine.stream.handle);
            start.record(engine.stream);
            await program.run(problem, made.operands);
            end.record(engine.stream);
            await engine.synchronize();
            if (rep >= 0) times[i].push(start.millisecondsTo(end));
          }
        const half = kind === 'causal' || kind.endsWith('-causal');
        const pairs = half ? (problem.B * H * N * N) / 2 : countPairs(problem).pairs;
        const flops = 4 * D * pairs * (back ? 2.5 : 1);
        const said = variants.map(({ kernel, config }, i) => {
          const sorted = times[i].sort((a, b) => a - b);
          const ms = sorted[sorted.length >> 1];
          rows.push({
            D,
            N,
            kind,
            kernel: kernel.name,
            config,
            ms,
            min: sorted[0],
            tflops: flops / ms / 1e9,
          });
          return `${kernel.name.endsWith('_mma') ? 'mma' : nameOf(config)} ${(flops / ms / 1e9).toFixed(0)}`;
        });
        console.log(`${back ? 'bwd' : 'fwd'} D=${D} ${kind} N=${N}: ${said.join('  ')}`);
        made.dispose();
      }
}

if (words.includes('check')) await check();
if (words.includes('time')) for (const back of passes) await time(back);
const { name, driver } = engine.device.info;
writeFileSync(out, JSON.stringify({ device: name, driver, rows }, null, 1));
await engine.close();
