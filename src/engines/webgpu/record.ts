/** Writes launches into command encoders: bindings by name, dispatches in order. */
import { UnsupportedError } from '../../core/errors.ts';
import type { Buffers } from './buffers.ts';
import type { Launch } from './kernels/kernel.ts';
import type { Family } from './kernels/rows.ts';
import type { Compiled, Place } from './programs.ts';
import { packParams } from './wgsl/module.ts';

/** Operands that may be bound in part. */
const FAMILY: Readonly<Record<string, Family>> = {
  q: 'q',
  dq: 'q',
  k: 'k',
  dk: 'k',
  v: 'v',
  dv: 'v',
  out: 'out',
  dOut: 'out',
};

export interface Recorder {
  readonly device: GPUDevice;
  readonly buffers: Buffers;
  readonly bindingSize: number;
}

/** Buffers that one encoding borrowed from the pool; give them back once the work has been submitted. */
export type Borrowed = readonly GPUBuffer[];

/** What a launch binds besides operands and scratch: a table, and a uniform for each dispatch that has parameters. */
interface Constants {
  readonly tables: GPUBuffer;
  readonly uniforms: readonly (GPUBuffer | null)[];
}

type Take = (bytes: number, usage: GPUBufferUsageFlags) => GPUBuffer;

// Not constants: in Node the globals come with the first device.
const scratch = (): number => GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC;
const uniformOnly = (): number => GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;

function writeConstants(
  { queue }: GPUDevice,
  take: Take,
  compiled: readonly Compiled[],
  launch: Launch,
  hasDLse: boolean,
): Constants {
  const tables = take(launch.tables.byteLength, scratch());
  queue.writeBuffer(tables, 0, launch.tables as Int32Array<ArrayBuffer>);
  const uniforms = launch.dispatches.map(({ shader: index, params }) => {
    const { shader } = compiled[index];
    if (shader.params.length === 0) return null;
    const uniform = take(shader.params.length * 4, uniformOnly());
    queue.writeBuffer(uniform, 0, packParams(shader, { ...params, hasDLse: Number(hasDLse) }));
    return uniform;
  });
  return { tables, uniforms };
}

/** Bind groups of the last run, valid for as long as every name stands for the same place. */
interface Bound {
  readonly places: ReadonlyMap<string, Place>;
  readonly groups: readonly GPUBindGroup[];
}

/**
 * What stays on the device between runs of one launch whose numbers never change: its constants, and the bind groups of the
 * operands it last ran on. Making them anew is most of what a call costs the host.
 */
export class Resident {
  readonly #kept: GPUBuffer[] = [];
  readonly #constants = new Map<boolean, Constants>();
  #bound: Bound | null = null;

  constants(recorder: Recorder, compiled: readonly Compiled[], launch: Launch, hasDLse: boolean): Constants {
    let found = this.#constants.get(hasDLse);
    if (found === undefined) {
      const keep: Take = (bytes, usage) => {
        const buffer = recorder.buffers.keep(bytes, usage);
        this.#kept.push(buffer);
        return buffer;
      };
      found = writeConstants(recorder.device, keep, compiled, launch, hasDLse);
      this.#constants.set(hasDLse, found);
    }
    return found;
  }

  groups(places: ReadonlyMap<string, Place>): readonly GPUBindGroup[] | null {
    if (this.#bound === null || this.#bound.places.size !== places.size) return null;
    for (const [name, { buffer, offset, size }] of this.#bound.places) {
      const at = places.get(name);
      if (at === undefined || at.buffer !== buffer || at.offset !== offset || at.size !== size) return null;
    }
    return this.#bound.groups;
  }

  bind(places: ReadonlyMap<string, Place>, groups: readonly GPUBindGroup[]): void {
    this.#bound = { places, groups };
  }

  /** Gives the buffers back. Nothing that has not been submitted may still use them. */
  release(buffers: Buffers): void {
    for (const buffer of this.#kept) buffers.release(buffer);
    this.#kept.length = 0;
    this.#constants.clear();
    this.#bound = null;
  }
}

/**
 * Writes a launch into an encoder: uniforms and tables through the queue (before the encoder can be submitted), zeroes,
 * then the dispatches in one pass, which WebGPU runs in order. `places` gains what the launch itself binds.
 */
export function record(
  recorder: Recorder,
  encoder: GPUCommandEncoder,
  compiled: readonly Compiled[],
  launch: Launch,
  places: Map<string, Place>,
  options: {
    readonly resident?: Resident | undefined;
    readonly timestamps?: GPUComputePassTimestampWrites | undefined;
  } = {},
): Borrowed {
  const { device, buffers } = recorder;
  const { resident, timestamps } = options;
  const borrowed: GPUBuffer[] = [];
  const borrow: Take = (bytes, usage) => {
    const buffer = buffers.take(bytes, usage);
    borrowed.push(buffer);
    return buffer;
  };
  try {
    const hasDLse = places.has('dLse');
    // Something has to be bound where a gradient of lse would be.
    if (!hasDLse && places.has('lse')) places.set('dLse', places.get('lse') as Place);
    for (const [name, bytes] of Object.entries(launch.workspace)) {
      const buffer = borrow(bytes, scratch());
      places.set(name, { buffer, offset: 0, size: buffer.size });
    }
    const constants =
      resident?.constants(recorder, compiled, launch, hasDLse) ??
      writeConstants(device, borrow, compiled, launch, hasDLse);
    places.set('tables', { buffer: constants.tables, offset: 0, size: constants.tables.size });
    let groups = resident?.groups(places) ?? null;
    if (groups === null) {
      groups = bindGroups(recorder, compiled, launch, places, constants);
      resident?.bind(places, groups);
    }
    for (const name of launch.zeroed) {
      const at = places.get(name);
      if (at !== undefined) encoder.clearBuffer(at.buffer, at.offset, at.size);
    }
    const pass = encoder.beginComputePass(timestamps === undefined ? undefined : { timestampWrites: timestamps });
    launch.dispatches.forEach(({ shader, grid }, i) => {
      if (grid.some((n) => n === 0)) return;
      pass.setPipeline(compiled[shader].pipeline);
      pass.setBindGroup(0, (groups as readonly GPUBindGroup[])[i]);
      pass.dispatchWorkgroups(...grid);
    });
    pass.end();
    return borrowed;
  } catch (error) {
    for (const buffer of borrowed) buffers.give(buffer);
    throw error;
  }
}

/** One bind group a dispatch. */
function bindGroups(
  { device, bindingSize }: Recorder,
  compiled: readonly Compiled[],
  launch: Launch,
  places: ReadonlyMap<string, Place>,
  constants: Constants,
): GPUBindGroup[] {
  return launch.dispatches.map(({ shader: index, windows }, i) => {
    const { shader, layout } = compiled[index];
    const entries: GPUBindGroupEntry[] = shader.bindings.map(({ name }, k) => {
      const whole = places.get(name);
      if (whole === undefined) throw new Error(`${shader.name}: nothing is bound to ${name}`);
      const window = Object.hasOwn(FAMILY, name) ? windows?.[FAMILY[name]] : undefined;
      const at = window === undefined ? whole : { ...whole, offset: whole.offset + window.offset, size: window.size };
      if (at.size > bindingSize)
        throw new UnsupportedError(`${name} of ${at.size} bytes`, [
          { engine: 'webgpu', reason: `maxStorageBufferBindingSize is ${bindingSize}` },
        ]);
      return { binding: k + 1, resource: at };
    });
    const uniform = constants.uniforms[i];
    if (uniform !== null) entries.push({ binding: 0, resource: { buffer: uniform } });
    return device.createBindGroup({ layout, entries });
  });
}
