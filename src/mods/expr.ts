/**
 * Typed expressions over one attention score: who asks (b, h, q), who is asked (kv), what came out (score), and loads
 * from side tensors. Expressions are immutable trees that may share nodes; a shared node is emitted once.
 */
import type { DType } from '../core/dtype.ts';
import { ArgumentError, ExpressionError } from '../core/errors.ts';
import type { TensorLike } from '../core/tensor.ts';
import { type ExprType, OPS, type OpName } from './ops.ts';

/**
 * `b` batch or packed sequence, `h` query head, `q` and `kv` positions inside the sequence, `lenQ` and `lenK` the
 * lengths of that sequence (they vary with b when packed or cached). All i32.
 */
export type IndexName = 'b' | 'h' | 'q' | 'kv' | 'lenQ' | 'lenK';

/** A node: a constant, the score, an index, an element of a tensor, or an op over other nodes. Made by the functions of `expr`. */
export type Expr<T extends ExprType = ExprType> =
  | { readonly kind: 'const'; readonly type: T; readonly value: number }
  | { readonly kind: 'score'; readonly type: T }
  | { readonly kind: 'index'; readonly type: T; readonly name: IndexName }
  | { readonly kind: 'op'; readonly type: T; readonly op: OpName; readonly args: readonly Expr[] }
  | {
      readonly kind: 'load';
      readonly type: T;
      readonly tensor: TensorLike;
      /** One index per axis of the tensor. */
      readonly indices: readonly Expr<'i32'>[];
      /** The tensor broadcasts: an axis read by a bare index must be as long as that index ranges, not longer. */
      readonly exact?: true;
    };

/** A float32 value. */
export type F32 = Expr<'f32'>;
/** A 32-bit integer, which wraps. */
export type I32 = Expr<'i32'>;
/** A condition. */
export type Bool = Expr<'bool'>;

/** What a mask function may look at. */
export interface MaskContext {
  readonly b: I32;
  readonly h: I32;
  readonly q: I32;
  readonly kv: I32;
  readonly lenQ: I32;
  readonly lenK: I32;
}

/** What a score modifier may look at: the scaled score besides. */
export interface ScoreContext extends MaskContext {
  readonly score: F32;
}

/**
 * A named mask: true means attend. `label` appears in plans, ids and messages. `build` gives the same expression every time:
 * it may be called once for many calls.
 */
export interface Mask {
  readonly label: string;
  readonly build: (at: MaskContext) => Bool;
}

/** A named score modifier, applied to scale * q.k before the mask and the softmax. `build` as for a Mask. */
export interface Mod {
  readonly label: string;
  readonly build: (at: ScoreContext) => F32;
}

const index = (name: IndexName): I32 => ({ kind: 'index', type: 'i32', name });

/** The leaves every expression is built from. */
export const CONTEXT: ScoreContext = Object.freeze({
  score: { kind: 'score', type: 'f32' } as const,
  b: index('b'),
  h: index('h'),
  q: index('q'),
  kv: index('kv'),
  lenQ: index('lenQ'),
  lenK: index('lenK'),
});

/** A constant of a type; i32 constants must be integers. */
export function constant<T extends ExprType>(type: T, value: number): Expr<T> {
  if (type === 'i32' && (!Number.isInteger(value) || Math.abs(value) > 2 ** 31 - 1))
    throw new ArgumentError('constant', 'an integer that fits i32', value);
  return { kind: 'const', type, value };
}

/** Applies an op to arguments whose types must match its record. @throws ExpressionError naming op, argument and types. */
export function apply<T extends ExprType = ExprType>(op: OpName, ...args: readonly Expr[]): Expr<T> {
  const record = OPS[op];
  if (args.length !== record.args.length)
    throw new ExpressionError(`${op}: expected ${record.args.length} arguments, got ${args.length}`);
  record.args.forEach((type, i) => {
    if (args[i].type !== type)
      throw new ExpressionError(`${op}: expected argument ${i} of type ${type}, got ${args[i].type}`);
  });
  return { kind: 'op', type: record.result as T, op, args };
}

const LOADED: Readonly<Record<DType, ExprType | null>> = {
  f32: 'f32',
  i32: 'i32',
  u8: 'bool',
  f16: 'f32',
  bf16: 'f32',
  f64: 'f32',
};

/**
 * Reads one element of a side tensor: floats give f32, i32 gives i32, u8 gives bool (non-zero is true). One index per
 * axis; every index must provably stay inside its axis, which is checked when the call is made.
 */
export function load<T extends ExprType = 'f32'>(tensor: TensorLike, indices: readonly I32[]): Expr<NoInfer<T>> {
  const type = LOADED[tensor.dtype];
  if (type === null) throw new ExpressionError(`load: cannot read ${tensor.dtype} elements`);
  if (indices.length !== tensor.shape.length)
    throw new ExpressionError(
      `load: expected ${tensor.shape.length} indices for shape [${tensor.shape.join(', ')}], got ${indices.length}`,
    );
  for (const i of indices) if (i.type !== 'i32') throw new ExpressionError(`load: expected i32 indices, got ${i.type}`);
  return { kind: 'load', type: type as T, tensor, indices };
}

/** Every node once, arguments before users. */
export function nodesOf(...roots: readonly Expr[]): Expr[] {
  const seen = new Set<Expr>();
  const order: Expr[] = [];
  const visit = (e: Expr): void => {
    if (seen.has(e)) return;
    seen.add(e);
    for (const child of childrenOf(e)) visit(child);
    order.push(e);
  };
  for (const root of roots) visit(root);
  return order;
}

export const childrenOf = (e: Expr): readonly Expr[] => (e.kind === 'op' ? e.args : e.kind === 'load' ? e.indices : []);
