/** What the WebGPU benches share: random operands, and times that mean the device's. */
import { allocate, type FloatDType, toBf16, toF16 } from '../src/core/dtype.ts';
import { sizeOf } from '../src/core/tensor.ts';
import type { EngineTensor, Operands, Step } from '../src/engine/contract.ts';
import type { WebGpuEngine } from '../src/engines/webgpu/index.ts';
import type { Problem } from '../src/problem/problem.ts';
import type { ProblemShape } from './problem.ts';

export interface Shape extends ProblemShape {
  readonly dtype: FloatDType;
}

const PERIOD = 2 ** 20;
const noises = new Map<FloatDType, Float32Array | Uint16Array>();

/** Uniform in -1 .. 1, the same for everybody. */
function noiseOf(dtype: FloatDType): Float32Array | Uint16Array {
  let data = noises.get(dtype);
  if (data === undefined) {
    data = allocate(dtype, PERIOD + 4096) as Float32Array | Uint16Array;
    let state = 12345;
    for (let i = 0; i < data.length; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const x = state / 2 ** 31 - 1;
      data[i] = dtype === 'f16' ? toF16(x) : dtype === 'bf16' ? toBf16(x) : x;
    }
    noises.set(dtype, data);
  }
  return data;
}

/** A tensor of noise, which differs from one `seed` to the next. */
export function noise(engine: WebGpuEngine, dtype: FloatDType, shape: readonly number[], seed = 0): EngineTensor {
  const made = engine.allocate(dtype, shape) as EngineTensor & { readonly buffer: GPUBuffer };
  const data = noiseOf(dtype);
  const from = (seed % 32) * 128;
  for (let at = 0; at < sizeOf(shape); at += PERIOD) {
    const n = Math.min(PERIOD, sizeOf(shape) - at);
    const whole = data.subarray(from, from + n) as Float32Array<ArrayBuffer>;
    engine.device.queue.writeBuffer(made.buffer, at * data.BYTES_PER_ELEMENT, whole);
  }
  return made;
}

export type Owned = Operands & { dispose(): void };

export function operandsOf(engine: WebGpuEngine, p: Problem): Owned {
  const q = [p.B, p.Hq, p.Sq, p.D];
  const k = [p.B, p.Hkv, p.Sk, p.D];
  const made: EngineTensor[] = [];
  const keep = (t: EngineTensor): EngineTensor => {
    made.push(t);
    return t;
  };
  const forward = {
    q: keep(noise(engine, p.dtype, q, 1)),
    k: keep(noise(engine, p.dtype, k, 2)),
    v: keep(noise(engine, p.dtype, k, 3)),
    out: keep(engine.allocate(p.dtype, q)),
    lse: keep(engine.allocate('f32', q.slice(0, 3))),
    sides: [],
    sink: null,
    dispose: () => {
      for (const t of made) t.dispose();
    },
  };
  if (p.grads === null) return forward;
  return {
    ...forward,
    dOut: keep(noise(engine, p.dtype, q, 4)),
    dLse: null,
    dq: keep(engine.allocate(p.dtype, q)),
    dk: keep(engine.allocate(p.dtype, k)),
    dv: keep(engine.allocate(p.dtype, k)),
    dSides: [],
    dSink: null,
  };
}

/** Something to be timed: `once` queues it, `settle` waits for everything queued. */
export interface Entrant {
  readonly once: () => Promise<void> | void;
  readonly settle: () => Promise<void>;
}

/** A step of a problem on an engine, compiled. */
export async function entrantOf(
  engine: WebGpuEngine,
  problem: Problem,
  operands: Operands,
  step: Step,
): Promise<Entrant> {
  const program = await engine.prepare(problem, step);
  return { once: () => program.run(problem, operands), settle: () => engine.synchronize() };
}

export const median = (xs: readonly number[]): number => [...xs].sort((a, b) => a - b)[xs.length >> 1];

const quartile = (xs: readonly number[]): number => [...xs].sort((a, b) => a - b)[xs.length >> 2];

/** Milliseconds the device is kept busy before a time counts: an idle card clocks down, to a sixth on some. */
const WARM = 300;
/** Two batches agree when they differ by less: the clock has settled. */
const AGREE = 0.03;

export interface TimeOptions {
  readonly rounds?: number;
  /** Milliseconds of a batch of calls, which is waited for once. */
  readonly batch?: number;
}

/**
 * Milliseconds of a call of each, on a device kept busy until its clock has settled: the lower quartile over rounds in which
 * everyone has a batch of calls. That is device time, as long as the queue stays full. On an H200 the device stops for 30 ms
 * some four times a second; so that this does not meet the same one in every round, each round begins with another, and what
 * only ever adds time is kept out by the quartile.
 */
export async function timeInTurn(
  entrants: readonly Entrant[],
  { rounds = 9, batch = 20 }: TimeOptions = {},
): Promise<number[]> {
  const run = async ({ once, settle }: Entrant, n: number): Promise<number> => {
    const start = performance.now();
    for (let i = 0; i < n; i++) await once();
    await settle();
    return (performance.now() - start) / n;
  };
  const sizes: number[] = [];
  const calls = (ms: number): number => Math.max(1, Math.min(500, Math.ceil(batch / ms)));
  for (const entrant of entrants) {
    await run(entrant, 1);
    sizes.push(await run(entrant, 1));
  }
  const start = performance.now();
  const spent = (): number => performance.now() - start;
  let [before, last] = [Number.POSITIVE_INFINITY, sizes[0] ?? 0];
  while (entrants.length > 0 && (spent() < WARM || (Math.abs(last / before - 1) > AGREE && spent() < 5 * WARM))) {
    before = last;
    last = await run(entrants[0], calls(last));
  }
  const times = entrants.map((): number[] => []);
  for (let round = 0; round < rounds; round++)
    for (let turn = 0; turn < entrants.length; turn++) {
      const i = (turn + round) % entrants.length;
      sizes[i] = await run(entrants[i], calls(sizes[i]));
      times[i].push(sizes[i]);
    }
  // The first round finds out how many calls make a batch.
  return times.map((list) => quartile(list.slice(Math.min(1, list.length - 1))));
}
