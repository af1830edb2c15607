/** Moves bytes between host and device in stream order. */
import type { Device } from './device.ts';
import { PinnedPool } from './memory.ts';
import type { Stream } from './stream.ts';

/** Bytes moved at a time when reading, so that pinned memory stays small. */
const CHUNK = 32 * 2 ** 20;

export class Transfers {
  private readonly device: Device;
  private readonly stream: Stream;
  private readonly pinned: PinnedPool;

  constructor(device: Device, stream: Stream) {
    this.device = device;
    this.stream = stream;
    this.pinned = new PinnedPool(device);
  }

  /** Queues a copy to the device. The driver stages ordinary memory before it returns, so `bytes` may be reused at once. */
  upload(target: number, bytes: ArrayBufferView): void {
    if (bytes.byteLength === 0) return;
    const { driver } = this.device;
    this.device.use();
    const status = driver.cuMemcpyHtoDAsync_v2(target, driver.addressOf(bytes), bytes.byteLength, this.stream.handle);
    this.device.check('copy to the device', status);
  }

  /** Copies into `bytes` once the work queued so far has finished, through pinned memory so that the host stays free. */
  async download(bytes: Uint8Array, source: number): Promise<void> {
    for (let at = 0; at < bytes.length; at += CHUNK) {
      const part = bytes.subarray(at, at + CHUNK);
      const piece = this.pinned.take(part.length);
      this.device.use();
      const { driver } = this.device;
      const status = driver.cuMemcpyDtoHAsync_v2(piece.address, source + at, part.length, this.stream.handle);
      this.device.check('copy from the device', status);
      await this.stream.settled();
      part.set(piece.bytes.subarray(0, part.length));
      this.pinned.give(piece);
    }
  }

  close(): void {
    this.pinned.close();
  }
}
