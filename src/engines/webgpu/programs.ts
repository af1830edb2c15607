/** Compiled kernels: pipelines with explicit layouts, and operands by binding name. */
import type { Engine, Operands } from '../../engine/contract.ts';
import type { Faults } from './faults.ts';
import { type GpuTensor, ownTensor } from './tensor.ts';
import type { Shader } from './wgsl/module.ts';

export interface Compiled {
  readonly shader: Shader;
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

/** Compiles a shader. @throws DeviceError with the compiler's words. */
export async function compile(device: GPUDevice, faults: Faults, shader: Shader): Promise<Compiled> {
  try {
    const layout = device.createBindGroupLayout({
      label: shader.name,
      entries: [
        ...(shader.params.length === 0
          ? []
          : [{ binding: 0, visibility: GPUShaderStage.COMPUTE, buffer: { type: 'uniform' as const } }]),
        ...shader.bindings.map(({ access }, i) => ({
          binding: i + 1,
          visibility: GPUShaderStage.COMPUTE,
          buffer: { type: access === 'read' ? ('read-only-storage' as const) : ('storage' as const) },
        })),
      ],
    });
    const pipeline = await device.createComputePipelineAsync({
      label: shader.name,
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module: device.createShaderModule({ label: shader.name, code: shader.code }), entryPoint: 'main' },
    });
    return { shader, pipeline, layout };
  } catch (cause) {
    throw faults.error(`compiling ${shader.name}`, cause);
  }
}

/** Part of a buffer that a name stands for. */
export interface Place {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly size: number;
}

const place = (t: GpuTensor): Place => ({
  buffer: t.buffer,
  offset: t.offset,
  size: Math.min(Math.max(16, Math.ceil(t.bytes / 4) * 4), t.buffer.size - t.offset),
});

/** Operands by binding name. */
export function placesOfOperands(engine: Engine, operands: Operands): Map<string, Place> {
  const places = new Map<string, Place>();
  const put = (name: string, t: Operands['sink'] | undefined): void => {
    if (t) places.set(name, place(ownTensor(engine, t, name)));
  };
  for (const name of ['q', 'k', 'v', 'out', 'lse', 'sink', 'dOut', 'dLse', 'dq', 'dk', 'dv', 'dSink'] as const)
    put(name, operands[name]);
  operands.sides.forEach((t, i) => {
    put(`side${i}`, t);
  });
  operands.dSides?.forEach((t, i) => {
    put(`dSide${i}`, t);
  });
  return places;
}

/** A program's name: everything shader text depends on. */
export const programKey = (kernel: string, config: unknown, key: string): string =>
  `webgpu:${kernel}:${JSON.stringify(config)}:${key}`;
