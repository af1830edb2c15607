/**
 * Tiles in shared memory and their fragments in registers, for both arithmetics the kernels are written over:
 *
 * - f16, bf16: m16n8k16 products, matrix loads.
 * - f32: every operand is split into two tf32 halves, and the m16n8k8 products of 16 inner positions are added outside the
 *   tensor core, whose own sums are truncated (Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022).
 *
 * The eight rows a fragment reads at once must fall into different banks. Halves: rows are a multiple of 128 bytes apart and
 * 16-byte chunks are permuted by `chunk ^ (row % 8)`. Floats: rows are 16 bytes more than a multiple of 64 apart, which keeps
 * every address a base and a constant; there are too many of them for the registers otherwise.
 */
import { alignTo } from '../../../core/math.ts';
import type { Assembler } from '../ptx/assembler.ts';
import { AssemblerError, type Reg } from '../ptx/registers.ts';
import { ldmatrix, mma16, mmaTf32 } from '../ptx/tensor.ts';

export type Storage = 'f16' | 'bf16' | 'f32';

/** One operand of a product: registers whose meaning is the arithmetic's own. */
export type Fragment = readonly Reg<'b32'>[];
/** One 16x8 accumulator: columns 2t, 2t + 1 of row g, then of row g + 8 (lane = 4 g + t). */
export type Tile = Reg<'f32'>[];

/** Bytes between rows of a tile of `columns` elements. */
export const pitchOf = (storage: Storage, columns: number): number =>
  storage === 'f32' ? columns * 4 + 16 : alignTo(columns * 2, 128);

/** Byte of a 16-byte chunk inside its row. */
export function chunkByte(asm: Assembler, storage: Storage, row: Reg<'b32'>, chunk: Reg<'b32'>): Reg<'b32'> {
  const permuted = storage === 'f32' ? chunk : asm.op('xor.b32', chunk, asm.op('and.b32', row, 7));
  return asm.op('shl.b32', permuted, 4);
}

/** Reads fragments of one tile whose first row is at `base`. Steps along the inner dimension are `arithmetic.kStep` wide. */
export interface TileView {
  /** Rows 16 m ... of the left operand. */
  a(m: number, k: number): Fragment;
  /** Two neighbouring 8-column tiles of the right operand whose columns are the tile's rows 16 n ... */
  b(n: number, k: number): readonly [Fragment, Fragment];
  /** Two neighbouring 8-column tiles of the right operand whose inner dimension runs down the tile's rows. */
  bt(k: number, n: number): readonly [Fragment, Fragment];
}

/** Which methods of a view will be called. */
export type Way = 'a' | 'b' | 'bt';

export interface Arithmetic {
  readonly storage: Storage;
  /** Bytes of an element. */
  readonly bytes: 2 | 4;
  /** Inner dimension of one product. */
  readonly kStep: 16;
  /**
   * A view of a tile with rows `pitch` bytes apart, for the ways of reading named. What it adds to is computed where it is
   * made, so that it may be read on either side of a branch.
   */
  view(base: Reg<'b32'>, pitch: number, ...ways: readonly Way[]): TileView;
  /** acc += a . b */
  mma(acc: Tile, a: Fragment, b: Fragment): void;
  /** The left operand of step k from accumulators side by side. */
  fromTiles(tiles: readonly Tile[], k: number): Fragment;
}

/** Lane numbers and parts of addresses that depend on the lane alone, computed once at the head of a kernel. */
export interface Lanes {
  readonly lane: Reg<'b32'>;
  /** lane / 4: the row inside an 8-row half. */
  readonly g: Reg<'b32'>;
  /** lane % 4: the pair of columns. */
  readonly t: Reg<'b32'>;
}

export function lanesOf(asm: Assembler, threadIndex: Reg<'b32'>): Lanes {
  const lane = asm.op('and.b32', threadIndex, 31);
  return { lane, g: asm.op('shr.u32', lane, 2), t: asm.op('and.b32', lane, 3) };
}

/** `base ^ low` for every multiple `low` of 32 inside a 128-byte line: computed here, or where it is used. */
function xored(asm: Assembler, base: Reg<'b32'>, sparing: boolean): (low: number) => Reg<'b32'> {
  const moved = (low: number): Reg<'b32'> => (low === 0 ? base : asm.op('xor.b32', base, low));
  if (sparing) return moved;
  const made = [0, 32, 64, 96].map(moved);
  return (low) => made[low / 32];
}

const missing = (): never => {
  throw new AssemblerError('a tile is read in a way its view was not made for');
};

/** Byte in a tile of halves of the chunk of this lane. */
const chunkAt = (asm: Assembler, row: Reg<'b32'>, half: Reg<'b32'>, pitch: number): Reg<'b32'> =>
  asm.op('mad.lo.s32', row, pitch, chunkByte(asm, 'f16', row, half));

/** @param sparing an instruction more for many addresses, and fewer registers that hold them. */
export function arithmeticOf(asm: Assembler, storage: Storage, lanes: Lanes, sparing = false): Arithmetic {
  return storage === 'f32' ? single(asm, lanes) : half(asm, storage, lanes, sparing);
}

function half(asm: Assembler, storage: 'f16' | 'bf16', { lane }: Lanes, sparing: boolean): Arithmetic {
  const chunks = new Map<string, Reg<'b32'>>();
  // Left operands and transposed right ones read rows lane % 16; plain right ones pair halves of 8 rows.
  const laneChunk = (kind: 'a' | 'b', pitch: number): Reg<'b32'> => {
    const key = `${kind}${pitch}`;
    let r = chunks.get(key);
    if (r === undefined) {
      const high = asm.op('shr.u32', lane, 4);
      if (kind === 'a') r = chunkAt(asm, asm.op('and.b32', lane, 15), high, pitch);
      else {
        const row = asm.op('mad.lo.s32', high, 8, asm.op('and.b32', lane, 7));
        r = chunkAt(asm, row, asm.op('and.b32', asm.op('shr.u32', lane, 3), 1), pitch);
      }
      chunks.set(key, r);
    }
    return r;
  };
  return {
    storage,
    bytes: 2,
    kStep: 16,
    view(base, pitch, ...ways) {
      const addresses = (kind: 'a' | 'b', needed: boolean): ((low: number) => Reg<'b32'>) =>
        needed ? xored(asm, asm.op('add.s32', base, laneChunk(kind, pitch)), sparing) : missing;
      const a = addresses('a', ways.includes('a') || ways.includes('bt'));
      const b = addresses('b', ways.includes('b'));
      const low = (step: number): number => (step * 32) & 127;
      const high = (step: number): number => (step >> 2) * 128;
      return {
        a: (m, k) => ldmatrix(asm, 4, a(low(k)), m * 16 * pitch + high(k)),
        b: (n, k) => {
          const r = ldmatrix(asm, 4, b(low(k)), n * 16 * pitch + high(k));
          return [r.slice(0, 2), r.slice(2)];
        },
        bt: (k, n) => {
          const r = ldmatrix(asm, 4, a(low(n)), k * 16 * pitch + high(n), { transpose: true });
          return [r.slice(0, 2), r.slice(2)];
        },
      };
    },
    mma: (acc, a, b) => mma16(asm, storage, acc, a, b),
    fromTiles(tiles, k) {
      const [x, y] = [tiles[2 * k], tiles[2 * k + 1]];
      const pack = (low: Reg<'f32'>, high: Reg<'f32'>): Reg<'b32'> => packPair(asm, storage, low, high);
      return [pack(x[0], x[1]), pack(x[2], x[3]), pack(y[0], y[1]), pack(y[2], y[3])];
    },
  };
}

function single(asm: Assembler, { lane, g, t }: Lanes): Arithmetic {
  const bases = new Map<string, Reg<'b32'>>();
  const laneBase = (way: Way, pitch: number): Reg<'b32'> => {
    const key = `${way}${pitch}`;
    let r = bases.get(key);
    if (r === undefined) {
      if (way === 'a' || way === 'b')
        r = asm.op('mad.lo.s32', rowOf[way](), pitch, asm.op('shl.b32', chunkOf[way](), 4));
      // Column g of row 2 t.
      else r = asm.op('mad.lo.s32', t, 2 * pitch, asm.op('shl.b32', g, 2));
      bases.set(key, r);
    }
    return r;
  };
  // A matrix load moves 16 bytes of a row to four lanes: of floats, column t of row g.
  const rowOf = {
    a: () => asm.op('and.b32', lane, 15),
    b: () => asm.op('mad.lo.s32', asm.op('shr.u32', lane, 4), 8, asm.op('and.b32', lane, 7)),
  };
  const chunkOf = {
    a: () => asm.op('shr.u32', lane, 4),
    b: () => asm.op('and.b32', asm.op('shr.u32', lane, 3), 1),
  };
  /**
   * The tf32 nearest to x and, of what that leaves, the bits the tensor core looks at: it cuts off 13. What is left has 12
   * bits, one more than a tf32; moved up by 2^-11 of itself and cut, it is the nearest tf32, and NaN stays NaN. The
   * conversion instruction, which would do the same, has an eighth of the rate of these.
   */
  const split = (x: Reg<'b32'>): [Reg<'b32'>, Reg<'b32'>] => {
    const high = asm.op('and.b32', asm.op('add.s32', x, 0x1000), 0xffffe000);
    const rest = asm.op('sub.f32', asm.op('mov.f32.b32', x), asm.op('mov.f32.b32', high));
    return [high, asm.op('mov.b32.f32', asm.op('mul.f32', rest, 1 + 2 ** -11))];
  };
  const fragment = (values: readonly Reg<'b32'>[]): Fragment => {
    const halves = values.map(split);
    return [...halves.map((h) => h[0]), ...halves.map((h) => h[1])];
  };
  const zero = asm.constant('f32', 0);
  const zeros = [zero, zero, zero, zero];
  return {
    storage: 'f32',
    bytes: 4,
    kStep: 16,
    view(base, pitch, ...ways) {
      const at = (way: Way): Reg<'b32'> | null =>
        ways.includes(way) ? asm.op('add.s32', base, laneBase(way, pitch)) : null;
      const [a, b, down] = [at('a'), at('b'), at('bt')];
      const below = (k: number, n8: number): Fragment =>
        fragment(
          [0, 1, 8, 9].map((row) => asm.load('shared', 'b32', down ?? missing(), (k * 16 + row) * pitch + n8 * 32)),
        );
      return {
        a: (m, k) =>
          fragment([0, 32].flatMap((half) => ldmatrix(asm, 4, a ?? missing(), m * 16 * pitch + k * 64 + half))),
        b: (n, k) => {
          const [x, y] = [0, 32].map((half) => ldmatrix(asm, 4, b ?? missing(), n * 16 * pitch + k * 64 + half));
          return [fragment([...x.slice(0, 2), ...y.slice(0, 2)]), fragment([...x.slice(2), ...y.slice(2)])];
        },
        bt: (k, n) => [below(k, 2 * n), below(k, 2 * n + 1)],
      };
    },
    mma(acc, a, b) {
      const part = asm.regs('f32', 4);
      // Highs of both halves of the step, then lows. What is small comes first: sums are truncated.
      const [aHigh, aLow, bHigh, bLow] = [a.slice(0, 8), a.slice(8), b.slice(0, 4), b.slice(4)];
      const product = (half: number, left: Fragment, right: Fragment, to: readonly Reg<'f32'>[]): void =>
        mmaTf32(asm, part, left.slice(4 * half, 4 * half + 4), right.slice(2 * half, 2 * half + 2), to);
      product(0, aLow, bHigh, zeros);
      product(1, aLow, bHigh, part);
      product(0, aHigh, bLow, part);
      product(1, aHigh, bLow, part);
      product(0, aHigh, bHigh, part);
      product(1, aHigh, bHigh, part);
      for (let i = 0; i < 4; i++) asm.set(acc[i], 'add.f32', acc[i], part[i]);
    },
    // Columns 2t and 2t + 1 stand for inner positions t and t + 4; `bt` reads rows in the same order.
    fromTiles: (tiles, k) =>
      fragment([0, 1].flatMap((half) => [0, 2, 1, 3].map((e) => asm.op('mov.b32.f32', tiles[2 * k + half][e])))),
  };
}

/** Two floats rounded to a pair of halves, `low` in the lower bits. */
export function packPair(asm: Assembler, storage: Storage, low: Reg<'f32'>, high: Reg<'f32'>): Reg<'b32'> {
  return asm.op(storage === 'bf16' ? 'cvt.rn.bf16x2.f32' : 'cvt.rn.f16x2.f32', high, low);
}

/** Accumulators for `columns` columns, set to zero. */
export function zeroTiles(asm: Assembler, m: number, columns: number): Tile[][] {
  return Array.from({ length: m }, () =>
    Array.from({ length: columns / 8 }, () => Array.from({ length: 4 }, () => asm.constant('f32', 0))),
  );
}
