/** From tensors and options to a Problem: every shape, dtype and value is checked here, before anything is allocated. */
import { type FloatDType, isFloat } from '../core/dtype.ts';
import { ArgumentError } from '../core/errors.ts';
import { sizeOf, type TensorLike } from '../core/tensor.ts';
import { derive } from '../mods/derive.ts';
import {
  createProblem,
  type Dropout,
  denseSequences,
  type Gradients,
  type KvStorage,
  type Layout,
  type Problem,
  stridesOf,
} from '../problem/problem.ts';
import { domainOf } from '../problem/ranges.ts';
import { buildExpressions, type Expressions, verifyExpressions } from './expressions.ts';
import { type AttentionOptions, checkNames, type GradientChoice } from './options.ts';
import { checkTensor } from './tensors.ts';

/** A call's Problem, and the shapes of what it produces. */
export interface Request {
  readonly problem: Problem;
  readonly outShape: readonly number[];
  readonly lseShape: readonly number[];
  /** False when packed rows belong to no sequence; engines leave theirs alone, so the api fills them. */
  readonly covered: boolean;
  /** Rows a head of k and v has in memory, and how many batches of them: one when packed. */
  readonly rowsK: number;
  readonly batches: number;
}

/** Sizes of the call and where its rows are, from either dense or packed tensors. */
interface Geometry
  extends Pick<Problem, 'B' | 'Hq' | 'Hkv' | 'Sq' | 'Sk' | 'D' | 'Dv' | 'strides' | 'sequences' | 'uniform'>,
    Omit<Request, 'problem'> {}

/**
 * Dense tensors taken for others of as many elements: `q`, `k`, `v` are shapes of four axes in the call's layout, `out`
 * and `lse` the shapes that results get.
 */
export interface View {
  readonly q: readonly number[];
  readonly k: readonly number[];
  readonly v: readonly number[];
  readonly out: readonly number[];
  readonly lse: readonly number[];
}

/**
 * Checks everything and resolves every default. The tensors may be shapes alone (for `explain`).
 *
 * @param grads null when backward will not be asked for.
 * @throws ArgumentError or ExpressionError naming the argument, what was expected and what came.
 */
export function createRequest(
  q: TensorLike,
  k: TensorLike,
  v: TensorLike,
  options: AttentionOptions,
  grads: GradientChoice | null,
  view: View | null = null,
): Request {
  checkNames(options);
  for (const [name, t] of Object.entries({ q, k, v })) checkTensor(name, t, false);
  const dtype = floatDtype(q, k, v);
  const layout = checkLayout(options.layout);
  const { outShape, lseShape, covered, rowsK, batches, ...sizes } =
    view !== null
      ? viewGeometry(view, layout)
      : options.cuSeqlens === undefined
        ? denseGeometry(q, k, v, layout)
        : packedGeometry(q, k, v, layout, options.cuSeqlens);
  const expressions = buildExpressions(options, sizes);
  const problem = finishProblem({ ...sizes, dtype, kv: { kind: 'strided' } }, expressions, options, grads);
  return { problem, outShape, lseShape, covered, rowsK, batches };
}

/** Adds what does not depend on where the rows are: scale, sink, dropout, gradients; then checks the expressions. */
export function finishProblem(
  base: Pick<
    Problem,
    'B' | 'Hq' | 'Hkv' | 'Sq' | 'Sk' | 'D' | 'Dv' | 'dtype' | 'strides' | 'sequences' | 'uniform' | 'kv'
  >,
  expressions: Expressions,
  options: AttentionOptions,
  grads: GradientChoice | null,
): Problem {
  checkSink(options.sink, base.Hq, base.dtype);
  const problem = createProblem({
    ...base,
    scale: options.scale ?? 1 / Math.sqrt(base.D),
    mask: expressions.mask,
    mod: expressions.mod,
    sides: expressions.sides,
    sink: options.sink !== undefined,
    dropout: dropoutOf(options.dropout),
    grads: grads === null ? null : gradientsOf(grads, expressions, options.sink !== undefined),
  });
  verifyExpressions(expressions, domainOf(problem));
  return problem;
}

export function checkLayout(layout: unknown = 'bhnd'): Layout {
  if (layout !== 'bhnd' && layout !== 'bnhd') throw new ArgumentError('layout', "'bhnd' or 'bnhd'", layout);
  return layout;
}

function floatDtype(q: TensorLike, k: TensorLike, v: TensorLike): FloatDType {
  if (!isFloat(q.dtype)) throw new ArgumentError('q', 'dtype f32, f16, bf16 or f64', q);
  for (const [name, t] of [['k', k] as const, ['v', v] as const])
    if (t.dtype !== q.dtype) throw new ArgumentError(name, `dtype ${q.dtype}, as q has`, t);
  return q.dtype;
}

function viewGeometry(view: View, layout: Layout): Geometry {
  const shaped = (shape: readonly number[]): TensorLike => ({ dtype: 'f32', shape });
  const geometry = denseGeometry(shaped(view.q), shaped(view.k), shaped(view.v), layout);
  return { ...geometry, outShape: view.out, lseShape: view.lse };
}

function denseGeometry(q: TensorLike, k: TensorLike, v: TensorLike, layout: Layout): Geometry {
  const axes = layout === 'bhnd' ? ['B', 'H', 'S', 'D'] : ['B', 'S', 'H', 'D'];
  for (const [name, t] of Object.entries({ q, k, v }))
    if (t.shape.length !== 4) throw new ArgumentError(name, `shape [${axes.join(', ')}]`, t);
  const [B, Hq, Sq, D] = inOrder(q.shape, layout);
  const [, Hkv, Sk] = inOrder(k.shape, layout);
  const Dv = v.shape[3];
  checkShape('k', k, layout, [B, Hkv, Sk, D]);
  checkShape('v', v, layout, [B, Hkv, Sk, Dv]);
  return {
    B,
    Hq,
    Hkv,
    Sq,
    Sk,
    D,
    Dv,
    strides: {
      q: stridesOf(layout, Hq, Sq, D),
      k: stridesOf(layout, Hkv, Sk, D),
      v: stridesOf(layout, Hkv, Sk, Dv),
      out: stridesOf(layout, Hq, Sq, Dv),
      lse: { b: Hq * Sq, h: Sq, s: 1 },
    },
    sequences: denseSequences(B, Sq, Sk),
    uniform: true,
    outShape: [...q.shape.slice(0, 3), Dv],
    lseShape: [B, Hq, Sq],
    covered: true,
    rowsK: Sk,
    batches: B,
  };
}

/** Axes in the order [.., H, S, D] whatever the layout. */
const inOrder = (shape: readonly number[], layout: Layout): readonly number[] => {
  if (layout === 'bhnd') return shape;
  const swapped = [...shape];
  const h = shape.length - 2;
  swapped[h - 1] = shape[h];
  swapped[h] = shape[h - 1];
  return swapped;
};

function checkShape(name: string, t: TensorLike, layout: Layout, wanted: readonly number[]): void {
  const shape = inOrder(wanted, layout);
  if (t.shape.length !== shape.length || t.shape.some((d, i) => d !== shape[i]))
    throw new ArgumentError(name, `shape [${shape.join(', ')}]`, t);
}

function packedGeometry(
  q: TensorLike,
  k: TensorLike,
  v: TensorLike,
  layout: Layout,
  cuSeqlens: NonNullable<AttentionOptions['cuSeqlens']>,
): Geometry {
  const axes = layout === 'bhnd' ? 'H, total' : 'total, H';
  for (const [name, t] of Object.entries({ q, k, v })) {
    const fits = t.shape.length === 3 || (t.shape.length === 4 && t.shape[0] === 1);
    if (!fits) throw new ArgumentError(name, `packed shape [${axes}, D] or [1, ${axes}, D]`, t);
  }
  const [Hq, totalQ, D] = inOrder(q.shape, layout).slice(-3);
  const [Hkv, totalK] = inOrder(k.shape, layout).slice(-3);
  const Dv = v.shape[v.shape.length - 1];
  const batch = (t: TensorLike): number[] => (t.shape.length === 4 ? [1] : []);
  checkShape('k', k, layout, [...batch(k), Hkv, totalK, D]);
  checkShape('v', v, layout, [...batch(v), Hkv, totalK, Dv]);
  const starts = checkCumulative('cuSeqlens.q', cuSeqlens.q, totalQ);
  const startsK =
    cuSeqlens.k === undefined
      ? checkCumulative('cuSeqlens.q', cuSeqlens.q, totalK)
      : checkCumulative('cuSeqlens.k', cuSeqlens.k, totalK);
  if (startsK.length !== starts.length)
    throw new ArgumentError('cuSeqlens.k', `${starts.length} offsets, as cuSeqlens.q has`, startsK.length);
  const B = starts.length - 1;
  const sequences = new Int32Array(B * 4);
  let [Sq, Sk] = [0, 0];
  for (let b = 0; b < B; b++) {
    const [lenQ, lenK] = [starts[b + 1] - starts[b], startsK[b + 1] - startsK[b]];
    sequences.set([starts[b], lenQ, startsK[b], lenK], b * 4);
    Sq = Math.max(Sq, lenQ);
    Sk = Math.max(Sk, lenK);
  }
  const packed = (H: number, total: number, d: number) => ({ ...stridesOf(layout, H, total, d), b: 0 });
  return {
    B,
    Hq,
    Hkv,
    Sq,
    Sk,
    D,
    Dv,
    strides: {
      q: packed(Hq, totalQ, D),
      k: packed(Hkv, totalK, D),
      v: packed(Hkv, totalK, Dv),
      out: packed(Hq, totalQ, Dv),
      lse: { b: 0, h: totalQ, s: 1 },
    },
    sequences,
    // Rows are found through the table even when all lengths are equal.
    uniform: false,
    outShape: [...q.shape.slice(0, -1), Dv],
    lseShape: [Hq, totalQ],
    rowsK: totalK,
    batches: 1,
    covered: starts[0] === 0 && starts[B] === totalQ && startsK[0] === 0 && startsK[B] === totalK,
  };
}

function checkCumulative(name: string, offsets: Int32Array | readonly number[], rows: number): ArrayLike<number> {
  const wanted = `an Int32Array of offsets that never decrease, within the ${rows} rows`;
  if (!(offsets instanceof Int32Array || Array.isArray(offsets)) || offsets.length === 0)
    throw new ArgumentError(name, wanted, offsets);
  for (let i = 0; i < offsets.length; i++) {
    const n = offsets[i];
    if (!Number.isInteger(n) || n < (i === 0 ? 0 : offsets[i - 1]) || n > rows)
      throw new ArgumentError(name, wanted, `${n} at ${i}`);
  }
  return offsets;
}

function checkSink(sink: TensorLike | undefined, Hq: number, dtype: FloatDType): void {
  if (sink === undefined) return;
  checkTensor('sink', sink, false);
  const wanted = dtype === 'f64' ? 'f64' : 'f32';
  if (sink.dtype !== wanted || sink.shape.length !== 1 || sink.shape[0] !== Hq)
    throw new ArgumentError('sink', `${wanted}[${Hq}]`, sink);
}

/** p = 0 is no dropout. A seed is 64 bits; a missing one is drawn at random. */
export function dropoutOf(dropout: AttentionOptions['dropout']): Dropout | null {
  if (dropout === undefined) return null;
  const { p, seed, offset = 0 } = typeof dropout === 'number' ? { p: dropout } : dropout;
  if (typeof p !== 'number' || !(p >= 0 && p < 1)) throw new ArgumentError('dropout', 'a probability in [0, 1)', p);
  if (!Number.isInteger(offset) || offset < 0 || offset >= 2 ** 32)
    throw new ArgumentError('dropout.offset', 'an unsigned 32-bit integer', offset);
  const valid =
    seed === undefined ||
    (typeof seed === 'bigint' ? seed >= 0n && seed < 1n << 64n : Number.isSafeInteger(seed) && seed >= 0);
  if (!valid) throw new ArgumentError('dropout.seed', 'a bigint of 64 bits or a safe integer >= 0', seed);
  if (p === 0) return null;
  if (seed === undefined) {
    const [lo, hi] = crypto.getRandomValues(new Uint32Array(2));
    return { p, seed: [lo, hi], offset };
  }
  const bits = BigInt(seed);
  return { p, seed: [Number(bits & 0xffffffffn), Number(bits >> 32n)], offset };
}

/** Which gradients to produce. Also proves, before anything runs, that the modifier can be differentiated. */
function gradientsOf(choice: GradientChoice, { mod, sides }: Expressions, sink: boolean): Gradients {
  const { q = true, k = true, v = true, sides: wanted = true } = choice;
  const asked = (t: TensorLike): boolean => (typeof wanted === 'boolean' ? wanted : wanted.includes(t));
  const read = new Set<TensorLike>();
  if (mod !== null) for (const load of derive(mod.expr, asked).dLoads.keys()) read.add(load.tensor);
  if (typeof wanted !== 'boolean')
    for (const t of wanted)
      if (!sides.includes(t)) throw new ArgumentError('grads.sides', 'tensors that bias, alibi or mod read', t);
  return Object.freeze({
    q,
    k,
    v,
    sides: sides.map((t) => asked(t) && read.has(t)),
    sink: sink && choice.sink !== false,
  });
}

/** Elements of an output that hold nothing need no engine. */
export const isEmpty = ({ outShape, lseShape }: Request): boolean => sizeOf(outShape) === 0 && sizeOf(lseShape) === 0;

export type { KvStorage };
