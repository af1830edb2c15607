/**
 * GPU memory of an engine: exact buffers for tensors, a pool for what lives for one run, and the account of both. Buffers are
 * destroyed, never left to the collector, which does not see native memory.
 */
import { DisposedError, MemoryError } from '../../core/errors.ts';

const GRAIN = 256;

export class Buffers {
  readonly #device: GPUDevice;
  readonly #limit: number;
  /** Free buffers by usage and size, newest last. */
  readonly #free = new Map<string, GPUBuffer[]>();
  readonly #live = new Set<GPUBuffer>();
  readonly #kept = new Set<GPUBuffer>();
  #bytes = 0;
  #idle = 0;

  constructor(device: GPUDevice, limit: number) {
    this.#device = device;
    this.#limit = limit;
  }

  /** Bytes of live buffers, those waiting in the pool or kept left out. */
  get bytes(): number {
    return this.#bytes;
  }

  /**
   * A buffer of at least `bytes` (16 at least, a multiple of 16, so that any storage type binds).
   *
   * @throws MemoryError before anything is allocated, when a limit of the device or of the engine is passed.
   */
  create(bytes: number, usage: GPUBufferUsageFlags): GPUBuffer {
    const size = Math.max(16, Math.ceil(bytes / 16) * 16);
    const { maxBufferSize } = this.#device.limits;
    if (size > maxBufferSize) throw new MemoryError('webgpu', size, maxBufferSize);
    if (this.#bytes + size > this.#limit) throw new MemoryError('webgpu', size, this.#limit - this.#bytes);
    if (this.#bytes + this.#idle + size > this.#limit) this.trim();
    const buffer = this.#device.createBuffer({ size, usage });
    this.#live.add(buffer);
    this.#bytes += size;
    return buffer;
  }

  destroy(buffer: GPUBuffer): void {
    if (!this.#live.delete(buffer)) throw new DisposedError('the buffer');
    this.#bytes -= buffer.size;
    buffer.destroy();
  }

  /** A buffer from the pool. Its contents are old; work queued before may still use it, which the queue's order makes safe. */
  take(bytes: number, usage: GPUBufferUsageFlags): GPUBuffer {
    const size = grow(bytes);
    const found = this.#free.get(`${usage} ${size}`)?.pop();
    if (found === undefined) return this.create(size, usage);
    this.#idle -= size;
    this.#bytes += size;
    this.#live.add(found);
    return found;
  }

  /** Gives a buffer back to the pool. */
  give(buffer: GPUBuffer): void {
    if (!this.#live.delete(buffer)) return;
    this.#bytes -= buffer.size;
    this.#idle += buffer.size;
    const key = `${buffer.usage} ${buffer.size}`;
    const list = this.#free.get(key);
    if (list === undefined) this.#free.set(key, [buffer]);
    else list.push(buffer);
    if (this.#idle > this.#limit / 4) this.trim();
  }

  /** A buffer that stays with its owner until `release`, not counted as in use: it holds nothing of a caller's. */
  keep(bytes: number, usage: GPUBufferUsageFlags): GPUBuffer {
    const buffer = this.take(bytes, usage);
    this.#live.delete(buffer);
    this.#kept.add(buffer);
    this.#bytes -= buffer.size;
    return buffer;
  }

  /** Gives a kept buffer back to the pool. */
  release(buffer: GPUBuffer): void {
    if (!this.#kept.delete(buffer)) return;
    this.#live.add(buffer);
    this.#bytes += buffer.size;
    this.give(buffer);
  }

  /** Destroys everything idle. */
  trim(): void {
    for (const list of this.#free.values()) for (const buffer of list) buffer.destroy();
    this.#free.clear();
    this.#idle = 0;
  }

  close(): void {
    this.trim();
    for (const buffer of [...this.#live, ...this.#kept]) buffer.destroy();
    this.#live.clear();
    this.#kept.clear();
    this.#bytes = 0;
  }
}

/** Sizes are rounded up to powers of two below 64 KiB and to 64 KiB above, so that neighbours share pool entries. */
function grow(bytes: number): number {
  if (bytes > 65536) return Math.ceil(bytes / 65536) * 65536;
  let size = GRAIN;
  while (size < bytes) size *= 2;
  return size;
}
