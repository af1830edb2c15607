/**
 * Keeps NaN and infinity in masked rows out of products. A matrix product multiplies every row of its right operand, and
 * 0 * NaN is NaN; so before a partly masked tile is used, its non-finite elements are looked for. Where there are any, which
 * is rare, they are replaced by zeros, after the caller has added them where they do belong.
 */
import { lower } from '../../../mods/lower.ts';
import type { Value } from '../math.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { chunkByte, pitchOf, type Storage, type Tile } from './fragments.ts';
import type { TileShape } from './loader.ts';
import type { Place } from './place.ts';
import { scorerOf } from './scores.ts';
import type { Spec } from './spec.ts';

/** Exponent bits of an element pair (or single), and what carries out of them exactly when all are set. */
const EXPONENT: Readonly<Record<Storage, { mask: number; carry: number; signs: number }>> = {
  bf16: { mask: 0x7f807f80, carry: 0x00800080, signs: 0x80008000 },
  f16: { mask: 0x7c007c00, carry: 0x04000400, signs: 0x80008000 },
  f32: { mask: 0x7f800000, carry: 0x00800000, signs: 0x80000000 },
};

/** The sign bits of `word`'s elements are set where the element is NaN or infinite. */
function flags(asm: Assembler, storage: Storage, word: Reg<'b32'>): Reg<'b32'> {
  const { mask, carry, signs } = EXPONENT[storage];
  return asm.op('and.b32', asm.op('add.s32', asm.op('and.b32', word, mask), carry), signs);
}

/**
 * Every thread of the block calls this at the same time; afterwards the tile is finite. `rescue` is emitted for the rare
 * case, while the tile is still whole.
 */
export function purge(
  asm: Assembler,
  tile: TileShape,
  base: Reg<'b32'>,
  threads: number,
  thread: Reg<'b32'>,
  rescue: () => void,
): void {
  const { storage } = tile;
  const pitch = pitchOf(storage, tile.padded);
  const perRow = (tile.padded * (storage === 'f32' ? 4 : 2)) / 16;
  const chunks = tile.rows * perRow;
  const seen = asm.constant('b32', 0);
  const finite = asm.label('finite');
  const eachWord = (visit: (word: Reg<'b32'>, at: Reg<'b32'>, offset: number) => void): void => {
    for (let i = 0; i * threads < chunks; i++) {
      const skip = asm.label('chunk');
      const index = asm.op('add.s32', thread, i * threads);
      const ragged = (i + 1) * threads > chunks;
      if (ragged) asm.branch(skip, asm.op('setp.ge.s32', index, chunks));
      const row = asm.op('div.u32', index, perRow);
      const chunk = asm.op('sub.s32', index, asm.op('mul.lo.s32', row, perRow));
      const at = asm.op('add.s32', asm.op('mad.lo.s32', row, pitch, base), chunkByte(asm, storage, row, chunk));
      asm.loadVector('shared', 'b32', 4, at).forEach((word, j) => {
        visit(word, at, 4 * j);
      });
      if (ragged) asm.place(skip);
    }
  };
  eachWord((word) => asm.set(seen, 'or.b32', seen, flags(asm, storage, word)));
  const any = asm.reg('pred');
  const found = asm.op('setp.ne.s32', seen, 0);
  asm.emit('bar.red.or.pred', any.name, '0', found.name);
  asm.branch(finite, any, { negate: true, uniform: true });
  rescue();
  asm.barrier();
  eachWord((word, at, offset) => {
    // Each flagged element's bits become ones, and are cleared.
    const sign = flags(asm, storage, word);
    const ones =
      storage === 'f32' ? asm.op('shr.s32', sign, 31) : asm.op('mul.lo.s32', asm.op('shr.u32', sign, 15), 0xffff);
    asm.store('shared', 'b32', at, asm.op('and.b32', word, asm.op('not.b32', ones)), offset);
  });
  asm.barrier();
  asm.place(finite);
}

export interface Attended {
  readonly spec: Spec;
  readonly place: Place;
  /** acc[m][n]: queries by value columns. */
  readonly acc: readonly (readonly Tile[])[];
  readonly qPositions: readonly Reg<'b32'>[];
  /** Position of the tile's first key. */
  readonly kv0: Reg<'b32'>;
  readonly h: Reg<'b32'>;
  readonly rowHead?: readonly Reg<'b32'>[];
  /** The tile of values. */
  readonly base: Reg<'b32'>;
  readonly tile: TileShape;
  /** lane % 4. */
  readonly t: Reg<'b32'>;
}

/** Adds NaN and infinite values to the output of the queries that attend to them: one key after the other. */
export function addAttended(asm: Assembler, options: Attended): void {
  const { spec, place, acc, qPositions, kv0, h, base, tile, t, rowHead } = options;
  const pitch = pitchOf(spec.storage, tile.padded);
  const row = asm.constant('b32', 0);
  const loop = asm.label('rescue');
  asm.place(loop);
  const kv = asm.op('add.s32', kv0, row);
  const scorer = scorerOf(asm, spec, place);
  const inside = asm.op('setp.lt.s32', kv, place.lenK);
  const attends = qPositions.map((_, r) => {
    const head = rowHead === undefined ? {} : { rowHead: [rowHead[r]] };
    const grid = { rowsAre: 'q', rows: [qPositions[r]], columns: [kv], head: h, ...head } as const;
    const kept = scorer.scope.reg(
      lower<Value>(spec.mask!, scorer.scope.at(scorer.point(grid, 0, 0, 0, null))),
    ) as Reg<'pred'>;
    return asm.op('and.pred', kept, inside);
  });
  const line = asm.op('mad.lo.s32', row, pitch, base);
  const swizzle = chunkByte(asm, spec.storage, row, asm.constant('b32', 0));
  acc[0].forEach((_, n) => {
    // Keeps the compiler from reading all columns first: this is rare, and registers are what the caller is short of.
    if (n % 4 === 0) asm.emit('bar.warp.sync', '-1');
    for (const j of [0, 1]) {
      // Byte of column 8 n + 2 t + j; its 16-byte chunk is permuted by the row.
      const byte = asm.op('mad.lo.s32', t, 2 * spec.size, (n * 8 + j) * spec.size);
      const at = asm.op('add.s32', line, asm.op('xor.b32', byte, swizzle));
      const value = readElement(asm, spec.storage, at);
      const wild = asm.op('setp.neu.f32', asm.op('sub.f32', value, value), 0);
      qPositions.forEach((_, r) => {
        const tileOf = acc[r >> 1][n];
        const add = asm.op('and.pred', attends[r], wild);
        const out = tileOf[(r & 1) * 2 + j];
        asm.when(add, () => asm.set(out, 'add.f32', out, value));
      });
    }
  });
  asm.set(row, 'add.s32', row, 1);
  asm.branch(loop, asm.op('setp.lt.s32', row, tile.rows));
}

function readElement(asm: Assembler, storage: Storage, at: Reg<'b32'>): Reg<'f32'> {
  switch (storage) {
    case 'f32':
      return asm.load('shared', 'f32', at);
    case 'f16':
      return asm.op('cvt.f32.f16', asm.load('shared', 'b16', at));
    case 'bf16':
      return asm.op('mov.f32.b32', asm.op('shl.b32', asm.load('shared', 'u16', at), 16));
    default:
      throw storage satisfies never;
  }
}
