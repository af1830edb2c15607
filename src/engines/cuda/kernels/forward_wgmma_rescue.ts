/** The rare case of NaN or infinity in partly masked values, which the scanners have cleared from shared memory. */
import { lower } from '../../../mods/lower.ts';
import type { Value } from '../math.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import type { Tile } from './fragments.ts';
import type { RowSource } from './loader.ts';
import type { Place } from './place.ts';
import { scorerOf } from './scores.ts';
import type { Spec } from './spec.ts';

export interface Rescue {
  readonly place: Place;
  /** Output of 16 rows; how it is scaled does not matter to NaN and infinity. */
  readonly acc: readonly Tile[];
  readonly qPositions: readonly Reg<'b32'>[];
  readonly kv0: Reg<'b32'>;
  readonly h: Reg<'b32'>;
  /** Rows of V in global memory. */
  readonly source: RowSource;
  /** Keys of the block. */
  readonly rows: number;
  /** lane % 4. */
  readonly t: Reg<'b32'>;
}

/** Adds NaN and infinite values to the output of the queries that attend to them, one key after the other. */
export function rescue(asm: Assembler, spec: Spec, options: Rescue): void {
  const { place, acc, qPositions, kv0, h, source, rows, t } = options;
  asm.stage('rescue: NaN and infinite values, key by key');
  const kv = asm.op('mov.b32', kv0);
  const end = asm.op('min.s32', asm.op('add.s32', kv0, rows), place.lenK);
  const loop = asm.label('rescue');
  const done = asm.label('rescued');
  asm.place(loop);
  asm.branch(done, asm.op('setp.ge.s32', kv, end), { uniform: true });
  const scorer = scorerOf(asm, spec, place);
  const attends = qPositions.map((q) => {
    if (spec.mask === null) return asm.op('setp.lt.s32', kv, end);
    const grid = { rowsAre: 'q', rows: [q], columns: [kv], head: h } as const;
    return scorer.scope.reg(lower<Value>(spec.mask, scorer.scope.at(scorer.point(grid, 0, 0, 0, null)))) as Reg<'pred'>;
  });
  const row = asm.op('add.s64', source.row(kv), asm.op('mul.wide.u32', t, 2 * spec.size));
  acc.forEach((tile, n) => {
    for (const j of [0, 1]) {
      const column = n * 8 + j;
      const skip = asm.label('column');
      // Columns of padding do not exist in memory.
      if (n * 8 + 8 > spec.Dv)
        asm.branch(skip, asm.op('setp.ge.s32', asm.op('mad.lo.s32', t, 2, asm.constant('b32', column)), spec.Dv));
      const value =
        spec.storage === 'bf16'
          ? asm.op('mov.f32.b32', asm.op('shl.b32', asm.load('global', 'u16', row, column * 2), 16))
          : asm.op('cvt.f32.f16', asm.load('global', 'b16', row, column * 2));
      const wild = asm.op('setp.neu.f32', asm.op('sub.f32', value, value), 0);
      attends.forEach((attend, r) => {
        const out = tile[2 * r + j];
        asm.when(asm.op('and.pred', attend, wild), () => asm.set(out, 'add.f32', out, value));
      });
      asm.place(skip);
    }
  });
  asm.set(kv, 'add.s32', kv, 1);
  asm.branch(loop);
  asm.place(done);
}
