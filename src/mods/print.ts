/** Canonical text of an expression: equal text, equal code. Program keys and messages use it. */
import { ExpressionError } from '../core/errors.ts';
import type { TensorLike } from '../core/tensor.ts';
import { childrenOf, type Expr, nodesOf } from './expr.ts';

/**
 * Prints ops as calls, `sides[k]` as `s<k>` with its dtype and shape (emitted code holds its strides), f32 constants with
 * a trailing `f`. A node with several users is printed once, as `t<n>=...;` before the root, so that length grows with
 * the number of nodes.
 *
 * @throws ExpressionError when a load reads a tensor that is not among `sides`.
 */
export function printExpr(expr: Expr, sides: readonly TensorLike[] = []): string {
  const uses = new Map<Expr, number>();
  const nodes = nodesOf(expr);
  for (const e of nodes) for (const c of childrenOf(e)) uses.set(c, (uses.get(c) ?? 0) + 1);
  const text = new Map<Expr, string>();
  const lets: string[] = [];
  for (const e of nodes) {
    const children = childrenOf(e).map((c) => text.get(c) as string);
    let own = printNode(e, children, sides);
    if (children.length > 0 && (uses.get(e) ?? 0) > 1) {
      lets.push(`t${lets.length}=${own};`);
      own = `t${lets.length - 1}`;
    }
    text.set(e, own);
  }
  return lets.join('') + text.get(expr);
}

function printNode(e: Expr, children: readonly string[], sides: readonly TensorLike[]): string {
  switch (e.kind) {
    case 'const': {
      if (e.type === 'bool') return e.value ? 'true' : 'false';
      const digits = Object.is(e.value, -0) ? '-0' : String(e.value);
      return e.type === 'f32' ? `${digits}f` : digits;
    }
    case 'score':
      return 'score';
    case 'index':
      return e.name;
    case 'load': {
      const side = sides.indexOf(e.tensor);
      if (side < 0)
        throw new ExpressionError(`load: expected a tensor listed in sides, got ${describe(e.tensor)} that is not`);
      return `s${side}:${describe(e.tensor)}(${children.join(',')})`;
    }
    case 'op':
      return `${e.op}(${children.join(',')})`;
    default:
      throw e satisfies never;
  }
}

const describe = (t: TensorLike): string => `${t.dtype}[${t.shape.join(',')}]`;
