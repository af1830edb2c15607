/**
 * The part of the CUDA driver that this engine calls, as plain functions. The real one is libcuda through koffi
 * (library.ts); tests pass an object that records calls. Handles and device addresses are numbers (at most 53 bits).
 */

/** Every function gives a CUresult: 0 is success. Results are written into the typed arrays passed. */
export interface Driver {
  cuInit(flags: number): number;
  cuDriverGetVersion(version: Int32Array): number;
  cuDeviceGetCount(count: Int32Array): number;
  cuDeviceGet(device: Int32Array, ordinal: number): number;
  cuDeviceGetName(name: Uint8Array, bytes: number, device: number): number;
  cuDeviceGetAttribute(value: Int32Array, attribute: number, device: number): number;
  cuDevicePrimaryCtxRetain(context: BigUint64Array, device: number): number;
  cuDevicePrimaryCtxRelease_v2(device: number): number;
  cuCtxSetCurrent(context: number): number;
  cuCtxGetDevice(device: Int32Array): number;
  cuMemGetInfo_v2(free: BigUint64Array, total: BigUint64Array): number;
  cuMemAlloc_v2(address: BigUint64Array, bytes: number): number;
  cuMemFree_v2(address: number): number;
  cuMemHostAlloc(address: BigUint64Array, bytes: number, flags: number): number;
  cuMemFreeHost(address: number): number;
  cuMemcpyHtoDAsync_v2(target: number, source: number, bytes: number, stream: number): number;
  cuMemcpyDtoHAsync_v2(target: number, source: number, bytes: number, stream: number): number;
  cuMemcpyDtoDAsync_v2(target: number, source: number, bytes: number, stream: number): number;
  cuMemsetD8Async(target: number, value: number, bytes: number, stream: number): number;
  cuMemsetD32Async(target: number, value: number, words: number, stream: number): number;
  cuPointerGetAttribute(value: BigUint64Array, attribute: number, address: number): number;
  cuStreamCreate(stream: BigUint64Array, flags: number): number;
  cuStreamDestroy_v2(stream: number): number;
  cuStreamSynchronize(stream: number): number;
  cuStreamWaitEvent(stream: number, event: number, flags: number): number;
  cuEventCreate(event: BigUint64Array, flags: number): number;
  cuEventRecord(event: number, stream: number): number;
  cuEventQuery(event: number): number;
  cuEventSynchronize(event: number): number;
  cuEventElapsedTime(milliseconds: Float32Array, start: number, end: number): number;
  cuEventDestroy_v2(event: number): number;
  cuModuleLoadDataEx(
    module: BigUint64Array,
    image: Uint8Array,
    count: number,
    options: Int32Array,
    values: BigUint64Array,
  ): number;
  cuModuleUnload(module: number): number;
  cuModuleGetFunction(fn: BigUint64Array, module: number, name: Uint8Array): number;
  cuFuncSetAttribute(fn: number, attribute: number, value: number): number;
  cuFuncGetAttribute(value: Int32Array, attribute: number, fn: number): number;
  cuLinkCreate_v2(count: number, options: Int32Array, values: BigUint64Array, state: BigUint64Array): number;
  cuLinkAddData_v2(
    state: number,
    type: number,
    data: Uint8Array,
    bytes: number,
    name: Uint8Array,
    count: number,
    options: Int32Array,
    values: BigUint64Array,
  ): number;
  cuLinkComplete(state: number, image: BigUint64Array, bytes: BigUint64Array): number;
  cuLinkDestroy(state: number): number;
  cuLaunchKernelEx(config: Uint8Array, fn: number, parameters: number, extra: BigUint64Array): number;
  cuTensorMapEncodeTiled(
    map: Uint8Array,
    type: number,
    rank: number,
    address: number,
    dims: BigUint64Array,
    strides: BigUint64Array,
    box: Uint32Array,
    elementStrides: Uint32Array,
    interleave: number,
    swizzle: number,
    promotion: number,
    fill: number,
  ): number;
  cuGetErrorName(status: number, text: BigUint64Array): number;

  /** The address of a typed array's bytes; they must live outside the collector's moving space (an ArrayBuffer does). */
  addressOf(bytes: ArrayBufferView): number;
  /** `bytes` bytes of host memory at an address, as a view without a copy. */
  hostView(address: number, bytes: number): Uint8Array;
}

/** CUdevice_attribute numbers. */
export const ATTRIBUTE = {
  multiprocessors: 16,
  clockKHz: 13,
  memoryClockKHz: 36,
  busBits: 37,
  l2Bytes: 38,
  major: 75,
  minor: 76,
  sharedPerBlock: 97,
} as const;

/** CUresult numbers that are handled by name. */
export const RESULT = { success: 0, invalidValue: 1, outOfMemory: 2, noDevice: 100, notReady: 600 } as const;
