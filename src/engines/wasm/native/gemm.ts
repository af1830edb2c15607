/**
 * The one product every attention pass is made of, in x86-64 machine code:
 *
 *     C[M][N] = A[M][K] . B[K][N]        or   C = C + A . B        or   C = C * factor[N] + A . B
 *
 * B and C have contiguous rows of N floats; A has any row and column stride, so that it may be read transposed. The
 * register tile is `rows` x 2 vectors of accumulators (24 of 32 registers with AVX-512, 12 of 16 with AVX2): each step of K
 * costs 2 vector loads, `rows` broadcasts and 2 * `rows` multiply-adds, and the multiply-add ports are the limit.
 *
 * Called as `void f(void* base, int64 descriptor)` (System V): the descriptor is DESCRIPTOR.bytes of int32 at base + descriptor.
 */
import { type Address, Assembler, R } from './assembler.ts';

/** How C is entered: overwritten, added to, or first multiplied by `factor`, a row of N floats. */
export type GemmStart = 'zero' | 'add' | 'rescale';

/** Byte offsets of the descriptor's fields; addresses are offsets from base, strides are bytes, counts are elements. */
export const DESCRIPTOR = {
  a: 0,
  aRow: 4,
  aColumn: 8,
  b: 12,
  bRow: 16,
  c: 20,
  cRow: 24,
  factor: 28,
  M: 32,
  K: 36,
  bytes: 40,
} as const;

const { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 } = R;
const SAVED = [rbx, rbp, r12, r13, r14, r15];
/** Below the stack pointer, where a leaf function may keep things. */
const B_START: Address = { base: rsp, disp: -8 };
const FACTOR: Address = { base: rsp, disp: -16 };
const A_START: Address = { base: rsp, disp: -24 };
const C_START: Address = { base: rsp, disp: -32 };

/**
 * @param width bytes of a vector, 32 or 64
 * @param N columns, a multiple of width / 4; M >= 1 and K >= 1 come with the call
 */
export function emitGemm(width: 32 | 64, N: number, start: GemmStart): Uint8Array {
  const lanes = width / 4;
  if (N % lanes !== 0) throw new Error(`N = ${N} is not a multiple of ${lanes}`);
  const a = new Assembler(width);
  const rows = width === 64 ? 12 : 6;
  for (const r of SAVED) a.push(r);
  prologue(a);
  for (let column = 0; column < N; column += 2 * lanes) {
    const vectors = Math.min(2, (N - column) / lanes);
    const name = `column${column}`;
    a.load64(r11, A_START);
    a.load64(rbp, C_START);
    a.load32(rdi, { base: rsi, disp: DESCRIPTOR.M });
    a.label(`${name}.next`);
    // Whole tiles while they last, then the one tile of exactly the rows that are left.
    for (let tile = rows; tile >= 1; tile--) {
      const skip = `${name}.not${tile}`;
      a.compareImmediate(rdi, tile);
      a.jumpIf('below', skip);
      emitTile(a, `${name}.tile${tile}`, tile, column * 4, vectors, start);
      a.addImmediate(rdi, -tile);
      a.jumpIf('notZero', `${name}.next`);
      a.jump(`${name}.done`);
      a.label(skip);
    }
    a.label(`${name}.done`);
  }
  for (const r of [...SAVED].reverse()) a.pop(r);
  a.return();
  return a.bytes();
}

/** rdi = base, rsi = descriptor offset -> strides in rdx, r8, r9, r10, starts on the stack, rsi = descriptor address. */
function prologue(a: Assembler): void {
  a.add(rsi, rdi);
  a.load32(rdx, { base: rsi, disp: DESCRIPTOR.aRow });
  a.load32(r8, { base: rsi, disp: DESCRIPTOR.aColumn });
  a.load32(r9, { base: rsi, disp: DESCRIPTOR.bRow });
  a.load32(r10, { base: rsi, disp: DESCRIPTOR.cRow });
  for (const [field, slot] of [
    [DESCRIPTOR.a, A_START],
    [DESCRIPTOR.b, B_START],
    [DESCRIPTOR.c, C_START],
    [DESCRIPTOR.factor, FACTOR],
  ] as const) {
    a.load32(rax, { base: rsi, disp: field });
    a.add(rax, rdi);
    a.store64(slot, rax);
  }
}

/** One `rows` x `vectors` tile at A row r11, C row rbp, `offset` bytes into B's and C's rows; leaves r11 and rbp on the next. */
function emitTile(a: Assembler, name: string, rows: number, offset: number, vectors: number, start: GemmStart): void {
  const accumulator = (r: number, v: number): number => r * vectors + v;
  const registers = a.width === 64 ? 32 : 16;
  const bVector = (v: number): number => registers - 1 - v;
  /** Two of them with AVX-512, so that a broadcast need not wait for the one before it. */
  const splat = (r: number): number => registers - 3 - (a.width === 64 ? r % 2 : 0);
  // A row r is at rowBase[r / 3] + (r % 3) * rdx: one pointer serves three rows.
  const pointers = [r12, r13, r14, r15].slice(0, Math.ceil(rows / 3));
  pointers.forEach((p, i) => {
    if (i === 0) a.move(p, r11);
    else {
      a.addressOf(p, { base: pointers[i - 1], index: rdx, scale: 2 });
      a.add(p, rdx);
    }
  });
  a.load64(rbx, B_START);
  a.load32(rcx, { base: rsi, disp: DESCRIPTOR.K });

  if (start === 'zero') for (let i = 0; i < rows * vectors; i++) a.zero(i);
  else {
    a.move(rax, rbp);
    for (let r = 0; r < rows; r++) {
      for (let v = 0; v < vectors; v++) a.load(accumulator(r, v), { base: rax, disp: offset + v * a.width });
      if (r < rows - 1) a.add(rax, r10);
    }
    if (start === 'rescale') {
      a.load64(rax, FACTOR);
      for (let v = 0; v < vectors; v++) {
        a.load(bVector(v), { base: rax, disp: offset + v * a.width });
        for (let r = 0; r < rows; r++) a.multiply(accumulator(r, v), accumulator(r, v), bVector(v));
      }
    }
  }

  a.label(`${name}.k`);
  for (let v = 0; v < vectors; v++) a.load(bVector(v), { base: rbx, disp: offset + v * a.width });
  for (let r = 0; r < rows; r++) {
    const base = pointers[Math.floor(r / 3)];
    a.broadcast(splat(r), r % 3 === 0 ? { base } : { base, index: rdx, scale: r % 3 === 1 ? 1 : 2 });
    for (let v = 0; v < vectors; v++) a.multiplyAdd(accumulator(r, v), splat(r), bVector(v));
  }
  for (const p of pointers) a.add(p, r8);
  a.add(rbx, r9);
  a.decrement(rcx);
  a.jumpIf('notZero', `${name}.k`);

  for (let r = 0; r < rows; r++) {
    for (let v = 0; v < vectors; v++) a.store({ base: rbp, disp: offset + v * a.width }, accumulator(r, v));
    a.add(rbp, r10);
    a.add(r11, rdx);
  }
}
