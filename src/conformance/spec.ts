/** A conformance case in few words, and its problem and data in full. */
import { buildExpressions } from '../api/expressions.ts';
import { type DType, type FloatDType, fromFloat64, isFloat } from '../core/dtype.ts';
import { type HostTensor, isHost, sizeOf, tensor } from '../core/tensor.ts';
import { type Mask, type Mod, nodesOf } from '../mods/expr.ts';
import {
  createProblem,
  type Dropout,
  denseSequences,
  type KvStorage,
  type Layout,
  type Problem,
  type Strides,
  stridesOf,
} from '../problem/problem.ts';
import { keyRows, queryRows, sequencesOf } from '../problem/rows.ts';
import { type Random, random, seedOf } from './random.ts';

/** What masks and modifiers of a case may be made from. */
export interface Sizes {
  readonly B: number;
  readonly Hq: number;
  readonly Hkv: number;
  readonly Sq: number;
  readonly Sk: number;
}

export interface Spec {
  readonly dtype?: FloatDType;
  readonly B?: number;
  readonly Hq?: number;
  readonly Hkv?: number;
  readonly Sq?: number;
  readonly Sk?: number;
  readonly D?: number;
  readonly Dv?: number;
  readonly layout?: Layout;
  readonly scale?: number;
  /** (lenQ, lenK) by sequence; B, Sq and Sk follow. Packed one after the other, or (`dense`, `paged`) one a batch row. */
  readonly lengths?: readonly (readonly [lenQ: number, lenK: number])[];
  readonly storage?: 'packed' | 'dense' | 'paged';
  readonly pageSize?: number;
  /** Guard columns after each row of q, k, v, out and their gradients: NaN where read, a sentinel where written. */
  readonly guard?: number;
  readonly mask?: (sizes: Sizes, random: Random) => Mask;
  readonly mod?: (sizes: Sizes, random: Random) => Mod;
  readonly sink?: boolean;
  readonly dropout?: Dropout;
  readonly dLse?: boolean;
  /** Multiplies q: 1 gives scores of about 1. */
  readonly gain?: number;
  /** K/V rows that hold NaN; the mask must hide them from every query, or `nanResults` say that some results are NaN. */
  readonly nanRow?: (b: number, kv: number, sizes: Sizes) => boolean;
  readonly nanResults?: boolean;
  /** Forward only. */
  readonly noGrads?: boolean;
  /** Gradients asked for; all by default. */
  readonly wanted?: readonly ('q' | 'k' | 'v' | 'sides')[];
}

/** The inputs of a run by operand name; null where the case has none. */
export interface Inputs {
  readonly q: HostTensor;
  readonly k: HostTensor;
  readonly v: HostTensor;
  readonly sides: readonly HostTensor[];
  readonly sink: HostTensor | null;
  readonly dOut: HostTensor | null;
  readonly dLse: HostTensor | null;
}

export interface Output {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** 1 where a result comes, 0 in guards and in rows of no sequence, which an engine may leave alone or set to 0 (-inf for lse). */
  readonly covered: Uint8Array;
}

export interface Instance {
  readonly problem: Problem;
  readonly inputs: Inputs;
}

interface Resolved extends Sizes {
  readonly dtype: FloatDType;
  readonly D: number;
  readonly Dv: number;
  readonly layout: Layout;
  readonly lengths: readonly (readonly [number, number])[] | null;
  readonly storage: 'packed' | 'dense' | 'paged';
  readonly pageSize: number;
  readonly guard: number;
}

function resolve(spec: Spec): Resolved {
  const lengths = spec.lengths ?? null;
  const Hq = spec.Hq ?? 2;
  const Sq = lengths ? Math.max(...lengths.map(([q]) => q)) : (spec.Sq ?? 64);
  const D = spec.D ?? 32;
  return {
    dtype: spec.dtype ?? 'f32',
    B: lengths?.length ?? spec.B ?? 1,
    Hq,
    Hkv: spec.Hkv ?? Hq,
    Sq,
    Sk: lengths ? Math.max(...lengths.map(([, k]) => k)) : (spec.Sk ?? Sq),
    D,
    Dv: spec.Dv ?? D,
    layout: spec.layout ?? 'bhnd',
    lengths,
    storage: spec.storage ?? (lengths ? 'packed' : 'dense'),
    pageSize: spec.pageSize ?? 16,
    guard: spec.guard ?? 0,
  };
}

/** `f32:b2.hq4.hkv2.sq65.sk97.d40`, as in a problem's id. */
export function sizesName(spec: Spec): string {
  const { dtype, B, Hq, Hkv, Sq, Sk, D, Dv } = resolve(spec);
  return `${dtype}:b${B}.hq${Hq}.hkv${Hkv}.sq${Sq}.sk${Sk}.d${D}${Dv === D ? '' : `.dv${Dv}`}`;
}

/** Builds the problem and its data. `name` seeds the numbers. */
export function instantiate(name: string, spec: Spec): Instance {
  const r = resolve(spec);
  const rng = random(seedOf(name));
  const { mask, mod, sides } = buildExpressions(optional({ mask: spec.mask?.(r, rng), mod: spec.mod?.(r, rng) }), r);
  const read = mod === null ? [] : nodesOf(mod.expr).flatMap((e) => (e.kind === 'load' ? [e.tensor] : []));
  const wants = (what: 'q' | 'k' | 'v' | 'sides'): boolean => spec.wanted?.includes(what) ?? true;
  const problem = createProblem({
    B: r.B,
    Hq: r.Hq,
    Hkv: r.Hkv,
    Sq: r.Sq,
    Sk: r.Sk,
    D: r.D,
    Dv: r.Dv,
    dtype: r.dtype,
    scale: spec.scale ?? 1 / Math.sqrt(r.D),
    strides: stridesFor(r),
    sequences: sequencesFor(r),
    uniform: r.lengths === null,
    kv: kvFor(r, rng),
    mask,
    mod,
    sides,
    sink: spec.sink ?? false,
    dropout: spec.dropout ?? null,
    grads: spec.noGrads
      ? null
      : {
          q: wants('q'),
          k: wants('k'),
          v: wants('v'),
          sides: sides.map((side) => wants('sides') && isFloat(side.dtype) && read.includes(side)),
          sink: spec.sink ?? false,
        },
  });
  return { problem, inputs: inputsFor(problem, spec, r, rng) };
}

const optional = <T extends object>(options: { [K in keyof T]: T[K] | undefined }): T =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T;

const total = (r: Resolved, axis: 0 | 1): number => (r.lengths ?? []).reduce((n, pair) => n + pair[axis], 0);

/** Rows along the sequence axis of q-like and k-like tensors. Packed tensors end in one row of no sequence. */
const queryAxis = (r: Resolved): number => (r.storage === 'packed' ? total(r, 0) + 1 : r.Sq);
const keyAxis = (r: Resolved): number =>
  r.storage === 'packed' ? total(r, 1) + 1 : r.storage === 'paged' ? r.pageSize : r.Sk;

function stridesFor(r: Resolved): Problem['strides'] {
  const packed = (s: Strides): Strides => (r.storage === 'packed' ? { ...s, b: 0 } : s);
  const of = (H: number, S: number, width: number): Strides => packed(stridesOf(r.layout, H, S, width + r.guard));
  return {
    q: of(r.Hq, queryAxis(r), r.D),
    k: of(r.Hkv, keyAxis(r), r.D),
    v: of(r.Hkv, keyAxis(r), r.Dv),
    out: of(r.Hq, queryAxis(r), r.Dv),
    lse: packed(stridesOf('bhnd', r.Hq, queryAxis(r), 1)),
  };
}

function sequencesFor(r: Resolved): Int32Array {
  if (r.lengths === null) return denseSequences(r.B, r.Sq, r.Sk);
  let qStart = 0;
  let kStart = 0;
  const rows: number[] = [];
  for (const [lenQ, lenK] of r.lengths) {
    rows.push(qStart, lenQ, kStart, lenK);
    if (r.storage === 'packed') {
      qStart += lenQ;
      kStart += lenK;
    }
  }
  return Int32Array.from(rows);
}

/** Pages in a shuffled order, with one page that nobody uses. */
function kvFor(r: Resolved, rng: Random): KvStorage {
  if (r.storage !== 'paged') return { kind: 'strided' };
  const maxPages = Math.ceil(r.Sk / r.pageSize);
  const table = Int32Array.from({ length: r.B * maxPages }, (_, i) => i + 1);
  for (let i = table.length - 1; i > 0; i--) {
    const j = rng.below(i + 1);
    [table[i], table[j]] = [table[j], table[i]];
  }
  return { kind: 'paged', pageSize: r.pageSize, maxPages, table };
}

/** Tensor shapes of the operands, guard columns included. */
function shapesOf(problem: Problem, spec: Spec): Record<'q' | 'k' | 'v' | 'out' | 'lse', readonly number[]> {
  const r = resolve(spec);
  const batch = r.storage === 'packed' ? 1 : r.B;
  const pages = problem.kv.kind === 'paged' ? problem.B * problem.kv.maxPages + 1 : batch;
  const of = (B: number, H: number, S: number, width: number): readonly number[] =>
    r.layout === 'bhnd' ? [B, H, S, width + r.guard] : [B, S, H, width + r.guard];
  const lse = [r.Hq, queryAxis(r)];
  return {
    q: of(batch, r.Hq, queryAxis(r), r.D),
    k: of(pages, r.Hkv, keyAxis(r), r.D),
    v: of(pages, r.Hkv, keyAxis(r), r.Dv),
    out: of(batch, r.Hq, queryAxis(r), r.Dv),
    lse: r.storage === 'packed' ? lse : [r.B, ...lse],
  };
}

/** Calls `visit` with the address of each row of a q-like or k-like tensor and where the row is. */
export function eachRow(
  problem: Problem,
  kind: 'query' | 'key',
  strides: Strides,
  visit: (a: number, b: number, i: number) => void,
) {
  for (const at of sequencesOf(problem))
    for (let h = 0; h < (kind === 'query' ? problem.Hq : problem.Hkv); h++) {
      const row = kind === 'query' ? queryRows(at, strides, h) : keyRows(problem, at, strides, h);
      for (let i = 0; i < (kind === 'query' ? at.lenQ : at.lenK); i++) visit(row(i), at.b, i);
    }
}

function inputsFor(problem: Problem, spec: Spec, r: Resolved, rng: Random): Inputs {
  const shapes = shapesOf(problem, spec);
  const statistics: DType = r.dtype === 'f64' ? 'f64' : 'f32';
  const make = (name: 'q' | 'k' | 'v' | 'out' | 'lse', dtype: DType, width: number, gain: number): HostTensor => {
    // Everything that no row of a sequence covers is NaN: reading it must not show.
    const values = new Float64Array(sizeOf(shapes[name])).fill(Number.NaN);
    const kind = name === 'k' || name === 'v' ? 'key' : 'query';
    eachRow(problem, kind, problem.strides[name], (a, b, i) => {
      const hidden = kind === 'key' && (spec.nanRow?.(b, i, r) ?? false);
      for (let d = 0; d < width; d++) values[a + d] = hidden ? Number.NaN : rng.normal() * gain;
    });
    return tensor(fromFloat64(dtype as FloatDType, values), shapes[name], dtype);
  };
  const q = make('q', r.dtype, r.D, spec.gain ?? 1);
  const k = make('k', r.dtype, r.D, 1);
  const v = make('v', r.dtype, r.Dv, 1);
  const sink = spec.sink ? Float64Array.from({ length: r.Hq }, () => rng.normal()) : null;
  return {
    q,
    k,
    v,
    sides: problem.sides.filter(isHost),
    sink: sink && tensor(fromFloat64(statistics as FloatDType, sink), [r.Hq], statistics),
    dOut: problem.grads && make('out', r.dtype, r.Dv, 1),
    dLse: problem.grads && spec.dLse ? make('lse', statistics, 1, 1) : null,
  };
}

/** Every output of a pass by name. */
export function outputsOf(
  problem: Problem,
  spec: Spec,
): { forward: Map<string, Output>; backward: Map<string, Output> } {
  const shapes = shapesOf(problem, spec);
  const statistics: DType = problem.dtype === 'f64' ? 'f64' : 'f32';
  const rows = (name: 'q' | 'k' | 'v' | 'out' | 'lse', width: number, dtype: DType): Output => {
    const covered = new Uint8Array(sizeOf(shapes[name]));
    eachRow(problem, name === 'k' || name === 'v' ? 'key' : 'query', problem.strides[name], (a) => {
      covered.fill(1, a, a + width);
    });
    return { dtype, shape: shapes[name], covered };
  };
  const whole = (shape: readonly number[]): Output => ({
    dtype: statistics,
    shape,
    covered: new Uint8Array(sizeOf(shape)).fill(1),
  });
  const forward = new Map([
    ['out', rows('out', problem.Dv, problem.dtype)],
    ['lse', rows('lse', 1, statistics)],
  ]);
  const backward = new Map<string, Output>();
  const { grads } = problem;
  if (grads?.q) backward.set('dq', rows('q', problem.D, problem.dtype));
  if (grads?.k) backward.set('dk', rows('k', problem.D, problem.dtype));
  if (grads?.v) backward.set('dv', rows('v', problem.Dv, problem.dtype));
  grads?.sides.forEach((wanted, i) => {
    if (wanted) backward.set(`dSide${i}`, whole(problem.sides[i].shape));
  });
  if (grads?.sink) backward.set('dSink', whole([problem.Hq]));
  return { forward, backward };
}
