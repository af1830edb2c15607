/** The CUDA engine's two entry points: can it run here, and open it. */
import { DeviceError } from '../../core/errors.ts';
import type { Probe } from '../../engine/contract.ts';
import type { Driver } from './driver/api.ts';
import type { Device } from './driver/device.ts';
import type { CudaEngine, CudaEngineOptions } from './engine.ts';

export type { CudaEngine } from './engine.ts';
export type { CudaTensor } from './tensor.ts';

/** The oldest GPUs with the instructions the kernels use: Ampere. */
const OLDEST = 80;

export interface CudaOptions extends CudaEngineOptions {
  /** Which GPU, by the driver's numbering. */
  readonly device?: number | undefined;
  /** An existing CUcontext by its handle; by default the device's primary context, which other libraries share. */
  readonly context?: number | undefined;
  /** Stands in for libcuda: for tests. */
  readonly driver?: Driver | undefined;
}

/** Names the GPU, driver, capability and free memory, or says why there is none. */
export async function probe(options: CudaOptions = {}): Promise<Probe> {
  try {
    const device = await openDevice(options);
    const { name, driver, capability } = device.info;
    const { free, total } = device.memory();
    device.close();
    if (capability < OLDEST) return { engine: 'cuda', available: false, reason: tooOld(name, capability) };
    const gib = (bytes: number): string => (bytes / 2 ** 30).toFixed(1);
    const detail = `${name}, compute capability ${capability / 10}, driver for CUDA ${driver}`;
    return { engine: 'cuda', available: true, detail: `${detail}, ${gib(free)} of ${gib(total)} GiB free` };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return { engine: 'cuda', available: false, reason: reason.replace(/^cuda: /, '') };
  }
}

/** Opens a GPU. @throws DeviceError saying what is missing: koffi, the driver, the device, or a newer one. */
export async function open(options: CudaOptions = {}): Promise<CudaEngine> {
  const device = await openDevice(options);
  const { name, capability } = device.info;
  if (capability < OLDEST) {
    device.close();
    throw new DeviceError('cuda', tooOld(name, capability));
  }
  const { CudaEngine } = await import('./engine.ts');
  return new CudaEngine(device, options);
}

/** Loads the engine's files on the way, and only where there can be a driver: a browser that asks `doctor` gets none of them. */
async function openDevice({ driver, device, context }: CudaOptions): Promise<Device> {
  if (typeof globalThis.process?.getBuiltinModule !== 'function')
    throw new DeviceError('cuda', 'browsers have no CUDA; Node, Deno and Bun do');
  const [{ Device }, { loadDriver }] = await Promise.all([import('./driver/device.ts'), import('./driver/library.ts')]);
  return Device.open(driver ?? (await loadDriver()), device ?? 0, context);
}

const tooOld = (name: string, capability: number): string =>
  `${name} has compute capability ${capability / 10}; 8.0 (Ampere) or later is needed`;
