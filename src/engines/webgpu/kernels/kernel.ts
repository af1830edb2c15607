/** What a WebGPU kernel is to the runtime: shaders with named bindings, and per run the numbers that go with them. */
import { bytesOf } from '../../../core/tensor.ts';
import type { Caps, Config, Kernel, Listing } from '../../../engine/contract.ts';
import { printExpr } from '../../../mods/print.ts';
import { dropThreshold, keepScale } from '../../../problem/philox.ts';
import type { Problem } from '../../../problem/problem.ts';
import { type BlockRuns, blockRuns } from '../../../problem/ranges.ts';
import type { Shader } from '../wgsl/module.ts';
import { keepLoops } from '../wgsl/text.ts';
import { refuseBuffers } from './gathered.ts';
import { aligned, strideValues } from './rows.ts';
import { FAMILIES, oneHead, slicesOf, WHOLE, type Windows, wholeOf, windowOf } from './slices.ts';

export interface WebGpuCaps extends Caps {
  readonly engine: 'webgpu';
  /** Bytes of workgroup memory and invocations of one workgroup. */
  readonly workgroupMemory: number;
  readonly invocations: number;
  /** Storage buffers of one shader, and bytes of one binding. */
  readonly storageBuffers: number;
  readonly bindingSize: number;
  /** Workgroups along one axis of a dispatch. */
  readonly dispatchSize: number;
  /** Sizes that a subgroup may have; null without the feature or without `subgroup_id`. */
  readonly subgroups: { readonly min: number; readonly max: number } | null;
  readonly f16: boolean;
  /** Square subgroup matrices of f16 with f32 sums, and the lanes of a subgroup; null without them. */
  readonly matrix: { readonly edge: number; readonly lanes: number } | null;
  /** The adapter runs on the host's processor: small tiles compile faster and lose nothing. */
  readonly software: boolean;
}

export type Grid = readonly [x: number, y: number, z: number];

export interface Dispatch {
  readonly shader: number;
  readonly grid: Grid;
  readonly params: ParamValues;
  /** The part of each operand that is bound, when a binding does not hold the whole. */
  readonly windows?: Windows | undefined;
}

/** What one run adds to a kernel's shaders. Storage is bound by name: operands, `tables`, or workspace. */
export interface Launch {
  /** Dispatches in order; `shader` is an index into `shaders`. An empty grid is left out. */
  readonly dispatches: readonly Dispatch[];
  /** The binding `tables`: small integers that shaders look up. */
  readonly tables: Int32Array;
  /** Bytes of each scratch buffer, by binding name. */
  readonly workspace: Readonly<Record<string, number>>;
  /** Bindings that must hold zeros (bytes) before the first dispatch. */
  readonly zeroed: readonly string[];
}

export type ParamValues = Readonly<Record<string, number>>;

export interface WebGpuKernel<C extends Config = Config> extends Kernel<C, WebGpuCaps> {
  /** The shaders of a config. Problems with the same `programKey` get the same text. */
  shaders(problem: Problem, config: C, caps: WebGpuCaps): readonly Shader[];
  launch(problem: Problem, config: C, caps: WebGpuCaps): Launch;
}

/** What kernels leave out of their own definition. */
type Definition<C extends Config> = Omit<WebGpuKernel<C>, 'emit'>;

/** Completes a kernel: the listing is the very text that gets compiled. */
export function defineKernel<C extends Config>(kernel: Definition<C>): WebGpuKernel<C> {
  const shaders: Definition<C>['shaders'] = (problem, config, caps) => {
    const made = kernel.shaders(problem, config, caps);
    return caps.software ? made.map((shader) => ({ ...shader, code: keepLoops(shader.code) })) : made;
  };
  return {
    ...kernel,
    shaders,
    emit: (...args): Listing[] => shaders(...args).map(({ name, code }) => ({ name, text: code })),
  };
}

/** Everything of a problem that shader text depends on. */
export function problemKey(problem: Problem): string {
  const { D, Dv, dtype, kv, mask, mod, sides, sink, dropout, grads, uniform } = problem;
  const vectors = (['q', 'k', 'v', 'out'] as const).map((f) => [8, 4, 1].find((n) => aligned(problem, f, n))).join('');
  return [
    `${dtype} ${D} ${Dv} ${vectors}`,
    kv.kind === 'paged' ? `paged${kv.pageSize}` : '',
    mask === null ? '' : printExpr(mask.expr, sides),
    mod === null ? '' : printExpr(mod.expr, sides),
    uniform ? '' : 'varying',
    sink ? 'sink' : '',
    dropout === null ? '' : 'dropout',
    grads === null ? '' : JSON.stringify(grads),
  ].join('|');
}

/** q, k, v, out, lse, tables and the sink, as forward binds them besides sides. */
export const forwardBuffers = ({ sink }: Problem): number => 6 + (sink ? 1 : 0);

/**
 * Why no kernel of this engine serves the problem, or null. Names the limit and both numbers. `split`: the kernel runs in slices,
 * `gather`: it can have all sides in one buffer.
 */
export function refuseShared(problem: Problem, caps: WebGpuCaps, split = false, gather = false): string | null {
  const { dtype, B, Hq, sides } = problem;
  if (dtype === 'f64') return 'WGSL has no float64';
  if (sides.some((s) => s.dtype === 'f64')) return 'WGSL has no float64, and a side tensor is';
  const unbound = refuseBuffers(problem, forwardBuffers(problem), caps, gather);
  if (unbound !== null) return unbound;
  const slices = slicesOf(problem, caps.bindingSize);
  if (slices === null || (slices.length > 1 && !split)) {
    const largest = Math.max(
      ...FAMILIES.map((f) => windowOf(problem, f, slices === null ? oneHead : wholeOf(problem)).size),
    );
    return `${slices === null ? 'rows of one head spread over' : 'a tensor of'} ${largest} bytes, the device binds ${caps.bindingSize}`;
  }
  const side = sides.findIndex((t) => bytesOf(t) > caps.bindingSize);
  if (side >= 0) return `side ${side} of ${bytesOf(sides[side])} bytes, the device binds ${caps.bindingSize}`;
  if (Math.max(B, Hq) > caps.dispatchSize)
    return `${Math.max(B, Hq)} heads or batches, the device dispatches ${caps.dispatchSize}`;
  return null;
}

/** Parameters every shader may ask for. */
export function sharedValues(problem: Problem): Record<string, number> {
  const { Hq, Hkv, scale, strides, dropout, kv, Sq, Sk, B } = problem;
  return {
    ...strideValues('q', strides.q),
    ...strideValues('k', strides.k),
    ...strideValues('v', strides.v),
    ...strideValues('out', strides.out),
    ...strideValues('lse', strides.lse),
    B,
    Hq,
    Hkv,
    Sq,
    Sk,
    group: Hkv === 0 ? 1 : Hq / Hkv,
    scale,
    scaleLog2: scale * Math.LOG2E,
    negInf: Number.NEGATIVE_INFINITY,
    seedLo: dropout?.seed[0] ?? 0,
    seedHi: dropout?.seed[1] ?? 0,
    dropOffset: dropout?.offset ?? 0,
    dropThreshold: dropout === null ? 0 : dropThreshold(dropout.p),
    dropKeep: dropout === null ? 1 : keepScale(dropout.p),
    maxPages: kv.kind === 'paged' ? kv.maxPages : 0,
    ...WHOLE,
  };
}

/** Several integer arrays one after the other, with where each begins. */
export class Tables {
  readonly #parts: Int32Array[] = [];
  #length = 0;

  add(part: Int32Array): number {
    const at = this.#length;
    this.#parts.push(part);
    this.#length += part.length;
    return at;
  }

  pack(): Int32Array {
    const all = new Int32Array(Math.max(4, this.#length));
    let at = 0;
    for (const part of this.#parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }
}

/** Sequences and, when paged, the page table: the start of every kernel's tables, with their parameters. */
export function problemTables(problem: Problem): { tables: Tables; values: Record<string, number> } {
  const tables = new Tables();
  tables.add(problem.sequences);
  const values = sharedValues(problem);
  if (problem.kv.kind === 'paged') values.pagesAt = tables.add(problem.kv.table);
  return { tables, values };
}

/** Adds the block runs a shader loops over, as parameters `<by>RowsAt`, `<by>RunsAt`, `<by>RunsB`, `<by>RunsH`. */
export function addRuns(
  tables: Tables,
  values: Record<string, number>,
  problem: Problem,
  by: 'q' | 'kv',
  blockQ: number,
  blockK: number,
): BlockRuns {
  const runs = blockRuns(problem, by, blockQ, blockK);
  values[`${by}RowsAt`] = tables.add(runs.rowStart);
  values[`${by}RunsAt`] = tables.add(runs.runs);
  values[`${by}RunsB`] = runs.strideB;
  values[`${by}RunsH`] = runs.strideH;
  return runs;
}
