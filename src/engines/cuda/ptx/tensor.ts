/**
 * Instructions of a whole warp, from Ampere on: matrix products of 16x8 tiles, matrix loads from shared memory, and copies
 * from global to shared memory that run by themselves.
 *
 * Fragments of m16n8k16 (lane = 4 * g + t): A holds rows g, g + 8 and columns 2t, 2t + 1 (+ 8); B holds rows 2t, 2t + 1
 * (+ 8) of column g; the accumulator holds columns 2t, 2t + 1 of rows g and g + 8.
 */
import type { Assembler } from './assembler.ts';
import { AssemblerError, type Operand, type Reg, type RegType, spell } from './registers.ts';

const group = (instruction: string, type: RegType, count: number, regs: readonly Reg[]): string => {
  if (regs.length !== count)
    throw new AssemblerError(`${instruction}: expected ${count} registers of ${type}, got ${regs.length}`);
  return `{${regs.map((r, i) => spell(instruction, i, type, r)).join(', ')}}`;
};

/** acc[16, 8] += a[16, 16] . b[16, 8] in f32; `a` 4 and `b` 2 registers of pairs of halves. */
export function mma16(
  asm: Assembler,
  type: 'f16' | 'bf16',
  acc: readonly Reg<'f32'>[],
  a: readonly Reg<'b32'>[],
  b: readonly Reg<'b32'>[],
): void {
  const name = `mma.sync.aligned.m16n8k16.row.col.f32.${type}.${type}.f32`;
  const d = group(name, 'f32', 4, acc);
  asm.emit(name, d, group(name, 'b32', 4, a), group(name, 'b32', 2, b), d);
}

/** out[16, 8] = a[16, 8] . b[8, 8] + acc, with operands rounded to tf32: `a` 4 and `b` 2 registers of f32 bits. */
export function mmaTf32(
  asm: Assembler,
  out: readonly Reg<'f32'>[],
  a: readonly Reg<'b32'>[],
  b: readonly Reg<'b32'>[],
  acc: readonly Reg<'f32'>[],
): void {
  const name = 'mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32';
  asm.emit(
    name,
    group(name, 'f32', 4, out),
    group(name, 'b32', 4, a),
    group(name, 'b32', 2, b),
    group(name, 'f32', 4, acc),
  );
}

/** Loads `count` 8x8 matrices of halves; lane 8 * i + r gives the address of row r of matrix i. */
export function ldmatrix(
  asm: Assembler,
  count: 1 | 2 | 4,
  address: Reg<'b32'>,
  offset = 0,
  options: { transpose?: boolean } = {},
): Reg<'b32'>[] {
  const name = `ldmatrix.sync.aligned.m8n8.x${count}${options.transpose === true ? '.trans' : ''}.shared.b16`;
  const out = asm.regs('b32', count);
  asm.emit(name, group(name, 'b32', count, out), asm.address('shared', address, offset));
  return out;
}

/** Copies `bytes` from global to shared memory; only `valid` bytes are read, the rest becomes zero. */
export function cpAsync(
  asm: Assembler,
  bytes: 4 | 8 | 16,
  target: Reg<'b32'>,
  targetOffset: number,
  source: Reg<'b64'>,
  valid?: Operand<'b32'>,
): void {
  const operands = [asm.address('shared', target, targetOffset), asm.address('global', source), String(bytes)];
  if (valid !== undefined) operands.push(spell('cp.async', 3, 'b32', valid));
  asm.emit(`cp.async.${bytes === 16 ? 'cg' : 'ca'}.shared.global`, ...operands);
}

/** Closes the group of copies issued since the last one. */
export const cpAsyncCommit = (asm: Assembler): void => asm.emit('cp.async.commit_group');

/** Waits until at most `pending` of this thread's groups are unfinished. */
export const cpAsyncWait = (asm: Assembler, pending: number): void => asm.emit('cp.async.wait_group', String(pending));

/** The value of lane ^ mask. */
export function shuffleXor(asm: Assembler, value: Reg<'f32'>, mask: number): Reg<'f32'>;
export function shuffleXor(asm: Assembler, value: Reg<'b32'>, mask: number): Reg<'b32'>;
export function shuffleXor(asm: Assembler, value: Reg<'f32'> | Reg<'b32'>, mask: number): Reg<'f32'> | Reg<'b32'> {
  const out = asm.reg(value.type);
  asm.emit('shfl.sync.bfly.b32', out.name, value.name, String(mask), '31', '-1');
  return out;
}
