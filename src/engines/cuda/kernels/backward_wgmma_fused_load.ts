/**
 * The warps of the five-product backward that move data: one brings keys and queries, some add dQ to global memory in turn.
 *
 * A scratch tile of dQ is added to by key blocks in the order in which these are handed out. A counter beside it says how
 * many have been; a block waits for its turn, adds, and counts itself. Whoever is waited for has started earlier, so nobody
 * waits forever; and the table of steps leads all of them through their queries from the same side, so that hardly anybody
 * waits at all.
 */
import type { Assembler } from '../ptx/assembler.ts';
import {
  arrive,
  arriveExpecting,
  BARRIER_BYTES,
  copyBox,
  copyBytes,
  cursorOf,
  prefetchBox,
  prefetchMap,
  TENSOR_MAP,
  tensorMap,
  waitParity,
} from '../ptx/async.ts';
import type { Operand, Reg } from '../ptx/registers.ts';
import { PANEL, PANEL_BYTES } from '../ptx/wgmma.ts';
import {
  type FusedConfig,
  type FusedLayout,
  KEYS,
  NOTE,
  ROWS,
  SCRATCH_BYTES,
  SUM,
} from './backward_wgmma_fused_shared.ts';
import { aloneOf, resetCounters, slot, tileAt } from './forward_wgmma_load.ts';
import { panels, STOP } from './forward_wgmma_shared.ts';
import { take } from './parameters.ts';
import type { Spec } from './spec.ts';

export interface LoadInputs {
  readonly thread: Reg<'b32'>;
  readonly Sq: Reg<'b32'>;
  readonly Sk: Reg<'b32'>;
  readonly Hq: Reg<'b32'>;
  /** Scratch tiles of a head. */
  readonly queryTiles: Reg<'b32'>;
}

/** A whole warp, whose lanes walk together: lane 0 queues the copies. */
export function emitFusedLoads(
  asm: Assembler,
  spec: Spec,
  config: FusedConfig,
  shared: FusedLayout,
  inputs: LoadInputs,
): void {
  const { queries, qStages, doStages } = config;
  const [q, out, k, v] = ['q', 'out', 'k', 'v'].map((name) =>
    asm.parameterBytes(`${name}Map`, TENSOR_MAP.bytes, TENSOR_MAP.align),
  );
  for (const map of [q, out, k, v]) prefetchMap(asm, tensorMap(asm, map));
  const [counter, stats] = ['counter', 'stats'].map((n) => asm.parameter(n, 'b64'));
  const p = take(asm, 'runB', 'runH', 'reverse');
  const [walkStart, walk] = ['walkStart', 'walk'].map((n) => asm.parameter(n, 'b64'));
  const { queryTiles } = inputs;
  const [tiles, blocks, section, heads] = ['tiles', 'blocks', 'section', 'heads'].map((n) => asm.parameter(n, 'b32'));
  const perBatch = spec.group === 1 ? inputs.Hq : asm.op('div.u32', inputs.Hq, asm.constant('b32', spec.group));
  const at = cursorOf(asm, qStages, 1);
  const atOut = cursorOf(asm, doStages, 1);
  const rowsParity = asm.constant('b32', 1);
  const lane = asm.op('and.b32', inputs.thread, 31);
  const others = asm.op('setp.ne.s32', lane, 0);
  const alone = aloneOf(asm, others);
  const copy = (
    target: Reg<'b32'>,
    symbol: string,
    columns: number,
    count: number,
    where: readonly Operand<'b32'>[],
    full: Reg<'b32'>,
  ): void => {
    // Made here, because registers are few.
    const map = tensorMap(asm, symbol);
    for (let i = 0; i < panels(columns); i++)
      copyBox(asm, target, i * count * PANEL_BYTES, map, [asm.constant('b32', i * PANEL), ...where], full);
  };

  const grid = asm.special('nctaid.x');
  const number = asm.reg('b32');
  const nextTile = asm.label('tile');
  const stop = asm.label('stop');
  const zero = asm.constant('b32', 0);
  asm.place(nextTile);
  // Asked for as late as possible: who holds a number that others wait for should be about to start.
  asm.set(number, 'mov.b32', 0);
  alone(() => asm.emit('atom.global.add.u32', number.name, asm.address('global', counter), '1'));
  asm.emit('shfl.sync.idx.b32', number.name, number.name, '0', '31', '-1');
  asm.branch(stop, asm.op('setp.ge.s32', number, tiles), { uniform: true });
  const place = tileAt(asm, number, { section, blocks, heads, reverse: p.reverse, perBatch });
  const row0 = asm.op('mul.lo.s32', place.block, KEYS);
  const head = asm.op('mul.lo.s32', place.h, spec.group);

  asm.stage('keys and values');
  const prefetch = (symbol: string, columns: number, where: readonly Operand<'b32'>[]): void => {
    const map = tensorMap(asm, symbol);
    for (let i = 0; i < panels(columns); i++) prefetchBox(asm, map, [asm.constant('b32', i * PANEL), ...where]);
  };
  // The tile before is still being worked on: theirs are the only buffers.
  alone(() => {
    prefetch(k, spec.padD, [row0, place.h, place.b]);
    prefetch(v, spec.padDv, [row0, place.h, place.b]);
  });
  waitParity(asm, shared.rowsEmpty, rowsParity);
  const { bytes } = shared;
  alone(() => {
    asm.store('shared', 'b32', shared.rowsNote, row0, ROWS.row0);
    asm.store('shared', 'b32', shared.rowsNote, place.h, ROWS.h);
    asm.store('shared', 'b32', shared.rowsNote, place.b, ROWS.b);
    arriveExpecting(asm, shared.rowsFull, bytes.k + bytes.v);
    const where = [row0, place.h, place.b];
    copy(shared.k, k, spec.padD, KEYS, where, shared.rowsFull);
    copy(shared.v, v, spec.padDv, KEYS, where, shared.rowsFull);
  });
  asm.set(rowsParity, 'xor.b32', rowsParity, 1);

  asm.stage('queries, for every query head that shares the keys');
  const nextHead = asm.label('head');
  const nextBlock = asm.label('block');
  const headDone = asm.label('headDone');
  const ragged = asm.op('setp.gt.s32', asm.op('add.s32', row0, KEYS), inputs.Sk);
  asm.place(nextHead);
  const row = asm.op('mad.lo.s32', place.b, p.runB, asm.op('mad.lo.s32', head, p.runH, place.block));
  const rowAt = asm.op('add.s64', walkStart, asm.op('mul.wide.s32', row, 4));
  const step = asm.load('global', 'b32', rowAt, 0, 'nc');
  const lastStep = asm.load('global', 'b32', rowAt, 4, 'nc');
  const bh = asm.op('mad.lo.s32', place.b, inputs.Hq, head);
  const firstSum = asm.op('mul.lo.s32', bh, queryTiles);
  asm.place(nextBlock);
  asm.branch(headDone, asm.op('setp.ge.s32', step, lastStep), { uniform: true });
  const stepAt = asm.op('add.s64', walk, asm.op('mul.wide.s32', step, 8));
  const [where, rank] = asm.loadVector('global', 'b32', 2, stepAt, 0, 'nc');
  asm.set(step, 'add.s32', step, 1);
  const index = asm.op('shr.u32', where, 1);
  const column = asm.op('mul.lo.s32', index, queries);
  const tail = asm.op('setp.gt.s32', asm.op('add.s32', column, queries), inputs.Sq);
  const edge = asm.op('selp.b32', 1, asm.op('and.b32', where, 1), asm.op('or.pred', tail, ragged));
  const full = slot(asm, shared.qFull, at, BARRIER_BYTES);
  waitParity(asm, slot(asm, shared.qEmpty, at, BARRIER_BYTES), at.parity);
  alone(() => {
    const note = slot(asm, shared.note, at, NOTE.bytes);
    asm.storeVector('shared', 'b32', note, [column, edge, head, zero]);
    const tile = asm.op('add.s32', firstSum, index);
    asm.storeVector('shared', 'b32', note, [tile, rank], NOTE.tile);
    arriveExpecting(asm, full, bytes.q + bytes.stats);
    copy(slot(asm, shared.q, at, bytes.q), q, spec.padD, queries, [column, head, place.b], full);
    const statsAt = asm.op('add.s64', stats, asm.op('mul.wide.u32', tile, bytes.stats));
    copyBytes(asm, slot(asm, shared.stats, at, bytes.stats), statsAt, bytes.stats, full);
  });
  at.advance();
  waitParity(asm, slot(asm, shared.doEmpty, atOut, BARRIER_BYTES), atOut.parity);
  alone(() => {
    const outFull = slot(asm, shared.doFull, atOut, BARRIER_BYTES);
    arriveExpecting(asm, outFull, bytes.dOut);
    const buffer = slot(asm, shared.dOut, atOut, bytes.dOut);
    copy(buffer, out, spec.padDv, queries, [column, head, place.b], outFull);
  });
  atOut.advance();
  asm.branch(nextBlock);
  asm.place(headDone);
  asm.set(head, 'add.s32', head, 1);
  if (spec.group > 1) {
    const lastHead = asm.op('mad.lo.s32', place.h, spec.group, asm.constant('b32', spec.group));
    asm.branch(nextHead, asm.op('setp.lt.s32', head, lastHead), { uniform: true });
  }

  asm.stage('end of the tile');
  waitParity(asm, slot(asm, shared.qEmpty, at, BARRIER_BYTES), at.parity);
  const end = slot(asm, shared.qFull, at, BARRIER_BYTES);
  alone(() => {
    asm.storeVector('shared', 'b32', slot(asm, shared.note, at, NOTE.bytes), [
      zero,
      zero,
      zero,
      asm.constant('b32', 1),
    ]);
    arrive(asm, end);
  });
  at.advance();
  asm.branch(nextTile);

  asm.place(stop);
  asm.stage('no more work');
  waitParity(asm, shared.rowsEmpty, rowsParity);
  alone(() => {
    asm.store('shared', 'b32', shared.rowsNote, asm.constant('b32', STOP), ROWS.row0);
    arrive(asm, shared.rowsFull);
    resetCounters(asm, counter, grid);
  });
}

/**
 * One thread of each writing warp: adds what the warpgroups have put down for dQ to its scratch tile, when it is this block's
 * turn. They take turns, so that one waits for a sum to be complete while the next is on its way.
 */
export function emitFusedSums(asm: Assembler, config: FusedConfig, shared: FusedLayout, thread: Reg<'b32'>): void {
  const { ordered } = config;
  const [scratch, turns] = ['scratch', 'turns'].map((n) => asm.parameter(n, 'b64'));
  const writer = asm.op('sub.s32', asm.op('shr.u32', thread, 5), 1);
  const note = asm.op('mad.lo.s32', writer, SUM.bytes, shared.sumNote);
  const parity = asm.constant('b32', 0);
  const loop = asm.label('sum');
  const end = asm.label('summed');
  asm.place(loop);
  waitParity(asm, note, parity, SUM.asked);
  const [tile, rank] = asm.loadVector('shared', 'b32', 2, note, SUM.tile);
  asm.branch(end, asm.op('setp.lt.s32', tile, 0));
  const target = asm.op('add.s64', scratch, asm.op('mul.wide.s32', tile, SCRATCH_BYTES));
  const turn = asm.op('add.s64', turns, asm.op('mul.wide.s32', tile, 4));
  const operands = [asm.address('global', target), asm.address('shared', shared.dQ), String(SCRATCH_BYTES)];
  const add = (): void => asm.emit('cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32', ...operands);
  if (ordered) {
    // Seen before there is anything to add: mostly it has come by then.
    const again = asm.label('wait');
    const mine = asm.reg('pred');
    const now = asm.reg('b32');
    asm.place(again);
    asm.emit('ld.acquire.gpu.global.b32', now.name, asm.address('global', turn));
    asm.set(mine, 'setp.eq.s32', now, rank);
    asm.branch(again, mine, { negate: true });
    asm.emit('fence.proxy.async');
    waitParity(asm, note, parity, SUM.full);
    // The first one needs no zeros to add to.
    asm.if(
      asm.op('setp.eq.s32', rank, 0),
      () => asm.emit('cp.async.bulk.global.shared::cta.bulk_group', ...operands),
      add,
    );
  } else {
    waitParity(asm, note, parity, SUM.full);
    add();
  }
  asm.emit('cp.async.bulk.commit_group');
  asm.emit('cp.async.bulk.wait_group.read', '0');
  arrive(asm, shared.dqEmpty);
  if (ordered) {
    asm.emit('cp.async.bulk.wait_group', '0');
    asm.emit('fence.proxy.async');
    asm.emit('st.release.gpu.global.b32', asm.address('global', turn), asm.op('add.s32', rank, 1).name);
  }
  asm.set(parity, 'xor.b32', parity, 1);
  asm.branch(loop);
  asm.place(end);
  asm.emit('cp.async.bulk.wait_group', '0');
}
