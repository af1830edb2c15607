/** Derivatives of a score modifier, for backward: with respect to the score and to every float it loads. */
import { ExpressionError } from '../core/errors.ts';
import type { TensorLike } from '../core/tensor.ts';
import { childrenOf, type Expr, type F32, nodesOf } from './expr.ts';
import { type Calculus, OPS } from './ops.ts';
import { createSimplifier, type Simplifier } from './simplify.ts';

export type LoadNode = Extract<Expr, { kind: 'load' }>;

/** All expressions share nodes, so emitting them together (`lowerAll`) works each value out once. */
export interface Derivatives {
  /** The modified score itself, simplified. */
  readonly value: F32;
  /** d value / d score. */
  readonly dScore: F32;
  /** d value / d loaded element, by load of `value`; loads whose derivative is zero everywhere are left out. */
  readonly dLoads: ReadonlyMap<LoadNode, F32>;
}

/**
 * Differentiates a modifier. `wanted` picks the tensors whose gradients are asked for (all by default): a load that is
 * not wanted may pass through ops that have no derivative.
 *
 * A branch that `select`, `min` or `max` does not take contributes exactly zero, even where its own derivative is
 * infinite or NaN.
 *
 * @throws ExpressionError when an op without a derivative lies between the score, or a wanted load, and the result.
 */
export function derive(mod: F32, wanted: (tensor: TensorLike) => boolean = () => true): Derivatives {
  const simplifier = createSimplifier();
  const value = simplifier.simplify(mod);
  const nodes = nodesOf(value);
  const calculus = calculusOf(simplifier);
  const dLoads = new Map<LoadNode, F32>();
  for (const e of nodes) {
    if (e.kind !== 'load' || e.type !== 'f32' || !wanted(e.tensor)) continue;
    const d = tangent(nodes, e, calculus);
    if (d !== null) dLoads.set(e, d);
  }
  const score = nodes.find((e) => e.kind === 'score');
  const dScore = (score && tangent(nodes, score, calculus)) ?? simplifier.constant('f32', 0);
  return { value, dScore, dLoads };
}

/** Forward mode: the derivative of the last node with respect to `seed`, or null where it is zero everywhere. */
function tangent(nodes: readonly Expr[], seed: Expr, calculus: Calculus<Expr>): F32 | null {
  const tangents = new Map<Expr, Expr>([[seed, calculus.constant(1)]]);
  for (const e of nodes) {
    // What is compared is constant to backward; what is converted to an integer has no derivative.
    if (e.kind !== 'op' || e.type === 'bool') continue;
    if (!childrenOf(e).some((c) => tangents.has(c))) continue;
    const { derivative } = OPS[e.op];
    if (derivative === null)
      throw new ExpressionError(
        `${e.op}: expected an op with a derivative between ${nameOf(seed)} and the result, got ${e.op}; ` +
          'wrap its argument in detach() to treat it as constant',
      );
    let sum: Expr | null = null;
    derivative(calculus, e.args, e).forEach((partial, i) => {
      const inner = tangents.get(e.args[i]);
      if (partial === null || inner === undefined) return;
      const term = calculus.mul(partial, inner);
      sum = sum === null ? term : calculus.add(sum, term);
    });
    if (sum !== null) tangents.set(e, sum);
  }
  return (tangents.get(nodes[nodes.length - 1]) as F32 | undefined) ?? null;
}

const nameOf = (seed: Expr): string =>
  seed.kind === 'load' ? `the load of ${seed.tensor.dtype}[${seed.tensor.shape.join(', ')}]` : 'score';

const isConst = (e: Expr, value: number): boolean => e.kind === 'const' && e.value === value;
const isSelect = (e: Expr): e is Extract<Expr, { kind: 'op' }> => e.kind === 'op' && e.op === 'select';

/** Derivative arithmetic, where zero times anything is zero: a branch not taken must not leak its NaN. */
function calculusOf({ apply, constant }: Simplifier): Calculus<Expr> {
  const zero = constant('f32', 0);
  const select = (p: Expr, x: Expr, y: Expr): Expr => apply('select', p, x, y);
  const gates = (e: Expr): boolean => isSelect(e) && (isConst(e.args[1], 0) || isConst(e.args[2], 0));
  const mul = (x: Expr, y: Expr): Expr => {
    if (isConst(x, 0) || isConst(y, 0)) return zero;
    if (gates(y) && !gates(x)) return mul(y, x);
    if (isSelect(x) && gates(x)) return select(x.args[0], mul(x.args[1], y), mul(x.args[2], y));
    return apply('mul', x, y);
  };
  const add = (x: Expr, y: Expr): Expr => {
    if (isSelect(x) && isSelect(y) && x.args[0] === y.args[0] && (gates(x) || gates(y)))
      return select(x.args[0], add(x.args[1], y.args[1]), add(x.args[2], y.args[2]));
    return apply('add', x, y);
  };
  return {
    constant: (value) => constant('f32', value),
    add,
    sub: (x, y) => apply('sub', x, y),
    mul,
    div: (x, y) => apply('div', x, y),
    neg: (x) => apply('neg', x),
    sqrt: (x) => apply('sqrt', x),
    ifLess: (x, y, then, otherwise) => select(apply('lt', x, y), then, otherwise),
    select,
  };
}
