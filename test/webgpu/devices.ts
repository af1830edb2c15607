/** Devices as plain data, to look at plans and code without having them. */
import type { WebGpuCaps } from '../../src/engines/webgpu/index.ts';

const device = (over: Partial<WebGpuCaps>): WebGpuCaps => ({
  engine: 'webgpu',
  device: 'test',
  features: {},
  memory: 2 ** 34,
  flops: 2e13,
  bandwidth: 5e11,
  workgroupMemory: 16384,
  invocations: 256,
  storageBuffers: 8,
  bindingSize: 2 ** 27,
  dispatchSize: 65535,
  subgroups: null,
  f16: false,
  matrix: null,
  software: false,
  ...over,
});

/** The least that WebGPU promises. */
export const FLOOR = device({});
/** An NVIDIA H200 through Dawn. */
export const H200 = device({
  workgroupMemory: 49152,
  invocations: 1024,
  storageBuffers: 16,
  bindingSize: 2 ** 31 - 4,
  subgroups: { min: 32, max: 32 },
  f16: true,
  matrix: { edge: 16, lanes: 32 },
});
export const SOFTWARE = device({ workgroupMemory: 32768, storageBuffers: 12, software: true });
