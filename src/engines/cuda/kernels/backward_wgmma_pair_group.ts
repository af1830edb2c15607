/** What the computing warpgroups of the five-product backward for wide heads have in common. */
import type { Assembler } from '../ptx/assembler.ts';
import { arrive, type Cursor, waitParity } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { advance, type Descriptor, PANEL, PANEL_BYTES, uniform, wgmma, wgmmaCommit, wgmmaFence } from '../ptx/wgmma.ts';
import { PANEL_SIZE, type PairLayout, ROWS, STATS_BYTES } from './backward_wgmma_pair_shared.ts';
import { slot } from './forward_wgmma_load.ts';
import { storeWide } from './forward_wgmma_store.ts';
import { type Lanes, lanesOf, type Tile } from './fragments.ts';
import { type Grain, strided } from './loader.ts';
import { baseOf } from './place.ts';
import type { Spec } from './spec.ts';

/** Named barriers of the warpgroups. */
export const BARRIER = { scores: 1, gradients: 2, queries: 3 } as const;

export interface PairInputs {
  readonly thread: Reg<'b32'>;
  readonly rank: Reg<'b32'>;
  readonly other: Reg<'b32'>;
  readonly Sq: Reg<'b32'>;
  readonly Sk: Reg<'b32'>;
  readonly scale: Reg<'f32'>;
  readonly scaleLog2: Reg<'f32'>;
}

export const tilesOf = (regs: readonly Reg<'f32'>[]): Tile[] =>
  Array.from({ length: regs.length / 4 }, (_, n) => regs.slice(4 * n, 4 * n + 4));

/** What the warpgroups have in common. */
export function warpgroup(asm: Assembler, spec: Spec, shared: PairLayout, thread: Reg<'b32'>) {
  const type = spec.storage as 'f16' | 'bf16';
  const lanes = lanesOf(asm, thread);
  const index = asm.op('and.b32', thread, 127);
  const firstLane = asm.op('setp.eq.s32', lanes.lane, 0);
  const yes = asm.op('setp.eq.s32', asm.constant('b32', 0), 0);
  const no = asm.op('not.pred', yes);
  const rowsParity = asm.constant('b32', 0);
  /** One arrival of this warp, once all its lanes have come here. */
  const release = (empty: Reg<'b32'>): void => {
    asm.emit('bar.warp.sync', '-1');
    asm.when(firstLane, () => arrive(asm, empty));
  };
  return {
    type,
    lanes,
    index,
    firstLane,
    /** First of this warp's 16 rows. */
    warpRow: asm.op('shl.b32', asm.op('shr.u32', index, 5), 4),
    release,
    /** A number of the note about the tile of keys: read where it is needed, because registers are few. */
    say: (offset: number): Reg<'b32'> => asm.load('shared', 'b32', shared.rowsNote, offset),
    waitRows(): void {
      waitParity(asm, shared.rowsFull, rowsParity);
      asm.set(rowsParity, 'xor.b32', rowsParity, 1);
    },
    /** acc = left right^T along the columns of both. */
    inner(acc: readonly Reg<'f32'>[], left: Descriptor, right: Descriptor, columns: number): void {
      wgmmaFence(asm);
      for (let i = 0; i < Math.ceil(columns / 16); i++) {
        const offset = (i >> 2) * PANEL_SIZE + (i % 4) * 32;
        wgmma(asm, acc, advance(asm, left, offset), advance(asm, right, offset), {
          type,
          accumulate: i === 0 ? no : yes,
        });
      }
      wgmmaCommit(asm);
    },
    /** acc += left right along the rows of `right`, two panels of its columns at a time. */
    outer(acc: readonly Reg<'f32'>[], left: readonly Reg<'b32'>[], right: Descriptor): void {
      wgmmaFence(asm);
      for (let i = 0; i < ROWS / 16; i++)
        for (let from = 0; from < acc.length; from += PANEL) {
          const by = advance(asm, right, ((2 * from) / PANEL) * PANEL_SIZE + i * 16 * PANEL_BYTES);
          const options = { type, accumulate: yes, downRows: true };
          wgmma(asm, acc.slice(from, from + PANEL), left.slice(4 * i, 4 * i + 4), by, options);
        }
      wgmmaCommit(asm);
    },
    yes,
    no,
  };
}

export const stageOf = (asm: Assembler, desc: Descriptor, cursor: Cursor, bytes: number): Descriptor =>
  asm.op('add.s64', desc, asm.op('mul.wide.u32', uniform(asm, cursor.stage), bytes >> 4));

/** lse2 (0) or delta (1) of the step's queries, by a thread's columns. */
export function statsOf(
  asm: Assembler,
  shared: PairLayout,
  at: Cursor,
  lanes: Lanes,
  which: 0 | 1,
): (column: number) => Reg<'f32'> {
  const known = new Map<number, Reg<'f32'>[]>();
  const mine = asm.op('mad.lo.s32', lanes.t, 8, slot(asm, shared.stats, at, STATS_BYTES));
  return (c) => {
    let pair = known.get(c >> 1);
    if (pair === undefined) {
      pair = asm.loadVector('shared', 'f32', 2, mine, which * ROWS * 4 + (c >> 1) * 32);
      known.set(c >> 1, pair);
    }
    return pair[c & 1];
  };
}

/** Writes a block's rows of dK or dV. */
export function storeRowsOf(
  asm: Assembler,
  spec: Spec,
  to: { tensor: Reg<'b64'>; b: Reg<'b64'>; h: Reg<'b64'>; s: Reg<'b64'> },
  at: { rows: readonly Reg<'b32'>[]; h: Reg<'b32'>; b: Reg<'b32'> },
  acc: readonly Reg<'f32'>[],
  limit: Reg<'b32'>,
  grain: Grain,
  { t }: Lanes,
  columns: number,
): void {
  const base = baseOf(asm, to.tensor, to, { b: at.b, h: at.h, start: asm.constant('b32', 0) }, spec.size);
  storeWide(asm, spec, {
    tiles: [tilesOf(acc)],
    rows: at.rows,
    limit,
    target: strided(asm, base, asm.op('mul.lo.s64', to.s, spec.size)),
    columns,
    grain,
    t,
  });
}
