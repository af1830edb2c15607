import { runSoftware } from './software.ts';

/** The least that WebGPU promises: no subgroups, and the limits every device has. */
const FLOOR = {
  without: ['subgroups', 'shader-f16', 'timestamp-query'],
  limits: {
    maxComputeWorkgroupStorageSize: 16384,
    maxComputeInvocationsPerWorkgroup: 256,
    maxStorageBuffersPerShaderStage: 8,
    maxStorageBufferBindingSize: 2 ** 27,
  },
};

await runSoftware({ driver: 'SwiftShader', lanes: 4, every: 4, configurations: 24 });
await runSoftware({ driver: 'SwiftShader', lanes: 0, every: 16, open: FLOOR, variant: 'the floor' });
