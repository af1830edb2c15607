/** The two products every kernel is made of, over fragments (fragments.ts), and which block of them a block of threads is. */
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { type Arithmetic, type Fragment, type Tile, type TileView, zeroTiles } from './fragments.ts';

/** Left operands of step k, one for each 16 rows. */
export type LeftSteps = (k: number) => readonly Fragment[];

/** The fragments of 16 m rows of a tile in shared memory, read when they are asked for. */
export const leftOf =
  (view: TileView, m: number): LeftSteps =>
  (k) =>
    Array.from({ length: m }, (_, i) => view.a(i, k));

/** The same, all read here and kept in registers. */
export function heldLeft(arithmetic: Arithmetic, view: TileView, m: number, columns: number): LeftSteps {
  const held = Array.from({ length: columns / arithmetic.kStep }, (_, k) => leftOf(view, m)(k));
  return (k) => held[k];
}

/** left . right^T: 16 m rows by the `rows` rows of the right tile, over `columns`. */
export function multiply(
  asm: Assembler,
  arithmetic: Arithmetic,
  left: LeftSteps,
  m: number,
  right: TileView,
  rows: number,
  columns: number,
): Tile[][] {
  const tiles = zeroTiles(asm, m, rows);
  for (let k = 0; k < columns / arithmetic.kStep; k++) {
    const a = left(k);
    for (let n = 0; n < rows / 16; n++)
      right.b(n, k).forEach((b, j) => {
        for (let i = 0; i < m; i++) arithmetic.mma(tiles[i][2 * n + j], a[i], b);
      });
  }
  return tiles;
}

/** acc += left . right, where left lies in accumulators, `rows` columns wide, and right has as many rows, of `columns`. */
export function accumulate(
  arithmetic: Arithmetic,
  acc: readonly (readonly Tile[])[],
  left: readonly (readonly Tile[])[],
  right: TileView,
  rows: number,
  columns: number,
): void {
  for (let k = 0; k < rows / arithmetic.kStep; k++) {
    const a = left.map((tiles) => arithmetic.fromTiles(tiles, k));
    for (let n = 0; n < columns / 16; n++)
      right.bt(k, n).forEach((b, j) => {
        for (let i = 0; i < a.length; i++) arithmetic.mma(acc[i][2 * n + j], a[i], b);
      });
  }
}

/** Which block of rows this block of threads owns: the last first where later rows have more work. */
export function ownBlock(asm: Assembler, reverse: Reg<'b32'>): Reg<'b32'> {
  const ascending = asm.special('ctaid.x');
  const descending = asm.op('sub.s32', asm.op('sub.s32', asm.special('nctaid.x'), 1), ascending);
  return asm.op('selp.b32', descending, ascending, asm.op('setp.ne.s32', reverse, 0));
}
