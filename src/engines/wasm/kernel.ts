/**
 * What a WASM kernel is to the runtime: bytes of one module, parameters written into the memory, and phases of work items.
 *
 * The module imports `env.memory` (shared exactly when `caps.shared`) and exports one function a phase:
 *
 *     (params: i32, item: i32, step: i32, scratch: i32) -> ()
 *
 * The runtime hands the items of a phase to threads through an atomic counter, in order (kernels put heavy items first).
 * A thread that takes an item makes its calls for step = 0 .. steps - 1 one after the other, and looks at the abort flag
 * (and, on the main thread, lets events through) between calls. A barrier separates phases. `scratch` is the thread's own,
 * 64-byte aligned, and keeps its contents from step to step of an item. Addresses are bytes, unsigned 32 bits: a memory may
 * reach 4 GiB, so JavaScript reads them with >>> 0.
 */
import type { Caps, Config, Kernel } from '../../engine/contract.ts';
import type { Problem } from '../../problem/problem.ts';
import type { RoutineKind } from './native/routines.ts';

export interface WasmCaps extends Caps {
  readonly engine: 'wasm';
  /** f32x4.relaxed_madd validates, and fuses. */
  readonly relaxed: boolean;
  /** Pairs of adjacent 128-bit operations become one 256-bit operation (V8's revectorizer, switched on around compilation). */
  readonly wide: boolean;
  /** The compiler keeps straight-line code in order, so unrolled loops and twelve accumulators pay (V8 13 and later). */
  readonly unroll: boolean;
  /** The memory is shared between threads. */
  readonly shared: boolean;
  /** Bits of the vectors that routines in machine code use (512 or 256: native/routines.ts); 0 where all code is WASM. */
  readonly native: 0 | 256 | 512;
  /** Threads that take items, the main thread included. */
  readonly threads: number;
}

export interface Compiled {
  readonly module: Uint8Array<ArrayBuffer>;
  /** Bytes each thread needs at `scratch`. */
  readonly scratch: number;
  /** Routines in machine code that the module imports, each as `env.<routineName(kind)>(descriptor: i32)`. */
  readonly routines?: readonly RoutineKind[];
}

export interface Phase {
  /** Name of the exported function. */
  readonly entry: string;
  readonly items: number;
  /** Calls an item, made in order by one thread. */
  readonly steps: number;
}

export interface Launch {
  /** Address of the parameters, allocated from the heap. */
  readonly params: number;
  readonly phases: readonly Phase[];
}

/** Byte addresses of a run's operands; 0 where there is none. */
export interface Addresses {
  readonly q: number;
  readonly k: number;
  readonly v: number;
  readonly out: number;
  readonly lse: number;
  readonly sides: readonly number[];
  readonly sink: number;
  readonly dOut: number;
  readonly dLse: number;
  readonly dq: number;
  readonly dk: number;
  readonly dv: number;
  readonly dSides: readonly number[];
  readonly dSink: number;
}

/**
 * Workspace of one run: everything allocated here is freed by the runtime when the run ends. Tensors and workspace alike
 * may be read (not written) up to 128 bytes past their end, so the runtime keeps that much room after the last block.
 */
export interface Heap {
  /** Uninitialised, 64-byte aligned. @throws MemoryError, after which the runtime frees what the run had allocated. */
  allocate(bytes: number): number;
  /** The memory as it is now; an allocation may replace the views, so take them after it. */
  readonly i32: Int32Array;
  readonly f32: Float32Array;
}

/** A kernel of this engine. Program identity: two problems with the same `key` are served by the same module. */
export interface WasmKernel<C extends Config = Config> extends Kernel<C, WasmCaps> {
  /** Names the kernel, config, features and everything of the problem that the code was specialised to; cheap to compute. */
  key(problem: Problem, config: C, caps: WasmCaps): string;
  compile(problem: Problem, config: C, caps: WasmCaps): Compiled;
  /** Allocates and fills parameters and item tables, and says what to run. Must not depend on the number of threads. */
  launch(problem: Problem, config: C, at: Addresses, heap: Heap): Launch;
}
