/**
 * Launches with everything laid out beforehand: one argument block and one launch record a kernel, refilled in place. The
 * driver copies the block during the call, so it may be refilled at once.
 */
import { ArgumentError } from '../../../core/errors.ts';
import type { Driver } from './api.ts';
import type { LoadedKernel } from './module.ts';
import type { Stream } from './stream.ts';

/** Tags of the `extra` list of cuLaunchKernelEx. */
const BUFFER_POINTER = 1n;
const BUFFER_SIZE = 2n;

export class Launch {
  readonly kernel: LoadedKernel;
  private readonly driver: Driver;
  private readonly block: DataView;
  private readonly record: DataView;
  private readonly recordBytes: Uint8Array;
  private readonly extra: BigUint64Array;
  private readonly size = new BigUint64Array(new ArrayBuffer(8));
  private readonly places: ReadonlyMap<string, { offset: number; type: string; bytes: number }>;

  constructor(driver: Driver, kernel: LoadedKernel) {
    this.driver = driver;
    this.kernel = kernel;
    const { parameterBytes, parameters, threads, sharedBytes } = kernel.text;
    this.block = new DataView(new ArrayBuffer(Math.max(parameterBytes, 8)));
    this.places = new Map(parameters.map((p) => [p.name, p]));
    this.size[0] = BigInt(parameterBytes);
    this.extra = BigUint64Array.of(
      BUFFER_POINTER,
      BigInt(driver.addressOf(this.block)),
      BUFFER_SIZE,
      BigInt(driver.addressOf(this.size)),
      0n,
    );
    // CUlaunchConfig: grid x y z, block x y z, shared bytes (u32 each), stream at 32, attributes at 40, their count at 48.
    this.recordBytes = new Uint8Array(new ArrayBuffer(56));
    this.record = new DataView(this.recordBytes.buffer);
    this.record.setUint32(12, threads, true);
    this.record.setUint32(16, 1, true);
    this.record.setUint32(20, 1, true);
    this.record.setUint32(24, sharedBytes, true);
  }

  /** Fills a parameter by name; addresses and 64-bit integers up to 53 bits. */
  set(name: string, value: number): void {
    const place = this.places.get(name);
    if (place === undefined) throw new ArgumentError(`parameter ${name}`, `one of ${[...this.places.keys()]}`, name);
    switch (place.type) {
      case 'f32':
        this.block.setFloat32(place.offset, value, true);
        break;
      case 'b32':
        this.block.setInt32(place.offset, value, true);
        break;
      case 'b64':
        this.block.setUint32(place.offset, value >>> 0, true);
        this.block.setInt32(place.offset + 4, Math.floor(value / 2 ** 32), true);
        break;
      default:
        throw new ArgumentError(`parameter ${name}`, 'a number type', place.type);
    }
  }

  /** Fills a parameter of raw bytes. */
  setBytes(name: string, bytes: Uint8Array): void {
    const place = this.places.get(name);
    if (place === undefined || place.bytes !== bytes.length)
      throw new ArgumentError(`parameter ${name}`, `${place?.bytes ?? 0} bytes`, bytes.length);
    new Uint8Array(this.block.buffer).set(bytes, place.offset);
  }

  /** Queues the kernel. A grid with an empty axis launches nothing. */
  run(stream: Stream, x: number, y = 1, z = 1): void {
    if (x === 0 || y === 0 || z === 0) return;
    const { record } = this;
    record.setUint32(0, x, true);
    record.setUint32(4, y, true);
    record.setUint32(8, z, true);
    record.setUint32(32, stream.handle >>> 0, true);
    record.setUint32(36, Math.floor(stream.handle / 2 ** 32), true);
    const status = this.driver.cuLaunchKernelEx(this.recordBytes, this.kernel.handle, 0, this.extra);
    stream.device.check(`launch of ${this.kernel.text.name}`, status);
  }
}
