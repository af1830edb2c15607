/** Gradients of the tensors a modifier reads: which chain adds where, and the code that adds. */
import { sizeOf, type TensorLike } from '../../../core/tensor.ts';
import type { LoadNode } from '../../../mods/derive.ts';
import type { F32, IndexName } from '../../../mods/expr.ts';
import { nodesOf } from '../../../mods/expr.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { Local } from '../asm/func.ts';
import { f32, f32x4, i32, i32x4, type V128, v128 } from '../asm/values.ts';
import type { Value } from '../math.ts';
import { placeOf } from '../sides.ts';
import type { Vec, Vectors } from '../tile.ts';

export interface SidePlan {
  /** Index into problem.sides. */
  readonly side: number;
  readonly elements: number;
  /** No two chains add to the same element, so all add to the gradient itself. */
  readonly owned: boolean;
}

/** One load of a modifier whose gradient is asked for. */
export interface SideTerm {
  readonly load: LoadNode;
  /** d modified score / d loaded element. */
  readonly derivative: F32;
  /** Index into the side plans. */
  readonly plan: number;
}

/** @param splits chains a key/value head is split into. */
export function sidePlans(
  problem: Problem,
  dLoads: ReadonlyMap<LoadNode, F32>,
  splits: number,
): { plans: readonly SidePlan[]; terms: readonly SideTerm[] } {
  const wanted = problem.sides.flatMap((_, i) => (problem.grads?.sides[i] ? [i] : []));
  const terms = [...dLoads].flatMap(([load, derivative]) => {
    const plan = wanted.indexOf(problem.sides.indexOf(load.tensor));
    return plan < 0 ? [] : [{ load, derivative, plan }];
  });
  const plans = wanted.map((side, i) => ({
    side,
    elements: sizeOf(problem.sides[side].shape),
    owned: areOwned(
      problem,
      terms.filter((t) => t.plan === i).map((t) => t.load),
      splits,
    ),
  }));
  return { plans, terms };
}

/**
 * Chains differ in batch, head or key block. Where each of these is the index of one axis, the same in all loads, no two
 * chains meet in an element.
 */
function areOwned({ B, Hq }: Problem, loads: readonly LoadNode[], splits: number): boolean {
  const hasAxis = (name: IndexName): boolean => {
    const axes = loads.map(({ indices }) => indices.findIndex((e) => e.kind === 'index' && e.name === name));
    return axes.every((axis) => axis >= 0 && axis === axes[0]);
  };
  return (B === 1 || hasAxis('b')) && (Hq === 1 || hasAxis('h')) && (splits === 1 || hasAxis('kv'));
}

/** Whether where a load looks is the same for all queries of a block. */
export const sameForQueries = ({ indices }: LoadNode): boolean =>
  !nodesOf(...indices).some((e) => e.kind === 'score' || (e.kind === 'index' && e.name === 'q'));

/**
 * Adds a Vec to the elements a load reads. Lanes from `valid` on hold zeros and are not written; lanes that meet in one
 * element are added one after the other.
 *
 * @param base address of the gradient's first element.
 */
export function emitScatter(
  v: Vectors,
  base: Local<'i32'>,
  tensor: TensorLike,
  indices: readonly Value[],
  amount: Vec,
  valid: Local<'i32'>,
): void {
  const { f } = v;
  const place = placeOf(v, tensor, indices);
  const at = f.let(i32.add(base, i32.mul(place.scalar, 4)), 'grad');
  if (place.lanes === null) {
    f.do(f32.store(at, f32.add(f32.load(at), sumOf(v, amount))));
    return;
  }
  const { lanes } = place;
  const oneByOne = (): void => {
    for (let lane = 0; lane < v.shape.lanes; lane++)
      f.if(i32.lt_s(lane, valid), () => {
        const offset = i32.mul(i32x4.extract_lane(lanes[lane >> 2], lane & 3), 4);
        const to = f.let(i32.add(at, offset), 'to');
        const x = f32x4.extract_lane(amount[lane >> 2], lane & 3);
        f.do(f32.store(to, f32.add(f32.load(to), x)));
      });
  };
  if (place.start === null) {
    oneByOne();
    return;
  }
  const from = f.let(i32.add(base, i32.mul(place.start, 4)), 'from');
  f.if(i32.lt_s(valid, v.shape.lanes), oneByOne, () =>
    v.store(
      from,
      v.map((x, y) => f32x4.add(x, y), v.load(from), amount),
    ),
  );
}

/** All lanes added up. */
function sumOf(v: Vectors, x: Vec) {
  const total = v.f.let(
    x.slice(1).reduce<V128>((a, b) => f32x4.add(a, b), x[0]),
    'total',
  );
  const lane = (i: number) => f32x4.extract_lane(total, i);
  return f32.add(f32.add(lane(0), lane(1)), f32.add(lane(2), lane(3)));
}

/** Zeros from lane `valid` on. */
export const keepValid = (v: Vectors, x: Vec, isValid: Vec): Vec => v.map((a, b) => v128.and(a, b), x, isValid);
