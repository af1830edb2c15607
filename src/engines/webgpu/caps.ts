/** A device's features and limits as plain data. */
import type { Found, WebGpuOptions } from './device.ts';
import type { WebGpuCaps } from './kernels/kernel.ts';

/** Fields of GPUAdapterInfo that the type package does not all know. */
interface Info {
  readonly vendor?: string;
  readonly architecture?: string;
  readonly device?: string;
  readonly description?: string;
  readonly isFallbackAdapter?: boolean;
  readonly subgroupMinSize?: number;
  readonly subgroupMaxSize?: number;
  readonly subgroupMatrixConfigs?: Iterable<MatrixShape>;
}

interface MatrixShape {
  readonly componentType: string;
  readonly resultComponentType: string;
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

const MATRICES = 'chromium-experimental-subgroup-matrix';
const SOFTWARE = /swiftshader|llvmpipe|lavapipe|software|basic render/i;

/** Rates only rank candidates; a processor pretending to be a GPU is some 200 times slower. */
const RATES = {
  hardware: { flops: 2e13, bandwidth: 5e11 },
  software: { flops: 1e10, bandwidth: 1e10 },
} as const;

export function capsOf({ device, info, language }: Found, options: WebGpuOptions): WebGpuCaps {
  const { limits } = device;
  const known: Info = info ?? {};
  const name = [known.description || known.device, known.vendor, known.architecture].filter((s) => s).join(', ');
  const software = known.isFallbackAdapter === true || SOFTWARE.test(name);
  const has = (feature: string): boolean =>
    device.features.has(feature as GPUFeatureName) && !options.without?.includes(feature);
  const limited = (limit: string, value: number): number => Math.min(value, options.limits?.[limit] ?? value);
  const min = known.subgroupMinSize ?? 0;
  const subgroups =
    has('subgroups') && min > 0 && language.has('subgroup_id') ? { min, max: known.subgroupMaxSize ?? min } : null;
  const edges = [...(has(MATRICES) ? (known.subgroupMatrixConfigs ?? []) : [])].flatMap((c) =>
    c.componentType === 'f16' && c.resultComponentType === 'f32' && c.M === c.N && c.N === c.K ? [c.M] : [],
  );
  // Lanes own rows of a tile, so their number has to be known.
  const fixed = subgroups !== null && subgroups.min === subgroups.max && has('shader-f16');
  const matrix = fixed && edges.length > 0 ? { edge: Math.max(...edges), lanes: subgroups.min } : null;
  const caps = {
    workgroupMemory: limited('maxComputeWorkgroupStorageSize', limits.maxComputeWorkgroupStorageSize),
    invocations: limited('maxComputeInvocationsPerWorkgroup', limits.maxComputeInvocationsPerWorkgroup),
    storageBuffers: limited('maxStorageBuffersPerShaderStage', limits.maxStorageBuffersPerShaderStage),
    bindingSize: limited('maxStorageBufferBindingSize', limits.maxStorageBufferBindingSize),
    dispatchSize: limits.maxComputeWorkgroupsPerDimension,
  };
  return {
    engine: 'webgpu',
    device: name || 'WebGPU device',
    features: {
      'shader-f16': has('shader-f16'),
      subgroups: subgroups === null ? 'no' : subgroups.min === subgroups.max ? min : `${min} to ${subgroups.max}`,
      'subgroup matrices': matrix === null ? 'no' : `${matrix.edge} x ${matrix.edge} f16`,
      'timestamp-query': has('timestamp-query'),
      ...caps,
    },
    memory: options.memory ?? 4 * limits.maxBufferSize,
    ...(software ? RATES.software : RATES.hardware),
    ...caps,
    subgroups,
    f16: has('shader-f16'),
    matrix,
    software,
  };
}
