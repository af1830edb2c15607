/**
 * The operations of the score and mask language: one record per op, with its types, meaning, interval and derivative.
 * Nothing else in the library says what an op means; an engine adds only op -> instruction.
 *
 * Values are numbers; booleans are 0 and 1. f32 ops are given in real arithmetic (engines round to f32), i32 ops wrap.
 */
export type ExprType = 'f32' | 'i32' | 'bool';

/**
 * A closed interval that holds every value an expression takes over a tile. Ends of NaN say that nothing is known, not
 * even that the value is a number; comparisons with such an interval are undecided by themselves.
 */
export interface Interval {
  readonly lo: number;
  readonly hi: number;
}

/** The arithmetic a derivative is written in, over any representation of expressions. */
export interface Calculus<E> {
  constant(value: number): E;
  add(a: E, b: E): E;
  sub(a: E, b: E): E;
  mul(a: E, b: E): E;
  div(a: E, b: E): E;
  neg(a: E): E;
  sqrt(a: E): E;
  /** a < b ? then : otherwise */
  ifLess(a: E, b: E, then: E, otherwise: E): E;
  select(condition: E, then: E, otherwise: E): E;
}

export interface Op {
  readonly args: readonly ExprType[];
  readonly result: ExprType;
  readonly evaluate: (...args: number[]) => number;
  /** Interval of the result given intervals of the arguments; may be too wide, never too narrow. */
  readonly range: (...args: Interval[]) => Interval;
  /**
   * Partial derivatives with respect to each argument (null where an argument is not f32 or the derivative is zero).
   * The record itself is null for an f32 op that has none; non-f32 results never carry a derivative.
   */
  readonly derivative: (<E>(c: Calculus<E>, args: readonly E[], out: E) => readonly (E | null)[]) | null;
}

const UNKNOWN: Interval = { lo: Number.NaN, hi: Number.NaN };
const UNDECIDED: Interval = { lo: 0, hi: 1 };
const I32_ALL: Interval = { lo: -(2 ** 31), hi: 2 ** 31 - 1 };

const at = (value: number): Interval => ({ lo: value, hi: value });
const isPoint = (a: Interval): boolean => a.lo === a.hi;

/** What is known of a value when only its type is. */
export const unknownOf = (type: ExprType): Interval =>
  type === 'bool' ? UNDECIDED : type === 'i32' ? I32_ALL : UNKNOWN;

const F32_MAX = (2 - 2 ** -23) * 2 ** 127;
/** Interval from candidate extremes. Past f32 there are infinities, which make NaN further on, so nothing is known. */
const hull = (...xs: number[]): Interval =>
  xs.every((x) => Math.abs(x) <= F32_MAX) ? { lo: Math.min(...xs), hi: Math.max(...xs) } : UNKNOWN;
/** Rounding to f32 is monotone, so an end that f32 holds exactly stays; others move out by more than a rounding. */
const isExact = (x: number): boolean => Number.isInteger(x) && Math.abs(x) <= 2 ** 24;
const rounded = (r: Interval): Interval => ({
  lo: isExact(r.lo) ? r.lo : r.lo - Math.abs(r.lo) * 1e-6 - 2 ** -126,
  hi: isExact(r.hi) ? r.hi : r.hi + Math.abs(r.hi) * 1e-6 + 2 ** -126,
});
/** Engines only approximate quotients and transcendental functions. */
const approximated = (r: Interval): Interval => ({
  lo: r.lo - Math.abs(r.lo) * 1e-4 - 1e-6,
  hi: r.hi + Math.abs(r.hi) * 1e-4 + 1e-6,
});
/** An i32 result that may wrap around is unknown. */
const wrapped = (r: Interval): Interval =>
  r.lo < I32_ALL.lo || r.hi > I32_ALL.hi || Number.isNaN(r.lo + r.hi) ? I32_ALL : r;

const increasing =
  (f: (x: number) => number): Op['range'] =>
  (a) =>
    approximated(hull(f(a.lo), f(a.hi)));
const corners = (f: (x: number, y: number) => number, a: Interval, b: Interval): number[] => [
  f(a.lo, b.lo),
  f(a.lo, b.hi),
  f(a.hi, b.lo),
  f(a.hi, b.hi),
];
const times = (x: number, y: number): number => x * y;
const products = (a: Interval, b: Interval): Interval => hull(...corners(times, a, b));

function f32Unary(evaluate: (x: number) => number, range: Op['range'], derivative: Op['derivative']): Op {
  return { args: ['f32'], result: 'f32', evaluate, range, derivative };
}
function f32Binary(evaluate: (x: number, y: number) => number, range: Op['range'], derivative: Op['derivative']): Op {
  return { args: ['f32', 'f32'], result: 'f32', evaluate, range, derivative };
}
function i32Binary(evaluate: (x: number, y: number) => number, range: Op['range']): Op {
  return { args: ['i32', 'i32'], result: 'i32', evaluate, range: (a, b) => wrapped(range(a, b)), derivative: null };
}
function compare(type: 'f32' | 'i32', evaluate: (x: number, y: number) => boolean, range: Op['range']): Op {
  return { args: [type, type], result: 'bool', evaluate: (x, y) => Number(evaluate(x, y)), range, derivative: null };
}

const less: Op['range'] = (a, b) => (a.hi < b.lo ? at(1) : a.lo >= b.hi ? at(0) : UNDECIDED);
const lessEqual: Op['range'] = (a, b) => (a.hi <= b.lo ? at(1) : a.lo > b.hi ? at(0) : UNDECIDED);
const equal: Op['range'] = (a, b) =>
  isPoint(a) && isPoint(b) && a.lo === b.lo ? at(1) : a.hi < b.lo || a.lo > b.hi ? at(0) : UNDECIDED;
const minOf: Op['range'] = (a, b) => ({ lo: Math.min(a.lo, b.lo), hi: Math.min(a.hi, b.hi) });
const maxOf: Op['range'] = (a, b) => ({ lo: Math.max(a.lo, b.lo), hi: Math.max(a.hi, b.hi) });
const absOf: Op['range'] = (a) => ({
  lo: a.lo <= 0 && a.hi >= 0 ? 0 : Math.min(Math.abs(a.lo), Math.abs(a.hi)),
  hi: Math.max(Math.abs(a.lo), Math.abs(a.hi)),
});
/** Only points are followed through bit tricks. */
const pointwise =
  (f: (x: number, y: number) => number): Op['range'] =>
  (a, b) =>
    isPoint(a) && isPoint(b) ? at(f(a.lo, b.lo)) : I32_ALL;
/** Division and remainder round towards minus infinity, so that kv / block is the block of kv on both sides of zero. */
const floorQuotient = (x: number, y: number): number => (y === 0 ? 0 : Math.floor(x / y));
const floorDiv = (x: number, y: number): number => floorQuotient(x, y) | 0;
const floorMod = (x: number, y: number): number => (y === 0 ? 0 : (x - Math.floor(x / y) * y) | 0);
const saturate = (x: number): number => Math.min(Math.max(x, I32_ALL.lo), I32_ALL.hi);
/** Half to even, as IEEE rounding instructions do. */
const roundEven = (x: number): number => {
  const f = Math.floor(x);
  const d = x - f;
  return d > 0.5 || (d === 0.5 && f % 2 !== 0) ? f + 1 : f;
};

const RECORDS = {
  // f32
  add: f32Binary(
    (x, y) => x + y,
    (a, b) => rounded(hull(a.lo + b.lo, a.hi + b.hi)),
    (c) => [c.constant(1), c.constant(1)],
  ),
  sub: f32Binary(
    (x, y) => x - y,
    (a, b) => rounded(hull(a.lo - b.hi, a.hi - b.lo)),
    (c) => [c.constant(1), c.constant(-1)],
  ),
  mul: f32Binary(
    (x, y) => x * y,
    (a, b) => rounded(products(a, b)),
    (_, [x, y]) => [y, x],
  ),
  div: f32Binary(
    (x, y) => x / y,
    (a, b) => (b.lo > 0 || b.hi < 0 ? approximated(products(a, { lo: 1 / b.hi, hi: 1 / b.lo })) : UNKNOWN),
    (c, [, y], out) => [c.div(c.constant(1), y), c.neg(c.div(out, y))],
  ),
  min: f32Binary(Math.min, minOf, (c, [x, y]) => [
    c.ifLess(y, x, c.constant(0), c.constant(1)),
    c.ifLess(y, x, c.constant(1), c.constant(0)),
  ]),
  max: f32Binary(Math.max, maxOf, (c, [x, y]) => [
    c.ifLess(x, y, c.constant(0), c.constant(1)),
    c.ifLess(x, y, c.constant(1), c.constant(0)),
  ]),
  neg: f32Unary(
    (x) => -x,
    (a) => ({ lo: -a.hi, hi: -a.lo }),
    (c) => [c.constant(-1)],
  ),
  abs: f32Unary(Math.abs, absOf, (c, [x]) => [c.ifLess(x, c.constant(0), c.constant(-1), c.constant(1))]),
  exp: f32Unary(Math.exp, increasing(Math.exp), (_c, _a, out) => [out]),
  log: f32Unary(
    Math.log,
    (a) => (a.lo > 0 ? approximated(hull(Math.log(a.lo), Math.log(a.hi))) : UNKNOWN),
    (c, [x]) => [c.div(c.constant(1), x)],
  ),
  tanh: f32Unary(Math.tanh, increasing(Math.tanh), (c, _a, out) => [c.sub(c.constant(1), c.mul(out, out))]),
  sqrt: f32Unary(
    Math.sqrt,
    (a) => (a.lo >= 0 ? approximated(hull(Math.sqrt(a.lo), Math.sqrt(a.hi))) : UNKNOWN),
    (c, _a, out) => [c.div(c.constant(0.5), out)],
  ),
  floor: f32Unary(Math.floor, (a) => hull(Math.floor(a.lo), Math.floor(a.hi)), null),
  round: f32Unary(roundEven, (a) => hull(roundEven(a.lo), roundEven(a.hi)), null),
  /** The value of its argument with a derivative of zero. */
  detach: f32Unary(
    (x) => x,
    (a) => a,
    () => [null],
  ),
  select: {
    args: ['bool', 'f32', 'f32'],
    result: 'f32',
    evaluate: (p, x, y) => (p ? x : y),
    range: (p, a, b) => (p.lo === 1 ? a : p.hi === 0 ? b : { lo: Math.min(a.lo, b.lo), hi: Math.max(a.hi, b.hi) }),
    derivative: (c, [p]) => [
      null,
      c.select(p, c.constant(1), c.constant(0)),
      c.select(p, c.constant(0), c.constant(1)),
    ],
  },
  // i32
  iadd: i32Binary(
    (x, y) => (x + y) | 0,
    (a, b) => ({ lo: a.lo + b.lo, hi: a.hi + b.hi }),
  ),
  isub: i32Binary(
    (x, y) => (x - y) | 0,
    (a, b) => ({ lo: a.lo - b.hi, hi: a.hi - b.lo }),
  ),
  imul: i32Binary(Math.imul, products),
  idiv: i32Binary(floorDiv, (a, b) => (b.lo > 0 || b.hi < 0 ? hull(...corners(floorQuotient, a, b)) : I32_ALL)),
  imod: i32Binary(floorMod, (a, b) =>
    !isPoint(b) || b.lo <= 0
      ? I32_ALL
      : floorDiv(a.lo, b.lo) === floorDiv(a.hi, b.lo)
        ? { lo: floorMod(a.lo, b.lo), hi: floorMod(a.hi, b.lo) }
        : { lo: 0, hi: b.lo - 1 },
  ),
  imin: i32Binary(Math.min, minOf),
  imax: i32Binary(Math.max, maxOf),
  iand: i32Binary(
    (x, y) => x & y,
    // Bits of a number that is not negative cap the result.
    (a, b) =>
      isPoint(a) && isPoint(b)
        ? at(a.lo & b.lo)
        : a.lo >= 0 || b.lo >= 0
          ? { lo: 0, hi: Math.min(a.lo >= 0 ? a.hi : I32_ALL.hi, b.lo >= 0 ? b.hi : I32_ALL.hi) }
          : I32_ALL,
  ),
  ior: i32Binary(
    (x, y) => x | y,
    pointwise((x, y) => x | y),
  ),
  ixor: i32Binary(
    (x, y) => x ^ y,
    pointwise((x, y) => x ^ y),
  ),
  /** Shift counts are taken modulo 32. */
  ishl: i32Binary(
    (x, y) => x << y,
    pointwise((x, y) => x << y),
  ),
  ishr: i32Binary(
    (x, y) => x >> y,
    (a, b) => (isPoint(b) ? { lo: a.lo >> b.lo, hi: a.hi >> b.lo } : I32_ALL),
  ),
  iabs: {
    args: ['i32'],
    result: 'i32',
    evaluate: (x) => Math.abs(x) | 0,
    range: (a) => wrapped(absOf(a)),
    derivative: null,
  },
  iselect: {
    args: ['bool', 'i32', 'i32'],
    result: 'i32',
    evaluate: (p, x, y) => (p ? x : y),
    range: (p, a, b) => (p.lo === 1 ? a : p.hi === 0 ? b : { lo: Math.min(a.lo, b.lo), hi: Math.max(a.hi, b.hi) }),
    derivative: null,
  },
  // conversions
  toF32: { args: ['i32'], result: 'f32', evaluate: (x) => x, range: rounded, derivative: () => [null] },
  /** Truncates towards zero; values outside i32 saturate, NaN gives 0. */
  toI32: {
    args: ['f32'],
    result: 'i32',
    // The integer zero has no sign.
    evaluate: (x) => (Number.isNaN(x) ? 0 : Math.trunc(saturate(x)) | 0),
    range: (a) => (a.lo <= a.hi ? { lo: saturate(Math.trunc(a.lo)), hi: saturate(Math.trunc(a.hi)) } : I32_ALL),
    derivative: null,
  },
  // comparisons and logic
  lt: compare('f32', (x, y) => x < y, less),
  le: compare('f32', (x, y) => x <= y, lessEqual),
  eq: compare('f32', (x, y) => x === y, equal),
  ilt: compare('i32', (x, y) => x < y, less),
  ile: compare('i32', (x, y) => x <= y, lessEqual),
  ieq: compare('i32', (x, y) => x === y, equal),
  and: {
    args: ['bool', 'bool'],
    result: 'bool',
    evaluate: (x, y) => x & y,
    range: (a, b) => ({ lo: Math.min(a.lo, b.lo), hi: Math.min(a.hi, b.hi) }),
    derivative: null,
  },
  or: {
    args: ['bool', 'bool'],
    result: 'bool',
    evaluate: (x, y) => x | y,
    range: (a, b) => ({ lo: Math.max(a.lo, b.lo), hi: Math.max(a.hi, b.hi) }),
    derivative: null,
  },
  not: {
    args: ['bool'],
    result: 'bool',
    evaluate: (x) => 1 - x,
    range: (a) => ({ lo: 1 - a.hi, hi: 1 - a.lo }),
    derivative: null,
  },
} as const satisfies Record<string, Op>;

export type OpName = keyof typeof RECORDS;
export const OPS: Readonly<Record<OpName, Op>> = RECORDS;
