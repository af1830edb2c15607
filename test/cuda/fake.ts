/**
 * A CUDA driver without a GPU: device memory is host memory behind made-up addresses, kernels are recorded and not run.
 * Copies happen in order: at once, or when a device that is busy gets to them. A copy between ordinary host memory and the
 * device waits for it. Every call is written down.
 */
import type { Driver } from '../../src/engines/cuda/driver/api.ts';

export interface FakeOptions {
  readonly devices?: number;
  /** Compute capability times ten. */
  readonly capability?: number;
  /** Bytes of device memory. */
  readonly memory?: number;
  /** Which device the context belongs to. */
  readonly contextDevice?: number;
  /** What the compiler says to a text; null when it compiles. */
  readonly compiler?: (ptx: string) => string | null;
}

export interface FakeLaunch {
  readonly name: string;
  readonly grid: readonly [number, number, number];
  readonly threads: number;
  readonly sharedBytes: number;
  readonly stream: number;
  readonly argumentBytes: number;
}

export interface Fake {
  readonly driver: Driver;
  /** Names of the calls, in order. */
  readonly calls: string[];
  readonly launches: FakeLaunch[];
  /** Live device allocations: address -> bytes. */
  readonly allocations: Map<number, Uint8Array>;
  /** Status of the next call of a name, instead of success. */
  readonly failures: Map<string, number>;
  readonly liveModules: Set<number>;
  /** Bytes of live page-locked memory. */
  readonly pinned: Map<number, number>;
  /** Whether the device has not got to what is queued: copies wait, and events say so. */
  busy: boolean;
  /** How often the host had to wait for a busy device. */
  readonly waits: () => number;
}

const ATTRIBUTES: Readonly<Record<number, number>> = { 16: 132, 13: 1_980_000, 36: 3_201_000, 37: 6144, 38: 60 << 20 };

export function fakeDriver(options: FakeOptions = {}): Fake {
  const { devices = 1, capability = 80, memory = 2 ** 30, contextDevice = 0, compiler = () => null } = options;
  const calls: string[] = [];
  const launches: FakeLaunch[] = [];
  const allocations = new Map<number, Uint8Array>();
  const failures = new Map<string, number>();
  const liveModules = new Set<number>();
  const pinned = new Map<number, number>();
  const host = new Map<number, ArrayBufferView>();
  const addresses = new WeakMap<object, number>();
  const kernelNames = new Map<number, string>();
  const logs: { log: number } = { log: 0 };
  const isIn = (map: ReadonlyMap<number, { byteLength: number }>, address: number): boolean =>
    [...map].some(([start, { byteLength }]) => address >= start && address < start + byteLength);
  const pinnedViews = (): ReadonlyMap<number, { byteLength: number }> =>
    new Map([...pinned].map(([start, byteLength]) => [start, { byteLength }]));
  let next = 0x7f00_0000_0000;
  const handle = (): number => (next += 4096);
  const used = (): number => [...allocations.values()].reduce((n, a) => n + a.length, 0);

  const bytesAt = (address: number): Uint8Array => {
    for (const [start, view] of allocations) {
      if (address >= start && address < start + view.length) return view.subarray(address - start);
    }
    for (const [start, view] of host)
      if (address >= start && address < start + view.byteLength)
        return new Uint8Array(view.buffer, view.byteOffset, view.byteLength).subarray(address - start);
    throw new Error(`no memory at ${address}`);
  };
  const queue: (() => void)[] = [];
  let [busy, waits] = [false, 0];
  const drain = (): void => {
    for (const work of queue.splice(0)) work();
  };
  const queued = (work: () => void): number => {
    if (busy) queue.push(work);
    else work();
    return 0;
  };
  const copy = (target: number, source: number, bytes: number): number => {
    const work = (): void => bytesAt(target).set(bytesAt(source).subarray(0, bytes));
    const ordinary = [target, source].some((a) => isIn(host, a) && !isIn(pinnedViews(), a));
    if (!ordinary) return queued(work);
    // Little of it travels with the command.
    if (busy && bytes > 65536) {
      waits++;
      drain();
    }
    if (!busy || bytes > 65536) work();
    else {
      const taken = bytesAt(source).slice(0, bytes);
      queue.push(() => bytesAt(target).set(taken));
    }
    return 0;
  };
  const allocate = (out: BigUint64Array, bytes: number): number => {
    if (used() + bytes > memory) return 2;
    const address = handle() + Math.ceil(bytes / 4096) * 4096;
    next = address + Math.ceil(bytes / 4096) * 4096;
    allocations.set(address, new Uint8Array(bytes));
    out[0] = BigInt(address);
    return 0;
  };
  const into = (out: BigUint64Array): number => {
    const h = handle();
    out[0] = BigInt(h);
    return h;
  };
  /** Writes a result and succeeds. */
  const put = <T>(out: { [index: number]: T }, value: T): number => {
    out[0] = value;
    return 0;
  };
  const created = (out: BigUint64Array): number => put(out, BigInt(handle()));
  const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));

  const functions: Driver = {
    cuInit: () => 0,
    cuDriverGetVersion: (v) => put(v, 13000),
    cuDeviceGetCount: (n) => put(n, devices),
    cuDeviceGet: (d, ordinal) => put(d, ordinal),
    cuDeviceGetName(name) {
      name.set(new TextEncoder().encode('Fake GPU'));
      return 0;
    },
    cuDeviceGetAttribute(value, attribute) {
      value[0] =
        attribute === 75
          ? Math.floor(capability / 10)
          : attribute === 76
            ? capability % 10
            : attribute === 97
              ? 232448
              : (ATTRIBUTES[attribute] ?? 0);
      return 0;
    },
    cuDevicePrimaryCtxRetain: created,
    cuDevicePrimaryCtxRelease_v2: () => 0,
    cuCtxSetCurrent: () => 0,
    cuCtxGetDevice: (device) => put(device, contextDevice),
    cuMemGetInfo_v2(free, total) {
      free[0] = BigInt(memory - used());
      total[0] = BigInt(memory);
      return 0;
    },
    cuMemAlloc_v2: allocate,
    cuMemFree_v2: (address) => (allocations.delete(address) ? 0 : 1),
    cuMemHostAlloc(out, bytes) {
      const view = new Uint8Array(bytes);
      const address = functions.addressOf(view);
      pinned.set(address, bytes);
      return put(out, BigInt(address));
    },
    cuMemFreeHost(address) {
      const bytes = pinned.get(address);
      if (bytes === undefined) return 1;
      pinned.delete(address);
      // Whoever reads it now sees that it is gone.
      bytesAt(address).fill(0xdd, 0, bytes);
      return 0;
    },
    cuMemcpyHtoDAsync_v2: copy,
    cuMemcpyDtoHAsync_v2: copy,
    cuMemcpyDtoDAsync_v2: copy,
    cuMemsetD8Async: (target, value, bytes) => queued(() => void bytesAt(target).fill(value, 0, bytes)),
    cuMemsetD32Async: () => 0,
    cuPointerGetAttribute(value, attribute, address) {
      const foreign = address % 2 ** 33 === 0;
      if (!foreign && !isIn(allocations, address) && !isIn(host, address)) return 1;
      if (attribute === 2) return put(value, isIn(host, address) ? 1n : 2n);
      return put(value, foreign ? 1n : 0n);
    },
    cuStreamCreate: created,
    cuStreamDestroy_v2: () => 0,
    cuStreamSynchronize: () => 0,
    cuStreamWaitEvent: () => 0,
    cuEventCreate: created,
    cuEventRecord: () => 0,
    cuEventQuery: () => (busy ? 600 : 0),
    cuEventSynchronize: () => 0,
    cuEventElapsedTime: (ms) => put(ms, 1),
    cuEventDestroy_v2: () => 0,
    cuModuleLoadDataEx(module, image) {
      const h = into(module);
      kernelNames.set(h, text(image));
      liveModules.add(h);
      return text(image) === 'broken' ? 200 : 0;
    },
    cuModuleUnload: (module) => (liveModules.delete(module) ? 0 : 1),
    cuModuleGetFunction(fn, _module, name) {
      kernelNames.set(into(fn), text(name));
      return 0;
    },
    cuFuncSetAttribute: () => 0,
    cuFuncGetAttribute: () => 0,
    cuLinkCreate_v2(_count, _options, values, state) {
      logs.log = Number(values[0]);
      into(state);
      return 0;
    },
    cuLinkAddData_v2(_state, _type, data) {
      const said = compiler(text(data));
      if (said === null) return 0;
      bytesAt(logs.log).set(new TextEncoder().encode(said));
      return 218;
    },
    cuLinkComplete(_state, image, bytes) {
      const cubin = new TextEncoder().encode('cubin\0');
      image[0] = BigInt(functions.addressOf(cubin));
      bytes[0] = BigInt(cubin.length);
      return 0;
    },
    cuLinkDestroy: () => 0,
    cuLaunchKernelEx(config, fn, _parameters, extra) {
      const view = new DataView(config.buffer, config.byteOffset);
      const u32 = (at: number): number => view.getUint32(at, true);
      const size = bytesAt(Number(extra[3]));
      launches.push({
        name: kernelNames.get(fn) ?? '?',
        grid: [u32(0), u32(4), u32(8)],
        threads: u32(12),
        sharedBytes: u32(24),
        stream: u32(32) + u32(36) * 2 ** 32,
        argumentBytes: new DataView(size.buffer, size.byteOffset).getUint32(0, true),
      });
      return 0;
    },
    cuTensorMapEncodeTiled: () => 0,
    cuGetErrorName(status, out) {
      const name = new TextEncoder().encode(`CUDA_ERROR_${status}\0${' '.repeat(64)}`);
      out[0] = BigInt(functions.addressOf(name));
      return 0;
    },
    addressOf(view) {
      const known = addresses.get(view.buffer);
      if (known !== undefined) return known + view.byteOffset;
      const address = handle() + 2 ** 20;
      next = address + Math.ceil(view.buffer.byteLength / 4096) * 4096;
      addresses.set(view.buffer, address);
      host.set(address, new Uint8Array(view.buffer));
      return address + view.byteOffset;
    },
    hostView: (address, bytes) => bytesAt(address).subarray(0, bytes),
  };
  const recorded = Object.fromEntries(
    Object.entries(functions).map(([name, fn]) => [
      name,
      (...args: unknown[]) => {
        if (!name.startsWith('cu')) return (fn as (...a: unknown[]) => unknown)(...args);
        calls.push(name);
        const failure = failures.get(name);
        if (failure !== undefined) {
          failures.delete(name);
          return failure;
        }
        return (fn as (...a: unknown[]) => unknown)(...args);
      },
    ]),
  );
  const fake: Fake = {
    ...{ driver: recorded as unknown as Driver, calls, launches, allocations, failures, liveModules, pinned },
    waits: () => waits,
    get busy() {
      return busy;
    },
    set busy(now) {
      busy = now;
      if (!busy) drain();
    },
  };
  return fake;
}
