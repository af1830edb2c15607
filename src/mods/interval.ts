/** The interval of an expression over a box of positions, through the op records. */
import { isHost, type TensorLike } from '../core/tensor.ts';
import { type BoxBounds, boxBounds } from './bounds.ts';
import { childrenOf, type Expr, type IndexName, nodesOf } from './expr.ts';
import { type Interval, OPS, unknownOf } from './ops.ts';

/** Which values every index takes. */
export type Domain = Readonly<Record<IndexName, Interval>>;

/** Bounds of side tensors, gathered while nobody writes to them. */
export type BoundsCache = Map<TensorLike, BoxBounds>;

/** Called with every load before it is looked at; throws to refuse it. */
export type LoadCheck = (load: Extract<Expr, { kind: 'load' }>, box: readonly Interval[]) => void;

/**
 * The expression as a function from a domain to the interval of its values. Loads look at host data; elements elsewhere,
 * and indices that leave the tensor, give what the type alone tells.
 */
export function compileInterval(
  expr: Expr,
  cache: BoundsCache = new Map(),
  check?: LoadCheck,
): (domain: Domain) => Interval {
  const nodes = nodesOf(expr);
  const position = new Map(nodes.map((e, i) => [e, i]));
  const inputs = nodes.map((e) => childrenOf(e).map((c) => position.get(c) as number));
  const values: Interval[] = nodes.map((e) => (e.kind === 'const' ? constantOf(e.value) : unknownOf(e.type)));
  return (domain) => {
    for (let i = 0; i < nodes.length; i++) {
      const e = nodes[i];
      const args = inputs[i];
      if (e.kind === 'index') values[i] = domain[e.name];
      else if (e.kind === 'op') {
        const { range } = OPS[e.op];
        values[i] =
          args.length === 2
            ? range(values[args[0]], values[args[1]])
            : args.length === 1
              ? range(values[args[0]])
              : range(values[args[0]], values[args[1]], values[args[2]]);
      } else if (e.kind === 'load') {
        const box = args.map((a) => values[a]);
        check?.(e, box);
        values[i] = loaded(e.tensor, box, cache) ?? unknownOf(e.type);
      }
    }
    return values[nodes.length - 1];
  };
}

/** Engines round constants to f32. */
const constantOf = (value: number): Interval => {
  const single = Math.fround(value);
  return Number.isInteger(value)
    ? { lo: value, hi: value }
    : { lo: Math.min(value, single), hi: Math.max(value, single) };
};

function loaded(tensor: TensorLike, box: readonly Interval[], cache: BoundsCache): Interval | null {
  if (!isHost(tensor)) return null;
  if (box.some(({ lo, hi }, axis) => !(lo >= 0 && hi < tensor.shape[axis]))) return null;
  let bounds = cache.get(tensor);
  if (bounds === undefined) {
    bounds = boxBounds(tensor);
    cache.set(tensor, bounds);
  }
  return bounds(box);
}
