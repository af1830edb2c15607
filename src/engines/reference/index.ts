/**
 * The reference engine: standard attention in float64 on the host. Slow and with the N x N matrix in memory, it runs everywhere, serves
 * every problem that fits its budget, and says what every other engine's numbers ought to be.
 */
import { allocate, BYTES, type DType, type HostArray } from '../../core/dtype.ts';
import { ArgumentError, DisposedError, MemoryError } from '../../core/errors.ts';
import { bytesOf, type HostTensor, sameShape, sizeOf, tensor } from '../../core/tensor.ts';
import type { CopyRuns, Engine, EngineTensor, Probe, Program, Step } from '../../engine/contract.ts';
import type { Problem } from '../../problem/problem.ts';
import { backward, runBackward } from './backward.ts';
import type { ReferenceCaps } from './caps.ts';
import { forward, runForward } from './forward.ts';
import { dataOf, ReferenceTensor } from './memory.ts';
import { EXACT, stored } from './scores.ts';

export interface ReferenceOptions {
  /** Most bytes of live tensors. Default 8 GiB. */
  readonly memory?: number | undefined;
  /** Most bytes of N x N matrices a run may hold; larger problems are refused. Default 2 GiB (forward at N = 16384). */
  readonly workspace?: number | undefined;
  /**
   * `float64` (default) computes everything in float64 and rounds the results. `storage` rounds every matrix between the products to
   * the problem's dtype and sums in float32, as standard attention does on devices: the yardstick of the precision rule.
   */
  readonly intermediates?: 'float64' | 'storage' | undefined;
}

const GIB = 2 ** 30;

export async function probe(): Promise<Probe> {
  return { engine: 'reference', available: true, detail: 'standard attention in float64, one thread' };
}

export async function open(options: ReferenceOptions = {}): Promise<Engine> {
  const { memory = 8 * GIB, workspace = 2 * GIB, intermediates = 'float64' } = options;
  return new ReferenceEngine(intermediates, {
    engine: 'reference',
    device: 'JavaScript, one thread',
    features: { intermediates, workspace },
    memory,
    flops: 1e9,
    bandwidth: 4e9,
    workspace,
  });
}

class ReferenceEngine implements Engine {
  readonly name = 'reference';
  readonly caps: ReferenceCaps;
  readonly kernels = [forward, backward];
  readonly #intermediates: 'float64' | 'storage';
  /** Aborts the runs in flight when the engine closes. */
  readonly #closing = new AbortController();
  #running: Promise<unknown> = Promise.resolve();
  #bytes = 0;

  constructor(intermediates: 'float64' | 'storage', caps: ReferenceCaps) {
    this.#intermediates = intermediates;
    this.caps = caps;
  }

  get bytesInUse(): number {
    return this.#closing.signal.aborted ? 0 : this.#bytes;
  }

  allocate(dtype: DType, shape: readonly number[]): EngineTensor {
    return this.#hold(sizeOf(shape) * BYTES[dtype], () => tensor(allocate(dtype, sizeOf(shape)), shape, dtype));
  }

  upload(host: HostTensor): EngineTensor {
    return this.#hold(bytesOf(host), () => tensor(host.data.slice(), host.shape, host.dtype));
  }

  write(target: EngineTensor, host: HostTensor): void {
    if (target.dtype !== host.dtype || !sameShape(target.shape, host.shape))
      throw new ArgumentError('tensor', `${target.dtype}[${target.shape.join(', ')}]`, host);
    dataOf(target).set(host.data);
  }

  copy(source: EngineTensor, target: EngineTensor, { pairs, length }: CopyRuns): void {
    if (source.dtype !== target.dtype) throw new ArgumentError('target', `dtype ${source.dtype}`, target.dtype);
    const from: HostArray = dataOf(source);
    const to = dataOf(target);
    for (let i = 0; i < pairs.length; i += 2) to.set(from.subarray(pairs[i], pairs[i] + length), pairs[i + 1]);
  }

  async prepare(_problem: Problem, step: Step): Promise<Program> {
    this.#mustBeOpen();
    const pass = step.pass === 'forward' ? runForward : runBackward;
    const closing = this.#closing.signal;
    return {
      key: `reference:${step.kernel}`,
      run: (problem, operands, options) => {
        const precision = this.#intermediates === 'float64' ? EXACT : stored(problem.dtype);
        return this.#enqueue(() => pass(problem, precision, operands, { ...options, closing }));
      },
    };
  }

  async synchronize(): Promise<void> {
    await this.#running;
  }

  async close(): Promise<void> {
    this.#closing.abort(new DisposedError('the reference engine'));
    await this.#running;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Runs follow each other in the order they were asked for. */
  #enqueue(work: () => Promise<void>): Promise<void> {
    const run = this.#running.then(work);
    this.#running = run.catch(() => undefined);
    return run;
  }

  /** A tensor of `bytes` within the budget, as far as the host has them. */
  #hold(bytes: number, make: () => HostTensor): EngineTensor {
    this.#mustBeOpen();
    const free = this.caps.memory - this.#bytes;
    if (bytes > free) throw new MemoryError('reference', bytes, free);
    let host: HostTensor;
    try {
      host = make();
    } catch (error) {
      throw error instanceof RangeError ? new MemoryError('reference', bytes, free) : error;
    }
    this.#bytes += bytes;
    return new ReferenceTensor(this, host, (freed) => {
      this.#bytes -= freed;
    });
  }

  #mustBeOpen(): void {
    if (this.#closing.signal.aborted) throw new DisposedError('the reference engine');
  }
}
