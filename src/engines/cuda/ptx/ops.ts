/**
 * The one table of instructions with register operands: PTX mnemonic -> [result, ...operands]. Memory, branches and the
 * instructions of whole warps have methods of their own.
 */
import type { Operand, Reg, RegType } from './registers.ts';

const TABLE = {
  // moves between types of one width, and halves of a word
  'mov.b16': ['b16', 'b16'],
  'mov.b32': ['b32', 'b32'],
  'mov.b64': ['b64', 'b64'],
  'mov.f32': ['f32', 'f32'],
  'cvta.to.global.u64': ['b64', 'b64'],
  'cvt.u64.u32': ['b64', 'b32'],
  'cvt.s64.s32': ['b64', 'b32'],
  'cvt.u32.u64': ['b32', 'b64'],
  // 32-bit integers
  'add.s32': ['b32', 'b32', 'b32'],
  'sub.s32': ['b32', 'b32', 'b32'],
  'mul.lo.s32': ['b32', 'b32', 'b32'],
  'mul.hi.u32': ['b32', 'b32', 'b32'],
  'mad.lo.s32': ['b32', 'b32', 'b32', 'b32'],
  'div.s32': ['b32', 'b32', 'b32'],
  'div.u32': ['b32', 'b32', 'b32'],
  'rem.u32': ['b32', 'b32', 'b32'],
  'min.s32': ['b32', 'b32', 'b32'],
  'max.s32': ['b32', 'b32', 'b32'],
  'min.u32': ['b32', 'b32', 'b32'],
  'neg.s32': ['b32', 'b32'],
  'abs.s32': ['b32', 'b32'],
  'and.b32': ['b32', 'b32', 'b32'],
  'or.b32': ['b32', 'b32', 'b32'],
  'xor.b32': ['b32', 'b32', 'b32'],
  'not.b32': ['b32', 'b32'],
  'shl.b32': ['b32', 'b32', 'b32'],
  'shr.u32': ['b32', 'b32', 'b32'],
  'shr.s32': ['b32', 'b32', 'b32'],
  'prmt.b32': ['b32', 'b32', 'b32', 'b32'],
  'selp.b32': ['b32', 'b32', 'b32', 'pred'],
  // 64-bit integers: addresses
  'add.s64': ['b64', 'b64', 'b64'],
  'sub.s64': ['b64', 'b64', 'b64'],
  'mul.lo.s64': ['b64', 'b64', 'b64'],
  'mul.wide.s32': ['b64', 'b32', 'b32'],
  'mul.wide.u32': ['b64', 'b32', 'b32'],
  'shl.b64': ['b64', 'b64', 'b32'],
  'shr.u64': ['b64', 'b64', 'b32'],
  'and.b64': ['b64', 'b64', 'b64'],
  'or.b64': ['b64', 'b64', 'b64'],
  'selp.b64': ['b64', 'b64', 'b64', 'pred'],
  // 32-bit floats
  'add.f32': ['f32', 'f32', 'f32'],
  'sub.f32': ['f32', 'f32', 'f32'],
  'mul.f32': ['f32', 'f32', 'f32'],
  'fma.rn.f32': ['f32', 'f32', 'f32', 'f32'],
  'div.rn.f32': ['f32', 'f32', 'f32'],
  'div.full.f32': ['f32', 'f32', 'f32'],
  'min.f32': ['f32', 'f32', 'f32'],
  'max.f32': ['f32', 'f32', 'f32'],
  'min.NaN.f32': ['f32', 'f32', 'f32'],
  'max.NaN.f32': ['f32', 'f32', 'f32'],
  'neg.f32': ['f32', 'f32'],
  'abs.f32': ['f32', 'f32'],
  'sqrt.rn.f32': ['f32', 'f32'],
  'rcp.rn.f32': ['f32', 'f32'],
  'rcp.approx.ftz.f32': ['f32', 'f32'],
  'ex2.approx.ftz.f32': ['f32', 'f32'],
  'ex2.approx.f32': ['f32', 'f32'],
  'lg2.approx.f32': ['f32', 'f32'],
  'tanh.approx.f32': ['f32', 'f32'],
  'cvt.rmi.f32.f32': ['f32', 'f32'],
  'cvt.rni.f32.f32': ['f32', 'f32'],
  'cvt.rn.f32.s32': ['f32', 'b32'],
  'cvt.rn.f32.s64': ['f32', 'b64'],
  'cvt.rzi.s32.f32': ['b32', 'f32'],
  'cvt.rni.s64.f32': ['b64', 'f32'],
  'selp.f32': ['f32', 'f32', 'f32', 'pred'],
  'mov.b32.f32': ['b32', 'f32'],
  'mov.f32.b32': ['f32', 'b32'],
  // 64-bit floats: only where sums must not lose bits
  'cvt.f64.f32': ['f64', 'f32'],
  'cvt.rn.f32.f64': ['f32', 'f64'],
  'cvt.rn.f64.s64': ['f64', 'b64'],
  'cvt.rni.s64.f64': ['b64', 'f64'],
  'mul.f64': ['f64', 'f64', 'f64'],
  'add.f64': ['f64', 'f64', 'f64'],
  // narrow floats; the first operand of a pair becomes the upper half
  'cvt.rn.bf16x2.f32': ['b32', 'f32', 'f32'],
  'cvt.rn.f16x2.f32': ['b32', 'f32', 'f32'],
  'cvt.rn.bf16.f32': ['b16', 'f32'],
  'cvt.rn.f16.f32': ['b16', 'f32'],
  'cvt.f32.f16': ['f32', 'b16'],
  'cvt.rna.tf32.f32': ['b32', 'f32'],
  'cvt.u32.u16': ['b32', 'b16'],
  // comparisons and predicates
  'setp.eq.s32': ['pred', 'b32', 'b32'],
  'setp.ne.s32': ['pred', 'b32', 'b32'],
  'setp.lt.s32': ['pred', 'b32', 'b32'],
  'setp.le.s32': ['pred', 'b32', 'b32'],
  'setp.gt.s32': ['pred', 'b32', 'b32'],
  'setp.ge.s32': ['pred', 'b32', 'b32'],
  'setp.ge.u32': ['pred', 'b32', 'b32'],
  'setp.lt.u32': ['pred', 'b32', 'b32'],
  'setp.ne.s64': ['pred', 'b64', 'b64'],
  'setp.eq.f32': ['pred', 'f32', 'f32'],
  'setp.neu.f32': ['pred', 'f32', 'f32'],
  'setp.lt.f32': ['pred', 'f32', 'f32'],
  'setp.le.f32': ['pred', 'f32', 'f32'],
  'setp.gt.f32': ['pred', 'f32', 'f32'],
  'and.pred': ['pred', 'pred', 'pred'],
  'or.pred': ['pred', 'pred', 'pred'],
  'xor.pred': ['pred', 'pred', 'pred'],
  'not.pred': ['pred', 'pred'],
} as const satisfies Record<string, readonly RegType[]>;

/** Mnemonics whose text differs from their key: a move that only renames the type. */
export const SPELLING: Readonly<Partial<Record<OpName, string>>> = {
  'mov.b32.f32': 'mov.b32',
  'mov.f32.b32': 'mov.b32',
};

export type OpName = keyof typeof TABLE;
type Row<N extends OpName> = (typeof TABLE)[N];
type Tail<R extends readonly RegType[]> = R extends readonly [RegType, ...infer Rest extends readonly RegType[]]
  ? Rest
  : never;
type Operands<R extends readonly RegType[]> = { [K in keyof R]: Operand<R[K]> };

/** The type an instruction writes. */
export type Result<N extends OpName> = Row<N>[0];
/** What an instruction reads, as a tuple of operands. */
export type Inputs<N extends OpName> = Operands<Tail<Row<N>>>;
/** The register an instruction writes. */
export type Output<N extends OpName> = Reg<Result<N>>;

export const OPS: Readonly<Record<OpName, readonly RegType[]>> = TABLE;
