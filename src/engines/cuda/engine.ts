/** The CUDA engine: one GPU, one stream, a memory pool, and the programs compiled so far. */
import type { DType } from '../../core/dtype.ts';
import { BYTES } from '../../core/dtype.ts';
import { ArgumentError, DeviceError, DisposedError } from '../../core/errors.ts';
import { type HostTensor, sameShape, sizeOf } from '../../core/tensor.ts';
import type { CopyRuns, Engine, EngineTensor, Program, Step } from '../../engine/contract.ts';
import type { Problem } from '../../problem/problem.ts';
import { RESULT } from './driver/api.ts';
import { cacheFolder, DiskCache } from './driver/cache.ts';
import type { Device } from './driver/device.ts';
import { Pool } from './driver/memory.ts';
import { ModuleLoader } from './driver/module.ts';
import { Event, Stream } from './driver/stream.ts';
import { Transfers } from './driver/transfer.ts';
import type { CudaCaps, CudaKernel } from './kernel.ts';
import { KERNELS } from './kernels/index.ts';
import { specOf } from './kernels/spec.ts';
import { CudaProgram } from './program.ts';
import { Tables } from './tables.ts';
import { addressOn, CudaTensor } from './tensor.ts';

/** CUpointer_attribute numbers, and the CUmemorytype of page-locked host memory. */
const POINTER = { memoryType: 2, deviceOrdinal: 9 } as const;
const HOST_MEMORY = 1;

export interface CudaEngineOptions {
  /** An existing CUstream by its handle; the engine makes its own by default. */
  readonly stream?: number | undefined;
  /** Folder of compiled programs; see `cacheFolder`. */
  readonly cache?: string | undefined;
}

export class CudaEngine implements Engine {
  readonly name = 'cuda';
  readonly caps: CudaCaps;
  readonly kernels: readonly CudaKernel[] = KERNELS;
  readonly device: Device;
  readonly stream: Stream;
  readonly pool: Pool;
  readonly transfers: Transfers;
  readonly tables: Tables;
  readonly modules: ModuleLoader;
  private readonly programs = new Map<string, CudaProgram>();
  private closed = false;

  constructor(device: Device, options: CudaEngineOptions = {}) {
    this.device = device;
    this.caps = capsOf(device);
    this.stream = new Stream(device, options.stream);
    this.pool = new Pool(device);
    this.transfers = new Transfers(device, this.stream);
    this.tables = new Tables(this.pool, this.transfers);
    this.modules = new ModuleLoader(device, new DiskCache(options.cache ?? cacheFolder()));
  }

  get bytesInUse(): number {
    return this.pool.inUse;
  }

  allocate(dtype: DType, shape: readonly number[]): CudaTensor {
    this.alive();
    const address = this.pool.allocate(Math.max(sizeOf(shape) * BYTES[dtype], 1));
    return new CudaTensor(this, dtype, shape, address, true);
  }

  /**
   * A tensor over device memory that belongs to someone else, who must keep it alive and order their work with this
   * engine's stream. `address` must be a multiple of 16.
   *
   * @throws ArgumentError when it is not aligned; DeviceError when it is not memory of this device (memory of the host, also
   * page-locked, is not).
   */
  wrap(address: number | bigint, dtype: DType, shape: readonly number[]): CudaTensor {
    this.alive();
    const at = Number(address);
    if (at === 0 || at % 16 !== 0) throw new ArgumentError('address', 'a device address that 16 divides', address);
    const here = `not of device ${this.device.info.ordinal}`;
    this.device.use();
    const attribute = (name: keyof typeof POINTER): number => {
      const out = new BigUint64Array(1);
      const status = this.device.driver.cuPointerGetAttribute(out, POINTER[name], at);
      if (status === RESULT.invalidValue)
        throw new DeviceError('cuda', `address ${at} is no memory of CUDA's, ${here}`);
      this.device.check('cuPointerGetAttribute', status);
      return Number(BigInt.asUintN(32, out[0]));
    };
    if (attribute('memoryType') === HOST_MEMORY)
      throw new DeviceError('cuda', `address ${at} is memory of the host, ${here}`);
    const ordinal = attribute('deviceOrdinal');
    if (ordinal !== this.device.info.ordinal)
      throw new DeviceError('cuda', `address ${at} is memory of device ${ordinal}, ${here}`);
    return new CudaTensor(this, dtype, shape, at, false);
  }

  /**
   * A point in this engine's work, after everything queued so far: another library's stream can wait for its `handle`
   * (a CUevent), and two timed ones measure what lies between. The caller closes it.
   */
  record(timed = false): Event {
    this.alive();
    const event = new Event(this.device, timed);
    event.record(this.stream);
    return event;
  }

  /** What is queued from here on starts after a CUevent, given by its handle, that another stream recorded. */
  waitFor(event: number): void {
    this.alive();
    this.device.use();
    const { driver } = this.device;
    this.device.check('cuStreamWaitEvent', driver.cuStreamWaitEvent(this.stream.handle, event, 0));
  }

  /** Gives device memory that no tensor holds back to the driver, for other libraries; the pool keeps it otherwise. */
  trim(): void {
    this.alive();
    this.pool.trim();
  }

  upload(tensor: HostTensor): CudaTensor {
    const t = this.allocate(tensor.dtype, tensor.shape);
    try {
      this.transfers.upload(t.address, tensor.data);
    } catch (error) {
      t.dispose();
      throw error;
    }
    return t;
  }

  write(target: EngineTensor, tensor: HostTensor): void {
    this.alive();
    const address = addressOn(this, 'target', target);
    if (target.dtype !== tensor.dtype || !sameShape(target.shape, tensor.shape))
      throw new ArgumentError('tensor', `${target.dtype}[${target.shape.join(', ')}]`, tensor);
    this.transfers.upload(address, tensor.data);
  }

  copy(source: EngineTensor, target: EngineTensor, runs: CopyRuns): void {
    this.alive();
    if (source.dtype !== target.dtype) throw new ArgumentError('target', `a ${source.dtype} tensor`, target);
    const [from, to] = [addressOn(this, 'source', source), addressOn(this, 'target', target)];
    const size = BYTES[source.dtype];
    const { driver } = this.device;
    this.device.use();
    for (let i = 0; i < runs.pairs.length; i += 2) {
      const [at, into] = [from + runs.pairs[i] * size, to + runs.pairs[i + 1] * size];
      const status = driver.cuMemcpyDtoDAsync_v2(into, at, runs.length * size, this.stream.handle);
      this.device.check('copy on the device', status);
    }
  }

  async prepare(problem: Problem, step: Step): Promise<Program> {
    this.alive();
    const kernel = this.kernels.find((k) => k.name === step.kernel && k.pass === step.pass);
    if (kernel === undefined) throw new ArgumentError('step.kernel', 'a kernel of this engine', step.kernel);
    const key = [kernel.name, JSON.stringify(step.config), specOf(problem).key, gradsKey(problem)].join(' ');
    let program = this.programs.get(key);
    if (program === undefined) {
      program = new CudaProgram(this, kernel, key, step.config, problem);
      this.programs.set(key, program);
    }
    return program;
  }

  async synchronize(): Promise<void> {
    this.alive();
    await this.stream.settled();
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    // Work that failed has nothing left to wait for.
    await this.stream.settled().catch(() => {});
    await this.transfers.settled();
    this.programs.clear();
    for (const part of [this.modules, this.transfers, this.pool, this.stream, this.device])
      try {
        part.close();
      } catch {
        // A context that a fault ended refuses every call; what it held goes with it.
      }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** @throws DisposedError after close. */
  alive(): void {
    if (this.closed) throw new DisposedError('the CUDA engine');
  }
}

/** Which gradients are asked for is code: the sums that nobody wants are not emitted. */
const gradsKey = ({ grads }: Problem): string => (grads === null ? '' : JSON.stringify(grads));

/** Dense bf16 multiply-adds a multiprocessor does in a clock with mma.sync, by capability. */
const mmaRate = (capability: number): number =>
  capability === 80 ? 1024 : capability < 90 ? 512 : capability === 90 ? 1280 : 1024;

function capsOf(device: Device): CudaCaps {
  const { info } = device;
  const peak = info.multiprocessors * info.clockHz * mmaRate(info.capability) * 2;
  return {
    engine: 'cuda',
    device: info.name,
    features: {
      'compute capability': (info.capability / 10).toFixed(1),
      'driver (CUDA)': info.driver,
      multiprocessors: info.multiprocessors,
      'shared memory per block': info.sharedPerBlock,
      'L2 cache': info.l2Bytes,
      'free memory': device.memory().free,
    },
    memory: info.memoryBytes,
    // Attention sustains a little over half of what the units can do.
    flops: peak * 0.55,
    bandwidth: info.bandwidth * 0.9,
    capability: info.capability,
    multiprocessors: info.multiprocessors,
    sharedPerBlock: info.sharedPerBlock,
    l2Bytes: info.l2Bytes,
  };
}
