/**
 * The warpgroup of a five-product backward that has dQ alone: dQ' = dS K of a step, for all keys of a cluster, goes from
 * registers to a scratch tile in global memory.
 *
 * A scratch tile is added to by blocks of keys in the order in which these are handed out. A word beside it says how many have
 * been. Warps that have nothing else to do see a block's turn come and pass it on; several take turns, so that one waits for
 * sums to arrive while the next sees another turn come. Whoever is waited for has started earlier, so nobody waits forever;
 * and the table of steps leads all of them through their queries from the same side, so that hardly anybody waits at all.
 */
import type { Assembler } from '../ptx/assembler.ts';
import { arrive, BARRIER_BYTES, type Cursor, cursorOf, waitParity } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import {
  advance,
  type Descriptor,
  PANEL,
  PANEL_BYTES,
  wgmma,
  wgmmaCommit,
  wgmmaFence,
  wgmmaWait,
} from '../ptx/wgmma.ts';
import { slot } from './forward_wgmma_load.ts';

/** Byte offsets in the note about dS of a step: scratch tile, place in its order of sums, end of the tile of keys. */
export const SUM = { tile: 0, rank: 4, end: 8, bytes: 16 } as const;
/**
 * Byte offsets in a writer's note: scratch tile, place in its order; barriers: that it is asked to see its turn come, that it
 * has come, and that all four warps have added.
 */
export const TURN = { tile: 0, rank: 4, asked: 8, come: 16, added: 24, bytes: 32 } as const;
/** Warps that see turns come and pass them on. */
export const WRITERS = 3;
/** Bytes of a part of a scratch tile: 64 queries by a panel of columns in f32, as the threads of a warpgroup hold them. */
export const PART_BYTES = 16384;
/** Rows of a product: queries of a step, and of dS a part. */
const ROWS = 64;

export interface SumsInput {
  readonly type: 'f16' | 'bf16';
  /** Thread of the warpgroup. */
  readonly index: Reg<'b32'>;
  /** The ring of dS: its cursor, barriers and notes; and the writers' notes, with their cursor. */
  readonly at: Cursor;
  readonly full: Reg<'b32'>;
  readonly sumNote: Reg<'b32'>;
  readonly atTurn: Cursor;
  readonly turnNote: Reg<'b32'>;
  /** dS in the cursor's buffer. */
  readonly dS: () => Descriptor;
  /** Keys by 64, in the order in which dS has them. */
  readonly keys: readonly Descriptor[];
  /** Panels of columns, and the bytes from one to the next. */
  readonly panels: number;
  readonly panelBytes: number;
  /** The first of this warpgroup's floats in a scratch tile, and bytes of a tile. */
  readonly scratch: Reg<'b64'>;
  readonly tileBytes: number;
  /** Whether sums go by an order. Without it they differ from run to run in their last bits. */
  readonly ordered: boolean;
  /** Emits what says that this step's dS has been read. */
  readonly release: () => void;
}

/** Walks the steps of one tile of keys. */
export function emitSums(asm: Assembler, input: SumsInput): void {
  const { type, index, at, full, sumNote, atTurn, turnNote, keys, panels, panelBytes, tileBytes, ordered } = input;
  const dQ = asm.regs('f32', PANEL / 2);
  const yes = asm.op('setp.eq.s32', asm.constant('b32', 0), 0);
  const no = asm.op('not.pred', yes);
  const firstLane = asm.op('setp.eq.s32', asm.op('and.b32', index, 31), 0);
  const scratch = asm.op('add.s64', input.scratch, asm.op('mul.wide.u32', index, 16));

  const [loop, done] = [asm.label('step'), asm.label('done')];
  asm.place(loop);
  waitParity(asm, slot(asm, full, at, BARRIER_BYTES), at.parity);
  const [tile, rank, end] = asm.loadVector('shared', 'b32', 4, slot(asm, sumNote, at, SUM.bytes));
  asm.branch(done, asm.op('setp.ne.s32', end, 0), { uniform: true });
  const left = input.dS();
  const product = (panel: number): void => {
    asm.stage("dQ' = dS K, a panel of columns");
    wgmmaFence(asm);
    for (const [part, desc] of keys.entries())
      for (let i = 0; i < ROWS / 16; i++) {
        const from = advance(asm, left, (part * ROWS + i * 16) * PANEL_BYTES);
        const by = advance(asm, desc, panel * panelBytes + i * 16 * PANEL_BYTES);
        const accumulate = part + i === 0 ? no : yes;
        wgmma(asm, dQ, from, by, { type, accumulate, downRows: true, leftDownRows: true });
      }
    wgmmaCommit(asm);
  };
  product(0);
  const turn = slot(asm, turnNote, atTurn, TURN.bytes);
  const target = asm.op('add.s64', scratch, asm.op('mul.wide.s32', tile, tileBytes));
  const put = (mnemonic: string, panel: number): void => {
    for (let n = 0; n < dQ.length / 4; n++) {
      const four = dQ.slice(4 * n, 4 * n + 4).map((r) => r.name);
      asm.emit(mnemonic, asm.address('global', target, panel * PART_BYTES + n * 2048), `{${four.join(', ')}}`);
    }
  };
  for (let panel = 0; panel < panels; panel++) {
    if (panel > 0) product(panel);
    wgmmaWait(asm, 0);
    if (panel === panels - 1) input.release();
    asm.stage('sums');
    if (panel === 0) waitParity(asm, turn, atTurn.parity, TURN.come);
    const add = (): void => put('red.relaxed.gpu.global.add.v4.f32', panel);
    // The first one needs no zeros to add to.
    if (ordered) asm.if(asm.op('setp.eq.s32', rank, 0), () => put('st.global.v4.f32', panel), add);
    else add();
  }
  asm.emit('bar.warp.sync', '-1');
  asm.when(firstLane, () => arrive(asm, turn, TURN.added));
  atTurn.advance();
  at.advance();
  asm.branch(loop);

  asm.place(done);
  asm.stage('end of the tile');
  input.release();
  at.advance();
}

export interface TurnsInput {
  /** Which of the writers this is, and their notes. */
  readonly writer: Reg<'b32'>;
  readonly turnNote: Reg<'b32'>;
  /** The first word that counts sums, and words of a scratch tile. */
  readonly turns: Reg<'b64'>;
  readonly words: number;
  readonly ordered: boolean;
}

/** A writer, one thread: sees a turn come, waits until all have added, passes the turn on when that has arrived. */
export function emitTurns(asm: Assembler, { writer, turnNote, turns, words, ordered }: TurnsInput): void {
  const note = asm.op('mad.lo.s32', writer, TURN.bytes, turnNote);
  const parity = asm.constant('b32', 0);
  const [loop, end] = [asm.label('turn'), asm.label('turned')];
  asm.place(loop);
  waitParity(asm, note, parity, TURN.asked);
  const [tile, rank] = asm.loadVector('shared', 'b32', 2, note, TURN.tile);
  asm.branch(end, asm.op('setp.lt.s32', tile, 0));
  const turn = asm.op('add.s64', turns, asm.op('mul.wide.s32', tile, words * 4));
  if (ordered) {
    const [again, mine, now] = [asm.label('wait'), asm.reg('pred'), asm.reg('b32')];
    asm.place(again);
    asm.emit('ld.acquire.gpu.global.b32', now.name, asm.address('global', turn));
    asm.set(mine, 'setp.eq.s32', now, rank);
    asm.branch(again, mine, { negate: true });
  }
  arrive(asm, note, TURN.come);
  waitParity(asm, note, parity, TURN.added);
  if (ordered) {
    asm.emit('fence.acq_rel.gpu');
    asm.emit('st.relaxed.gpu.global.b32', asm.address('global', turn), asm.op('add.s32', rank, 1).name);
  }
  asm.set(parity, 'xor.b32', parity, 1);
  asm.branch(loop);
  asm.place(end);
}

/** Asks the next writer, or with a tile of -1 sends it home. One thread does it. */
export function askTurn(asm: Assembler, note: Reg<'b32'>, tile: Reg<'b32'>, rank: Reg<'b32'>): void {
  asm.storeVector('shared', 'b32', note, [tile, rank], TURN.tile);
  arrive(asm, note, TURN.asked);
}

/** A cursor over the writers' notes. */
export const turnCursor = (asm: Assembler): Cursor => cursorOf(asm, WRITERS, 0);
