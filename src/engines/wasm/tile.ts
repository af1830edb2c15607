/**
 * The vector interface kernels are written in. A `Vec` is one value a lane, kept as v128 registers of four lanes each;
 * every operation is emitted for all registers of a Vec side by side, because V8's revectorizer fuses neighbouring pairs.
 * Another back end supplies the same operations over its own registers.
 */
import type { FuncBuilder, Local } from './asm/func.ts';
import { type F32, f32x4, type I32, i8x16, i32, i32x4, type V128, v128, v128Const } from './asm/values.ts';
import type { WasmCaps } from './kernel.ts';

export type Vec = readonly V128[];

/** How vectors look on this machine: see `WasmCaps`. */
export interface Shape {
  /** Lanes of a Vec: 8, or 16 when pairs of registers fuse. */
  readonly lanes: number;
  /** Rows of a register tile. */
  readonly rows: number;
  /** Rounds of a product's inner loop in one piece. */
  readonly unroll: number;
  readonly relaxed: boolean;
  /** Products and the softmax are calls of machine code (kernels/calls.ts); lanes are two of its vectors. */
  readonly native: boolean;
}

/** Register tiles that fit sixteen registers: measured in docs/kernels.md. */
export function shapeOf(caps: Pick<WasmCaps, 'relaxed' | 'wide' | 'unroll' | 'native'>): Shape {
  const { relaxed } = caps;
  if (caps.native > 0)
    return { lanes: caps.native / 16, rows: caps.native === 512 ? 3 : 6, unroll: 1, relaxed, native: true };
  if (!caps.unroll) return { lanes: 8, rows: 4, unroll: 1, relaxed, native: false };
  return { lanes: caps.wide ? 16 : 8, rows: 6, unroll: 8, relaxed, native: false };
}

const floatBits = new Int32Array(new Float32Array(1).buffer);
const floatView = new Float32Array(floatBits.buffer);
/** The same float in four lanes. */
export function floats(x: number): V128 {
  floatView[0] = x;
  const [bits] = floatBits;
  return v128Const([bits, bits, bits, bits]);
}
export const ints = (x: number): V128 => v128Const([x, x, x, x]);

/**
 * Constants in memory. V8 makes a vector constant anew at every use, with two shuffles, also inside loops; loading it is one
 * cheap instruction. Functions that are given the table's address use it, the others write constants in line.
 */
export class ConstantTable {
  static readonly bytes = 512;
  readonly #words: number[] = [];

  /** Offset of a 32-bit word in the table, or null when it is full. */
  offsetOf(bits: number): number | null {
    const found = this.#words.indexOf(bits);
    if (found >= 0) return 4 * found;
    if (4 * this.#words.length >= ConstantTable.bytes) return null;
    return 4 * (this.#words.push(bits) - 1);
  }

  /** Emits stores of all constants asked for so far: in the entry function, which is emitted last. */
  fill(f: FuncBuilder, at: I32): void {
    this.#words.forEach((bits, i) => {
      f.do(i32.store(at, bits, 4 * i));
    });
  }
}

/** A table and its address at run time. */
export interface Constants {
  readonly table: ConstantTable;
  readonly at: Local<'i32'>;
}

/** Operations on Vecs inside one function. Results are locals: a Vec may be used many times. */
export class Vectors {
  readonly f: FuncBuilder;
  readonly shape: Shape;
  /** Registers of a Vec. */
  readonly width: number;
  /** Bytes of a Vec. */
  readonly bytes: number;

  readonly #constants: Constants | null;

  constructor(f: FuncBuilder, shape: Shape, constants: Constants | null = null) {
    this.#constants = constants;
    this.f = f;
    this.shape = shape;
    this.width = shape.lanes / 4;
    this.bytes = shape.lanes * 4;
  }

  /** Applies a function register by register. */
  map(op: (...registers: V128[]) => V128, ...vecs: readonly Vec[]): Local<'v128'>[] {
    return Array.from({ length: this.width }, (_, i) => this.f.let(op(...vecs.map((v) => v[i])), 'v'));
  }

  /** The same register for every four lanes. */
  repeat(register: V128): Vec {
    return Array<V128>(this.width).fill(register);
  }

  /** The same constant float in all lanes. */
  constant(x: number): Vec {
    floatView[0] = x;
    return this.bits(floatBits[0]);
  }

  /** The same 32-bit word in all lanes. */
  bits(word: number): Vec {
    const offset = this.#constants?.table.offsetOf(word | 0) ?? null;
    if (this.#constants === null || offset === null) return this.repeat(ints(word | 0));
    return this.repeat(this.f.let(v128.load32_splat(this.#constants.at, offset), 'c'));
  }

  /** Four lanes of the same kind, for values that are the same in all lanes. */
  get narrow(): Vectors {
    return new Vectors(this.f, { ...this.shape, lanes: 4 }, this.#constants);
  }

  splat(x: F32): Vec {
    return this.repeat(this.f.let(f32x4.splat(x), 's'));
  }

  load(address: I32, offset = 0): Local<'v128'>[] {
    return Array.from({ length: this.width }, (_, i) => this.f.let(v128.load(address, offset + 16 * i), 'v'));
  }

  store(address: I32, vec: Vec, offset = 0): void {
    vec.forEach((register, i) => {
      this.f.do(v128.store(address, register, offset + 16 * i));
    });
  }

  set(target: readonly Local<'v128'>[], vec: Vec): void {
    target.forEach((local, i) => {
      this.f.set(local, vec[i]);
    });
  }

  /** a * b + c, fused where the machine fuses. */
  madd(a: V128, b: V128, c: V128): V128 {
    return this.shape.relaxed ? f32x4.relaxed_madd(a, b, c) : f32x4.add(f32x4.mul(a, b), c);
  }
}

/** One operand of a product in memory: element (i, k) is at `at + i * row + k * step`, in bytes. */
export interface Operand {
  readonly at: I32;
  readonly row: number;
  readonly step: number;
}

/**
 * acc[r] += sum over k of a(r, k) * b(k), for all rows of a register tile: a is splatted from memory, b(k) is a Vec at
 * `b.at + k * b.step`. `count` is the number of k, a constant or a run-time value.
 */
export function product(
  v: Vectors,
  acc: readonly (readonly Local<'v128'>[])[],
  a: Operand,
  b: { readonly at: I32; readonly step: number },
  count: I32 | number,
): void {
  const { f } = v;
  const pa = f.let(a.at, 'a');
  const pb = f.let(b.at, 'b');
  const rounds = (n: number): void => {
    for (let u = 0; u < n; u++) {
      const lanes = v.load(pb, u * b.step);
      acc.forEach((row, r) => {
        const x = f.let(v128.load32_splat(pa, r * a.row + u * a.step), 'x');
        row.forEach((sum, i) => {
          f.set(sum, v.madd(x, lanes[i], sum));
        });
      });
    }
    f.bump(pa, n * a.step);
    f.bump(pb, n * b.step);
  };
  const { unroll } = v.shape;
  if (typeof count === 'number') {
    f.for(0, Math.floor(count / unroll), 1, () => rounds(unroll), 'k');
    if (count % unroll > 0) rounds(count % unroll);
    return;
  }
  const k = f.let(count, 'k');
  if (unroll > 1)
    f.block((done) =>
      f.loop((again) => {
        f.branch(done, i32.lt_s(k, unroll));
        rounds(unroll);
        f.bump(k, -unroll);
        f.branch(again);
      }),
    );
  f.if(i32.gt_s(k, 0), () =>
    f.loop((again) => {
      rounds(1);
      f.bump(k, -1);
      f.branch(again, i32.gt_s(k, 0));
    }),
  );
}

/** Fresh accumulators of a register tile, zero. */
export const accumulators = (v: Vectors, rows: number): Local<'v128'>[][] =>
  Array.from({ length: rows }, () => {
    const row = Array.from({ length: v.width }, () => v.f.local('v128', 'acc'));
    for (const register of row) v.f.set(register, ints(0));
    return row;
  });

/** Rows of a 4 x 4 block as columns. */
export function transpose4(f: FuncBuilder, rows: readonly V128[]): V128[] {
  const pick = (a: V128, b: V128, ...words: number[]): V128 =>
    i8x16.shuffle(
      a,
      b,
      words.flatMap((w) => [4 * w, 4 * w + 1, 4 * w + 2, 4 * w + 3]),
    );
  const [a, b, c, d] = rows;
  const ab = [f.let(pick(a, b, 0, 4, 1, 5)), f.let(pick(a, b, 2, 6, 3, 7))];
  const cd = [f.let(pick(c, d, 0, 4, 1, 5)), f.let(pick(c, d, 2, 6, 3, 7))];
  return [0, 1].flatMap((i) => [f.let(pick(ab[i], cd[i], 0, 1, 4, 5)), f.let(pick(ab[i], cd[i], 2, 3, 6, 7))]);
}

/** Lane numbers base, base + 1, ... as i32. */
export function iota(v: Vectors, base: I32): Local<'v128'>[] {
  const first = v.f.let(i32x4.splat(base), 'base');
  return Array.from({ length: v.width }, (_, i) =>
    v.f.let(i32x4.add(first, v128Const([4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3])), 'lane'),
  );
}
