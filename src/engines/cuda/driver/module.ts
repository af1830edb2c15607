/** Turns kernel text into a function on the device: from the disk cache, else through the driver's compiler. */
import { DeviceError } from '../../../core/errors.ts';
import type { KernelText } from '../ptx/assembler.ts';
import { contentHash, type DiskCache } from './cache.ts';
import type { Device } from './device.ts';

/** CUjit_option numbers and values. */
const OPTION = { errorLog: 5, errorLogBytes: 6, target: 9 } as const;
const TARGET_90A = 90 + 0x10000;
const INPUT_PTX = 1;
const MAX_DYNAMIC_SHARED = 8;
const LOG_BYTES = 16 * 1024;
/** Shared memory beyond this has to be asked for. */
const DEFAULT_SHARED = 48 * 1024;

const encoder = new TextEncoder();
const zeroEnded = (text: string): Uint8Array => encoder.encode(`${text}\0`);

/** A kernel ready to launch. */
export interface LoadedKernel {
  readonly text: KernelText;
  readonly handle: number;
  readonly module: number;
}

export class ModuleLoader {
  private readonly device: Device;
  private readonly cache: DiskCache;
  private readonly loaded = new Map<string, LoadedKernel>();

  constructor(device: Device, cache: DiskCache) {
    this.device = device;
    this.cache = cache;
  }

  /** @throws DeviceError with the compiler's log when the text does not compile. */
  load(kernel: KernelText): LoadedKernel {
    const { capability, driver } = this.device.info;
    const hash = contentHash(kernel.text, String(capability), driver);
    const known = this.loaded.get(hash);
    if (known !== undefined) return known;
    this.device.use();
    const module = this.fromCache(hash) ?? this.compile(kernel, hash);
    const out = new BigUint64Array(1);
    const { cuModuleGetFunction, cuFuncSetAttribute } = this.device.driver;
    this.device.check('cuModuleGetFunction', cuModuleGetFunction(out, module, zeroEnded(kernel.name)));
    const handle = Number(out[0]);
    if (kernel.sharedBytes > DEFAULT_SHARED)
      this.device.check('cuFuncSetAttribute', cuFuncSetAttribute(handle, MAX_DYNAMIC_SHARED, kernel.sharedBytes));
    const result = { text: kernel, handle, module };
    this.loaded.set(hash, result);
    return result;
  }

  close(): void {
    this.device.use();
    for (const { module } of this.loaded.values()) this.device.driver.cuModuleUnload(module);
    this.loaded.clear();
  }

  private fromCache(hash: string): number | null {
    const image = this.cache.get(hash);
    if (image === null) return null;
    const module = this.tryLoad(image);
    if (module === null) this.cache.drop(hash);
    return module;
  }

  private tryLoad(image: Uint8Array): number | null {
    const out = new BigUint64Array(1);
    const none = new Int32Array(1);
    const status = this.device.driver.cuModuleLoadDataEx(out, image, 0, none, new BigUint64Array(1));
    return status === 0 ? Number(out[0]) : null;
  }

  private compile(kernel: KernelText, hash: string): number {
    if (kernel.target === 'sm_90a') return this.loadText(kernel);
    const image = this.link(kernel);
    const module = this.tryLoad(image);
    if (module === null) throw new DeviceError('cuda', `kernel ${kernel.name} compiled but did not load`);
    this.cache.put(hash, image);
    return module;
  }

  /**
   * Compiles whole. The linker compiles a text as a part of a larger program: warpgroups then cannot trade registers and
   * their products wait for each other. The driver keeps a cache of its own for texts loaded this way.
   */
  private loadText(kernel: KernelText): number {
    const { driver } = this.device;
    const log = new Uint8Array(LOG_BYTES);
    const options = Int32Array.of(OPTION.errorLog, OPTION.errorLogBytes);
    const values = BigUint64Array.of(BigInt(driver.addressOf(log)), BigInt(LOG_BYTES));
    const out = new BigUint64Array(1);
    const status = driver.cuModuleLoadDataEx(out, zeroEnded(kernel.text), 2, options, values);
    if (status !== 0) {
      const said = new TextDecoder().decode(log.subarray(0, Math.max(log.indexOf(0), 0)));
      throw new DeviceError('cuda', `kernel ${kernel.name} did not compile (CUresult ${status}):\n${said}`);
    }
    return Number(out[0]);
  }

  /** Machine code for the device, by the driver's linker (which, unlike loading, hands out the code to keep). */
  private link(kernel: KernelText): Uint8Array {
    const { driver } = this.device;
    const log = new Uint8Array(LOG_BYTES);
    const hopper = kernel.target === 'sm_90a';
    const options = Int32Array.of(OPTION.errorLog, OPTION.errorLogBytes, OPTION.target);
    const values = BigUint64Array.of(BigInt(driver.addressOf(log)), BigInt(LOG_BYTES), BigInt(TARGET_90A));
    const state = new BigUint64Array(1);
    this.device.check('cuLinkCreate', driver.cuLinkCreate_v2(hopper ? 3 : 2, options, values, state));
    const handle = Number(state[0]);
    try {
      const text = zeroEnded(kernel.text);
      const none = new Int32Array(1);
      const noValues = new BigUint64Array(1);
      const name = zeroEnded(`${kernel.name}.ptx`);
      const image = new BigUint64Array(1);
      const bytes = new BigUint64Array(1);
      const status =
        driver.cuLinkAddData_v2(handle, INPUT_PTX, text, text.length, name, 0, none, noValues) ||
        driver.cuLinkComplete(handle, image, bytes);
      if (status !== 0) {
        const said = new TextDecoder().decode(log.subarray(0, Math.max(log.indexOf(0), 0)));
        throw new DeviceError('cuda', `kernel ${kernel.name} did not compile (CUresult ${status}):\n${said}`);
      }
      return driver.hostView(Number(image[0]), Number(bytes[0])).slice();
    } finally {
      driver.cuLinkDestroy(handle);
    }
  }
}
