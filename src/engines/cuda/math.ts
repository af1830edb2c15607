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

/** f32 and i32 values in registers of their width, booleans in predicates. */
export type Value = Reg;

export interface MathOptions {
  readonly asm: Assembler;
  /** f32 problems: no approximation coarser than a few units in the last place. */
  readonly precise: boolean;
  readonly sides: readonly TensorLike[];
  /** Address of each side tensor. */
  readonly sideAddress: readonly Reg<'b64'>[];
}

/** Where an expression is evaluated. Registers must not change while the scope is in use. */
export interface Point {
  readonly score: Reg<'f32'> | null;
  readonly index: Readonly<Record<IndexName, Reg<'b32'>>>;
}

/**
 * A stretch of straight-line code in which equal instructions on equal registers are emitted once: rows share what
 * depends on the row, columns what depends on the column.
 */
export interface MathScope {
  at(point: Point): Target<Value>;
  /** Element number of a load in its tensor, as `load` computes it. */
  element(tensor: TensorLike, indices: readonly Value[]): Reg<'b32'> | Reg<'b64'>;
}

const f = (v: Value): Reg<'f32'> => v as Reg<'f32'>;
const i = (v: Value): Reg<'b32'> => v as Reg<'b32'>;
const p = (v: Value): Reg<'pred'> => v as Reg<'pred'>;

export function mathScope({ asm, precise, sides, sideAddress }: MathOptions): MathScope {
  const known = new Map<string, Value>();
  const constants = new Map<string, number>();

  const once = <T extends Value>(key: string, make: () => T): T => {
    const found = known.get(key);
    if (found !== undefined) return found as T;
    const made = make();
    known.set(key, made);
    return made;
  };
  const simple =
    (name: PtxOp) =>
    (...args: Value[]): Value =>
      once(`${name} ${args.map((a) => a.name)}`, () =>
        (asm.op as (n: PtxOp, ...inputs: Value[]) => Value).call(asm, name, ...args),
      );
  const composed =
    (name: string, make: (...args: Value[]) => Value) =>
    (...args: Value[]): Value =>
      once(`${name} ${args.map((a) => a.name)}`, () => make(...args));

  const constant = (type: ExprType, value: number): Value =>
    once(`${type} ${Object.is(value, -0) ? '-0' : value}`, () => {
      if (type === 'bool') return asm.op('setp.ne.s32', asm.constant('b32', value === 0 ? 0 : 1), 0);
      const r = asm.constant(type === 'f32' ? 'f32' : 'b32', value);
      if (type === 'i32') constants.set(r.name, value);
      return r;
    });
  /** log2 of a power of two known when the code is written. */
  const power = (v: Value): number | null => {
    const c = constants.get(v.name);
    return c !== undefined && c > 0 && (c & (c - 1)) === 0 ? Math.log2(c) : null;
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
    add: simple('add.f32'),
    sub: simple('sub.f32'),
    mul: simple('mul.f32'),
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
    iadd: simple('add.s32'),
    isub: simple('sub.s32'),
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
    iabs: simple('abs.s32'),
    iselect: composed('iselect', (c, x, y) => asm.op('selp.b32', i(x), i(y), p(c))),
    toF32: simple('cvt.rn.f32.s32'),
    toI32: simple('cvt.rzi.s32.f32'),
    lt: simple('setp.lt.f32'),
    le: simple('setp.le.f32'),
    eq: simple('setp.eq.f32'),
    ilt: simple('setp.lt.s32'),
    ile: simple('setp.le.s32'),
    ieq: simple('setp.eq.s32'),
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

  const load = (tensor: TensorLike, indices: readonly Value[]): Value => {
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

  return {
    at: ({ score, index }) => ({
      ops,
      constant,
      score: () => {
        if (score === null) throw new DeviceError('cuda', 'a mask cannot read the score');
        return score;
      },
      index: (name) => index[name],
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
