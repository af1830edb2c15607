/** What this engine's kernels are: the contract's kernels, on CUDA devices, each with the launches that serve one pass. */
import type { Caps, Config, Kernel } from '../../engine/contract.ts';
import type { SharedCache } from '../../problem/cost.ts';
import type { Problem } from '../../problem/problem.ts';
import type { Launch } from './driver/launch.ts';
import type { Stream } from './driver/stream.ts';
import type { KernelText } from './ptx/assembler.ts';
import type { Tables } from './tables.ts';

export interface CudaCaps extends Caps {
  /** Compute capability times ten. */
  readonly capability: number;
  readonly multiprocessors: number;
  /** Bytes of shared memory one block may use. */
  readonly sharedPerBlock: number;
  readonly l2Bytes: number;
}

/** The L2 cache, as far as costs go. */
export const l2Of = ({ l2Bytes, multiprocessors }: CudaCaps): SharedCache => ({
  bytes: l2Bytes,
  tiles: multiprocessors,
});

/** One run: where everything is, and the stream to queue on. */
export interface RunContext<C extends Config = Config> {
  readonly problem: Problem;
  readonly config: C;
  readonly caps: CudaCaps;
  /** One for each program of `kernels`, in that order. */
  readonly launches: readonly Launch[];
  readonly stream: Stream;
  readonly tables: Tables;
  /** Addresses of operands, sides and the problem's tables, by parameter name; absent ones are left out. */
  readonly addresses: Readonly<Record<string, number>>;
  /** Scratch memory for the rest of this run; what it holds is unspecified. */
  scratch(bytes: number): number;
  /** Queues the setting of bytes to a value. */
  clear(address: number, bytes: number): void;
}

export interface CudaKernel<C extends Config = Config> extends Kernel<C, CudaCaps> {
  /** The programs of a (problem, config). */
  kernels(problem: Problem, config: C): readonly KernelText[];
  /** Fills and queues the launches of one run. */
  launch(run: RunContext<C>): void;
}
