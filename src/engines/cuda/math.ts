/** Score and mask expressions in PTX: the op table of this target, and loads from side tensors. */
import { DeviceError } from '../../core/errors.ts';
import { LN2, LOG2E } from '../../core/math.ts';
import { sizeOf, type TensorLike } from '../../core/tensor.ts';
import type { IndexName } from '../../mods/expr.ts';
import type { Target } from '../../mods/lower.ts';
import type { ExprType } from '../../mods/ops.ts';
import type { Assembler } from './ptx/assembler.ts';
import type { OpName as PtxOp } from './ptx/ops.ts';
import type { Reg } from './ptx/registers.ts';

/**
 * f32 and i32 values in registers of their width, booleans in predicates; or a value still in parts, which most readers
 * never put together: `base + offset`, its size, `x * by * factor`.
 */
export type Value = Reg | Sum | Size | Product;

/** i32. */
interface Sum {
  readonly kind: 'sum';
  readonly base: Reg<'b32'>;
  readonly offset: number;
}

/** i32: the size of a sum. */
interface Size {
  readonly kind: 'size';
  readonly of: Reg<'b32'> | Sum;
}

/** f32, without `by` where it is null. */
export interface Product {
  readonly kind: 'product';
  readonly x: Reg<'f32'>;
  readonly by: Reg<'f32'> | null;
  readonly factor: number;
}

/** Registers that are another one plus a number, as positions of neighbouring rows and columns are. */
const sums = new WeakMap<Reg, Sum>();

/** A register for `base + offset` that expressions know as such. */
export function offsetFrom(asm: Assembler, base: Reg<'b32'>, offset: number): Reg<'b32'> {
  const out = asm.op('add.s32', base, offset);
  sums.set(out, { kind: 'sum', base, offset });
  return out;
}

/** Positions and lengths below this, a few of them added up, are whole numbers that f32 holds, and never wrap. */
export const NEAR = 2 ** 21;
const EXACT = 2 ** 24;

export interface MathOptions {
  readonly asm: Assembler;
  /** Every length is below NEAR. */
  readonly near: boolean;
  /** f32 problems: no approximation coarser than a few units in the last place. */
  readonly precise: boolean;
  readonly sides: readonly TensorLike[];
  /** Address of each side tensor. */
  readonly sideAddress: readonly Reg<'b64'>[];
}

/** Where an expression is evaluated. Registers must not change while the scope is in use. */
export interface Point {
  readonly score: Reg<'f32'> | Product | null;
  readonly index: Readonly<Record<IndexName, Reg<'b32'>>>;
}

/**
 * A stretch of straight-line code in which equal instructions on equal registers are emitted once: rows share what
 * depends on the row, columns what depends on the column.
 */
export interface MathScope {
  at(point: Point): Target<Value>;
  /** The value in one register. */
  reg(value: Value): Reg;
  /** Element number of a load in its tensor, as `load` computes it. */
  element(tensor: TensorLike, indices: readonly Value[]): Reg<'b32'> | Reg<'b64'>;
}

export function mathScope({ asm, near, precise, sides, sideAddress }: MathOptions): MathScope {
  const known = new Map<string, Reg>();
  const constants = new Map<string, number>();
  /** Bounds of registers' sizes, where known. */
  const reaches = new Map<string, number>();

  const once = <T extends Reg>(key: string, make: () => T): T => {
    const found = known.get(key);
    if (found !== undefined) return found as T;
    const made = make();
    known.set(key, made);
    return made;
  };
  const reg = (v: Value): Reg => {
    if (!('kind' in v)) return v;
    if (v.kind === 'sum') return once(`sum ${v.base.name} ${v.offset}`, () => asm.op('add.s32', v.base, v.offset));
    if (v.kind === 'size') {
      const of = i(v.of);
      return once(`abs.s32 ${of.name}`, () => asm.op('abs.s32', of));
    }
    const by = multiplier(v);
    return once(`mul.f32 ${v.x.name} ${by.name}`, () => asm.op('mul.f32', v.x, by));
  };
  const f = (v: Value): Reg<'f32'> => reg(v) as Reg<'f32'>;
  const i = (v: Value): Reg<'b32'> => reg(v) as Reg<'b32'>;
  const p = (v: Value): Reg<'pred'> => reg(v) as Reg<'pred'>;
  const simple =
    (name: PtxOp) =>
    (...values: Value[]): Reg => {
      const args = values.map(reg);
      return once(`${name} ${args.map((a) => a.name)}`, () =>
        (asm.op as (n: PtxOp, ...inputs: Reg[]) => Reg).call(asm, name, ...args),
      );
    };
  const composed =
    (name: string, make: (...args: Reg[]) => Reg) =>
    (...values: Value[]): Reg => {
      const args = values.map(reg);
      return once(`${name} ${args.map((a) => a.name)}`, () => make(...args));
    };

  const constant = (type: ExprType, value: number): Reg =>
    once(`${type} ${Object.is(value, -0) ? '-0' : value}`, () => {
      if (type === 'bool') return asm.op('setp.ne.s32', asm.constant('b32', value === 0 ? 0 : 1), 0);
      const r = asm.constant(type === 'f32' ? 'f32' : 'b32', value);
      constants.set(r.name, value);
      return r;
    });
  const constantOf = (v: Value): number | undefined => ('kind' in v ? undefined : constants.get(v.name));
  /** log2 of a power of two known when the code is written. */
  const power = (v: Value): number | null => {
    const c = constantOf(v);
    return c !== undefined && c > 0 && (c & (c - 1)) === 0 ? Math.log2(c) : null;
  };

  // i32 values in parts: the bases of a tile's rows and columns are added once, its offsets here.

  const partsOf = (v: Value): { base: Reg<'b32'> | null; offset: number } => {
    const c = constantOf(v);
    if (c !== undefined) return { base: null, offset: c };
    return 'kind' in v && v.kind === 'sum' ? v : { base: i(v), offset: 0 };
  };
  const reachOf = (base: Reg | null): number =>
    base === null ? 0 : (reaches.get(base.name) ?? Number.POSITIVE_INFINITY);
  const joined = (name: 'add.s32' | 'sub.s32', x: Reg<'b32'>, y: Reg<'b32'>): Reg<'b32'> => {
    const out = once(`${name} ${x.name},${y.name}`, () => asm.op(name, x, y));
    reaches.set(out.name, reachOf(x) + reachOf(y));
    return out;
  };
  const sumOf = (base: Reg<'b32'>, offset: number): Value =>
    offset === 0 ? base : { kind: 'sum', base, offset: offset | 0 };
  const added = (x: Value, y: Value): Value => {
    const [a, b] = [partsOf(x), partsOf(y)];
    const base = a.base === null ? b.base : b.base === null ? a.base : joined('add.s32', a.base, b.base);
    return base === null ? constant('i32', (a.offset + b.offset) | 0) : sumOf(base, a.offset + b.offset);
  };
  const subtracted = (x: Value, y: Value): Value => {
    const [a, b] = [partsOf(x), partsOf(y)];
    if (b.base === null)
      return a.base === null ? constant('i32', (a.offset - b.offset) | 0) : sumOf(a.base, a.offset - b.offset);
    return sumOf(joined('sub.s32', a.base ?? (constant('i32', 0) as Reg<'b32'>), b.base), a.offset - b.offset);
  };
  /** Offsets go to one side, bases to the other, where neither side can wrap. */
  const compared =
    (name: 'setp.lt.s32' | 'setp.le.s32' | 'setp.eq.s32') =>
    (x: Value, y: Value): Reg => {
      const [a, b] = [partsOf(x), partsOf(y)];
      const reach = reachOf(a.base) + reachOf(b.base) + Math.abs(a.offset) + Math.abs(b.offset);
      if (a.base === null || (a.offset === 0 && b.offset === 0) || reach >= 2 ** 31) return simple(name)(x, y);
      const base = b.base === null ? a.base : joined('sub.s32', a.base, b.base);
      const limit = b.offset - a.offset;
      return once(`${name} ${base.name} ${limit}`, () => asm.op(name, base, limit));
    };
  const converted = (v: Value): Reg => {
    if ('kind' in v && v.kind === 'size') {
      const { base, offset } = partsOf(v.of);
      if (reachOf(base) + Math.abs(offset) < EXACT) return simple('abs.f32')(converted(v.of));
    }
    const { base, offset } = partsOf(v);
    if (base === null || offset === 0 || reachOf(base) + Math.abs(offset) >= EXACT) return simple('cvt.rn.f32.s32')(v);
    const whole = simple('cvt.rn.f32.s32')(base) as Reg<'f32'>;
    return once(`add.f32 ${whole.name} ${offset}`, () => asm.op('add.f32', whole, offset));
  };

  // f32 products with numbers: those of one element are multiplied once for all elements, and additions fuse with them.

  const productOf = (v: Value): Product | null => ('kind' in v && v.kind === 'product' ? v : null);
  const multiplier = ({ by, factor }: Product): Reg<'f32'> => {
    const c = constant('f32', factor) as Reg<'f32'>;
    return by === null ? c : factor === 1 ? by : once(`mul.f32 ${by.name} ${factor}`, () => asm.op('mul.f32', by, c));
  };
  const multiplied = (x: Value, y: Value): Value => {
    const [a, b] = [constantOf(x), constantOf(y)];
    if (a !== undefined && b === undefined) return multiplied(y, x);
    if (b === undefined || !Number.isFinite(b) || a !== undefined) return simple('mul.f32')(x, y);
    const known = productOf(x);
    if (known === null) return { kind: 'product', x: f(x), by: null, factor: b };
    const factor = Math.fround(known.factor * b);
    // Numbers that meet outside of f32's range are multiplied one after the other.
    const apart = !(Math.abs(factor) < 2 ** 60 && Math.abs(factor) > 2 ** -60);
    return apart ? { kind: 'product', x: f(x), by: null, factor: b } : { ...known, factor };
  };
  const fused = (x: Product, y: Value, minus: boolean): Reg => {
    const [by, other] = [multiplier(x), f(y)];
    return once(`fma ${x.x.name} ${by.name} ${other.name} ${minus}`, () =>
      asm.op('fma.rn.f32', x.x, by, minus ? asm.op('neg.f32', other) : other),
    );
  };

  const floorDivision = (x: Reg<'b32'>, y: Reg<'b32'>): { quotient: Reg<'b32'>; remainder: Reg<'b32'> } => {
    const zero = asm.op('setp.eq.s32', y, 0);
    const divisor = asm.op('selp.b32', 1, y, zero);
    const toZero = asm.op('div.s32', x, divisor);
    const rest = asm.op('sub.s32', x, asm.op('mul.lo.s32', toZero, divisor));
    const unequalSigns = asm.op('setp.lt.s32', asm.op('xor.b32', rest, divisor), 0);
    const below = asm.op('and.pred', asm.op('setp.ne.s32', rest, 0), unequalSigns);
    const quotient = asm.op('selp.b32', asm.op('sub.s32', toZero, 1), toZero, below);
    const remainder = asm.op('selp.b32', asm.op('add.s32', rest, divisor), rest, below);
    return {
      quotient: asm.op('selp.b32', 0, quotient, zero),
      remainder: asm.op('selp.b32', 0, remainder, zero),
    };
  };
  const shift = (name: 'shl.b32' | 'shr.s32') =>
    composed(name, (x, n) => asm.op(name, i(x), asm.op('and.b32', i(n), 31)));

  const ops: Target<Value>['ops'] = {
    add: (x, y) => {
      const [a, b] = [productOf(x), productOf(y)];
      return a !== null ? fused(a, y, false) : b !== null ? fused(b, x, false) : simple('add.f32')(x, y);
    },
    sub: (x, y) => {
      const a = productOf(x);
      return a !== null ? fused(a, y, true) : simple('sub.f32')(x, y);
    },
    mul: multiplied,
    div: simple(precise ? 'div.rn.f32' : 'div.full.f32'),
    min: simple('min.NaN.f32'),
    max: simple('max.NaN.f32'),
    neg: simple('neg.f32'),
    abs: simple('abs.f32'),
    exp: composed('exp', (x) => asm.op('ex2.approx.ftz.f32', asm.op('mul.f32', f(x), LOG2E))),
    log: composed('log', (x) => asm.op('mul.f32', asm.op('lg2.approx.f32', f(x)), LN2)),
    tanh: precise ? composed('tanh', (x) => preciseTanh(asm, f(x))) : simple('tanh.approx.f32'),
    sqrt: simple('sqrt.rn.f32'),
    floor: simple('cvt.rmi.f32.f32'),
    round: simple('cvt.rni.f32.f32'),
    detach: (x) => x,
    select: composed('select', (c, x, y) => asm.op('selp.f32', f(x), f(y), p(c))),
    iadd: added,
    isub: subtracted,
    imul: simple('mul.lo.s32'),
    idiv: composed('idiv', (x, y) => {
      const n = power(y);
      return n === null ? floorDivision(i(x), i(y)).quotient : asm.op('shr.s32', i(x), n);
    }),
    imod: composed('imod', (x, y) => {
      const n = power(y);
      return n === null ? floorDivision(i(x), i(y)).remainder : asm.op('and.b32', i(x), 2 ** n - 1);
    }),
    imin: simple('min.s32'),
    imax: simple('max.s32'),
    iand: simple('and.b32'),
    ior: simple('or.b32'),
    ixor: simple('xor.b32'),
    ishl: shift('shl.b32'),
    ishr: shift('shr.s32'),
    iabs: (x) => ({ kind: 'size', of: 'kind' in x && x.kind === 'sum' ? x : i(x) }),
    iselect: composed('iselect', (c, x, y) => asm.op('selp.b32', i(x), i(y), p(c))),
    toF32: converted,
    toI32: simple('cvt.rzi.s32.f32'),
    lt: simple('setp.lt.f32'),
    le: simple('setp.le.f32'),
    eq: simple('setp.eq.f32'),
    ilt: compared('setp.lt.s32'),
    ile: compared('setp.le.s32'),
    ieq: compared('setp.eq.s32'),
    and: simple('and.pred'),
    or: simple('or.pred'),
    not: simple('not.pred'),
  };

  const element = (tensor: TensorLike, indices: readonly Value[]): Reg<'b32'> | Reg<'b64'> => {
    const wide = sizeOf(tensor.shape) > 2 ** 31 - 1;
    let at: Reg<'b32'> | Reg<'b64'> = wide ? asm.constant('b64', 0) : (constant('i32', 0) as Reg<'b32'>);
    let stride = 1;
    for (let axis = tensor.shape.length - 1; axis >= 0; axis--) {
      const step = stride;
      // An axis of one element has one index.
      if (tensor.shape[axis] > 1) {
        const [x, y] = [at, i(indices[axis])];
        at = once(`element ${x.name} ${y.name} ${step}`, () =>
          x.type === 'b64'
            ? asm.op('add.s64', x, asm.op('mul.lo.s64', asm.op('cvt.s64.s32', y), step))
            : asm.op('mad.lo.s32', y, step, x as Reg<'b32'>),
        );
      }
      stride *= tensor.shape[axis];
    }
    return at;
  };

  const load = (tensor: TensorLike, indices: readonly Value[]): Reg => {
    const side = sides.indexOf(tensor);
    if (side < 0) throw new DeviceError('cuda', 'an expression reads a tensor that is not among its sides');
    const at = element(tensor, indices);
    return once(`load ${side} ${at.name}`, () => {
      const bytes = { f64: 8, f32: 4, i32: 4, f16: 2, bf16: 2, u8: 1 }[tensor.dtype];
      const offset = at.type === 'b64' ? asm.op('mul.lo.s64', at, bytes) : asm.op('mul.wide.s32', i(at), bytes);
      const address = asm.op('add.s64', sideAddress[side], offset);
      switch (tensor.dtype) {
        case 'f32':
          return asm.load('global', 'f32', address, 0, 'nc');
        case 'f64':
          return asm.op('cvt.rn.f32.f64', asm.load('global', 'f64', address, 0, 'nc'));
        case 'i32':
          return asm.load('global', 'b32', address, 0, 'nc');
        case 'f16':
          return asm.op('cvt.f32.f16', asm.load('global', 'b16', address, 0, 'nc'));
        case 'bf16':
          return asm.op('mov.f32.b32', asm.op('shl.b32', asm.load('global', 'u16', address, 0, 'nc'), 16));
        case 'u8':
          return asm.op('setp.ne.s32', asm.load('global', 'u8', address, 0, 'nc'), 0);
        default:
          throw tensor.dtype satisfies never;
      }
    });
  };

  /** A position or length as the parts it is made of. */
  const positionOf = (r: Reg<'b32'>): Value => {
    const sum = sums.get(r) ?? r;
    if (near) reaches.set('kind' in sum ? sum.base.name : sum.name, NEAR);
    return sum;
  };
  const POSITIONS: readonly IndexName[] = ['q', 'kv', 'lenQ', 'lenK'];

  return {
    reg,
    at: ({ score, index }) => ({
      ops,
      constant,
      score: () => {
        if (score === null) throw new DeviceError('cuda', 'a mask cannot read the score');
        return score;
      },
      index: (name) => (POSITIONS.includes(name) ? positionOf(index[name]) : index[name]),
      load: (tensor, _type, indices) => load(tensor, indices),
    }),
    element,
  };
}

/** tanh to about two units in the last place: an odd polynomial near zero, 1 - 2 / (e^2x + 1) elsewhere. */
function preciseTanh(asm: Assembler, x: Reg<'f32'>): Reg<'f32'> {
  const size = asm.op('abs.f32', x);
  const e = asm.op('ex2.approx.ftz.f32', asm.op('mul.f32', size, 2 * LOG2E));
  const far = asm.op('fma.rn.f32', asm.op('rcp.rn.f32', asm.op('add.f32', e, 1)), -2, 1);
  const square = asm.op('mul.f32', x, x);
  // Minimax on [0, 0.55] in x^2.
  const poly = [-5.2302558e-2, 1.3315247e-1, -3.33327681e-1].reduce(
    (sum, c) => asm.op('fma.rn.f32', sum, square, c),
    asm.constant('f32', 1.57394409e-2),
  );
  const near = asm.op('fma.rn.f32', asm.op('mul.f32', poly, square), x, x);
  const sign = asm.op('and.b32', asm.op('mov.b32.f32', x), 0x80000000);
  const signed = asm.op('mov.f32.b32', asm.op('or.b32', asm.op('mov.b32.f32', far), sign));
  return asm.op('selp.f32', near, signed, asm.op('setp.lt.f32', size, 0.55));
}
