/** A stream and its events. Waiting polls, so that the event loop keeps turning. */
import { RESULT } from './api.ts';
import type { Device } from './device.ts';

const NON_BLOCKING = 1;
const NO_TIMING = 2;
/** Waits up to this long look at the device every turn of the event loop. */
const SHORT_MS = 4;

/** A point in a stream's work, for waiting on and, when timed, for measuring between two of them. */
export class Event {
  private readonly device: Device;
  readonly handle: number;

  constructor(device: Device, timed = false) {
    this.device = device;
    const out = new BigUint64Array(1);
    device.use();
    device.check('cuEventCreate', device.driver.cuEventCreate(out, timed ? 0 : NO_TIMING));
    this.handle = Number(out[0]);
  }

  record(stream: Stream): void {
    this.device.check('cuEventRecord', this.device.driver.cuEventRecord(this.handle, stream.handle));
  }

  /** True once the work before it has finished. @throws DeviceError when that work failed. */
  done(): boolean {
    const status = this.device.driver.cuEventQuery(this.handle);
    if (status === RESULT.notReady) return false;
    this.device.check('work on the GPU', status);
    return true;
  }

  /** Resolves once the work before it has finished; rejects when it failed. */
  async reached(): Promise<void> {
    this.device.use();
    // Longer work is polled by a timer, whose millisecond it does not notice, so that the processor can rest.
    const start = performance.now();
    while (!this.done()) {
      const short = performance.now() - start < SHORT_MS;
      await new Promise<void>((resolve) => (short ? setImmediate(resolve) : setTimeout(resolve, 1)));
      this.device.use();
    }
  }

  /** Milliseconds from this event to a later one; both timed and finished. */
  millisecondsTo(end: Event): number {
    const out = new Float32Array(1);
    this.device.check('cuEventElapsedTime', this.device.driver.cuEventElapsedTime(out, this.handle, end.handle));
    return out[0];
  }

  close(): void {
    this.device.driver.cuEventDestroy_v2(this.handle);
  }
}

export class Stream {
  readonly device: Device;
  readonly handle: number;
  private readonly owned: boolean;

  /** A new stream, or an existing one by its handle, which is then left alone on close. */
  constructor(device: Device, handle?: number) {
    this.device = device;
    this.owned = handle === undefined;
    if (handle !== undefined) {
      this.handle = handle;
      return;
    }
    const out = new BigUint64Array(1);
    device.use();
    device.check('cuStreamCreate', device.driver.cuStreamCreate(out, NON_BLOCKING));
    this.handle = Number(out[0]);
  }

  /** Resolves when everything queued so far has finished; rejects when it failed. */
  async settled(): Promise<void> {
    this.device.use();
    const event = new Event(this.device);
    try {
      event.record(this);
      await event.reached();
    } finally {
      event.close();
    }
  }

  close(): void {
    if (this.owned) this.device.driver.cuStreamDestroy_v2(this.handle);
  }
}
