/** The one walker that turns an expression into a target's code: WASM, WGSL, PTX, or a JavaScript number. */
import type { TensorLike } from '../core/tensor.ts';
import { childrenOf, type Expr, type IndexName, nodesOf } from './expr.ts';
import type { ExprType, OpName } from './ops.ts';

/** What a target supplies; a missing op is a compile error. V is the target's handle on an emitted value. */
export interface Target<V> {
  readonly ops: { readonly [K in OpName]: (...args: V[]) => V };
  constant(type: ExprType, value: number): V;
  score(): V;
  index(name: IndexName): V;
  load(tensor: TensorLike, type: ExprType, indices: readonly V[]): V;
}

/** Emits each node once, arguments first. */
export const lower = <V>(root: Expr, target: Target<V>): V => lowerAll([root], target)[0];

/**
 * Emits several expressions that may share nodes, in order; a node they share is emitted once. Nodes already in `values`
 * are taken from there, and emitted ones are added: so a target can emit what does not change in a loop before the loop.
 */
export function lowerAll<V>(roots: readonly Expr[], target: Target<V>, values: Map<Expr, V> = new Map()): V[] {
  for (const e of nodesOf(...roots)) {
    if (values.has(e)) continue;
    const children = childrenOf(e).map((c) => values.get(c) as V);
    values.set(e, emit(e, children, target));
  }
  return roots.map((root) => values.get(root) as V);
}

function emit<V>(e: Expr, children: readonly V[], target: Target<V>): V {
  switch (e.kind) {
    case 'const':
      return target.constant(e.type, e.value);
    case 'score':
      return target.score();
    case 'index':
      return target.index(e.name);
    case 'load':
      return target.load(e.tensor, e.type, children);
    case 'op':
      return target.ops[e.op](...children);
    default:
      throw e satisfies never;
  }
}
