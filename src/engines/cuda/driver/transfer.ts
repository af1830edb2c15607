/** Moves bytes between host and device in stream order. */
import type { Device } from './device.ts';
import { type Pinned, PinnedPool } from './memory.ts';
import { Event, type Stream } from './stream.ts';

/** Bytes of a piece of a read: the host takes one out while the next arrives. */
const CHUNK = 32 * 2 ** 20;

/** A piece of a read on its way into pinned memory; `event` comes after it. */
interface Copy {
  readonly at: number;
  readonly length: number;
  readonly piece: Pinned;
  readonly event: Event;
}

export class Transfers {
  private readonly device: Device;
  private readonly stream: Stream;
  private readonly pinned: PinnedPool;
  private readonly reads = new Set<Promise<void>>();

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

  /**
   * Copies into `bytes` what `source` holds once the work queued so far has finished, through pinned memory so that the host
   * stays free. Every copy is queued before this returns: what is done with `source` afterwards changes nothing.
   */
  download(bytes: Uint8Array, source: number): Promise<void> {
    const read = this.copyOut(bytes, this.queueCopies(bytes.length, source));
    const done = read.finally(() => this.reads.delete(done));
    this.reads.add(done);
    return done;
  }

  /** Resolves when no download is under way, whether they succeeded or not. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.reads);
  }

  close(): void {
    this.pinned.close();
  }

  private queueCopies(bytes: number, source: number): Copy[] {
    const { driver } = this.device;
    const copies: Copy[] = [];
    try {
      for (let at = 0; at < bytes; at += CHUNK) {
        const length = Math.min(CHUNK, bytes - at);
        const piece = this.pinned.take(length);
        this.device.use();
        const copy = { at, length, piece, event: new Event(this.device) };
        copies.push(copy);
        const status = driver.cuMemcpyDtoHAsync_v2(piece.address, source + at, length, this.stream.handle);
        this.device.check('copy from the device', status);
        copy.event.record(this.stream);
      }
      return copies;
    } catch (error) {
      this.release(copies);
      throw error;
    }
  }

  private async copyOut(bytes: Uint8Array, copies: readonly Copy[]): Promise<void> {
    try {
      for (const { at, length, piece, event } of copies) {
        await event.reached();
        bytes.set(piece.bytes.subarray(0, length), at);
      }
    } finally {
      this.release(copies);
    }
  }

  /** A copy into a piece that is still on its way comes before the piece's next one: both are in the stream. */
  private release(copies: readonly Copy[]): void {
    for (const { event, piece } of copies) {
      event.close();
      this.pinned.give(piece);
    }
  }
}
