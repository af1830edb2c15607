/**
 * x86-64 machine code, as little of it as a matrix product needs: 64-bit integer moves and adds, and float vectors in two
 * encodings (VEX, 256 bits, AVX2 + FMA; EVEX, 512 bits, AVX-512F). Encodings: Intel SDM volume 2, sections 2.2, 2.3, 2.7.
 */

/** General registers by their encoding. */
export const R = {
  rax: 0, rcx: 1, rdx: 2, rbx: 3, rsp: 4, rbp: 5, rsi: 6, rdi: 7, r8: 8, r9: 9, r10: 10, r11: 11, r12: 12, r13: 13, r14: 14, r15: 15,
} as const; // biome-ignore format: a register file reads better in a row

export interface Address {
  readonly base: number;
  readonly index?: number;
  readonly scale?: 1 | 2 | 4 | 8;
  readonly disp?: number;
}

/** The address of a constant of this code: see `Assembler.constant`. */
export interface Pooled {
  readonly label: string;
}

/** A float vector operation: opcode map (1 = 0F, 2 = 0F38), mandatory prefix (0 none, 1 = 66), opcode byte. */
interface VectorOp {
  readonly map: 1 | 2;
  readonly prefix: 0 | 1;
  readonly code: number;
}

const MOVUPS_LOAD: VectorOp = { map: 1, prefix: 0, code: 0x10 };
const MOVUPS_STORE: VectorOp = { map: 1, prefix: 0, code: 0x11 };
const ADDPS: VectorOp = { map: 1, prefix: 0, code: 0x58 };
const SUBPS: VectorOp = { map: 1, prefix: 0, code: 0x5c };
const MAXPS: VectorOp = { map: 1, prefix: 0, code: 0x5f };
const MULPS: VectorOp = { map: 1, prefix: 0, code: 0x59 };
const BROADCASTSS: VectorOp = { map: 2, prefix: 1, code: 0x18 };
const FMADD213PS: VectorOp = { map: 2, prefix: 1, code: 0xa8 };
/** Group 72: the operation is in the ModRM byte, the count follows it. */
const SHIFT_DOUBLEWORDS: VectorOp = { map: 1, prefix: 1, code: 0x72 };
const SHIFT_LEFT = 6;
const FMADD231PS: VectorOp = { map: 2, prefix: 1, code: 0xb8 };
/** Integer xor: VPXOR (AVX2), VPXORD (AVX-512F). */
const XOR: VectorOp = { map: 1, prefix: 1, code: 0xef };

export class Assembler {
  /** Bytes of a vector register: 32 (VEX) or 64 (EVEX). */
  readonly width: 32 | 64;
  private readonly code: number[] = [];
  private readonly labels = new Map<string, number>();
  private readonly jumps: { readonly at: number; readonly label: string }[] = [];
  private readonly constants = new Map<number, string>();

  constructor(width: 32 | 64) {
    this.width = width;
  }

  /** The finished code, jumps resolved. @throws Error for a label that was never placed. */
  bytes(): Uint8Array {
    while (this.constants.size > 0 && this.code.length % 4 !== 0) this.emit(0xcc);
    for (const [value, name] of this.constants) {
      this.labels.set(name, this.code.length);
      this.int32(new Int32Array(new Float32Array([value]).buffer)[0]);
    }
    const out = Uint8Array.from(this.code);
    const view = new DataView(out.buffer);
    for (const { at, label } of this.jumps) {
      const target = this.labels.get(label);
      if (target === undefined) throw new Error(`label ${label} was never placed`);
      view.setInt32(at, target - (at + 4), true);
    }
    return out;
  }

  label(name: string): void {
    if (this.labels.has(name)) throw new Error(`label ${name} is placed twice`);
    this.labels.set(name, this.code.length);
  }

  /** A float kept behind the code, to be broadcast from. */
  constant(value: number): Pooled {
    const label = this.constants.get(value) ?? `constant${this.constants.size}`;
    this.constants.set(value, label);
    return { label };
  }

  // Integer instructions, 64 bits wide unless said.

  move(to: number, from: number): void {
    this.rex(1, from, 0, to);
    this.emit(0x89, 0xc0 | ((from & 7) << 3) | (to & 7));
  }
  /** 32 bits from memory, zero extended. */
  load32(to: number, from: Address): void {
    this.rex(0, to, from.index ?? 0, from.base);
    this.emit(0x8b);
    this.memory(to, from, 1);
  }
  load64(to: number, from: Address): void {
    this.rex(1, to, from.index ?? 0, from.base);
    this.emit(0x8b);
    this.memory(to, from, 1);
  }
  store64(to: Address, from: number): void {
    this.rex(1, from, to.index ?? 0, to.base);
    this.emit(0x89);
    this.memory(from, to, 1);
  }
  addressOf(to: number, from: Address): void {
    this.rex(1, to, from.index ?? 0, from.base);
    this.emit(0x8d);
    this.memory(to, from, 1);
  }
  add(to: number, from: number): void {
    this.rex(1, from, 0, to);
    this.emit(0x01, 0xc0 | ((from & 7) << 3) | (to & 7));
  }
  addImmediate(to: number, value: number): void {
    this.rex(1, 0, 0, to);
    this.emit(0x81, 0xc0 | (to & 7));
    this.int32(value);
  }
  compareImmediate(register: number, value: number): void {
    this.rex(1, 0, 0, register);
    this.emit(0x81, 0xf8 | (register & 7));
    this.int32(value);
  }
  decrement(register: number): void {
    this.rex(1, 0, 0, register);
    this.emit(0xff, 0xc8 | (register & 7));
  }
  push(register: number): void {
    if (register > 7) this.emit(0x41);
    this.emit(0x50 | (register & 7));
  }
  pop(register: number): void {
    if (register > 7) this.emit(0x41);
    this.emit(0x58 | (register & 7));
  }
  jump(label: string): void {
    this.emit(0xe9);
    this.jumpTo(label);
  }
  jumpIf(condition: 'zero' | 'notZero' | 'below', label: string): void {
    this.emit(0x0f, { zero: 0x84, notZero: 0x85, below: 0x82 }[condition]);
    this.jumpTo(label);
  }
  /** Leaves the upper vector halves clean, as callers expect, and returns. */
  return(): void {
    this.emit(0xc5, 0xf8, 0x77, 0xc3);
  }

  // Float vectors of `width` bytes.

  load(to: number, from: Address): void {
    this.vector(MOVUPS_LOAD, to, 0, from, this.width);
  }
  store(to: Address, from: number): void {
    this.vector(MOVUPS_STORE, from, 0, to, this.width);
  }
  broadcast(to: number, from: Address | Pooled): void {
    this.vector(BROADCASTSS, to, 0, from, 4);
  }
  copy(to: number, from: number): void {
    this.vector(MOVUPS_LOAD, to, 0, from, this.width);
  }
  zero(to: number): void {
    this.vector(XOR, to, to, to, this.width);
  }
  addVectors(to: number, a: number, b: number | Address): void {
    this.vector(ADDPS, to, a, b, this.width);
  }
  subtract(to: number, a: number, b: number | Address): void {
    this.vector(SUBPS, to, a, b, this.width);
  }
  /** The larger; b where either is NaN. */
  maximum(to: number, a: number, b: number | Address): void {
    this.vector(MAXPS, to, a, b, this.width);
  }
  /** Every 32-bit lane of `from`, shifted. */
  shiftLeft(to: number, from: number, count: number): void {
    this.vector(SHIFT_DOUBLEWORDS, SHIFT_LEFT, to, from, this.width);
    this.emit(count);
  }
  /** to = to * a + b, rounded once. */
  multiplyThenAdd(to: number, a: number, b: number): void {
    this.vector(FMADD213PS, to, a, b, this.width);
  }
  multiply(to: number, a: number, b: number | Address): void {
    this.vector(MULPS, to, a, b, this.width);
  }
  /** to += a * b, rounded once. */
  multiplyAdd(to: number, a: number, b: number): void {
    this.vector(FMADD231PS, to, a, b, this.width);
  }

  /** `unit` is the size that EVEX one-byte displacements count in. */
  private vector(op: VectorOp, reg: number, second: number, rm: number | Address | Pooled, unit: number): void {
    const pooled = typeof rm === 'object' && 'label' in rm ? rm : null;
    const address = typeof rm === 'object' && 'base' in rm ? rm : null;
    const register = typeof rm === 'number' ? rm : 0;
    const x = address ? (address.index ?? 0) >> 3 : register >> 4;
    const b = address ? address.base >> 3 : register >> 3;
    const notR = (~reg >> 3) & 1;
    const notX = (~x & 1) as number;
    const notB = ~b & 1;
    if (this.width === 64) {
      this.emit(0x62, (notR << 7) | (notX << 6) | (notB << 5) | (((~reg >> 4) & 1) << 4) | op.map);
      this.emit(((~second & 15) << 3) | 4 | op.prefix, 0x40 | (((~second >> 4) & 1) << 3));
    } else {
      this.emit(0xc4, (notR << 7) | (notX << 6) | (notB << 5) | op.map);
      this.emit(((~second & 15) << 3) | 4 | op.prefix);
    }
    this.emit(op.code);
    if (address) this.memory(reg, address, this.width === 64 ? unit : 1);
    else if (pooled) {
      // Relative to the next instruction, as jumps are.
      this.emit(((reg & 7) << 3) | 5);
      this.jumpTo(pooled.label);
    } else this.emit(0xc0 | ((reg & 7) << 3) | (register & 7));
  }

  /** ModRM, SIB and displacement; one-byte displacements count in `unit` bytes. */
  private memory(reg: number, { base, index, scale = 1, disp = 0 }: Address, unit: number): void {
    const needsSib = index !== undefined || (base & 7) === R.rsp;
    const small = disp % unit === 0 && disp / unit >= -128 && disp / unit < 128;
    const mode = disp === 0 && (base & 7) !== R.rbp ? 0 : small ? 1 : 2;
    this.emit((mode << 6) | ((reg & 7) << 3) | (needsSib ? 4 : base & 7));
    if (needsSib) this.emit(({ 1: 0, 2: 1, 4: 2, 8: 3 }[scale] << 6) | (((index ?? R.rsp) & 7) << 3) | (base & 7));
    if (mode === 1) this.emit((disp / unit) & 255);
    else if (mode === 2) this.int32(disp);
  }

  private rex(w: 0 | 1, reg: number, index: number, base: number): void {
    this.emit(0x40 | (w << 3) | ((reg >> 3) << 2) | ((index >> 3) << 1) | (base >> 3));
  }
  private jumpTo(label: string): void {
    this.jumps.push({ at: this.code.length, label });
    this.int32(0);
  }
  private emit(...bytes: number[]): void {
    this.code.push(...bytes);
  }
  private int32(value: number): void {
    this.emit(value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >> 24) & 255);
  }
}
