/**
 * What an engine is. Engines know problems and their own device; they never import each other, the planner or the api.
 *
 *     plan: kernel.refuse -> configs -> cost      one Step a pass, plain data
 *     engine.prepare(problem, step)  -> Program   compiled once per step.key
 *     program.run(problem, operands)              many times
 */
import type { DType } from '../core/dtype.ts';
import type { HostTensor, TensorLike } from '../core/tensor.ts';
import type { Problem } from '../problem/problem.ts';

/** Every engine there is; `reference` is standard attention in float64. */
export type EngineName = 'reference' | 'wasm' | 'webgpu' | 'cuda';

export type Pass = 'forward' | 'backward';

/** What a device offers, as plain data for `doctor`, the planner and result files. Engines extend it with their own fields. */
export interface Caps {
  readonly engine: EngineName;
  /** The device in words: processor or adapter name, threads. */
  readonly device: string;
  /** Features by name, as `doctor` prints them. */
  readonly features: Readonly<Record<string, string | number | boolean>>;
  /** Most bytes the engine may have allocated at once. */
  readonly memory: number;
  /** Rough sustained rates, used only to rank candidates: multiply-add FLOP/s and bytes/s. */
  readonly flops: number;
  readonly bandwidth: number;
}

/** Tile sizes and switches of one kernel, as plain data: it is printed by `explain` and is part of the program's key. */
export type Config = Readonly<Record<string, number | string | boolean>>;

/** What a (kernel, config) is predicted to cost. */
export interface Cost {
  readonly flops: number;
  /** Bytes moved between slow memory and the kernel. */
  readonly bytes: number;
  /** Scratch bytes beyond inputs, outputs and gradients. */
  readonly workspace: number;
  readonly seconds: number;
}

/** One file under engines/<name>/kernels. A pass of a call is served by exactly one kernel, which may launch several programs. */
export interface Kernel<C extends Config = Config, D extends Caps = Caps> {
  readonly name: string;
  readonly pass: Pass;
  /** Why this kernel cannot serve the problem on this device, or null. */
  refuse(problem: Problem, caps: D): string | null;
  /** Candidate configurations, best guess first; never empty when `refuse` gave null. */
  configs(problem: Problem, caps: D): readonly C[];
  cost(problem: Problem, config: C, caps: D): Cost;
  /** The code for a config, for people (`dump`, golden files). The engine compiles the same thing. */
  emit(problem: Problem, config: C, caps: D): readonly Listing[];
}

/** Emitted code as text: WAT-like, WGSL or PTX. */
export interface Listing {
  readonly name: string;
  readonly text: string;
}

/** The choice for one pass, as plain data. */
export interface Step {
  readonly pass: Pass;
  readonly kernel: string;
  readonly config: Config;
  readonly cost: Cost;
  /** Seconds it took when it was measured on this device against the others (`tilewise tune`); absent when it was predicted. */
  readonly measured?: number;
}

/** A tensor in an engine's memory. `dispose` frees it; using it afterwards throws DisposedError. */
export interface EngineTensor extends TensorLike {
  readonly engine: Engine;
  /** Waits for the work queued so far and copies the elements out. */
  read(): Promise<HostTensor>;
  dispose(): void;
  [Symbol.dispose](): void;
}

/** The tensors of one run, all of the running engine. Backward's are present exactly when problem.grads asks for them. */
export interface Operands {
  readonly q: EngineTensor;
  readonly k: EngineTensor;
  readonly v: EngineTensor;
  /** Written by forward, read by backward. */
  readonly out: EngineTensor;
  /** Written by forward, read by backward. f32 (f64 for f64 problems). */
  readonly lse: EngineTensor;
  /** By index of problem.sides. */
  readonly sides: readonly EngineTensor[];
  /** [Hq], f32 (f64 for f64 problems). */
  readonly sink: EngineTensor | null;
  readonly dOut?: EngineTensor;
  /** Null when lse is not differentiated through. */
  readonly dLse?: EngineTensor | null;
  readonly dq?: EngineTensor | null;
  readonly dk?: EngineTensor | null;
  readonly dv?: EngineTensor | null;
  /** By index of problem.sides; null where no gradient is asked. f32, shaped like the side. */
  readonly dSides?: readonly (EngineTensor | null)[];
  readonly dSink?: EngineTensor | null;
}

export interface RunOptions {
  /** Stops the run within a row of blocks; the run rejects with the signal's reason and outputs are unspecified. */
  readonly signal?: AbortSignal | undefined;
  /** Called now and then with the finished share, 0 to 1. Engines that only enqueue call it once with 1. */
  readonly onProgress?: ((share: number) => void) | undefined;
}

/** Compiled code for a step. `run` takes any problem that would give the same step.key: other data, lengths, seeds, tables. */
export interface Program {
  readonly key: string;
  /**
   * Writes every element of every output operand that belongs to a sequence; rows of packed tensors that no sequence
   * covers may be left alone, and the caller fills them. Resolves when the work is done (WASM, reference) or queued (WebGPU,
   * CUDA): later runs and reads on the same engine see its results.
   */
  run(problem: Problem, operands: Operands, options?: RunOptions): Promise<void>;
}

/** Equal-length contiguous pieces to copy: (source offset, target offset) pairs, in elements. */
export interface CopyRuns {
  readonly pairs: Int32Array;
  readonly length: number;
}

/** A device and what runs on it: memory, tensors, compiled programs. Its tensors and its programs are its own. */
export interface Engine {
  readonly name: EngineName;
  readonly caps: Caps;
  readonly kernels: readonly Kernel[];
  /** Uninitialised memory. @throws MemoryError with sizes; nothing is then held. */
  allocate(dtype: DType, shape: readonly number[]): EngineTensor;
  /** A copy of the host tensor in the engine's memory; the host tensor may be reused at once. */
  upload(tensor: HostTensor): EngineTensor;
  /** Overwrites a tensor of the same dtype and shape. */
  write(target: EngineTensor, tensor: HostTensor): void;
  /** Copies pieces between two tensors of one dtype (KV cache append, copy-on-write of pages). */
  copy(source: EngineTensor, target: EngineTensor, runs: CopyRuns): void;
  /** Compiles, or finds the program compiled before for the same key. */
  prepare(problem: Problem, step: Step): Promise<Program>;
  /** Waits until everything queued has finished; a failure of it rejects here. */
  synchronize(): Promise<void>;
  /** Bytes held by live tensors and workspaces. */
  readonly bytesInUse: number;
  /** Frees everything. Runs in flight reject. Closing twice is allowed. */
  close(): Promise<void>;
  /** Closes: `await using engine = await openEngine('wasm')`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** Whether an engine can run here, without opening it: `doctor` prints it, the registry falls back on it. */
export type Probe =
  | { readonly engine: EngineName; readonly available: true; readonly detail: string }
  | { readonly engine: EngineName; readonly available: false; readonly reason: string };
