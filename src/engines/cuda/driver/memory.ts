/**
 * Device memory in a pool, and pinned host memory for transfers. One stream orders everything, so a freed piece may be
 * handed out again at once: its next user is queued behind its last.
 */
import { alignTo } from '../../../core/math.ts';
import { checkAllocation, type Device } from './device.ts';

/** Sizes are rounded so that pieces of about one size can replace each other. */
const roundUp = (bytes: number): number => {
  if (bytes <= 1 << 20) return alignTo(Math.max(bytes, 1), 512);
  return alignTo(bytes, 1 << 20);
};

export class Pool {
  private readonly device: Device;
  private readonly free = new Map<number, number[]>();
  private readonly sizes = new Map<number, number>();
  /** Bytes handed out. */
  inUse = 0;

  constructor(device: Device) {
    this.device = device;
  }

  /** @throws MemoryError with sizes; the pool stays usable. */
  allocate(bytes: number): number {
    const size = roundUp(bytes);
    const kept = this.free.get(size)?.pop();
    const address = kept ?? this.fresh(size);
    this.sizes.set(address, size);
    this.inUse += size;
    return address;
  }

  release(address: number): void {
    const size = this.sizes.get(address);
    if (size === undefined) return;
    this.sizes.delete(address);
    this.inUse -= size;
    const list = this.free.get(size);
    if (list === undefined) this.free.set(size, [address]);
    else list.push(address);
  }

  /** Gives unused pieces back to the driver. The driver waits for work that may still touch them. */
  trim(): void {
    this.device.use();
    for (const list of this.free.values()) for (const address of list) this.device.driver.cuMemFree_v2(address);
    this.free.clear();
  }

  /** Gives everything back, also what is handed out. */
  close(): void {
    this.trim();
    for (const address of this.sizes.keys()) this.device.driver.cuMemFree_v2(address);
    this.sizes.clear();
    this.inUse = 0;
  }

  private fresh(size: number): number {
    const out = new BigUint64Array(1);
    this.device.use();
    let status = this.device.driver.cuMemAlloc_v2(out, size);
    if (status !== 0 && this.free.size > 0) {
      this.trim();
      status = this.device.driver.cuMemAlloc_v2(out, size);
    }
    checkAllocation(this.device, size, status);
    return Number(out[0]);
  }
}

/** A piece of page-locked host memory: the device copies to and from it without the driver's help. */
export interface Pinned {
  readonly address: number;
  readonly bytes: Uint8Array;
}

/** Bytes of page-locked memory kept for the next transfers. */
const PINNED_KEPT = 256 * 2 ** 20;

export class PinnedPool {
  private readonly device: Device;
  private readonly free: Pinned[] = [];
  private readonly all = new Set<Pinned>();

  constructor(device: Device) {
    this.device = device;
  }

  /** At least `bytes` of pinned memory. */
  take(bytes: number): Pinned {
    let best = -1;
    this.free.forEach((piece, i) => {
      const fits = piece.bytes.length >= bytes;
      if (fits && (best < 0 || piece.bytes.length < this.free[best].bytes.length)) best = i;
    });
    if (best >= 0) return this.free.splice(best, 1)[0];
    const size = alignTo(Math.max(bytes, 4096), 4096);
    const out = new BigUint64Array(1);
    this.device.use();
    checkAllocation(this.device, size, this.device.driver.cuMemHostAlloc(out, size, 0));
    const address = Number(out[0]);
    const piece = { address, bytes: this.device.driver.hostView(address, size) };
    this.all.add(piece);
    return piece;
  }

  give(piece: Pinned): void {
    const kept = this.free.reduce((n, { bytes }) => n + bytes.length, 0);
    if (kept + piece.bytes.length <= PINNED_KEPT) this.free.push(piece);
    else if (this.all.delete(piece)) {
      this.device.use();
      this.device.driver.cuMemFreeHost(piece.address);
    }
  }

  close(): void {
    this.device.use();
    for (const piece of this.all) this.device.driver.cuMemFreeHost(piece.address);
    this.all.clear();
    this.free.length = 0;
  }
}
