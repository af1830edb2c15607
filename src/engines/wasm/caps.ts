/** What this host's WebAssembly can do, found by validating and running tiny modules made by our own assembler. */
import { DeviceError } from '../../core/errors.ts';
import { ModuleBuilder } from './asm/module.ts';
import { f32x4, type V128, v128, v128Const } from './asm/values.ts';
import { arch, nodeOs, parallelism, processor, versions } from './host.ts';
import { exportsOf } from './job.ts';
import type { WasmCaps } from './kernel.ts';

/** FLOP/s one thread sustains in the forward kernel, by what it can use: measured on a 3.5 GHz AVX2 machine. */
const RATE = { 512: 130e9, 256: 80e9, wide: 70e9, relaxed: 40e9, plain: 27e9 };
/** Bytes/s of main memory, all threads: a cautious figure for any desktop or server. */
const BANDWIDTH = 10e9;
/** Beyond this many threads the gain of a worker does not pay for its isolate (a few MiB each). */
const MOST_THREADS = 64;

/** Why WebAssembly SIMD, the one thing the engine needs, is missing; null when it is there. */
export function refusal(): string | null {
  if (typeof WebAssembly !== 'object') return 'the host has no WebAssembly';
  if (!WebAssembly.validate(probe((x) => f32x4.add(x, x)))) return 'the host has no WebAssembly SIMD';
  return null;
}

/** Why workers cannot share a memory here; null when they can. */
export function oneThreadReason(): string | null {
  if (typeof SharedArrayBuffer !== 'function')
    return (globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated === false
      ? 'one thread: the page is not cross-origin isolated'
      : 'one thread: the host has no SharedArrayBuffer';
  if (nodeOs() === undefined && typeof Worker !== 'function') return 'one thread: the host has no workers';
  try {
    new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
  } catch {
    return 'one thread: the host has no shared WebAssembly memory';
  }
  return null;
}

/** Hardware threads, at least 1. */
export function hardwareThreads(): number {
  const count = parallelism() ?? globalThis.navigator?.hardwareConcurrency ?? 1;
  return Math.min(MOST_THREADS, Math.max(1, count));
}

/** `threads` and `limit` are what was opened; `note` says why threads are fewer than the hardware's. */
export function describe(
  threads: number,
  limit: number,
  wide: boolean,
  native: 0 | 256 | 512,
  note: string | null,
): WasmCaps {
  const relaxed = fuses();
  const rate = native > 0 ? RATE[native as 256 | 512] : wide ? RATE.wide : relaxed ? RATE.relaxed : RATE.plain;
  const name = processor() ?? (nodeOs() === undefined ? 'processor of this browser' : 'processor');
  const unroll = keepsOrder();
  return {
    engine: 'wasm',
    device: `${name}, ${threads} ${threads === 1 ? 'thread' : 'threads'}`,
    features: {
      simd: true,
      'relaxed simd': relaxed,
      revectorize: wide,
      'machine code': native === 0 ? false : `${native}-bit products`,
      unroll,
      threads,
      'shared memory': threads > 1,
      ...(note === null ? {} : { note }),
      ...(arch === undefined ? {} : { arch }),
      ...(versions.v8 === undefined ? {} : { v8: versions.v8 }),
    },
    memory: limit,
    flops: rate * threads,
    bandwidth: BANDWIDTH,
    relaxed,
    wide,
    native,
    unroll,
    shared: threads > 1,
    threads,
  };
}

/** f32x4.relaxed_madd validates and rounds once: (1 + e)(1 + e) - (1 + 2e) is e^2, which two roundings make 0. */
function fuses(): boolean {
  const e = 2 ** -12;
  const code = probe(() => f32x4.relaxed_madd(splat(1 + e), splat(1 + e), splat(-1 - 2 * e)));
  if (!WebAssembly.validate(code)) return false;
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 1 });
  const run = exportsOf(new WebAssembly.Module(code), memory).get('probe');
  if (run === undefined) throw new DeviceError('wasm', 'the probe module exports no function');
  run(0, 0, 0, 0);
  return new Float32Array(memory.buffer)[0] === e * e;
}

/**
 * V8 before 13 reorders straight-line code and spills. Other engines' compilers schedule within small windows, so they
 * get the unrolled code as well.
 */
function keepsOrder(): boolean {
  const v8 = versions.v8 ?? /Chrom(?:e|ium)\/(\d+)/.exec(globalThis.navigator?.userAgent ?? '')?.[1];
  if (v8 === undefined || versions.bun !== undefined) return true;
  const major = Number.parseInt(v8, 10);
  // Chromium 130 carries V8 13.0; its own number is ten times that.
  return (versions.v8 === undefined ? major / 10 : major) >= 13;
}

/** A module whose one function stores the value made from a vector of zeros at its first argument. */
function probe(value: (zeros: V128) => V128): Uint8Array<ArrayBuffer> {
  const module = new ModuleBuilder(false);
  const params = { params: 'i32', item: 'i32', step: 'i32', scratch: 'i32' } as const;
  module.func('probe', params, (f, p) => f.do(v128.store(p.params, value(splat(0)))), true);
  return module.bytes();
}

function splat(x: number): V128 {
  const word = new Int32Array(new Float32Array([x]).buffer)[0];
  return v128Const([word, word, word, word]);
}
