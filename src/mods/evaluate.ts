/** What an expression is worth at one (query, key): the float64 oracle every engine is measured against. */
import { fromBf16, fromF16 } from '../core/dtype.ts';
import { ExpressionError } from '../core/errors.ts';
import { type HostTensor, isHost, type TensorLike } from '../core/tensor.ts';
import { childrenOf, type Expr, nodesOf } from './expr.ts';
import { OPS } from './ops.ts';

/** One place of the score matrix. `score` is scale * q.k there (masks do not look at it). */
export interface Point {
  score: number;
  b: number;
  h: number;
  q: number;
  kv: number;
  lenQ: number;
  lenK: number;
}

type Closure = (at: Point) => number;

/** The value at a point, in float64; booleans are 0 and 1. Loads read host tensors. Compile instead when calling often. */
export const evaluate = (expr: Expr, at: Point): number => compileEvaluator(expr)(at);

/**
 * The expression as a function made of closures.
 *
 * `data` gives the elements of tensors that are not on the host (and overrides those that are).
 * Index values must be ones `verifyLoads` accepted. The function reuses scratch between calls: one caller at a time.
 *
 * @throws ExpressionError when a load's elements are not on the host.
 */
export function compileEvaluator(
  expr: Expr,
  data: ReadonlyMap<TensorLike, HostTensor> = new Map(),
): (at: Readonly<Point>) => number {
  const nodes = nodesOf(expr);
  const uses = new Map<Expr, number>();
  for (const e of nodes) for (const c of childrenOf(e)) uses.set(c, (uses.get(c) ?? 0) + 1);
  const closures = new Map<Expr, Closure>();
  // Shared nodes are worked out first, in order, into slots: time grows with nodes, not with paths.
  const shared: Closure[] = [];
  const slots: number[] = [];
  for (const e of nodes) {
    const children = childrenOf(e).map((c) => closures.get(c) as Closure);
    let own = closureOf(e, children, (t) => elementsOf(data.get(t) ?? t));
    if (children.length > 0 && (uses.get(e) ?? 0) > 1) {
      const slot = shared.push(own) - 1;
      own = () => slots[slot];
    }
    closures.set(e, own);
  }
  const root = closures.get(expr) as Closure;
  if (shared.length === 0) return root;
  return (at) => {
    for (let i = 0; i < shared.length; i++) slots[i] = shared[i](at);
    return root(at);
  };
}

function closureOf(e: Expr, children: readonly Closure[], read: (t: TensorLike) => (i: number) => number): Closure {
  switch (e.kind) {
    case 'const': {
      const { value } = e;
      return () => value;
    }
    case 'score':
      return (at) => at.score;
    case 'index': {
      const { name } = e;
      return (at) => at[name];
    }
    case 'load':
      return loadOf(e.tensor.shape, children, read(e.tensor));
    case 'op':
      return callOf(OPS[e.op].evaluate, children);
    default:
      throw e satisfies never;
  }
}

function callOf(f: (...args: number[]) => number, children: readonly Closure[]): Closure {
  const [x, y, z] = children;
  if (children.length === 1) return (at) => f(x(at));
  if (children.length === 2) return (at) => f(x(at), y(at));
  return (at) => f(x(at), y(at), z(at));
}

function loadOf(shape: readonly number[], indices: readonly Closure[], element: (i: number) => number): Closure {
  const n = indices.length;
  if (n === 1) {
    const [index] = indices;
    return (at) => element(index(at));
  }
  return (at) => {
    let offset = 0;
    for (let axis = 0; axis < n; axis++) offset = offset * shape[axis] + indices[axis](at);
    return element(offset);
  };
}

function elementsOf(tensor: TensorLike): (i: number) => number {
  if (!isHost(tensor))
    throw new ExpressionError(
      `load: expected a host tensor to evaluate with, got ${tensor.dtype}[${tensor.shape.join(', ')}] in an engine's memory`,
    );
  const { data }: HostTensor = tensor;
  switch (tensor.dtype) {
    case 'f16':
      return (i) => fromF16(data[i]);
    case 'bf16':
      return (i) => fromBf16(data[i]);
    case 'u8':
      return (i) => (data[i] === 0 ? 0 : 1);
    case 'f64':
    case 'f32':
    case 'i32':
      return (i) => data[i];
    default:
      throw tensor.dtype satisfies never;
  }
}
