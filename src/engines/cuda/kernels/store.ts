/** Writes accumulators to rows of global memory in the problem's storage type. */
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { packPair, type Tile } from './fragments.ts';
import type { Grain, RowSource } from './loader.ts';
import type { Spec } from './spec.ts';

export interface StoreOptions {
  /** tiles[m][n]: 16 rows by 8 columns each. */
  readonly tiles: readonly (readonly Tile[])[];
  /** Row numbers inside the sequence, two a tile. */
  readonly rows: readonly Reg<'b32'>[];
  /** Rows from here on do not exist. */
  readonly limit: Reg<'b32'>;
  readonly target: RowSource;
  /** Columns that exist. */
  readonly columns: number;
  readonly grain: Grain;
  /** lane % 4. */
  readonly t: Reg<'b32'>;
}

export function storeRows(asm: Assembler, spec: Spec, options: StoreOptions): void {
  const { tiles, rows, limit, target, columns, grain, t } = options;
  const firstColumn = asm.op('shl.b32', t, 1);
  const columnBytes = asm.op('mul.wide.u32', firstColumn, spec.size);
  const paired = columns % 2 === 0 && grain >= 2 * spec.size;
  rows.forEach((row, r) => {
    const skip = asm.label('row');
    asm.branch(skip, asm.op('setp.lt.s32', row, limit), { negate: true });
    const at = asm.op('add.s64', target.row(row), columnBytes);
    tiles[r >> 1].forEach((tile, n) => {
      const pair = [tile[(r & 1) * 2], tile[(r & 1) * 2 + 1]];
      const cut = (n + 1) * 8 > columns;
      if (paired) {
        const write = (): void => {
          if (spec.storage === 'f32') asm.storeVector('global', 'f32', at, pair, n * 8 * 4);
          else asm.store('global', 'b32', at, packPair(asm, spec.storage, pair[0], pair[1]), n * 8 * 2);
        };
        guardedBy(asm, cut ? asm.op('setp.lt.s32', firstColumn, columns - n * 8) : null, write);
        return;
      }
      pair.forEach((x, j) => {
        const write = (): void => storeOne(asm, spec, at, x, (n * 8 + j) * spec.size);
        guardedBy(asm, cut ? asm.op('setp.lt.s32', firstColumn, columns - n * 8 - j) : null, write);
      });
    });
    asm.place(skip);
  });
}

function guardedBy(asm: Assembler, guard: Reg<'pred'> | null, write: () => void): void {
  if (guard === null) write();
  else asm.when(guard, write);
}

/** Writes one float in the problem's storage type, where `guard` holds. */
export function writeElement(
  asm: Assembler,
  spec: Spec,
  at: Reg<'b64'>,
  x: Reg<'f32'>,
  guard: Reg<'pred'> | null,
): void {
  guardedBy(asm, guard, () => storeOne(asm, spec, at, x, 0));
}

function storeOne(asm: Assembler, spec: Spec, at: Reg<'b64'>, x: Reg<'f32'>, offset: number): void {
  if (spec.storage === 'f32') asm.store('global', 'f32', at, x, offset);
  else
    asm.store('global', 'b16', at, asm.op(spec.storage === 'bf16' ? 'cvt.rn.bf16.f32' : 'cvt.rn.f16.f32', x), offset);
}
