/** A problem's mask and modifier as code inside a kernel's loops. */
import type { TensorLike } from '../../../core/tensor.ts';
import { childrenOf, type Expr, type F32, type IndexName, nodesOf } from '../../../mods/expr.ts';
import { lowerAll } from '../../../mods/lower.ts';
import { simplify } from '../../../mods/simplify.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { Local } from '../asm/func.ts';
import { type I32, i32, i32Const, i32x4, select, v128 } from '../asm/values.ts';
import { type Lanes, laneTarget, type Scalar, type Surroundings, type Value, widenScalar } from '../math.ts';
import { iota, type Vec, type Vectors } from '../tile.ts';

/** Simplified once a compilation. */
export interface Expressions {
  readonly mod: F32 | null;
  readonly mask: Expr<'bool'> | null;
  readonly sides: readonly TensorLike[];
}

export const expressionsOf = ({ mod, mask, sides }: Problem): Expressions => ({
  mod: mod && simplify(mod.expr),
  mask: mask && simplify(mask.expr),
  sides,
});

/** Whether a loaded value takes part in the index of another load. */
const loadsThroughLoads = (roots: readonly Expr[]): boolean =>
  nodesOf(...roots).some((e) => e.kind === 'load' && nodesOf(...e.indices).some((x) => x.kind === 'load'));

/** Nodes that do not change in a loop over `inner` and over scores, and are used by nodes that do (or are roots). */
function invariants(roots: readonly Expr[], inner: IndexName): Expr[] {
  const changes = new Map<Expr, boolean>();
  const kept: Expr[] = [];
  for (const e of nodesOf(...roots)) {
    const own = e.kind === 'score' || (e.kind === 'index' && e.name === inner);
    changes.set(e, own || childrenOf(e).some((c) => changes.get(c)));
    if (changes.get(e)) kept.push(...childrenOf(e).filter((c) => !changes.get(c)));
  }
  kept.push(...roots.filter((r) => !changes.get(r)));
  return [...new Set(kept)].filter((e) => e.kind === 'op' || e.kind === 'load');
}

/** What lanes run over: queries, keys, or the query heads that share a key head. */
export type LaneAxis = 'q' | 'kv' | 'h';

/** Positions as the kernels know them. On the axis of the lanes it is the position of lane 0. */
export interface Positions {
  readonly b: Local<'i32'>;
  readonly h: Local<'i32'>;
  readonly q: Local<'i32'>;
  readonly kv: Local<'i32'>;
  readonly lenQ: Local<'i32'>;
  readonly lenK: Local<'i32'>;
}

/**
 * Prepares roots for a loop over keys (over queries, when lanes are keys): emits what does not change in it, and returns
 * what emits the rest, given the scores.
 *
 * @param end one past the last position on the axis of the lanes; lanes past it see the last.
 */
export function loopOver(
  v: Vectors,
  roots: readonly Expr[],
  lanesAre: LaneAxis,
  at: Positions,
  end: I32,
  sideOf: Surroundings['sideOf'],
): (score: Vec) => Value[] {
  const scalar = (value: Local<'i32'>): Scalar => ({ kind: 'scalar', type: 'i32', value });
  const last = v.repeat(v.f.let(i32x4.splat(i32.sub(end, 1)), 'last'));
  const clamped = v.map((x, y) => i32x4.min_s(x, y), iota(v, at[lanesAre]), last);
  const lanes: Lanes = { kind: 'lanes', type: 'i32', vec: clamped, start: at[lanesAre] };
  const indices: Surroundings['indices'] = {
    b: scalar(at.b),
    h: scalar(at.h),
    q: scalar(at.q),
    kv: scalar(at.kv),
    lenQ: scalar(at.lenQ),
    lenK: scalar(at.lenK),
    [lanesAre]: lanes,
  };
  const mayOverrun = !loadsThroughLoads(roots);
  const values = new Map<Expr, Value>();
  const target = (score: Vec) => laneTarget(v, { score, indices, sideOf, mayOverrun });
  lowerAll(invariants(roots, lanesAre === 'kv' ? 'q' : 'kv'), target([]), values);
  return (score) => lowerAll(roots, target(score), new Map(values));
}

export const asVec = (v: Vectors, x: Value): Vec => (x.kind === 'lanes' ? x.vec : widenScalar(v, x));

/**
 * Emits the search for the rounds of a loop in which a mask is true in any lane, and stores the first of them and one past
 * the last at `to`: the same number twice when there is none.
 *
 * @param position what the loop moves along, from its present value on.
 */
export function storeSpan(
  v: Vectors,
  mask: () => Value,
  rounds: Local<'i32'>,
  position: Local<'i32'>,
  to: I32,
  offset: number,
): void {
  const { f } = v;
  const first = f.let(rounds, 'first');
  const last = f.let(i32Const(0), 'last');
  f.for(0, rounds, 1, (r) => {
    f.if(anyLane(v, mask()), () => {
      f.set(first, select(i32.lt_s(r, first), r, first));
      f.set(last, i32.add(r, 1));
    });
    f.bump(position, 1);
  });
  f.do(i32.store(to, select(i32.lt_s(first, last), first, last), offset));
  f.do(i32.store(to, last, offset + 4));
}

function anyLane({ f }: Vectors, x: Value): I32 {
  if (x.kind === 'scalar') return x.value as I32;
  return v128.any_true(x.vec.slice(1).reduce((a, b) => f.let(v128.or(a, b)), x.vec[0]));
}

/** Scores where the mask lets them be, -inf elsewhere. */
export const masked = (v: Vectors, score: Vec, mask: Value): Vec =>
  v.map((s, p, l) => v128.bitselect(s, l, p), score, asVec(v, mask), v.constant(Number.NEGATIVE_INFINITY));
