/** One GPU: its context, its properties, and the translation of CUresults into errors. */
import { DeviceError, MemoryError } from '../../../core/errors.ts';
import { ATTRIBUTE, type Driver, RESULT } from './api.ts';

/** What the device is, read once. */
export interface DeviceInfo {
  readonly ordinal: number;
  readonly name: string;
  /** CUDA version the driver speaks, e.g. 13.0. */
  readonly driver: string;
  /** Compute capability times ten: 80, 90. */
  readonly capability: number;
  readonly multiprocessors: number;
  /** Bytes of shared memory one block may use. */
  readonly sharedPerBlock: number;
  readonly l2Bytes: number;
  readonly memoryBytes: number;
  /** Bytes per second by clock and bus width. */
  readonly bandwidth: number;
  readonly clockHz: number;
}

export class Device {
  readonly driver: Driver;
  readonly info: DeviceInfo;
  private readonly device: number;
  readonly context: number;
  private readonly ownsContext: boolean;

  private constructor(driver: Driver, ordinal: number, context: number | undefined) {
    this.driver = driver;
    const out = new Int32Array(1);
    this.check('cuDeviceGet', driver.cuDeviceGet(out, ordinal));
    this.device = out[0];
    this.ownsContext = context === undefined;
    if (context === undefined) {
      const handle = new BigUint64Array(1);
      this.check('cuDevicePrimaryCtxRetain', driver.cuDevicePrimaryCtxRetain(handle, this.device));
      this.context = Number(handle[0]);
    } else this.context = context;
    this.use();
    const current = new Int32Array(1);
    this.check('cuCtxGetDevice', driver.cuCtxGetDevice(current));
    if (current[0] !== this.device)
      throw new DeviceError('cuda', `the context is one of device ${current[0]}, not of device ${ordinal}`);
    this.info = this.describe(ordinal);
  }

  /**
   * Opens a GPU by ordinal, in its primary context (the one PyTorch and the CUDA runtime use) or in a context given by
   * its handle, which is then left alone on close.
   *
   * @throws DeviceError when there is no such device.
   */
  static open(driver: Driver, ordinal: number, context?: number): Device {
    check(driver, 'cuInit', driver.cuInit(0));
    const count = new Int32Array(1);
    check(driver, 'cuDeviceGetCount', driver.cuDeviceGetCount(count));
    if (!Number.isInteger(ordinal) || ordinal < 0 || ordinal >= count[0])
      throw new DeviceError('cuda', `there is no device ${ordinal}: the driver shows ${count[0]}`);
    return new Device(driver, ordinal, context);
  }

  /** Makes this device's context the calling thread's. Cheap; done before every group of calls. */
  use(): void {
    this.check('cuCtxSetCurrent', this.driver.cuCtxSetCurrent(this.context));
  }

  /** @throws MemoryError or DeviceError unless the status is success. */
  check(what: string, status: number): void {
    if (status !== RESULT.success) check(this.driver, what, status);
  }

  attribute(name: keyof typeof ATTRIBUTE): number {
    const out = new Int32Array(1);
    this.check('cuDeviceGetAttribute', this.driver.cuDeviceGetAttribute(out, ATTRIBUTE[name], this.device));
    return out[0];
  }

  /** Bytes free now, and in all. */
  memory(): { free: number; total: number } {
    const free = new BigUint64Array(1);
    const total = new BigUint64Array(1);
    this.check('cuMemGetInfo', this.driver.cuMemGetInfo_v2(free, total));
    return { free: Number(free[0]), total: Number(total[0]) };
  }

  close(): void {
    if (this.ownsContext) this.driver.cuDevicePrimaryCtxRelease_v2(this.device);
  }

  private describe(ordinal: number): DeviceInfo {
    const name = new Uint8Array(256);
    this.check('cuDeviceGetName', this.driver.cuDeviceGetName(name, 256, this.device));
    const version = new Int32Array(1);
    this.check('cuDriverGetVersion', this.driver.cuDriverGetVersion(version));
    return {
      ordinal,
      name: new TextDecoder().decode(name.subarray(0, name.indexOf(0))),
      driver: `${Math.floor(version[0] / 1000)}.${Math.floor((version[0] % 1000) / 10)}`,
      capability: this.attribute('major') * 10 + this.attribute('minor'),
      multiprocessors: this.attribute('multiprocessors'),
      sharedPerBlock: this.attribute('sharedPerBlock'),
      l2Bytes: this.attribute('l2Bytes'),
      memoryBytes: this.memory().total,
      // Two transfers a clock.
      bandwidth: 2 * this.attribute('memoryClockKHz') * 1e3 * (this.attribute('busBits') / 8),
      clockHz: this.attribute('clockKHz') * 1e3,
    };
  }
}

/** @throws DeviceError with the driver's own name of the failure. */
export function check(driver: Driver, what: string, status: number): void {
  if (status === RESULT.success) return;
  throw new DeviceError('cuda', `${what} failed: ${errorName(driver, status)}`);
}

/** @throws MemoryError when an allocation of `bytes` found no room. */
export function checkAllocation(device: Device, bytes: number, status: number): void {
  if (status === RESULT.outOfMemory) throw new MemoryError('cuda', bytes, device.memory().free);
  device.check('cuMemAlloc', status);
}

function errorName(driver: Driver, status: number): string {
  const text = new BigUint64Array(1);
  if (driver.cuGetErrorName(status, text) !== RESULT.success || text[0] === 0n) return `CUresult ${status}`;
  const bytes = driver.hostView(Number(text[0]), 64);
  return `${new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)))} (${status})`;
}
