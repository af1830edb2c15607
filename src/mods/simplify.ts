/**
 * Smaller expressions with the same values: constants folded, identities applied, equal nodes made one node. f32
 * arithmetic is not reordered and x * 0 stays (x may be infinite).
 */
import type { TensorLike } from '../core/tensor.ts';
import type { Bool, Expr, I32 } from './expr.ts';
import { childrenOf, nodesOf } from './expr.ts';
import { type ExprType, OPS, type OpName } from './ops.ts';

/** The smallest form found; nodes that mean the same are one node. */
export const simplify = <T extends ExprType>(expr: Expr<T>): Expr<T> => createSimplifier().simplify(expr);

/** Builds simplified expressions. Within one simplifier, equal expressions are the same object. */
export interface Simplifier {
  simplify<T extends ExprType>(expr: Expr<T>): Expr<T>;
  constant<T extends ExprType>(type: T, value: number): Expr<T>;
  /** The op over arguments that came from this simplifier. */
  apply(op: OpName, ...args: readonly Expr[]): Expr;
}

export function createSimplifier(): Simplifier {
  const nodes = new Map<string, Expr>();
  const ids = new Map<Expr | TensorLike, number>();
  const idOf = (x: Expr | TensorLike): number => {
    const known = ids.get(x);
    if (known !== undefined) return known;
    ids.set(x, ids.size);
    return ids.size - 1;
  };
  const intern = (key: string, make: () => Expr): Expr => {
    let e = nodes.get(key);
    if (e === undefined) {
      e = make();
      nodes.set(key, e);
    }
    return e;
  };

  const constant = <T extends ExprType>(type: T, value: number): Expr<T> =>
    intern(`${type} ${Object.is(value, -0) ? '-0' : value}`, () => ({ kind: 'const', type, value })) as Expr<T>;

  const build: Builder = {
    constant,
    apply(op, ...args) {
      const better = fold(op, args, build) ?? RULES[op]?.(args, build);
      if (better) return better;
      const key = args.map(idOf);
      if (COMMUTATIVE.has(op)) key.sort((x, y) => x - y);
      return intern(`${op} ${key.join(' ')}`, () => ({ kind: 'op', type: OPS[op].result, op, args }));
    },
  };

  const rebuild = (e: Expr, children: readonly Expr[]): Expr => {
    switch (e.kind) {
      case 'const':
        return constant(e.type, e.value);
      case 'score':
        return intern('score', () => e);
      case 'index':
        return intern(e.name, () => e);
      case 'load':
        return intern(`load ${idOf(e.tensor)} ${children.map(idOf).join(' ')}`, () => ({
          ...e,
          indices: children as readonly I32[],
        }));
      case 'op':
        return build.apply(e.op, ...children);
      default:
        throw e satisfies never;
    }
  };

  return {
    ...build,
    simplify<T extends ExprType>(expr: Expr<T>): Expr<T> {
      const done = new Map<Expr, Expr>();
      for (const e of nodesOf(expr))
        done.set(
          e,
          rebuild(
            e,
            childrenOf(e).map((c) => done.get(c) as Expr),
          ),
        );
      return done.get(expr) as Expr<T>;
    },
  };
}

type Builder = Pick<Simplifier, 'constant' | 'apply'>;
type Rule = (args: readonly Expr[], build: Builder) => Expr | null;

const COMMUTATIVE: ReadonlySet<OpName> = new Set<OpName>([
  ...(['add', 'mul', 'eq', 'iadd', 'imul', 'imin', 'imax', 'iand', 'ior', 'ixor', 'ieq', 'and', 'or'] as const),
]);

/** Constants in, constant out; unless the value is one that targets cannot write as a literal. */
function fold(op: OpName, args: readonly Expr[], build: Builder): Expr | null {
  const values: number[] = [];
  for (const a of args) {
    if (a.kind !== 'const') return null;
    values.push(a.value);
  }
  const value = OPS[op].evaluate(...values);
  return Number.isFinite(value) && value !== -(2 ** 31) ? build.constant(OPS[op].result, value) : null;
}

const is = (e: Expr, value: number): boolean => e.kind === 'const' && e.value === value;
/** The arguments of `e` if it is this op. */
const argsOf = (e: Expr, op: OpName): readonly Expr[] | null => (e.kind === 'op' && e.op === op ? e.args : null);
const truth = (build: Builder, value: boolean): Bool => build.constant('bool', Number(value));

const plus: Rule = ([x, y]) => (is(y, 0) ? x : is(x, 0) ? y : null);
const pick: Rule = ([p, x, y]) => (x === y || is(p, 1) ? x : is(p, 0) ? y : null);
const idempotent: Rule = ([x, y]) => (x === y ? x : null);
const reflexive =
  (value: boolean): Rule =>
  ([x, y], build) =>
    x === y ? truth(build, value) : null;
const shift: Rule = ([x, y]) => (is(y, 0) ? x : null);

const RULES: { readonly [K in OpName]?: Rule } = {
  add: plus,
  sub: ([x, y]) => (is(y, 0) ? x : null),
  mul: ([x, y], build) =>
    is(y, 1) ? x : is(x, 1) ? y : is(y, -1) ? build.apply('neg', x) : is(x, -1) ? build.apply('neg', y) : null,
  div: ([x, y]) => (is(y, 1) ? x : null),
  min: idempotent,
  max: idempotent,
  neg: ([x]) => argsOf(x, 'neg')?.[0] ?? null,
  abs: ([x], build) => {
    const negated = argsOf(x, 'neg');
    return negated ? build.apply('abs', ...negated) : argsOf(x, 'abs') ? x : null;
  },
  select: pick,
  iadd: plus,
  isub: ([x, y], build) => (is(y, 0) ? x : x === y ? build.constant('i32', 0) : null),
  imul: ([x, y]) => (is(y, 1) || is(x, 0) ? x : is(x, 1) || is(y, 0) ? y : null),
  idiv: ([x, y]) => (is(y, 1) || is(x, 0) ? x : null),
  imod: ([x, y], build) => (is(y, 1) ? build.constant('i32', 0) : is(x, 0) ? x : null),
  imin: idempotent,
  imax: idempotent,
  iand: ([x, y]) => (x === y || is(y, -1) || is(x, 0) ? x : is(x, -1) || is(y, 0) ? y : null),
  ior: ([x, y]) => (x === y || is(y, 0) ? x : is(x, 0) ? y : null),
  ixor: plus,
  ishl: shift,
  ishr: shift,
  iselect: pick,
  // NaN is not less than itself either; it is not equal to itself, so f32 `le` and `eq` have no such rule.
  lt: reflexive(false),
  ilt: reflexive(false),
  ile: reflexive(true),
  ieq: reflexive(true),
  and: ([x, y]) => (x === y || is(y, 1) || is(x, 0) ? x : is(x, 1) || is(y, 0) ? y : null),
  or: ([x, y]) => (x === y || is(y, 0) || is(x, 1) ? x : is(x, 0) || is(y, 1) ? y : null),
  not: ([x], build) => {
    const less = argsOf(x, 'ilt');
    if (less) return build.apply('ile', less[1], less[0]);
    const lessEqual = argsOf(x, 'ile');
    if (lessEqual) return build.apply('ilt', lessEqual[1], lessEqual[0]);
    return argsOf(x, 'not')?.[0] ?? null;
  },
};
