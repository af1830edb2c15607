/** Modifiers that add a bias which, from one turning point to the next, is a straight line along the keys: ALiBi and its kin. */
import { apply, childrenOf, constant, type Expr, type F32, type I32, type IndexName, nodesOf } from './expr.ts';

/** The modified score is score + bias. */
export interface LinearBias {
  readonly bias: F32;
  /** What the bias grows by from a key to the next: the same for all queries and keys where no turn changes its sign. */
  readonly slope: F32;
  /** Arguments of absolute values. Their signs over a box of positions are those at its corners, if these agree. */
  readonly turns: readonly I32[];
}

/** The bias and its slope, or null where the modifier is something else. */
export function linearBias(mod: F32): LinearBias | null {
  const bias = besideScore(mod);
  if (bias === null || nodesOf(bias).some((e) => e.kind === 'score')) return null;
  const turns = new Set<I32>();
  const slope = growth(bias, 'kv', turns);
  // Between queries the bias may be anything, but the turns have to be straight there too.
  const straight = [...turns].every((e) => growth(e, 'q', new Set()) !== 'bent');
  if (slope === 'bent' || slope === 'none' || !straight) return null;
  return { bias, slope, turns: [...turns] };
}

const float = (op: 'neg' | 'add' | 'sub' | 'mul', ...args: Expr[]): F32 => apply<'f32'>(op, ...args);

/** What is added to the score, or null where the score is not simply added to. */
function besideScore(e: F32): F32 | null {
  if (e.kind !== 'op' || (e.op !== 'add' && e.op !== 'sub')) return null;
  const [x, y] = e.args as [F32, F32];
  const minus = e.op === 'sub';
  if (x.kind === 'score') return minus ? float('neg', y) : y;
  if (y.kind === 'score') return minus ? null : x;
  const [left, right] = [besideScore(x), besideScore(y)];
  if (left !== null) return float(e.op, left, y);
  return right === null || minus ? null : float('add', x, right);
}

/** What a value grows by when `name` does by 1, as f32: an expression that `q` and `kv` are no part of but by signs of turns. */
function growth(root: Expr, name: IndexName, turns: Set<I32>): F32 | 'none' | 'bent' {
  const known = new Map<Expr, F32 | 'none' | 'bent'>();
  for (const e of nodesOf(root)) known.set(e, ofNode(e));
  return known.get(root) as F32 | 'none' | 'bent';

  function ofNode(e: Expr): F32 | 'none' | 'bent' {
    if (e.kind === 'index') return e.name === name ? constant('f32', 1) : 'none';
    const inner = childrenOf(e).map((c) => known.get(c) as F32 | 'none' | 'bent');
    if (inner.every((g) => g === 'none')) return 'none';
    if (e.kind !== 'op' || inner.includes('bent')) return 'bent';
    const [x, y] = inner as (F32 | 'none')[];
    switch (e.op) {
      case 'toF32':
      case 'detach':
        return x;
      case 'neg':
        return x === 'none' ? x : float('neg', x);
      case 'add':
      case 'iadd':
        return x === 'none' ? y : y === 'none' ? x : float('add', x, y);
      case 'sub':
      case 'isub':
        return y === 'none' ? x : x === 'none' ? float('neg', y) : float('sub', x, y);
      case 'mul': {
        const [moving, g, other] = x === 'none' ? [y, y, e.args[0]] : [y, x, e.args[1]];
        if ((x !== 'none' && moving !== 'none') || moves(other)) return 'bent';
        return float('mul', other, g as F32);
      }
      case 'iabs': {
        const of = e.args[0] as I32;
        turns.add(of);
        const below = apply<'bool'>('ilt', of, constant('i32', 0));
        return apply<'f32'>('select', below, float('neg', x as F32), x as F32);
      }
      default:
        return 'bent';
    }
  }
}

const moves = (root: Expr): boolean =>
  nodesOf(root).some((e) => e.kind === 'index' && (e.name === 'q' || e.name === 'kv'));
