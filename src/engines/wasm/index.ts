/**
 * The WASM engine: modules written at run time by our own assembler, SIMD, worker threads on one shared memory. It runs in
 * Node, Deno, Bun and browsers; everything but the SIMD itself is optional and found by probing.
 */
import type { DType } from '../../core/dtype.ts';
import { BYTES } from '../../core/dtype.ts';
import { ArgumentError, DeviceError } from '../../core/errors.ts';
import { type HostTensor, sameShape, sizeOf } from '../../core/tensor.ts';
import type {
  CopyRuns,
  Engine,
  EngineTensor,
  Operands,
  Probe,
  Program,
  RunOptions,
  Step,
} from '../../engine/contract.ts';
import type { Problem } from '../../problem/problem.ts';
import { describe, hardwareThreads, oneThreadReason, refusal } from './caps.ts';
import { MAX_MEMORY, WasmHeap } from './heap.ts';
import { environment, versions } from './host.ts';
import type { Addresses, WasmCaps, WasmKernel } from './kernel.ts';
import { KERNELS } from './kernels/all.ts';
import { openNative } from './native/host.ts';
import { routineName } from './native/routines.ts';
import { instantiating, quiet } from './quiet.ts';
import { compileWide, unavailable, wanted } from './revectorize.ts';
import { type Built, Runtime } from './runtime.ts';
import { selfTest } from './selftest.ts';
import { WasmTensor } from './tensor.ts';
import { Pool } from './workers.ts';

export interface WasmOptions {
  /** Threads that compute. Default: one a hardware thread, at most 64; 1 where workers cannot share memory. */
  readonly threads?: number | undefined;
  /**
   * Compiles with V8's experimental 256-bit mode where there is one (Node >= 24 on x86-64). The V8 flag is process-wide, so
   * it is set only while a kernel compiles; the mode is self-tested and dropped when a result differs or nothing is gained.
   * Default: whether the environment has TILEWISE_REVECTORIZE=1.
   */
  readonly revectorize?: boolean | undefined;
  /**
   * Runs matrix products and the softmax in x86-64 machine code that the library writes itself, where the processor has AVX2 or AVX-512 and
   * the optional package koffi is installed (Linux). Default: whether the environment has TILEWISE_NATIVE=1.
   */
  readonly native?: boolean | undefined;
  /** Most bytes of tensors and workspaces, at most 4 GiB (the default). */
  readonly memory?: number | undefined;
  /** Checks on freeing that nothing was written beside a block: for tests. */
  readonly guards?: boolean | undefined;
}

/** Whether the engine runs here, and with what; nothing is started. */
export async function probe(): Promise<Probe> {
  const reason = refusal();
  if (reason !== null) return { engine: 'wasm', available: false, reason };
  const alone = oneThreadReason();
  const caps = describe(alone === null ? hardwareThreads() : 1, MAX_MEMORY, false, 0, alone);
  // Browsers have no such mode, which is no news there.
  const wide = versions.node === undefined ? [] : [unavailable() ?? 'revectorize can be asked for'];
  const simd = caps.relaxed ? 'relaxed simd' : 'simd without fused multiply-add';
  return { engine: 'wasm', available: true, detail: [caps.device, simd, alone ?? 'shared memory', ...wide].join(', ') };
}

/**
 * Opens the engine: reserves address space, starts the workers.
 *
 * @throws ArgumentError for options out of range; DeviceError when the host has no WebAssembly SIMD.
 */
export async function open(options: WasmOptions = {}): Promise<WasmEngine> {
  const { threads: asked, memory = MAX_MEMORY, guards = false } = options;
  if (asked !== undefined && !(Number.isInteger(asked) && asked >= 1 && asked <= 1024))
    throw new ArgumentError('threads', 'an integer from 1 to 1024', asked);
  if (!(memory > 0 && memory <= MAX_MEMORY)) throw new ArgumentError('memory', `bytes, at most ${MAX_MEMORY}`, memory);
  const reason = refusal();
  if (reason !== null) throw new DeviceError('wasm', reason);

  let note = asked === 1 ? null : oneThreadReason();
  let threads = note === null ? (asked ?? hardwareThreads()) : 1;
  const wide = wanted(options.revectorize) && unavailable() === null;
  const asHost = (options.native ?? environment('TILEWISE_NATIVE') === '1') ? await openNative() : null;
  const native = typeof asHost === 'string' ? null : asHost;
  const bits = native === null ? 0 : native.width === 64 ? 512 : 256;
  let heap = new WasmHeap({ shared: threads > 1, limit: memory, guards });
  let pool: Pool | null = null;
  if (threads > 1) {
    try {
      pool = await Pool.open(heap.memory, threads, native !== null);
    } catch (error) {
      note = `one thread: ${error instanceof Error ? error.message : String(error)}`;
      threads = 1;
      heap = new WasmHeap({ shared: false, limit: memory, guards });
    }
  }
  if (typeof asHost === 'string') note = note === null ? asHost : `${note}; ${asHost}`;
  const engine = new WasmEngine(new Runtime(heap, pool, native), describe(threads, heap.limit, wide, bits, note));
  if (!wide) return engine;
  const fault = await selfTest(KERNELS, engine.caps);
  if (fault === null) return engine;
  return new WasmEngine(
    engine.runtime,
    describe(threads, heap.limit, false, bits, [note, fault].filter(Boolean).join('; ')),
  );
}

export class WasmEngine implements Engine {
  readonly name = 'wasm';
  readonly caps: WasmCaps;
  readonly kernels: readonly WasmKernel[];
  /** @internal */
  readonly runtime: Runtime;

  constructor(runtime: Runtime, caps: WasmCaps, kernels = KERNELS) {
    this.runtime = runtime;
    this.caps = caps;
    this.kernels = kernels;
  }

  get bytesInUse(): number {
    return this.runtime.closed ? 0 : this.runtime.heap.bytesInUse;
  }

  allocate(dtype: DType, shape: readonly number[]): WasmTensor {
    this.runtime.check();
    const address = this.runtime.heap.allocate(sizeOf(shape) * BYTES[dtype]);
    return new WasmTensor(this, this.runtime, dtype, shape, address);
  }

  upload(host: HostTensor): WasmTensor {
    const resident = this.allocate(host.dtype, host.shape);
    resident.view().set(host.data);
    return resident;
  }

  write(target: EngineTensor, host: HostTensor): void {
    const own = this.#own('target', target);
    if (target.dtype !== host.dtype || !sameShape(target.shape, host.shape))
      throw new ArgumentError('tensor', `${target.dtype}[${target.shape.join(', ')}]`, host);
    const view = own.viewer();
    if (!this.runtime.busy) view().set(host.data);
    else {
      const data = host.data.slice();
      void this.runtime.turn(() => view().set(data));
    }
  }

  copy(source: EngineTensor, target: EngineTensor, runs: CopyRuns): void {
    const from = this.#own('source', source);
    const to = this.#own('target', target);
    if (from.dtype !== to.dtype) throw new ArgumentError('target', `dtype ${from.dtype}`, to.dtype);
    const { pairs, length } = runs;
    const [sourceEnd, targetEnd] = [sizeOf(from.shape) - length, sizeOf(to.shape) - length];
    for (let i = 0; i < pairs.length; i += 2)
      if (pairs[i] < 0 || pairs[i] > sourceEnd || pairs[i + 1] < 0 || pairs[i + 1] > targetEnd)
        throw new ArgumentError('runs', `pieces of ${length} inside both tensors`, [pairs[i], pairs[i + 1]]);
    const [reader, writer] = [from.viewer(), to.viewer()];
    const move = (): void => {
      const [read, write] = [reader(), writer()];
      for (let i = 0; i < pairs.length; i += 2) write.set(read.subarray(pairs[i], pairs[i] + length), pairs[i + 1]);
    };
    if (this.runtime.busy) void this.runtime.turn(move);
    else move();
  }

  async prepare(problem: Problem, step: Step): Promise<Program> {
    this.runtime.check();
    const kernel = this.kernels.find((k) => k.name === step.kernel && k.pass === step.pass);
    if (kernel === undefined) throw new ArgumentError('step', `a kernel of the wasm engine`, step.kernel);
    const { caps, runtime } = this;
    const key = kernel.key(problem, step.config, caps);
    const load = () => runtime.program(key, () => build(kernel, problem, step, caps, runtime));
    await load();
    const seconds = step.cost.seconds * caps.threads;
    return {
      key,
      run: async (now: Problem, operands: Operands, options: RunOptions = {}) => {
        const at = this.#addresses(operands);
        await runtime.turn(async () => {
          const launch = kernel.launch.bind(kernel, now, step.config, at);
          await runtime.run(await load(), launch, seconds, options);
        });
      },
    };
  }

  async synchronize(): Promise<void> {
    await this.runtime.turn(() => this.runtime.check());
  }

  close(): Promise<void> {
    return this.runtime.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** @throws ArgumentError for another engine's tensor, DisposedError for a freed one. */
  #own(argument: string, operand: EngineTensor): WasmTensor {
    if (!(operand instanceof WasmTensor) || operand.engine !== this)
      throw new ArgumentError(argument, 'a tensor of this wasm engine', operand);
    void operand.address;
    return operand;
  }

  #addresses(o: Operands): Addresses {
    const at = (argument: string, operand: EngineTensor | null | undefined): number =>
      operand === null || operand === undefined ? 0 : this.#own(argument, operand).address;
    return {
      q: at('q', o.q),
      k: at('k', o.k),
      v: at('v', o.v),
      out: at('out', o.out),
      lse: at('lse', o.lse),
      sides: o.sides.map((side, i) => at(`sides[${i}]`, side)),
      sink: at('sink', o.sink),
      dOut: at('dOut', o.dOut),
      dLse: at('dLse', o.dLse),
      dq: at('dq', o.dq),
      dk: at('dk', o.dk),
      dv: at('dv', o.dv),
      dSides: (o.dSides ?? []).map((side, i) => at(`dSides[${i}]`, side)),
      dSink: at('dSink', o.dSink),
    };
  }
}

async function build(
  kernel: WasmKernel,
  problem: Problem,
  step: Step,
  caps: WasmCaps,
  { native }: Runtime,
): Promise<Built> {
  const { module: bytes, scratch, routines: kinds = [] } = kernel.compile(problem, step.config, caps);
  try {
    const routines = kinds.map((kind) => [routineName(kind), native?.place(kind) ?? 0n] as const);
    if (caps.wide) await quiet();
    const module = caps.wide ? compileWide(bytes) : await instantiating(WebAssembly.compile(bytes));
    return { module, scratch, routines };
  } catch (cause) {
    throw new DeviceError('wasm', `kernel ${kernel.name} does not compile: ${String(cause)}`, { cause });
  }
}
