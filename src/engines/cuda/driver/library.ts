/** Finds the CUDA driver and binds its functions. koffi is an optional peer: it is imported only when an engine is opened. */
import { DeviceError } from '../../../core/errors.ts';
import { optionalPackage } from '../../../core/optional.ts';
import type { Driver } from './api.ts';

type Koffi = typeof import('koffi')['default'];

/** C signatures: `out` and `in` are pointers to typed arrays, `h` a handle or device address. */
type Kind = 'int' | 'uint32_t' | 'uint64_t' | 'void *';
const h = 'uint64_t';
const p = 'void *';
const i = 'int';
const u = 'uint32_t';

const SIGNATURES: Readonly<Record<Exclude<keyof Driver, 'addressOf' | 'hostView'>, readonly Kind[]>> = {
  cuInit: [u],
  cuDriverGetVersion: [p],
  cuDeviceGetCount: [p],
  cuDeviceGet: [p, i],
  cuDeviceGetName: [p, i, i],
  cuDeviceGetAttribute: [p, i, i],
  cuDevicePrimaryCtxRetain: [p, i],
  cuDevicePrimaryCtxRelease_v2: [i],
  cuCtxSetCurrent: [h],
  cuCtxGetDevice: [p],
  cuMemGetInfo_v2: [p, p],
  cuMemAlloc_v2: [p, h],
  cuMemFree_v2: [h],
  cuMemHostAlloc: [p, h, u],
  cuMemFreeHost: [h],
  cuMemcpyHtoDAsync_v2: [h, h, h, h],
  cuMemcpyDtoHAsync_v2: [h, h, h, h],
  cuMemcpyDtoDAsync_v2: [h, h, h, h],
  cuMemsetD8Async: [h, i, h, h],
  cuMemsetD32Async: [h, u, h, h],
  cuPointerGetAttribute: [p, i, h],
  cuStreamCreate: [p, u],
  cuStreamDestroy_v2: [h],
  cuStreamSynchronize: [h],
  cuStreamWaitEvent: [h, h, u],
  cuEventCreate: [p, u],
  cuEventRecord: [h, h],
  cuEventQuery: [h],
  cuEventSynchronize: [h],
  cuEventElapsedTime: [p, h, h],
  cuEventDestroy_v2: [h],
  cuModuleLoadDataEx: [p, p, u, p, p],
  cuModuleUnload: [h],
  cuModuleGetFunction: [p, h, p],
  cuFuncSetAttribute: [h, i, i],
  cuFuncGetAttribute: [p, i, h],
  cuLinkCreate_v2: [u, p, p, p],
  cuLinkAddData_v2: [h, i, p, h, p, u, p, p],
  cuLinkComplete: [h, p, p],
  cuLinkDestroy: [h],
  cuLaunchKernelEx: [p, h, h, p],
  cuTensorMapEncodeTiled: [p, i, u, h, p, p, p, p, i, i, i, i],
  cuGetErrorName: [i, p],
};

const NAMES = process.platform === 'win32' ? ['nvcuda.dll'] : ['libcuda.so.1', 'libcuda.so'];

/** Loads libcuda. @throws DeviceError saying which of koffi, the driver or one of its functions is missing. */
export async function loadDriver(): Promise<Driver> {
  let koffi: Koffi;
  try {
    koffi = ((await optionalPackage('koffi')) as { default: Koffi }).default;
  } catch (cause) {
    throw new DeviceError('cuda', 'the package koffi is not installed (npm install koffi)', { cause });
  }
  const library = open(koffi);
  const functions = Object.fromEntries(
    Object.entries(SIGNATURES).map(([name, kinds]) => {
      try {
        return [name, library.func(name, 'int', [...kinds])];
      } catch (cause) {
        throw new DeviceError('cuda', `the NVIDIA driver is too old: it has no ${name} (12.0 or later is needed)`, {
          cause,
        });
      }
    }),
  );
  return {
    ...(functions as unknown as Omit<Driver, 'addressOf' | 'hostView'>),
    addressOf: (bytes) => Number(koffi.address(bytes)),
    hostView: (address, bytes) => new Uint8Array(koffi.view(BigInt(address), bytes)),
  };
}

function open(koffi: Koffi): ReturnType<Koffi['load']> {
  for (const name of NAMES) {
    try {
      return koffi.load(name);
    } catch {}
  }
  throw new DeviceError('cuda', `no NVIDIA driver: ${NAMES.join(' or ')} could not be loaded`);
}
