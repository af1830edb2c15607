/** Moves bytes between host and device in stream order. */
import type { Device } from './device.ts';
import { type Pinned, PinnedPool } from './memory.ts';
import { Event, type Stream } from './stream.ts';

/** Bytes of a piece of a long transfer: the host fills or empties one while another is on its way. */
const CHUNK = 32 * 2 ** 20;
/** What the driver takes into its own commands, without waiting for anything. */
const SMALL = 64 * 2 ** 10;
/** Bytes of uploads that may be on their way at a time; beyond that the host waits for the device. */
const STAGED = 256 * 2 ** 20;

/** A piece of a transfer on its way from or into pinned memory; `event` comes after it. */
interface Copy {
  /** Where it belongs in the whole, in bytes. */
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
  private readonly uploads: Copy[] = [];

  constructor(device: Device, stream: Stream) {
    this.device = device;
    this.stream = stream;
    this.pinned = new PinnedPool(device);
  }

  /**
   * Queues a copy to the device; `bytes` may be reused at once. They go through pinned memory, because the driver copies
   * other memory itself and only once the device has got that far, which would keep the host waiting.
   */
  upload(target: number, bytes: ArrayBufferView): void {
    const { driver } = this.device;
    const length = bytes.byteLength;
    if (length === 0) return;
    this.reclaim();
    const waiting = this.uploads.reduce((n, copy) => n + copy.piece.bytes.length, 0);
    if (length > SMALL && waiting + length <= STAGED) {
      const all = new Uint8Array(bytes.buffer, bytes.byteOffset, length);
      this.eachPiece(length, this.uploads, ({ at, length: part, piece }) => {
        piece.bytes.set(all.subarray(at, at + part));
        return driver.cuMemcpyHtoDAsync_v2(target + at, piece.address, part, this.stream.handle);
      });
      return;
    }
    this.device.use();
    const status = driver.cuMemcpyHtoDAsync_v2(target, driver.addressOf(bytes), length, this.stream.handle);
    this.device.check('copy to the device', status);
  }

  /**
   * Copies into `bytes` what `source` holds once the work queued so far has finished, through pinned memory so that the host
   * stays free. Every copy is queued before this returns: what is done with `source` afterwards changes nothing.
   */
  download(bytes: Uint8Array, source: number): Promise<void> {
    const copies: Copy[] = [];
    try {
      this.eachPiece(bytes.length, copies, ({ at, length, piece }) =>
        this.device.driver.cuMemcpyDtoHAsync_v2(piece.address, source + at, length, this.stream.handle),
      );
    } catch (error) {
      this.release(copies);
      throw error;
    }
    const read = this.copyOut(bytes, copies);
    const done = read.finally(() => this.reads.delete(done));
    this.reads.add(done);
    return done;
  }

  /** Resolves when no download is under way, whether they succeeded or not. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.reads);
  }

  close(): void {
    this.release(this.uploads.splice(0));
    this.pinned.close();
  }

  /** Queues the pieces of a transfer one after the other and adds them to `copies`. */
  private eachPiece(bytes: number, copies: Copy[], queue: (copy: Copy) => number): void {
    for (let at = 0; at < bytes; at += CHUNK) {
      const length = Math.min(CHUNK, bytes - at);
      const piece = this.pinned.take(length);
      this.device.use();
      const copy = { at, length, piece, event: new Event(this.device) };
      copies.push(copy);
      this.device.check('copy', queue(copy));
      copy.event.record(this.stream);
    }
  }

  /** Takes back the memory of uploads that have arrived: the first ones, as they are in the stream's order. */
  private reclaim(): void {
    if (this.uploads.length === 0) return;
    this.device.use();
    const first = this.uploads.findIndex(({ event }) => !event.done());
    this.release(this.uploads.splice(0, first < 0 ? this.uploads.length : first));
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
