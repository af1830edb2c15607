/** Score and mask expressions as WGSL functions, lowered through the shared walker. */
import type { DType } from '../../../core/dtype.ts';
import type { TensorLike } from '../../../core/tensor.ts';
import type { Expr } from '../../../mods/expr.ts';
import { lower, type Target } from '../../../mods/lower.ts';
import type { ExprType, OpName } from '../../../mods/ops.ts';
import type { ModuleBuilder } from './module.ts';
import { float } from './text.ts';

const WGSL_TYPE: Readonly<Record<ExprType, string>> = { f32: 'f32', i32: 'i32', bool: 'bool' };

const call =
  (name: string) =>
  (...args: string[]): string =>
    `${name}(${args.join(', ')})`;
const infix =
  (op: string) =>
  (a: string, b: string): string =>
    `(${a} ${op} ${b})`;

/** Floor division and remainder; a divisor of 0 gives 0. */
const IDIV = `fn tw_idiv(a: i32, b: i32) -> i32 {
  if (b == 0) { return 0; }
  let q = a / b;
  return select(q, q - 1, q * b != a && ((a < 0) != (b < 0)));
}`;
const IMOD = `fn tw_imod(a: i32, b: i32) -> i32 {
  if (b == 0) { return 0; }
  let r = a % b;
  return select(r, r + b, r != 0 && ((r < 0) != (b < 0)));
}`;
/** WGSL promises only an absolute error of about 1e-5 for tanh, and some drivers overflow: series near 0, exp elsewhere. */
const TANH = `fn tw_tanh(x: f32) -> f32 {
  let a = abs(x);
  let y = x * x;
  let near = x * (1.0 + y * (-0.33333333 + y * (0.13333334 + y * (-0.053968254 + y * (0.021869488 + y * -0.0088632356)))));
  let far = 1.0 - 2.0 / (exp(2.0 * min(a, 12.0)) + 1.0);
  return select(sign(x) * far, near, a < 0.35);
}`;
/** Truncates and saturates; NaN gives 0. Bits are compared because drivers may assume that x == x. */
const TO_I32 = `fn tw_toi32(x: f32) -> i32 {
  let nan = (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
  let y = select(i32(clamp(x, -2147483648.0, 2147483520.0)), 2147483647, x >= 2147483648.0);
  return select(y, 0, nan);
}`;

function opsFor(m: ModuleBuilder): { readonly [K in OpName]: (...args: string[]) => string } {
  const helper = (name: string, text: string) => call(m.fn(name, text));
  const shift = (op: string) => (a: string, b: string) => `(${a} ${op} (u32(${b}) & 31u))`;
  return {
    add: infix('+'),
    sub: infix('-'),
    mul: infix('*'),
    div: infix('/'),
    min: call('min'),
    max: call('max'),
    neg: (x) => `(-${x})`,
    abs: call('abs'),
    exp: call('exp'),
    log: call('log'),
    tanh: (x) => helper('tw_tanh', TANH)(x),
    sqrt: call('sqrt'),
    floor: call('floor'),
    round: call('round'),
    detach: (x) => x,
    select: (p, x, y) => `select(${y}, ${x}, ${p})`,
    iadd: infix('+'),
    isub: infix('-'),
    imul: infix('*'),
    idiv: (a, b) => helper('tw_idiv', IDIV)(a, b),
    imod: (a, b) => helper('tw_imod', IMOD)(a, b),
    imin: call('min'),
    imax: call('max'),
    iand: infix('&'),
    ior: infix('|'),
    ixor: infix('^'),
    ishl: shift('<<'),
    ishr: shift('>>'),
    iabs: call('abs'),
    iselect: (p, x, y) => `select(${y}, ${x}, ${p})`,
    toF32: call('f32'),
    toI32: (x) => helper('tw_toi32', TO_I32)(x),
    lt: infix('<'),
    le: infix('<='),
    eq: infix('=='),
    ilt: infix('<'),
    ile: infix('<='),
    ieq: infix('=='),
    and: infix('&&'),
    or: infix('||'),
    not: (p) => `(!${p})`,
  };
}

/** Side k's elements are bound as this type; smaller ones are cut out of words. */
const WORDS: Readonly<Record<DType, string>> = {
  f32: 'array<f32>',
  i32: 'array<i32>',
  f16: 'array<u32>',
  bf16: 'array<u32>',
  u8: 'array<u32>',
  f64: 'array<u32>',
};

export const sideName = (k: number): string => `side${k}`;

/** The one buffer of all sides, where they share one. */
export const GATHERED = 'sides';

/** Code for element `at` (a u32 expression) of side k. */
function loadSide(m: ModuleBuilder, dtype: DType, k: number, at: string): string {
  const first = m.sidePlaces?.[k];
  const words = first === undefined ? m.storage(sideName(k), WORDS[dtype]) : m.storage(GATHERED, 'array<u32>');
  const word = (i: string): string => `${words}[${first === undefined ? i : `(${i}) + ${first}u`}]`;
  switch (dtype) {
    case 'f32':
    case 'i32':
      return first === undefined ? word(at) : `bitcast<${dtype}>(${word(at)})`;
    case 'f16':
      return `unpack2x16float(${word(`${at} >> 1u`)} >> ((${at} & 1u) * 16u)).x`;
    case 'bf16':
      return `bitcast<f32>((${word(`${at} >> 1u`)} >> ((${at} & 1u) * 16u)) << 16u)`;
    case 'u8':
      return `(((${word(`${at} >> 2u`)} >> ((${at} & 3u) * 8u)) & 255u) != 0u)`;
    default:
      throw new Error(`no ${dtype} elements in WGSL`);
  }
}

/** C-order position of a load, as i32 code. */
export function positionOf(tensor: TensorLike, indices: readonly string[]): string {
  let stride = 1;
  const terms: string[] = [];
  for (let axis = tensor.shape.length - 1; axis >= 0; axis--) {
    if (tensor.shape[axis] !== 1) terms.push(stride === 1 ? indices[axis] : `${indices[axis]} * ${stride}`);
    stride *= tensor.shape[axis];
  }
  return terms.length === 0 ? '0' : terms.join(' + ');
}

/** What every expression function takes; `score` is the scaled q.k. */
const SIGNATURE = 'score: f32, b: i32, h: i32, q: i32, kv: i32, lenQ: i32, lenK: i32';

/**
 * Declares `fn name(score, b, h, q, kv, lenQ, lenK)` that computes the expression. Each shared node is computed once.
 * Infinite constants come from the parameter `negInf`, because WGSL refuses them in constant expressions.
 */
export function expressionFn(m: ModuleBuilder, name: string, expr: Expr, sides: readonly TensorLike[]): string {
  const { lines, value } = expressionCode(m, expr, sides);
  return m.fn(
    name,
    `fn ${name}(${SIGNATURE}) -> ${WGSL_TYPE[expr.type]} {\n${lines.join('\n')}\n  return ${value};\n}`,
  );
}

function expressionCode(m: ModuleBuilder, expr: Expr, sides: readonly TensorLike[]) {
  const lines: string[] = [];
  const named = (value: string): string => {
    const name = `t${lines.length}`;
    lines.push(`  let ${name} = ${value};`);
    return name;
  };
  const raw = opsFor(m);
  const ops = Object.fromEntries(
    Object.entries(raw).map(([op, emit]) => [op, (...args: string[]) => named(emit(...args))]),
  ) as unknown as Target<string>['ops'];
  const target: Target<string> = {
    ops,
    constant: (type, value) => literal(m, type, value),
    score: () => 'score',
    index: (index) => index,
    load: (tensor, _type, indices) => {
      const at = named(`u32(${positionOf(tensor, indices)})`);
      return named(loadSide(m, tensor.dtype, sides.indexOf(tensor), at));
    },
  };
  const value = lower(expr, target);
  return { lines, value };
}

function literal(m: ModuleBuilder, type: ExprType, value: number): string {
  if (type === 'bool') return value !== 0 ? 'true' : 'false';
  if (type === 'i32') return value < 0 ? `(${value})` : String(value);
  const x = Math.fround(value);
  if (Number.isFinite(x)) return float(x);
  const negInf = m.param('negInf', 'f32');
  return Number.isNaN(x) ? `(${negInf} - ${negInf})` : x < 0 ? negInf : `(-${negInf})`;
}
