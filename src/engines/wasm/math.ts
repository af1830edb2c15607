/**
 * Score and mask expressions as SIMD code. A value is one number for all lanes (`scalar`) or one a lane; an operation on
 * scalars stays scalar, and one with a lane operand widens the others. Booleans are 0 or 1 as scalars, all bits as lanes.
 */
import type { TensorLike } from '../../core/tensor.ts';
import type { IndexName } from '../../mods/expr.ts';
import type { Target } from '../../mods/lower.ts';
import type { ExprType, OpName } from '../../mods/ops.ts';
import type { Local } from './asm/func.ts';
import {
  type F32,
  f32,
  f32Const,
  f32x4,
  type I32,
  i32,
  i32Const,
  i32x4,
  select,
  type V128,
  type Val,
  v128,
} from './asm/values.ts';
import { exp, log, tanh } from './functions.ts';
import { loadSide, type Side } from './sides.ts';
import { ints, type Vec, type Vectors } from './tile.ts';

export interface Scalar {
  readonly kind: 'scalar';
  readonly type: ExprType;
  readonly value: Val;
  readonly constant?: number;
}
export interface Lanes {
  readonly kind: 'lanes';
  readonly type: ExprType;
  readonly vec: Vec;
  /** Lane i is start + i, as long as the lane is inside the sequence. */
  readonly start?: I32;
}
export type Value = Scalar | Lanes;

/** What the loops around an expression know. */
export interface Surroundings {
  readonly score: Vec;
  readonly indices: Readonly<Record<IndexName, Value>>;
  readonly sideOf: (tensor: TensorLike) => Side;
  /** Lanes past the end may load anything: no loaded value is used as an index. */
  readonly mayOverrun: boolean;
}

type OnScalars = (...values: never[]) => Val;
type OnLanes = (...registers: V128[]) => V128;

export function laneTarget(v: Vectors, at: Surroundings): Target<Value> {
  const { f } = v;
  const scalar = (type: ExprType, value: Val): Scalar => ({ kind: 'scalar', type, value: f.let(value) });
  const widen = (x: Value): Vec => (x.kind === 'lanes' ? x.vec : widenScalar(v, x));

  /** An operation by its scalar and its register form. */
  const both =
    (type: ExprType, onScalars: OnScalars, onLanes: OnLanes) =>
    (...args: Value[]): Value =>
      args.every((a) => a.kind === 'scalar')
        ? scalar(type, (onScalars as (...values: Val[]) => Val)(...args.map((a) => a.value)))
        : { kind: 'lanes', type, vec: v.map(onLanes, ...args.map(widen)) };

  /** Both operands and the result are functions of whole Vecs; a scalar goes through one register. */
  const elementary =
    (apply: (v: Vectors, x: Vec) => Vec) =>
    (x: Value): Value => {
      if (x.kind === 'lanes') return { kind: 'lanes', type: 'f32', vec: apply(v, x.vec) };
      const one = v.narrow;
      return scalar('f32', f32x4.extract_lane(apply(one, one.splat(x.value as F32))[0], 0));
    };

  /** Operations without a SIMD form, lane by lane. */
  const byLane =
    (apply: (x: Local<'i32'>, y: Local<'i32'>) => I32) =>
    (a: Value, b: Value): Value => {
      if (a.kind === 'scalar' && b.kind === 'scalar')
        return scalar('i32', apply(a.value as Local<'i32'>, b.value as Local<'i32'>));
      const [x, y] = [widen(a), widen(b)];
      const vec = x.map((register, i) => {
        const out = f.let(ints(0), 'lanes');
        for (let lane = 0; lane < 4; lane++) {
          const result = apply(f.let(i32x4.extract_lane(register, lane)), f.let(i32x4.extract_lane(y[i], lane)));
          f.set(out, i32x4.replace_lane(out, result, lane));
        }
        return out;
      });
      return { kind: 'lanes', type: 'i32', vec };
    };

  const shifted = (onScalars: OnScalars, onLanes: (x: V128, n: I32) => V128, slow: (x: I32, n: I32) => I32) => {
    const lanes = byLane(slow);
    return (a: Value, n: Value): Value => {
      if (n.kind === 'lanes') return lanes(a, n);
      if (a.kind === 'scalar') return both('i32', onScalars, (x) => x)(a, n);
      return { kind: 'lanes', type: 'i32', vec: v.map((x) => onLanes(x, n.value as I32), a.vec) };
    };
  };

  /** Moves a run of consecutive lanes along with what is added to it. */
  const moved = (op: 'iadd' | 'isub') => {
    const plain = op === 'iadd' ? both('i32', i32.add, i32x4.add) : both('i32', i32.sub, i32x4.sub);
    return (a: Value, b: Value): Value => {
      const out = plain(a, b);
      if (out.kind === 'scalar') return out;
      if (a.kind === 'lanes' && a.start && b.kind === 'scalar')
        return { ...out, start: f.let(i32[op === 'iadd' ? 'add' : 'sub'](a.start, b.value as I32)) };
      if (op === 'iadd' && b.kind === 'lanes' && b.start && a.kind === 'scalar')
        return { ...out, start: f.let(i32.add(b.start, a.value as I32)) };
      return out;
    };
  };

  const divide = byLane((x, y) => floorDivide(x, y));
  const modulo = byLane((x, y) => select(i32.eqz(y), i32Const(0), i32.sub(x, i32.mul(floorDivide(x, y), y))));
  const ops: { readonly [K in OpName]: (...args: Value[]) => Value } = {
    add: both('f32', f32.add, f32x4.add),
    sub: both('f32', f32.sub, f32x4.sub),
    mul: both('f32', f32.mul, f32x4.mul),
    div: both('f32', f32.div, f32x4.div),
    min: both('f32', f32.min, f32x4.min),
    max: both('f32', f32.max, f32x4.max),
    neg: both('f32', f32.neg, f32x4.neg),
    abs: both('f32', f32.abs, f32x4.abs),
    exp: elementary(exp),
    log: elementary(log),
    tanh: elementary(tanh),
    sqrt: both('f32', f32.sqrt, f32x4.sqrt),
    floor: both('f32', f32.floor, f32x4.floor),
    round: both('f32', f32.nearest, f32x4.nearest),
    detach: (x) => x,
    select: both('f32', choose, (p, x, y) => v128.bitselect(x, y, p)),
    iadd: moved('iadd'),
    isub: moved('isub'),
    imul: both('i32', i32.mul, i32x4.mul),
    idiv: (a, b) => {
      const bits = powerOfTwo(b);
      return bits === null ? divide(a, b) : ops.ishr(a, constant('i32', bits));
    },
    imod: (a, b) =>
      powerOfTwo(b) === null ? modulo(a, b) : ops.iand(a, constant('i32', ((b as Scalar).constant as number) - 1)),
    imin: both('i32', (x: I32, y: I32) => choose(i32.lt_s(x, y), x, y), i32x4.min_s),
    imax: both('i32', (x: I32, y: I32) => choose(i32.lt_s(x, y), y, x), i32x4.max_s),
    iand: both('i32', i32.and, v128.and),
    ior: both('i32', i32.or, v128.or),
    ixor: both('i32', i32.xor, v128.xor),
    ishl: shifted(i32.shl, i32x4.shl, i32.shl),
    ishr: shifted(i32.shr_s, i32x4.shr_s, i32.shr_s),
    iabs: both('i32', (x: I32) => i32.sub(i32.xor(x, i32.shr_s(x, 31)), i32.shr_s(x, 31)), i32x4.abs),
    iselect: both('i32', choose, (p, x, y) => v128.bitselect(x, y, p)),
    toF32: both('f32', f32.convert_i32_s, f32x4.convert_i32x4_s),
    toI32: both('i32', i32.trunc_sat_f32_s, i32x4.trunc_sat_f32x4_s),
    lt: both('bool', f32.lt, f32x4.lt),
    le: both('bool', f32.le, f32x4.le),
    eq: both('bool', f32.eq, f32x4.eq),
    ilt: both('bool', i32.lt_s, i32x4.lt_s),
    ile: both('bool', i32.le_s, i32x4.le_s),
    ieq: both('bool', i32.eq, i32x4.eq),
    and: both('bool', i32.and, v128.and),
    or: both('bool', i32.or, v128.or),
    not: both('bool', i32.eqz, v128.not),
  };

  const constant = (type: ExprType, x: number): Scalar => ({
    kind: 'scalar',
    type,
    value: type === 'f32' ? f32Const(x) : i32Const(x),
    constant: x,
  });

  return {
    ops,
    constant,
    score: () => ({ kind: 'lanes', type: 'f32', vec: at.score }),
    index: (name) => at.indices[name],
    load: (tensor, type, indices) => loadSide(v, at.sideOf(tensor), tensor, type, indices, at.mayOverrun),
  };
}

/** Any value as one register a four lanes. */
export function widenScalar(v: Vectors, { type, value, constant }: Scalar): Vec {
  if (constant !== undefined)
    return type === 'f32' ? v.constant(constant) : v.bits(type === 'bool' ? -constant : constant);
  if (type === 'f32') return v.splat(value as F32);
  const bits = type === 'bool' ? i32.sub(0, value as I32) : (value as I32);
  return v.repeat(v.f.let(i32x4.splat(bits)));
}

const choose = <T extends 'i32' | 'f32'>(p: I32, x: Val<T>, y: Val<T>): Val<T> => select(p, x, y);

/** log2 of a positive constant power of two, else null. */
function powerOfTwo(x: Value): number | null {
  const n = x.kind === 'scalar' ? x.constant : undefined;
  return n !== undefined && n > 0 && Number.isInteger(Math.log2(n)) ? Math.log2(n) : null;
}

/** floor(x / y); 0 for y = 0. The divisor is never 0 nor -1, on which the instruction traps. */
function floorDivide(x: Local<'i32'>, y: Local<'i32'>): I32 {
  const safe = select(i32.lt_u(i32.add(y, 1), 2), i32Const(1), y);
  const quotient = i32.div_s(x, safe);
  const rest = i32.sub(x, i32.mul(quotient, safe));
  const below = i32.and(i32.ne(rest, 0), i32.lt_s(i32.xor(rest, safe), 0));
  const general = i32.sub(quotient, below);
  return select(i32.eqz(y), i32Const(0), select(i32.eq(y, -1), i32.sub(0, x), general));
}
