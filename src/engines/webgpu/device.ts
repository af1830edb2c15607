/** Finds a GPUDevice: the caller's own, the browser's, or Dawn's in Node through the optional peer `webgpu`. */
import { DeviceError } from '../../core/errors.ts';
import { optionalPackage } from '../../core/optional.ts';

export interface WebGpuOptions {
  /** The caller's device, with whatever features and limits it has. The engine never destroys it. */
  readonly device?: GPUDevice | undefined;
  /** Part of the adapter's name, for Dawn in Node ('llvmpipe', 'SwiftShader', 'NVIDIA'), or an adapter of the caller's. */
  readonly adapter?: string | GPUAdapter | undefined;
  /** Options of Dawn's `create` in Node, such as 'enable-dawn-features=allow_unsafe_apis'. Ignored in browsers. */
  readonly dawnFlags?: readonly string[] | undefined;
  /** Most bytes of live tensors and workspace. Default four times the largest buffer. */
  readonly memory?: number | undefined;
  /** Features to do without although the device has them, to run the tiers below: 'subgroups', 'shader-f16', ... */
  readonly without?: readonly string[] | undefined;
  /** Limits to stay under although the device allows more, by their WebGPU names. */
  readonly limits?: Readonly<Record<string, number>> | undefined;
}

/** A device with what is known of it. */
export interface Found {
  readonly device: GPUDevice;
  readonly info: GPUAdapterInfo | null;
  /** WGSL language features of the implementation. */
  readonly language: ReadonlySet<string>;
  /** Destroyed by the engine when it closes. */
  readonly owned: boolean;
}

/** Features that kernels or timing use, asked for where the adapter has them. */
const WANTED = ['shader-f16', 'subgroups', 'timestamp-query', 'chromium-experimental-subgroup-matrix'] as const;
const LIMITS = [
  'maxBufferSize',
  'maxStorageBufferBindingSize',
  'maxStorageBuffersPerShaderStage',
  'maxComputeWorkgroupStorageSize',
  'maxComputeInvocationsPerWorkgroup',
  'maxComputeWorkgroupSizeX',
] as const;

/**
 * Dawn objects by their options. They must outlive every device, or the process crashes when one is collected: hence a
 * property of the global object, as other copies of this library may share it.
 */
const KEPT = Symbol.for('tilewise.dawn');
type Kept = Map<string, GPU>;

async function dawn(flags: readonly string[]): Promise<GPU> {
  const store = globalThis as { [KEPT]?: Kept };
  store[KEPT] ??= new Map();
  const key = flags.join(' ');
  const found = store[KEPT].get(key);
  if (found !== undefined) return found;
  const { create, globals } = (await optionalPackage('webgpu')) as {
    create: (options: string[]) => GPU;
    globals: Record<string, unknown>;
  };
  for (const [name, value] of Object.entries(globals))
    if (!(name in globalThis)) Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  const gpu = create([...flags]);
  store[KEPT].set(key, gpu);
  return gpu;
}

/**
 * Experimental features may be used where they exist; and workgroup memory is zeroed by a loop in the shader instead of by the
 * driver, which unrolls it on SwiftShader and takes ten times as long to compile.
 */
const DAWN_FLAGS = [
  'enable-dawn-features=allow_unsafe_apis',
  'disable-dawn-features=use_vulkan_zero_initialize_workgroup_memory_extension',
];

/** The implementation to ask for adapters. @throws DeviceError saying what is missing. */
async function implementation(options: WebGpuOptions): Promise<GPU> {
  const native = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
  if (native !== undefined) return native;
  const flags = [...(options.dawnFlags ?? DAWN_FLAGS)];
  if (typeof options.adapter === 'string') flags.push(`adapter=${options.adapter}`);
  try {
    return await dawn(flags);
  } catch (cause) {
    // Browsers know no packages: their failure has no code.
    const { code } = cause as { code?: string };
    const missing = code === 'ERR_MODULE_NOT_FOUND' || (code === undefined && cause instanceof TypeError);
    throw new DeviceError(
      'webgpu',
      missing
        ? 'no navigator.gpu here, and the package `webgpu` is not installed'
        : `Dawn did not start: ${String(cause)}`,
      { cause },
    );
  }
}

/** @throws DeviceError when there is no WebGPU, no adapter or no device. */
export async function findAdapter(options: WebGpuOptions): Promise<{ gpu: GPU | null; adapter: GPUAdapter }> {
  if (options.adapter !== undefined && typeof options.adapter !== 'string')
    return { gpu: null, adapter: options.adapter };
  const gpu = await implementation(options);
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' }).catch((cause: Error) => {
    throw new DeviceError('webgpu', cause.message, { cause });
  });
  if (adapter === null) throw new DeviceError('webgpu', 'requestAdapter() found no adapter');
  return { gpu, adapter };
}

export async function findDevice(options: WebGpuOptions): Promise<Found> {
  const languageOf = (gpu: GPU | null): ReadonlySet<string> =>
    (gpu?.wgslLanguageFeatures as unknown as ReadonlySet<string> | undefined) ?? new Set<string>();
  if (options.device !== undefined) {
    const native = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu ?? null;
    const kept = [...((globalThis as { [KEPT]?: Kept })[KEPT]?.values() ?? [])][0] ?? null;
    const info = (options.device as { adapterInfo?: GPUAdapterInfo }).adapterInfo ?? null;
    return { device: options.device, info, language: languageOf(native ?? kept), owned: false };
  }
  const { gpu, adapter } = await findAdapter(options);
  const requiredFeatures = WANTED.filter((f) => adapter.features.has(f) && !options.without?.includes(f));
  const requiredLimits: Record<string, number> = {};
  for (const name of LIMITS) {
    const offered = adapter.limits[name] as number | undefined;
    if (offered !== undefined) requiredLimits[name] = Math.min(offered, options.limits?.[name] ?? offered);
  }
  try {
    const device = await adapter.requestDevice({
      requiredFeatures: requiredFeatures as unknown as GPUFeatureName[],
      requiredLimits,
    });
    return { device, info: adapter.info, language: languageOf(gpu), owned: true };
  } catch (cause) {
    throw new DeviceError('webgpu', `requestDevice() failed: ${(cause as Error).message}`, { cause });
  }
}
