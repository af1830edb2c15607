/** Compiled kernels: pipelines with explicit layouts, bind groups by name, dispatches into an encoder. */
import { UnsupportedError } from '../../core/errors.ts';
import type { Engine, Operands } from '../../engine/contract.ts';
import type { Buffers } from './buffers.ts';
import type { Faults } from './faults.ts';
import type { Launch, ParamValues } from './kernels/kernel.ts';
import { type GpuTensor, ownTensor } from './tensor.ts';
import { packParams, type Shader } from './wgsl/module.ts';

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

/** Buffers that one encoding borrowed from the pool; give them back once the work has been submitted. */
export type Borrowed = readonly GPUBuffer[];

export interface Recorder {
  readonly device: GPUDevice;
  readonly buffers: Buffers;
  readonly bindingSize: number;
}

/** Uniforms by launch and shader: runs of one problem write the same bytes. */
const uniforms = new WeakMap<ParamValues, Map<Shader, { readonly hasDLse: boolean; readonly bytes: ArrayBuffer }>>();

function packed(shader: Shader, params: ParamValues, hasDLse: boolean): ArrayBuffer {
  const known = uniforms.get(params) ?? new Map();
  uniforms.set(params, known);
  let found = known.get(shader);
  if (found?.hasDLse !== hasDLse) {
    found = { hasDLse, bytes: packParams(shader, { ...params, hasDLse: Number(hasDLse) }) };
    known.set(shader, found);
  }
  return found.bytes;
}

/**
 * Writes a launch into an encoder: uniforms and tables through the queue (before the encoder can be submitted), zeroes,
 * then the dispatches in one pass, which WebGPU runs in order.
 */
export function record(
  { device, buffers, bindingSize }: Recorder,
  encoder: GPUCommandEncoder,
  compiled: readonly Compiled[],
  launch: Launch,
  places: Map<string, Place>,
  timing?: GPUComputePassTimestampWrites,
): Borrowed {
  const borrowed: GPUBuffer[] = [];
  const borrow = (bytes: number, usage: GPUBufferUsageFlags): GPUBuffer => {
    const buffer = buffers.take(bytes, usage);
    borrowed.push(buffer);
    return buffer;
  };
  const scratch = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC;
  try {
    const tables = borrow(launch.tables.byteLength, scratch);
    device.queue.writeBuffer(tables, 0, launch.tables as Int32Array<ArrayBuffer>);
    places.set('tables', { buffer: tables, offset: 0, size: tables.size });
    const hasDLse = places.has('dLse');
    // Something has to be bound where a gradient of lse would be.
    if (!hasDLse && places.has('lse')) places.set('dLse', places.get('lse') as Place);
    for (const [name, bytes] of Object.entries(launch.workspace)) {
      const buffer = borrow(bytes, scratch);
      places.set(name, { buffer, offset: 0, size: buffer.size });
    }
    for (const name of launch.zeroed) {
      const at = places.get(name);
      if (at !== undefined) encoder.clearBuffer(at.buffer, at.offset, at.size);
    }
    const pass = encoder.beginComputePass(timing === undefined ? {} : { timestampWrites: timing });
    for (const { shader: index, grid, params } of launch.dispatches) {
      if (grid.some((n) => n === 0)) continue;
      const { shader, pipeline, layout } = compiled[index];
      const entries: GPUBindGroupEntry[] = shader.bindings.map(({ name }, i) => {
        const at = places.get(name);
        if (at === undefined) throw new Error(`${shader.name}: nothing is bound to ${name}`);
        if (at.size > bindingSize)
          throw new UnsupportedError(`${name} of ${at.size} bytes`, [
            { engine: 'webgpu', reason: `maxStorageBufferBindingSize is ${bindingSize}` },
          ]);
        return { binding: i + 1, resource: at };
      });
      if (shader.params.length > 0) {
        const uniform = borrow(shader.params.length * 4, GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST);
        device.queue.writeBuffer(uniform, 0, packed(shader, params, hasDLse));
        entries.push({ binding: 0, resource: { buffer: uniform } });
      }
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
      pass.dispatchWorkgroups(...grid);
    }
    pass.end();
    return borrowed;
  } catch (error) {
    for (const buffer of borrowed) buffers.give(buffer);
    throw error;
  }
}

/** A program's name: everything shader text depends on. */
export const programKey = (kernel: string, config: unknown, key: string): string =>
  `webgpu:${kernel}:${JSON.stringify(config)}:${key}`;
