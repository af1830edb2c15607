/**
 * What users write masks and modifiers with. Numbers are lifted to constants of the type the other arguments have, so
 * `sub(at.q, 1)` is i32 and `mul(at.score, 0.5)` is f32; f32 and i32 mix only through `toF32` and `toI32`.
 *
 * Every builder throws an ExpressionError that names itself, the argument, and what it expected and got.
 */
import { ExpressionError } from '../core/errors.ts';
import type { TensorLike } from '../core/tensor.ts';
import { apply, type Bool, constant, type Expr, type F32, type I32, load as loadAt } from './expr.ts';
import { type ExprType, OPS, type OpName } from './ops.ts';

export { constant };

/** Two numbers of one type; the op is f32 when both are plain JavaScript numbers. */
export interface Arithmetic {
  (x: I32, y: I32 | number): I32;
  (x: number, y: I32): I32;
  (x: F32 | number, y: F32 | number): F32;
}
/** One number. */
export interface Unary {
  (x: I32): I32;
  (x: F32 | number): F32;
}
/** Two numbers of one type, compared. */
export interface Comparison {
  (x: I32, y: I32 | number): Bool;
  (x: number, y: I32): Bool;
  (x: F32 | number, y: F32 | number): Bool;
}
type Integers = (x: I32 | number, y: I32 | number) => I32;
type Floats = (x: F32 | number) => F32;

type Argument = Expr | number;

const got = (x: unknown): string =>
  typeof x === 'number'
    ? `the number ${x}`
    : typeof x === 'object' && x !== null && 'kind' in x && 'type' in x
      ? `${String(x.type)}`
      : x === null
        ? 'null'
        : typeof x;

/** An expression of the type; numbers become constants, everything else must have the type already. */
function lift<T extends ExprType>(name: string, position: number, x: unknown, type: T): Expr<T> {
  if (typeof x === 'number' && type !== 'bool') {
    if (type === 'i32' && (!Number.isInteger(x) || Math.abs(x) > 2 ** 31 - 1))
      throw new ExpressionError(`${name}: expected an integer that fits i32 as argument ${position}, got ${x}`);
    return constant(type, x);
  }
  if (typeof x === 'boolean' && type === 'bool') return constant(type, Number(x));
  const e = x as Expr<T>;
  if (typeof x === 'object' && x !== null && 'kind' in x && e.type === type) return e;
  throw new ExpressionError(`${name}: expected ${type} as argument ${position}, got ${got(x)}`);
}

/** The numeric type of the arguments: that of the first expression, f32 when all are plain numbers. */
function typeOf(name: string, args: readonly Argument[]): 'f32' | 'i32' {
  const types = new Set(args.flatMap((x) => (typeof x === 'number' ? [] : [(x as Expr | undefined)?.type])));
  if (types.has('f32') && types.has('i32'))
    throw new ExpressionError(
      `${name}: expected arguments of one type, got ${args.map(got).join(' and ')}; convert with toF32 or toI32`,
    );
  return types.has('i32') ? 'i32' : 'f32';
}

const call = (name: string, op: OpName, ...args: readonly unknown[]): Expr =>
  apply(op, ...args.map((x, i) => lift(name, i, x, OPS[op].args[i])));

/** A builder whose op depends on the type of its arguments; null where a type has none. */
const typed =
  (name: string, f32: OpName, i32: OpName | null, hint = '') =>
  (...args: Argument[]): Expr => {
    const type = typeOf(name, args);
    const op = type === 'f32' ? f32 : i32;
    if (op === null) throw new ExpressionError(`${name}: expected f32 arguments, got i32${hint}`);
    return call(name, op, ...args);
  };
const floats =
  (name: OpName): Floats =>
  (x) =>
    call(name, name, x) as F32;
const integers =
  (name: string, op: OpName): Integers =>
  (x, y) =>
    call(name, op, x, y) as I32;

/** x + y; i32 wraps. */
export const add = typed('add', 'add', 'iadd') as Arithmetic;
/** x - y; i32 wraps. */
export const sub = typed('sub', 'sub', 'isub') as Arithmetic;
/** x * y; i32 wraps. */
export const mul = typed('mul', 'mul', 'imul') as Arithmetic;
/** f32 division; integers have `idiv`. */
export const div = typed('div', 'div', null, '; use idiv') as (x: F32 | number, y: F32 | number) => F32;
/** The smaller of two; at a tie the gradient goes to x. */
export const min = typed('min', 'min', 'imin') as Arithmetic;
/** The larger of two; at a tie the gradient goes to x. */
export const max = typed('max', 'max', 'imax') as Arithmetic;
/** |x|; its derivative at 0 is 1. */
export const abs = typed('abs', 'abs', 'iabs') as Unary;
/** -x. */
export const neg = ((x: Argument) =>
  typeOf('neg', [x]) === 'i32' ? sub(0, x as I32) : call('neg', 'neg', x)) as Unary;
/** e to the power of x. */
export const exp = floats('exp');
/** Natural logarithm. */
export const log = floats('log');
/** Hyperbolic tangent. */
export const tanh = floats('tanh');
/** Square root. */
export const sqrt = floats('sqrt');
/** Towards minus infinity. Has no derivative: wrap the argument in `detach` when gradients are asked for. */
export const floor = floats('floor');
/** To the nearest integer, half to even. Has no derivative: wrap the argument in `detach` when gradients are asked for. */
export const round = floats('round');
/** Its argument, taken as constant by backward. */
export const detach = floats('detach');

/** Division towards minus infinity; by zero it gives 0. */
export const idiv = integers('idiv', 'idiv');
/** Remainder of `idiv`: it has the sign of the divisor; by zero it gives 0. */
export const mod = integers('mod', 'imod');
/** Bits that both have. */
export const bitAnd = integers('bitAnd', 'iand');
/** Bits that either has. */
export const bitOr = integers('bitOr', 'ior');
/** Bits that one alone has. */
export const bitXor = integers('bitXor', 'ixor');
/** Shift counts are taken modulo 32. */
export const shl = integers('shl', 'ishl');
/** Keeps the sign. Shift counts are taken modulo 32. */
export const shr = integers('shr', 'ishr');

/** x < y. */
export const lt = typed('lt', 'lt', 'ilt') as Comparison;
/** x <= y. */
export const le = typed('le', 'le', 'ile') as Comparison;
/** x > y. */
export const gt = ((x: Argument, y: Argument) => typed('gt', 'lt', 'ilt')(y, x)) as Comparison;
/** x >= y. */
export const ge = ((x: Argument, y: Argument) => typed('ge', 'le', 'ile')(y, x)) as Comparison;
/** x = y. */
export const eq = typed('eq', 'eq', 'ieq') as Comparison;
/** x and y differ. */
export const ne = ((x: Argument, y: Argument) => not(typed('ne', 'eq', 'ieq')(x, y) as Bool)) as Comparison;

/** True when every argument is; `and()` is true. */
export const and = (...terms: readonly (Bool | boolean)[]): Bool => chain('and', true, terms);
/** True when some argument is; `or()` is false. */
export const or = (...terms: readonly (Bool | boolean)[]): Bool => chain('or', false, terms);
/** True when x is false. */
export const not = (x: Bool | boolean): Bool => call('not', 'not', x) as Bool;

function chain(op: 'and' | 'or', empty: boolean, terms: readonly (Bool | boolean)[]): Bool {
  const lifted = terms.map((x, i) => lift(op, i, x, 'bool'));
  return lifted.length === 0 ? constant('bool', Number(empty)) : lifted.reduce((x, y) => apply(op, x, y));
}

/** A choice between two values of one type. */
export interface Select {
  (condition: Bool, then: I32, otherwise: I32 | number): I32;
  (condition: Bool, then: number, otherwise: I32): I32;
  (condition: Bool, then: Bool, otherwise: Bool): Bool;
  (condition: Bool, then: F32 | number, otherwise: F32 | number): F32;
}

/** `condition ? then : otherwise`. Both are worked out; the one not taken adds nothing to gradients, not even NaN. */
export const select = ((condition: Bool, then: Argument, otherwise: Argument): Expr => {
  if (isBool(then) && isBool(otherwise)) return or(and(condition, then), and(not(condition), otherwise));
  return call(
    'select',
    typeOf('select', [then, otherwise]) === 'i32' ? 'iselect' : 'select',
    condition,
    then,
    otherwise,
  );
}) as Select;
/** The same as `select`. */
export const where = select;

const isBool = (x: unknown): x is Bool => typeof x === 'object' && x !== null && 'type' in x && x.type === 'bool';

/** f32 of an i32, or 0 and 1 of a bool; f32 stays as it is. */
export function toF32(x: Expr | number): F32 {
  if (typeof x === 'number' || x.type === 'f32') return lift('toF32', 0, x, 'f32');
  return (x.type === 'bool' ? select(x as Bool, 1, 0) : call('toF32', 'toF32', x)) as F32;
}

/** i32 of an f32, towards zero and saturating (NaN gives 0), or 0 and 1 of a bool; i32 stays as it is. */
export function toI32(x: Expr | number): I32 {
  if (typeof x === 'number' || x.type === 'i32') return lift('toI32', 0, x, 'i32');
  return (x.type === 'bool' ? call('toI32', 'iselect', x, 1, 0) : call('toI32', 'toI32', x)) as I32;
}

/**
 * Reads one element of a side tensor: floats give f32, i32 gives i32, u8 gives bool (non-zero is true).
 *
 * @param indices one an axis; whatever values they take must stay inside it, which is proved when the call is made.
 */
export const load = <T extends ExprType = 'f32'>(
  tensor: TensorLike,
  indices: readonly (I32 | number)[],
): Expr<NoInfer<T>> =>
  loadAt<T>(
    tensor,
    indices.map((x, axis) => lift('load', axis, x, 'i32')),
  );
