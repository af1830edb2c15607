/** The WebGPU engine: memory, programs and their runs on one device. */
import { allocate as allocateHost, type DType } from '../../core/dtype.ts';
import { ArgumentError, DisposedError } from '../../core/errors.ts';
import { bytesOf, type HostTensor, tensor as hostTensor, sameShape, sizeOf } from '../../core/tensor.ts';
import type { CopyRuns, Engine, EngineTensor, Operands, Program, RunOptions, Step } from '../../engine/contract.ts';
import type { Problem } from '../../problem/problem.ts';
import { Buffers } from './buffers.ts';
import { copyKey, copyLaunch, copyShader, copyShape } from './copy.ts';
import type { Found } from './device.ts';
import { Faults } from './faults.ts';
import { KERNELS } from './kernels/index.ts';
import { type Launch, problemKey, type WebGpuCaps, type WebGpuKernel } from './kernels/kernel.ts';
import { type Compiled, compile, type Place, placesOfOperands, programKey } from './programs.ts';
import { type Borrowed, type Recorder, Resident, record } from './record.ts';
import { GpuTensor, ownTensor } from './tensor.ts';
import type { Shader } from './wgsl/module.ts';

/** A program that can also be written into the caller's own encoder. */
export interface WebGpuProgram extends Program {
  /**
   * Appends the run to `encoder` without submitting. Call the result once the encoder's commands have been submitted (or
   * dropped): it gives the scratch memory back.
   */
  encode(encoder: GPUCommandEncoder, problem: Problem, operands: Operands, options?: EncodeOptions): () => void;
}

export interface EncodeOptions {
  /** Query set and indices that receive the pass's begin and end times, on devices with `timestamp-query`. */
  readonly timestamps?: GPUComputePassTimestampWrites;
}

/** Launches that keep their constants on the device. */
const RESIDENTS = 64;

/** Lengths and page tables may be rewritten in place between calls; everything else of a problem is frozen. */
const isFrozen = (p: Problem): boolean => p.uniform && p.kv.kind === 'strided';

export class WebGpuEngine implements Engine {
  readonly name = 'webgpu';
  readonly caps: WebGpuCaps;
  readonly kernels: readonly WebGpuKernel[] = KERNELS;
  /** The device itself, for libraries that share it. */
  readonly device: GPUDevice;
  readonly #owned: boolean;
  readonly #buffers: Buffers;
  readonly #faults: Faults;
  readonly #programs = new Map<string, Promise<readonly Compiled[]>>();
  #copies: Promise<void> = Promise.resolve();
  #closed = false;

  constructor(found: Found, caps: WebGpuCaps) {
    this.device = found.device;
    this.#owned = found.owned;
    this.caps = caps;
    this.#buffers = new Buffers(found.device, caps.memory);
    this.#faults = new Faults(found.device, caps.memory);
    this.#recorder = { device: found.device, buffers: this.#buffers, bindingSize: caps.bindingSize };
  }

  get bytesInUse(): number {
    return this.#buffers.bytes;
  }

  allocate(dtype: DType, shape: readonly number[]): GpuTensor {
    this.#check();
    const bytes = bytesOf({ dtype, shape });
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const buffer = this.#faults.watch(`allocating ${bytes} bytes`, bytes, () => this.#buffers.create(bytes, usage));
    return new GpuTensor(this.#owner, dtype, shape, buffer, 0, true);
  }

  upload(host: HostTensor): GpuTensor {
    const made = this.allocate(host.dtype, host.shape);
    this.write(made, host);
    return made;
  }

  write(target: EngineTensor, host: HostTensor): void {
    this.#check();
    const own = ownTensor(this, target, 'target');
    if (own.dtype !== host.dtype || !sameShape(own.shape, host.shape))
      throw new ArgumentError('tensor', `${own.dtype}[${own.shape.join(', ')}]`, host);
    const { data } = host;
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength) as Uint8Array<ArrayBuffer>;
    const whole = bytes.length & ~3;
    if (whole > 0) this.device.queue.writeBuffer(own.buffer, own.offset, bytes, 0, whole);
    if (whole === bytes.length) return;
    // The queue writes whole words; a shape's last bytes are followed by padding of the same buffer.
    const tail = new Uint8Array(4);
    tail.set(bytes.subarray(whole));
    this.device.queue.writeBuffer(own.buffer, own.offset + whole, tail);
  }

  copy(source: EngineTensor, target: EngineTensor, runs: CopyRuns): void {
    this.#check();
    const from = ownTensor(this, source, 'source');
    const to = ownTensor(this, target, 'target');
    if (from.dtype !== to.dtype) throw new ArgumentError('target', `dtype ${from.dtype}`, to.dtype);
    if (runs.pairs.length === 0 || runs.length === 0) return;
    const shape = copyShape(from.dtype, runs, from.buffer === to.buffer, [from.offset, to.offset]);
    const launch = copyLaunch(shape, { pairs: runs.pairs.slice(), length: runs.length });
    const whole = (t: GpuTensor): Place => ({ buffer: t.buffer, offset: t.offset, size: t.buffer.size - t.offset });
    const places = new Map([
      ['source_', whole(from)],
      ['target_', whole(to)],
    ]);
    const known = this.#ready.get(copyKey(shape));
    if (known !== undefined) this.#submit(known, launch, places);
    else
      this.#copies = this.#copies.then(async () =>
        this.#submit(await this.#compile(copyKey(shape), () => [copyShader(shape)]), launch, places),
      );
  }

  async prepare(problem: Problem, step: Step): Promise<WebGpuProgram> {
    this.#check();
    const kernel = this.kernels.find((k) => k.name === step.kernel && k.pass === step.pass);
    if (kernel === undefined)
      throw new ArgumentError('step.kernel', `one of ${this.kernels.map((k) => k.name).join(', ')}`, step.kernel);
    const key = programKey(kernel.name, step.config, problemKey(problem));
    const compiled = await this.#compile(key, () => kernel.shaders(problem, step.config, this.caps));
    const launches = new WeakMap<Problem, Launch>();
    const launchOf = (p: Problem): Launch => {
      let launch = launches.get(p);
      if (launch === undefined) {
        launch = kernel.launch(p, step.config, this.caps);
        if (isFrozen(p)) launches.set(p, launch);
      }
      return launch;
    };
    return {
      key,
      run: async (p: Problem, operands: Operands, options: RunOptions = {}) => {
        options.signal?.throwIfAborted();
        await this.#copies;
        this.#check();
        const again = launches.has(p);
        this.#submit(compiled, launchOf(p), placesOfOperands(this, operands), again);
        options.onProgress?.(1);
      },
      encode: (encoder, p, operands, options = {}) => {
        this.#check();
        const places = placesOfOperands(this, operands);
        const borrowed = record(this.#recorder, encoder, compiled, launchOf(p), places, options);
        return () => this.#giveBack(borrowed);
      },
    };
  }

  async synchronize(): Promise<void> {
    this.#check();
    await this.#copies;
    await this.device.queue.onSubmittedWorkDone().catch((e) => {
      throw this.#faults.error('waiting', e);
    });
    await this.#faults.settle();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#faults.closing();
    this.#buffers.close();
    this.#residents.clear();
    this.#programs.clear();
    this.#ready.clear();
    if (this.#owned) this.device.destroy();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /**
   * A tensor over a caller's buffer on this engine's device, without a copy. The buffer needs STORAGE usage (COPY_SRC to be
   * read back) and stays the caller's: dispose() leaves it alone.
   *
   * @param offset in bytes, a multiple of the device's minStorageBufferOffsetAlignment (256 unless lowered).
   */
  fromBuffer(buffer: GPUBuffer, dtype: DType, shape: readonly number[], offset = 0): GpuTensor {
    this.#check();
    const align = this.device.limits.minStorageBufferOffsetAlignment;
    if (!Number.isInteger(offset) || offset < 0 || offset % align !== 0)
      throw new ArgumentError('offset', `a multiple of ${align} bytes`, offset);
    const bytes = bytesOf({ dtype, shape });
    if (offset + bytes > buffer.size)
      throw new ArgumentError('buffer', `at least ${offset + bytes} bytes`, buffer.size);
    if ((buffer.usage & GPUBufferUsage.STORAGE) === 0)
      throw new ArgumentError('buffer', 'a buffer with STORAGE usage', `usage ${buffer.usage}`);
    return new GpuTensor(this.#owner, dtype, shape, buffer, offset, false);
  }

  /** A tensor of this engine with its memory: `buffer` and the byte `offset` it starts at, for other libraries on the device. */
  memoryOf(t: EngineTensor): GpuTensor {
    return ownTensor(this, t, 'tensor');
  }

  /** Pipelines that have been compiled, for calls that cannot wait. */
  readonly #ready = new Map<string, readonly Compiled[]>();

  readonly #recorder: Recorder;
  /** Of launches that ran lately, the latest last. */
  readonly #residents = new Map<Launch, Resident>();

  readonly #owner = {
    engine: this as Engine,
    read: (t: GpuTensor): Promise<HostTensor> => this.#read(t),
    free: (t: GpuTensor): void => {
      if (t.owned && !this.#closed) this.#buffers.destroy(t.buffer);
    },
  };

  #compile(key: string, shaders: () => readonly Shader[]): Promise<readonly Compiled[]> {
    const found = this.#programs.get(key);
    if (found !== undefined) return found;
    const compiling = Promise.all(shaders().map((s) => compile(this.device, this.#faults, s)));
    this.#programs.set(key, compiling);
    compiling.then(
      (compiled) => this.#ready.set(key, compiled),
      () => this.#programs.delete(key),
    );
    return compiling;
  }

  /** What stays on the device for a launch; the one that has not run for longest makes place for a new one. */
  #residentOf(launch: Launch): Resident {
    const resident = this.#residents.get(launch) ?? new Resident();
    this.#residents.delete(launch);
    this.#residents.set(launch, resident);
    if (this.#residents.size > RESIDENTS) {
      const [[oldest, idle]] = this.#residents;
      this.#residents.delete(oldest);
      idle.release(this.#buffers);
    }
    return resident;
  }

  /** `again`: the launch has run before, and may once more. */
  #submit(compiled: readonly Compiled[], launch: Launch, places: Map<string, Place>, again = false): void {
    this.#faults.watch('running', 0, () => {
      const resident = again ? this.#residentOf(launch) : undefined;
      const encoder = this.device.createCommandEncoder();
      const borrowed = record(this.#recorder, encoder, compiled, launch, places, { resident });
      this.device.queue.submit([encoder.finish()]);
      this.#giveBack(borrowed);
    });
  }

  #giveBack(borrowed: Borrowed): void {
    if (!this.#closed) for (const buffer of borrowed) this.#buffers.give(buffer);
  }

  async #read(t: GpuTensor): Promise<HostTensor> {
    this.#check();
    await this.#copies;
    const data = allocateHost(t.dtype, sizeOf(t.shape));
    const bytes = Math.ceil(data.byteLength / 4) * 4;
    if (bytes === 0) return hostTensor(data, t.shape, t.dtype);
    const staging = this.#buffers.take(bytes, GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
    try {
      const encoder = this.device.createCommandEncoder();
      encoder.copyBufferToBuffer(t.buffer, t.offset, staging, 0, bytes);
      this.#faults.watch('reading', 0, () => this.device.queue.submit([encoder.finish()]));
      await staging.mapAsync(GPUMapMode.READ, 0, bytes);
      new Uint8Array(data.buffer, 0, data.byteLength).set(
        new Uint8Array(staging.getMappedRange(0, bytes), 0, data.byteLength),
      );
      staging.unmap();
    } catch (cause) {
      throw this.#faults.error('reading', cause);
    } finally {
      this.#giveBack([staging]);
    }
    await this.#faults.settle();
    return hostTensor(data, t.shape, t.dtype);
  }

  #check(): void {
    if (this.#closed) throw new DisposedError('the webgpu engine');
    this.#faults.check();
  }
}
