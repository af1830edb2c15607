/** The warp of the five-product backward for wide heads that moves data: keys and values, then queries step by step. */
import type { Assembler } from '../ptx/assembler.ts';
import {
  arrive,
  arriveExpecting,
  arrivePeer,
  BARRIER_BYTES,
  copyBox,
  copyBytes,
  cursorOf,
  peerAddress,
  prefetchBox,
  prefetchMap,
  TENSOR_MAP,
  tensorMap,
  waitCluster,
  waitParity,
} from '../ptx/async.ts';
import type { Operand, Reg } from '../ptx/registers.ts';
import { PANEL } from '../ptx/wgmma.ts';
import type { LoadInputs } from './backward_wgmma_fused_load.ts';
import {
  HALF,
  KEYS_NOTE,
  NOTE,
  OPERAND_BYTES,
  PAIR_KEYS,
  PANEL_SIZE,
  PANELS,
  type PairConfig,
  type PairLayout,
  ROWS,
  STATS_BYTES,
} from './backward_wgmma_pair_shared.ts';
import { aloneOf, resetCounters, slot, tileAt } from './forward_wgmma_load.ts';
import { STOP } from './forward_wgmma_shared.ts';
import { take } from './parameters.ts';
import type { Spec } from './spec.ts';

export interface PairLoadInputs extends LoadInputs {
  /** This block's place in the cluster, and the other's. */
  readonly rank: Reg<'b32'>;
  readonly other: Reg<'b32'>;
}

/** A whole warp, whose lanes walk together: lane 0 queues the copies. */
export function emitPairLoads(
  asm: Assembler,
  spec: Spec,
  { qStages }: PairConfig,
  shared: PairLayout,
  { thread, rank, other, Sq, Sk, Hq, queryTiles }: PairLoadInputs,
): void {
  const [q, out, k, v] = ['q', 'out', 'k', 'v'].map((name) =>
    asm.parameterBytes(`${name}Map`, TENSOR_MAP.bytes, TENSOR_MAP.align),
  );
  for (const map of [q, out, k, v]) prefetchMap(asm, tensorMap(asm, map));
  const [counter, stats, walkStart, walk] = ['counter', 'stats', 'walkStart', 'walk'].map((n) =>
    asm.parameter(n, 'b64'),
  );
  const p = take(asm, 'runB', 'runH', 'reverse');
  const [tiles, blocks, section, heads] = ['tiles', 'blocks', 'section', 'heads'].map((n) => asm.parameter(n, 'b32'));
  const perBatch = spec.group === 1 ? Hq : asm.op('div.u32', Hq, asm.constant('b32', spec.group));
  const at = cursorOf(asm, qStages, 1);
  const outParity = asm.constant('b32', 1);
  const rowsParity = asm.constant('b32', 1);
  const leads = asm.op('setp.eq.s32', rank, 0);
  const numberParity = asm.op('selp.b32', 1, 0, leads);
  const others = asm.op('setp.ne.s32', asm.op('and.b32', thread, 31), 0);
  const zero = asm.constant('b32', 0);
  const alone = aloneOf(asm, others);
  /** Panels of 64 rows, from column `first` on. */
  const copy = (
    target: Reg<'b32'>,
    symbol: string,
    count: number,
    first: Reg<'b32'>,
    where: readonly Operand<'b32'>[],
    full: Reg<'b32'>,
  ): void => {
    // Made here, because registers are few.
    const map = tensorMap(asm, symbol);
    for (let i = 0; i < count; i++)
      copyBox(asm, target, i * PANEL_SIZE, map, [asm.op('add.s32', first, i * PANEL), ...where], full);
  };

  const grid = asm.special('nctaid.x');
  const number = asm.reg('b32');
  const nextTile = asm.label('tile');
  const stop = asm.label('stop');
  asm.place(nextTile);
  // Asked for as late as possible: who holds a number that others wait for should be about to start.
  asm.stage('the number of a tile: the first block draws it and tells the other');
  const [told, known] = [asm.label('told'), asm.label('known')];
  asm.set(number, 'mov.b32', 0);
  asm.branch(told, leads, { negate: true });
  waitParity(asm, shared.numberEmpty, numberParity);
  alone(() => {
    asm.emit('atom.global.add.u32', number.name, asm.address('global', counter), '1');
    asm.emit('st.shared::cluster.b32', `[${peerAddress(asm, shared.number, other).name}]`, number.name);
    arrivePeer(asm, peerAddress(asm, shared.numberFull, other), true);
  });
  asm.branch(known);
  asm.place(told);
  waitCluster(asm, shared.numberFull, numberParity);
  alone(() => {
    asm.emit('ld.shared.b32', number.name, asm.address('shared', shared.number));
    arrivePeer(asm, peerAddress(asm, shared.numberEmpty, other));
  });
  asm.place(known);
  asm.set(numberParity, 'xor.b32', numberParity, 1);
  asm.emit('shfl.sync.idx.b32', number.name, number.name, '0', '31', '-1');
  asm.branch(stop, asm.op('setp.ge.s32', number, tiles), { uniform: true });
  const place = tileAt(asm, number, { section, blocks, heads, reverse: p.reverse, perBatch });
  const row0 = asm.op('mul.lo.s32', place.block, PAIR_KEYS);
  const head = asm.op('mul.lo.s32', place.h, spec.group);

  asm.stage('keys and values');
  // The tile before is still being worked on, and theirs are the only buffers: they come as far as the L2 cache.
  alone(() => {
    const mine = asm.op('mad.lo.s32', rank, ROWS, row0);
    for (const map of [k, v].map((symbol) => tensorMap(asm, symbol)))
      for (let i = 0; i < PANELS; i++) prefetchBox(asm, map, [asm.constant('b32', i * PANEL), mine, place.h, place.b]);
  });
  waitParity(asm, shared.rowsEmpty, rowsParity);
  alone(() => {
    const mine = asm.op('mad.lo.s32', rank, ROWS, row0);
    asm.store('shared', 'b32', shared.rowsNote, mine, KEYS_NOTE.row0);
    asm.store('shared', 'b32', shared.rowsNote, place.h, KEYS_NOTE.h);
    asm.store('shared', 'b32', shared.rowsNote, place.b, KEYS_NOTE.b);
    arriveExpecting(asm, shared.rowsFull, 2 * OPERAND_BYTES + HALF * PANEL_SIZE);
    copy(shared.k, k, PANELS, zero, [mine, place.h, place.b], shared.rowsFull);
    copy(shared.v, v, PANELS, zero, [mine, place.h, place.b], shared.rowsFull);
    const theirs = asm.op('mad.lo.s32', other, ROWS, row0);
    const half = asm.op('mul.lo.s32', rank, HALF * PANEL);
    copy(shared.kOther, k, HALF, half, [theirs, place.h, place.b], shared.rowsFull);
  });
  asm.set(rowsParity, 'xor.b32', rowsParity, 1);

  asm.stage('queries, for every query head that shares the keys');
  const nextHead = asm.label('head');
  const nextBlock = asm.label('block');
  const headDone = asm.label('headDone');
  const ragged = asm.op('setp.gt.s32', asm.op('add.s32', row0, PAIR_KEYS), Sk);
  asm.place(nextHead);
  const row = asm.op('mad.lo.s32', place.b, p.runB, asm.op('mad.lo.s32', head, p.runH, place.block));
  const rowAt = asm.op('add.s64', walkStart, asm.op('mul.wide.s32', row, 4));
  const step = asm.load('global', 'b32', rowAt, 0, 'nc');
  const lastStep = asm.load('global', 'b32', rowAt, 4, 'nc');
  const bh = asm.op('mad.lo.s32', place.b, Hq, head);
  const firstSum = asm.op('mul.lo.s32', bh, queryTiles);
  asm.place(nextBlock);
  asm.branch(headDone, asm.op('setp.ge.s32', step, lastStep), { uniform: true });
  const stepAt = asm.op('add.s64', walk, asm.op('mul.wide.s32', step, 8));
  const [where, order] = asm.loadVector('global', 'b32', 2, stepAt, 0, 'nc');
  asm.set(step, 'add.s32', step, 1);
  const index = asm.op('shr.u32', where, 1);
  const column = asm.op('mul.lo.s32', index, ROWS);
  const tail = asm.op('setp.gt.s32', asm.op('add.s32', column, ROWS), Sq);
  const edge = asm.op('selp.b32', 1, asm.op('and.b32', where, 1), asm.op('or.pred', tail, ragged));
  waitParity(asm, slot(asm, shared.qEmpty, at, BARRIER_BYTES), at.parity);
  alone(() => {
    const full = slot(asm, shared.qFull, at, BARRIER_BYTES);
    const note = slot(asm, shared.note, at, NOTE.bytes);
    asm.storeVector('shared', 'b32', note, [column, edge, head, zero]);
    const tile = asm.op('add.s32', firstSum, index);
    asm.storeVector('shared', 'b32', note, [tile, order], NOTE.tile);
    arriveExpecting(asm, full, OPERAND_BYTES + STATS_BYTES);
    copy(slot(asm, shared.q, at, OPERAND_BYTES), q, PANELS, zero, [column, head, place.b], full);
    const statsAt = asm.op('add.s64', stats, asm.op('mul.wide.u32', tile, STATS_BYTES));
    copyBytes(asm, slot(asm, shared.stats, at, STATS_BYTES), statsAt, STATS_BYTES, full);
  });
  at.advance();
  waitParity(asm, shared.doEmpty, outParity);
  alone(() => {
    arriveExpecting(asm, shared.doFull, OPERAND_BYTES);
    copy(shared.dOut, out, PANELS, zero, [column, head, place.b], shared.doFull);
  });
  asm.set(outParity, 'xor.b32', outParity, 1);
  asm.branch(nextBlock);
  asm.place(headDone);
  asm.set(head, 'add.s32', head, 1);
  if (spec.group > 1) {
    const lastHead = asm.op('mad.lo.s32', place.h, spec.group, asm.constant('b32', spec.group));
    asm.branch(nextHead, asm.op('setp.lt.s32', head, lastHead), { uniform: true });
  }

  asm.stage('end of the tile');
  waitParity(asm, slot(asm, shared.qEmpty, at, BARRIER_BYTES), at.parity);
  alone(() => {
    const note = slot(asm, shared.note, at, NOTE.bytes);
    asm.storeVector('shared', 'b32', note, [zero, zero, zero, asm.constant('b32', 1)]);
    arrive(asm, slot(asm, shared.qFull, at, BARRIER_BYTES));
  });
  at.advance();
  asm.branch(nextTile);

  asm.place(stop);
  asm.stage('no more work');
  waitParity(asm, shared.rowsEmpty, rowsParity);
  alone(() => {
    asm.store('shared', 'b32', shared.rowsNote, asm.constant('b32', STOP), KEYS_NOTE.row0);
    arrive(asm, shared.rowsFull);
    resetCounters(asm, counter, grid);
  });
}
