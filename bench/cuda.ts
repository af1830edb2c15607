/**
 * Times the CUDA kernels on this machine's GPU: device time by events, the L2 cache flushed before every launch, medians.
 *
 *     node bench/cuda.ts OUT.json [forward] [backward] [decode] [mods] [f32] [host] [d=64,128] [n=512,8192] [kernel=mma] [tune]
 *
 * TFLOP/s count 4 * pairs * D forward and 2.5 times that backward, with half the pairs when causal, as ../bench tables do.
 */
import { writeFileSync } from 'node:fs';
import { allocate, toBf16 } from '../src/core/dtype.ts';
import type { TensorLike } from '../src/core/tensor.ts';
import { tensor } from '../src/core/tensor.ts';
import type { Config, Engine, Kernel, Operands, Pass, Step } from '../src/engine/contract.ts';
import { Event } from '../src/engines/cuda/driver/stream.ts';
import { type CudaEngine, open } from '../src/engines/cuda/index.ts';
import { CONTEXT, type Mask, type Mod, nodesOf } from '../src/mods/expr.ts';
import { alibi, and, causal, documents, slidingWindow, softcap } from '../src/mods/library.ts';
import { countPairs } from '../src/problem/cost.ts';
import { createProblem, denseSequences, type KvStorage, type Problem, stridesOf } from '../src/problem/problem.ts';

const [out, ...words] = process.argv.slice(2);
const flag = (name: string): boolean => words.includes(name);
const list = (name: string, otherwise: number[]): number[] =>
  words
    .find((w) => w.startsWith(`${name}=`))
    ?.slice(name.length + 1)
    .split(',')
    .map(Number) ?? otherwise;

/** `kernel=mma,decode` keeps the kernels with one of the words in their name. */
const kept = words
  .find((w) => w.startsWith('kernel='))
  ?.slice(7)
  .split(',') ?? [''];
const named = (kernel: string): boolean => kept.some((part) => kernel.includes(part));

interface Shape {
  readonly B: number;
  readonly Hq: number;
  readonly Hkv?: number;
  readonly Sq: number;
  readonly Sk: number;
  readonly D: number;
  readonly dtype?: 'bf16' | 'f32';
  readonly mask?: Mask | undefined;
  readonly mod?: Mod | undefined;
  readonly grads?: boolean;
  /** Rows of a page of K and V, in shuffled order; dense when absent. */
  readonly pageSize?: number;
}

function problemOf({ B, Hq, Hkv = Hq, Sq, Sk, D, dtype = 'bf16', mask, mod, grads, pageSize }: Shape): Problem {
  const built = {
    mask: mask ? { label: mask.label, expr: mask.build(CONTEXT) } : null,
    mod: mod ? { label: mod.label, expr: mod.build(CONTEXT) } : null,
  };
  const sides = new Set<TensorLike>();
  for (const named of [built.mask, built.mod])
    if (named) for (const e of nodesOf(named.expr)) if (e.kind === 'load') sides.add(e.tensor);
  const q = stridesOf('bhnd', Hq, Sq, D);
  const k = stridesOf('bhnd', Hkv, pageSize ?? Sk, D);
  return createProblem({
    B,
    Hq,
    Hkv,
    Sq,
    Sk,
    D,
    Dv: D,
    dtype,
    scale: D ** -0.5,
    strides: { q, k, v: k, out: q, lse: stridesOf('bhnd', Hq, Sq, 1) },
    sequences: denseSequences(B, Sq, Sk),
    uniform: true,
    kv: pageSize === undefined ? { kind: 'strided' } : pagesOf(B, Sk / pageSize, pageSize),
    ...built,
    sides: [...sides],
    sink: false,
    dropout: null,
    grads: grads === true ? { q: true, k: true, v: true, sides: [...sides].map(() => false), sink: false } : null,
  });
}

/** As many pages as the keys fill, far from their neighbours. */
function pagesOf(B: number, maxPages: number, pageSize: number): KvStorage {
  const n = B * maxPages;
  const step = 7919;
  return { kind: 'paged', pageSize, maxPages, table: Int32Array.from({ length: n }, (_, i) => (i * step) % n) };
}

/** Normal numbers, a block of them repeated. */
const NOISE = Float32Array.from({ length: 1 << 20 }, () => {
  const r = Math.sqrt(-2 * Math.log(1 - Math.random()));
  return r * Math.cos(2 * Math.PI * Math.random());
});
const NOISE16 = Uint16Array.from(NOISE, toBf16);

function noise(engine: CudaEngine, dtype: 'bf16' | 'f32', shape: readonly number[]) {
  const n = shape.reduce((a, b) => a * b, 1);
  const data = allocate(dtype, n);
  const from = dtype === 'bf16' ? NOISE16 : NOISE;
  // An odd step keeps heads from repeating each other.
  for (let at = 0, shift = 0; at < n; at += from.length, shift += 7919) {
    const part = from.subarray(shift % 4096, Math.min(from.length, (shift % 4096) + n - at));
    data.set(part, at);
    if (part.length < Math.min(from.length, n - at))
      data.set(from.subarray(0, Math.min(from.length, n - at) - part.length), at + part.length);
  }
  return engine.upload(tensor(data, shape, dtype));
}

function operandsOf(engine: CudaEngine, problem: Problem): { operands: Operands; dispose: () => void } {
  const { B, Hq, Hkv, Sq, Sk, D, dtype, grads, sides } = problem;
  const type = dtype as 'bf16' | 'f32';
  const q = [B, Hq, Sq, D];
  const k = [B, Hkv, Sk, D];
  const forward = {
    q: noise(engine, type, q),
    k: noise(engine, type, k),
    v: noise(engine, type, k),
    out: engine.allocate(type, q),
    lse: engine.allocate('f32', [B, Hq, Sq]),
    sides: sides.map((s) => engine.upload(s as Parameters<Engine['upload']>[0])),
    sink: null,
  };
  const backward =
    grads === null
      ? {}
      : {
          dOut: noise(engine, type, q),
          dLse: null,
          dq: engine.allocate(type, q),
          dk: engine.allocate(type, k),
          dv: engine.allocate(type, k),
          dSides: sides.map(() => null),
          dSink: null,
        };
  const operands: Operands = { ...forward, ...backward };
  const dispose = (): void => {
    for (const t of Object.values(operands)) if (t !== null && 'dispose' in t) t.dispose();
    for (const t of forward.sides) t.dispose();
  };
  return { operands, dispose };
}

interface Row {
  readonly name: string;
  readonly pass: Pass;
  readonly kernel: string;
  readonly config: unknown;
  readonly ms: number;
  readonly tflops: number;
  readonly tbs: number;
}

/** The kernel and configuration the planner would take. */
function cheapest(kernels: readonly Kernel[], problem: Problem, engine: CudaEngine): [Kernel, Config] {
  const all = kernels.flatMap((k) => k.configs(problem, engine.caps).map((c): [Kernel, Config] => [k, c]));
  const seconds = ([k, c]: [Kernel, Config]): number => k.cost(problem, c, engine.caps).seconds;
  return all.reduce((best, one) => (seconds(one) < seconds(best) ? one : best));
}

async function main(): Promise<void> {
  const engine = await open({ cache: process.env.TILEWISE_CACHE });
  const flush = engine.allocate('u8', [256 << 20]);
  const rows: Row[] = [];
  const start = new Event(engine.device, true);
  const end = new Event(engine.device, true);

  const time = async (run: () => Promise<void>, reps: number): Promise<number> => {
    await run();
    await run();
    await engine.synchronize();
    const times: number[] = [];
    for (let i = 0; i < reps; i++) {
      engine.device.use();
      engine.device.driver.cuMemsetD8Async(flush.address, 0, 256 << 20, engine.stream.handle);
      start.record(engine.stream);
      await run();
      end.record(engine.stream);
      await engine.synchronize();
      times.push(start.millisecondsTo(end));
    }
    return times.sort((a, b) => a - b)[times.length >> 1];
  };

  const measure = async (name: string, shape: Shape, passes: readonly Pass[], fraction: number): Promise<void> => {
    const problem = problemOf({ ...shape, grads: passes.includes('backward') });
    const { operands, dispose } = operandsOf(engine, problem);
    try {
      const stepOf = (pass: Pass, kernel: string, config: unknown): Step =>
        ({ pass, kernel, config, cost: { flops: 0, bytes: 0, workspace: 0, seconds: 0 } }) as Step;
      const pick = (pass: Pass) =>
        engine.kernels.filter((k) => k.pass === pass && named(k.name) && k.refuse(problem, engine.caps) === null);
      const first = pick('forward')[0];
      await (await engine.prepare(problem, stepOf('forward', first.name, first.configs(problem, engine.caps)[0]))).run(
        problem,
        operands,
      );
      for (const pass of passes)
        for (const kernel of flag('tune') ? pick(pass) : [cheapest(pick(pass), problem, engine)[0]]) {
          const configs = kernel.configs(problem, engine.caps);
          for (const config of flag('tune') ? configs : [cheapest([kernel], problem, engine)[1]]) {
            try {
              const program = await engine.prepare(problem, stepOf(pass, kernel.name, config));
              const ms = await time(() => program.run(problem, operands), shape.Sq * shape.Sk > 2 ** 27 ? 7 : 15);
              const { B, Hq, Hkv = Hq, Sq, Sk, D } = shape;
              const flops = 4 * B * Hq * Sq * Sk * D * fraction * (pass === 'forward' ? 1 : 2.5);
              const bytes = (2 * B * Hkv * Sk * D + 2 * B * Hq * Sq * D) * (problem.dtype === 'f32' ? 4 : 2);
              rows.push({
                name,
                pass,
                kernel: kernel.name,
                config,
                ms,
                tflops: flops / ms / 1e9,
                tbs: bytes / ms / 1e9,
              });
              const note = flag('tune') ? ` ${JSON.stringify(config)}` : '';
              console.log(
                `${name} ${pass} ${kernel.name} ${ms.toFixed(3)} ms ${(flops / ms / 1e9).toFixed(0)} TFLOP/s ${(bytes / ms / 1e9).toFixed(2)} TB/s${note}`,
              );
            } catch (error) {
              console.log(`${name} ${pass} ${kernel.name} ${JSON.stringify(config)} ${String(error)}`);
            }
          }
        }
    } finally {
      dispose();
    }
  };

  const passes: Pass[] = (['forward', 'backward'] as const).filter(flag);
  if (passes.length > 0 && !flag('mods'))
    for (const D of list('d', [64, 128, 256]))
      for (const masked of [false, true])
        for (const N of list('n', [512, 1024, 2048, 4096, 8192, 16384])) {
          const shape = { B: 16384 / N, Hq: 2048 / D, Sq: N, Sk: N, D, mask: masked ? causal() : undefined };
          await measure(`d${D} ${masked ? 'causal' : 'full'} n${N}`, shape, passes, masked ? 0.5 : 1);
        }
  if (flag('mods')) {
    const N = 16384;
    const slopes = tensor(
      Float32Array.from({ length: 16 }, (_, i) => 2 ** (-(i + 1) / 2)),
      [16],
    );
    const ids = tensor(
      Int32Array.from({ length: N }, (_, i) => Math.floor(i / 1500)),
      [1, N],
    );
    const cases: readonly (readonly [string, Mask | undefined, Mod | undefined])[] = [
      ['plain', undefined, undefined],
      ['causal', causal(), undefined],
      ['alibi-causal', causal(), alibi(slopes)],
      ['window1024', and(causal(), slidingWindow(1023)), undefined],
      ['doc-causal', and(causal(), documents(ids)), undefined],
      ['softcap', undefined, softcap(20)],
    ];
    for (const [name, mask, mod] of cases) {
      const shape = { B: 1, Hq: 16, Sq: N, Sk: N, D: 128, mask, mod };
      const fraction = countPairs(problemOf(shape)).pairs / (16 * N * N);
      await measure(name, shape, passes, fraction);
    }
  }
  if (flag('f32'))
    for (const N of [2048, 8192])
      await measure(`f32 d64 n${N}`, { B: 16384 / N, Hq: 16, Sq: N, Sk: N, D: 64, dtype: 'f32' }, ['forward'], 1);
  if (flag('decode'))
    for (const [B, N] of [
      [1, 65536],
      [16, 8192],
      [16, 32768],
      [64, 8192],
    ])
      for (const pageSize of flag('tune') ? [undefined] : [undefined, 16]) {
        const shape = { B, Hq: 32, Hkv: 8, Sq: 1, Sk: N, D: 128, ...(pageSize && { pageSize }) };
        await measure(`decode b${B} n${N}${pageSize ? ` pages of ${pageSize}` : ''}`, shape, ['forward'], 1);
      }
  if (flag('host')) {
    const problem = problemOf({ B: 1, Hq: 8, Sq: 128, Sk: 128, D: 64 });
    const { operands, dispose } = operandsOf(engine, problem);
    const kernel = engine.kernels[0];
    const config = kernel.configs(problem, engine.caps)[0];
    const step = {
      pass: 'forward',
      kernel: kernel.name,
      config,
      cost: kernel.cost(problem, config, engine.caps),
    } as const;
    const prepare: number[] = [];
    const run: number[] = [];
    for (let i = 0; i < 2000; i++) {
      const before = performance.now();
      const program = await engine.prepare(problem, step);
      const middle = performance.now();
      await program.run(problem, operands);
      const after = performance.now();
      prepare.push((middle - before) * 1e3);
      run.push((after - middle) * 1e3);
      if (i % 100 === 0) await engine.synchronize();
    }
    const median = (times: number[]): string => times.sort((a, b) => a - b)[times.length >> 1].toFixed(1);
    console.log(`host: prepare ${median(prepare)} us, run ${median(run)} us`);
    await engine.synchronize();
    dispose();
  }
  const { name, driver } = engine.device.info;
  writeFileSync(out, JSON.stringify({ device: name, driver, rows }, null, 1));
  await engine.close();
}

await main();
