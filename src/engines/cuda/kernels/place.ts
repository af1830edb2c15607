/** Where a block of threads works: which sequence and head, and the rows of each tensor that belong to them. */
import { BYTES } from '../../../core/dtype.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { narrowlyStrided, type RowSource, strided } from './loader.ts';
import { take, takeSides } from './parameters.ts';
import type { Spec } from './spec.ts';

export interface Place {
  readonly b: Reg<'b32'>;
  readonly lenQ: Reg<'b32'>;
  readonly lenK: Reg<'b32'>;
  readonly qStart: Reg<'b32'>;
  readonly kStart: Reg<'b32'>;
  readonly sides: readonly Reg<'b64'>[];
}

/** Strides of a tensor in elements. */
export interface StrideRegs {
  readonly b: Reg<'b64'>;
  readonly h: Reg<'b64'>;
  readonly s: Reg<'b64'>;
}

/** Lengths and starts of sequence b. */
export function placeOf(asm: Assembler, spec: Spec, b: Reg<'b32'>): Place {
  const sides = takeSides(asm, spec.sides.length);
  if (spec.dense) {
    const { Sq, Sk } = take(asm, 'Sq', 'Sk');
    const zero = asm.constant('b32', 0);
    return { b, lenQ: Sq, lenK: Sk, qStart: zero, kStart: zero, sides };
  }
  const { sequences } = take(asm, 'sequences');
  const row = asm.op('add.s64', sequences, asm.op('mul.wide.u32', b, 16));
  const [qStart, lenQ, kStart, lenK] = asm.loadVector('global', 'b32', 4, row, 0, 'nc');
  return { b, lenQ, lenK, qStart, kStart, sides };
}

/** Address of row `start` of head h of batch b, for elements of `size` bytes. */
export function baseOf(
  asm: Assembler,
  tensor: Reg<'b64'>,
  strides: StrideRegs,
  at: { b: Reg<'b32'>; h: Reg<'b32'>; start: Reg<'b32'> },
  size: number,
): Reg<'b64'> {
  const part = (index: Reg<'b32'>, stride: Reg<'b64'>): Reg<'b64'> =>
    asm.op('mul.lo.s64', asm.op('cvt.s64.s32', index), stride);
  const inner = asm.op('add.s64', part(at.h, strides.h), part(at.start, strides.s));
  const elements = asm.op('add.s64', part(at.b, strides.b), inner);
  return asm.op('add.s64', tensor, asm.op('mul.lo.s64', elements, size));
}

/** Rows of q or of a tensor laid out like it (`name` is the parameter). */
export function queryRows(
  asm: Assembler,
  spec: Spec,
  place: Place,
  h: Reg<'b32'>,
  tensor: Reg<'b64'>,
  strides: StrideRegs,
): RowSource {
  const base = baseOf(asm, tensor, strides, { b: place.b, h, start: place.qStart }, spec.size);
  return strided(asm, base, asm.op('mul.lo.s64', strides.s, spec.size));
}

/** Why a kernel that computes addresses as `keyRows` does cannot serve a problem, or null. */
export function keysRefusal({ strides, dtype, kv }: Problem): string | null {
  const furthest = Math.max(Math.abs(strides.k.s), Math.abs(strides.v.s)) * BYTES[dtype];
  return kv.kind === 'strided' && furthest >= 2 ** 31 ? 'rows of k or v are 2 GiB or more apart' : null;
}

/** Rows of k and v of one key head: strided, or found through the page table. */
export function keyRows(
  asm: Assembler,
  spec: Spec,
  place: Place,
  hkv: Reg<'b32'>,
): { k: RowSource; v: RowSource; kStrides: StrideRegs; vStrides: StrideRegs } {
  const p = take(asm, 'k', 'v', 'kB', 'kH', 'kS', 'vB', 'vH', 'vS');
  const strides = { k: { b: p.kB, h: p.kH, s: p.kS }, v: { b: p.vB, h: p.vH, s: p.vS } };
  if (spec.pageSize === 0) {
    const { kRow, vRow } = take(asm, 'kRow', 'vRow');
    const rows = (tensor: Reg<'b64'>, s: StrideRegs, row: Reg<'b32'>): RowSource => {
      const base = baseOf(asm, tensor, s, { b: place.b, h: hkv, start: place.kStart }, spec.size);
      return narrowlyStrided(asm, base, row);
    };
    return { k: rows(p.k, strides.k, kRow), v: rows(p.v, strides.v, vRow), kStrides: strides.k, vStrides: strides.v };
  }
  const { pages, maxPages } = take(asm, 'pages', 'maxPages');
  const firstPage = asm.op('mul.wide.s32', asm.op('mul.lo.s32', place.b, maxPages), 4);
  const table = asm.op('add.s64', pages, firstPage);
  const zero = asm.constant('b32', 0);
  const rows = (tensor: Reg<'b64'>, s: StrideRegs): RowSource => {
    const head = baseOf(asm, tensor, s, { b: zero, h: hkv, start: zero }, spec.size);
    const pageBytes = asm.op('mul.lo.s64', s.b, spec.size);
    const rowBytes = asm.op('mul.lo.s64', s.s, spec.size);
    return {
      next: 'looked up',
      from: (bytes) => rows(asm.op('add.s64', tensor, bytes), s),
      row: (index) => {
        const row = asm.op('add.s32', index, place.kStart);
        const slot = asm.op('div.u32', row, spec.pageSize);
        const inside = asm.op('sub.s32', row, asm.op('mul.lo.s32', slot, spec.pageSize));
        const at = asm.op('add.s64', table, asm.op('mul.wide.u32', slot, 4));
        const page = asm.op('cvt.s64.s32', asm.load('global', 'b32', at, 0, 'nc'));
        const base = asm.op('add.s64', head, asm.op('mul.lo.s64', page, pageBytes));
        return asm.op('add.s64', base, asm.op('mul.lo.s64', asm.op('cvt.s64.s32', inside), rowBytes));
      },
    };
  };
  return { k: rows(p.k, strides.k), v: rows(p.v, strides.v), kStrides: strides.k, vStrides: strides.v };
}
