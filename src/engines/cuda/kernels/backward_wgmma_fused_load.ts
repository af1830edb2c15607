/**
 * The warps of the five-product backward that move data: one brings keys and queries, one adds dQ to global memory in turn.
 *
 * Query tile i of a head is added to by its key blocks in ascending order. A counter beside each scratch tile says how many
 * have been; a block waits for its turn, adds, and counts itself. Work is handed out in ascending order of key blocks too,
 * and all walk their queries from last to first: whoever is waited for has started earlier, so that nobody waits forever,
 * and a step later is early enough not to wait at all.
 */
import type { Assembler } from '../ptx/assembler.ts';
import {
  arrive,
  arriveExpecting,
  BARRIER_BYTES,
  copyBox,
  copyBytes,
  cursorOf,
  prefetchMap,
  TENSOR_MAP,
  tensorMap,
  waitParity,
} from '../ptx/async.ts';
import type { Operand, Reg } from '../ptx/registers.ts';
import { PANEL, PANEL_BYTES } from '../ptx/wgmma.ts';
import {
  DONE,
  type FusedConfig,
  type FusedLayout,
  KEYS,
  NOTE,
  PART_BYTES,
  ROWS,
  SCRATCH_BYTES,
  SUM,
} from './backward_wgmma_fused_shared.ts';
import { resetCounters, slot, tileAt } from './forward_wgmma_load.ts';
import { panels, STOP } from './forward_wgmma_shared.ts';
import { storeWide } from './forward_wgmma_store.ts';
import { lanesOf } from './fragments.ts';
import { strided } from './loader.ts';
import { take } from './parameters.ts';
import { baseOf } from './place.ts';
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
  const p = take(asm, 'rowStart', 'runs', 'runB', 'runH');
  const [stepStart, ranks] = ['stepStart', 'ranks'].map((n) => asm.parameter(n, 'b64'));
  const { queryTiles } = inputs;
  const [tiles, blocks, section, heads] = ['tiles', 'blocks', 'section', 'heads'].map((n) => asm.parameter(n, 'b32'));
  const perBatch = spec.group === 1 ? inputs.Hq : asm.op('div.u32', inputs.Hq, asm.constant('b32', spec.group));
  const at = cursorOf(asm, qStages, 1);
  const atOut = cursorOf(asm, doStages, 1);
  const rowsParity = asm.constant('b32', 1);
  const lane = asm.op('and.b32', inputs.thread, 31);
  const others = asm.op('setp.ne.s32', lane, 0);
  /** Code of lane 0 alone. */
  const alone = (body: () => void): void => {
    const skip = asm.label('lane');
    asm.branch(skip, others);
    body();
    asm.place(skip);
    asm.emit('bar.warp.sync', '-1');
  };
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
  const place = tileAt(asm, number, { section, blocks, heads, reverse: zero, perBatch });
  const row0 = asm.op('mul.lo.s32', place.block, KEYS);
  const head = asm.op('mul.lo.s32', place.h, spec.group);

  asm.stage('keys and values');
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
  const nextRun = asm.label('run');
  const nextBlock = asm.label('block');
  const headDone = asm.label('headDone');
  const ragged = asm.op('setp.gt.s32', asm.op('add.s32', row0, KEYS), inputs.Sk);
  asm.place(nextHead);
  const row = asm.op('mad.lo.s32', place.b, p.runB, asm.op('mad.lo.s32', head, p.runH, place.block));
  const rowAt = asm.op('add.s64', p.rowStart, asm.op('mul.wide.s32', row, 4));
  const firstRun = asm.load('global', 'b32', rowAt, 0, 'nc');
  const run = asm.load('global', 'b32', rowAt, 4, 'nc');
  const step = asm.load('global', 'b32', asm.op('add.s64', stepStart, asm.op('mul.wide.s32', row, 4)), 0, 'nc');
  const bh = asm.op('mad.lo.s32', place.b, inputs.Hq, head);
  const firstSum = asm.op('mul.lo.s32', bh, queryTiles);
  asm.place(nextRun);
  asm.branch(headDone, asm.op('setp.le.s32', run, firstRun), { uniform: true });
  asm.set(run, 'sub.s32', run, 1);
  const runAt = asm.op('add.s64', p.runs, asm.op('mul.wide.s32', run, 12));
  const lowest = asm.load('global', 'b32', runAt, 0, 'nc');
  const index = asm.load('global', 'b32', runAt, 4, 'nc');
  const partial = asm.load('global', 'b32', runAt, 8, 'nc');
  asm.place(nextBlock);
  asm.set(index, 'sub.s32', index, 1);
  const column = asm.op('mul.lo.s32', index, queries);
  const tail = asm.op('setp.gt.s32', asm.op('add.s32', column, queries), inputs.Sq);
  const edge = asm.op('selp.b32', 1, partial, asm.op('or.pred', tail, ragged));
  const rank = asm.load('global', 'b32', asm.op('add.s64', ranks, asm.op('mul.wide.s32', step, 4)), 0, 'nc');
  asm.set(step, 'add.s32', step, 1);
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
  asm.branch(nextBlock, asm.op('setp.gt.s32', index, lowest), { uniform: true });
  asm.branch(nextRun);
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
export function emitFusedSums(
  asm: Assembler,
  config: FusedConfig,
  shared: FusedLayout,
  { thread, scratch }: { thread: Reg<'b32'>; scratch: Reg<'b64'> },
): void {
  const { ordered, sums } = config;
  const turns = asm.parameter('turns', 'b64');
  const writer = asm.op('sub.s32', asm.op('shr.u32', thread, 5), 1);
  const buffer = sums === 1 ? asm.constant('b32', 0) : asm.op('rem.u32', writer, asm.constant('b32', sums));
  const empty = asm.op('mad.lo.s32', buffer, BARRIER_BYTES, shared.dqEmpty);
  const note = asm.op('mad.lo.s32', writer, SUM.bytes, shared.sumNote);
  const source = asm.op('mad.lo.s32', buffer, SCRATCH_BYTES, shared.dQ);
  const at = cursorOf(asm, 1, 0);
  const queue = asm.op('mad.lo.s32', writer, DONE.bytes, shared.complete);
  const count = asm.constant('b32', 0);
  /** Tells the finisher, when there is room. */
  const put = (tile: Reg<'b32'>): void => {
    const again = asm.label('wait');
    const taken = asm.reg('b32');
    asm.place(again);
    asm.emit('ld.acquire.cta.shared.b32', taken.name, asm.address('shared', queue, DONE.taken));
    const room = asm.op('setp.lt.s32', asm.op('sub.s32', count, taken), DONE.entries);
    asm.branch(again, room, { negate: true });
    const entry = asm.op('rem.u32', count, asm.constant('b32', DONE.entries));
    asm.store('shared', 'b32', asm.op('mad.lo.s32', entry, 4, queue), tile, DONE.ring);
    asm.set(count, 'add.s32', count, 1);
    asm.emit('st.release.cta.shared.b32', asm.address('shared', queue, DONE.put), count.name);
  };
  const loop = asm.label('sum');
  const end = asm.label('summed');
  asm.place(loop);
  waitParity(asm, note, at.parity, SUM.full);
  const [tile, step] = asm.loadVector('shared', 'b32', 2, note, SUM.tile);
  const rank = asm.op('shr.u32', step, 1);
  asm.branch(end, asm.op('setp.lt.s32', tile, 0));
  const target = asm.op('add.s64', scratch, asm.op('mul.wide.s32', tile, SCRATCH_BYTES));
  const turn = asm.op('add.s64', turns, asm.op('mul.wide.s32', tile, 4));
  const operands = [asm.address('global', target), asm.address('shared', source), String(SCRATCH_BYTES)];
  const add = (): void => asm.emit('cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32', ...operands);
  if (ordered) {
    const again = asm.label('wait');
    const mine = asm.reg('pred');
    const now = asm.reg('b32');
    asm.place(again);
    asm.emit('ld.acquire.gpu.global.b32', now.name, asm.address('global', turn));
    asm.set(mine, 'setp.eq.s32', now, rank);
    asm.branch(again, mine, { negate: true });
    asm.emit('fence.proxy.async');
    // The first one needs no zeros to add to.
    asm.if(
      asm.op('setp.eq.s32', rank, 0),
      () => asm.emit('cp.async.bulk.global.shared::cta.bulk_group', ...operands),
      add,
    );
  } else add();
  asm.emit('cp.async.bulk.commit_group');
  asm.emit('cp.async.bulk.wait_group.read', '0');
  arrive(asm, empty);
  if (ordered) {
    asm.emit('cp.async.bulk.wait_group', '0');
    asm.emit('fence.proxy.async');
    asm.emit('st.release.gpu.global.b32', asm.address('global', turn), asm.op('add.s32', rank, 1).name);
  }
  at.advance();
  if (config.finisher) {
    asm.branch(loop, asm.op('setp.eq.s32', asm.op('and.b32', step, 1), 0));
    put(tile);
  }
  asm.branch(loop);
  asm.place(end);
  asm.emit('cp.async.bulk.wait_group', '0');
  if (config.finisher) put(asm.constant('b32', STOP));
}

/** A warp of its own: writes complete tiles of dQ in the output's type. */
export function emitFusedFinisher(
  asm: Assembler,
  spec: Spec,
  config: FusedConfig,
  shared: FusedLayout,
  g: LoadInputs & { scale: Reg<'f32'>; scratch: Reg<'b64'> },
): void {
  const { writers, queries } = config;
  const { dq, qB, qH, qS } = take(asm, 'dq', 'qB', 'qH', 'qS');
  const lanes = lanesOf(asm, g.thread);
  const from = shared.complete;
  const writer = asm.constant('b32', 0);
  const stopped = asm.constant('b32', 0);
  const loop = asm.label('finish');
  const other = asm.label('other');
  const end = asm.label('finished');
  asm.place(loop);
  const queue = asm.op('mad.lo.s32', writer, DONE.bytes, from);
  asm.set(writer, 'add.s32', writer, 1);
  asm.set(writer, 'selp.b32', 0, writer, asm.op('setp.ge.s32', writer, writers));
  const count = asm.reg('b32');
  asm.emit('ld.acquire.cta.shared.b32', count.name, asm.address('shared', queue, DONE.put));
  const taken = asm.load('shared', 'b32', queue, DONE.taken);
  asm.branch(other, asm.op('setp.eq.s32', count, taken), { uniform: true });
  const entry = asm.op('rem.u32', taken, asm.constant('b32', DONE.entries));
  const tile = asm.load('shared', 'b32', asm.op('mad.lo.s32', entry, 4, queue), DONE.ring);
  asm.emit('bar.warp.sync', '-1');
  const leads = asm.op('setp.eq.s32', lanes.lane, 0);
  const next = asm.op('add.s32', taken, 1);
  asm.when(leads, () => asm.emit('st.release.cta.shared.b32', asm.address('shared', queue, DONE.taken), next.name));
  asm.emit('bar.warp.sync', '-1');
  const real = asm.label('real');
  asm.branch(real, asm.op('setp.ge.s32', tile, 0), { uniform: true });
  asm.set(stopped, 'add.s32', stopped, 1);
  asm.branch(end, asm.op('setp.ge.s32', stopped, writers), { uniform: true });
  asm.branch(loop);

  asm.place(real);
  asm.stage('the sum is complete');
  const bh = asm.op('div.u32', tile, g.queryTiles);
  const row = asm.op('mul.lo.s32', asm.op('sub.s32', tile, asm.op('mul.lo.s32', bh, g.queryTiles)), queries);
  asm.set(row, 'add.s32', row, lanes.g);
  const b = asm.op('div.u32', bh, g.Hq);
  const h = asm.op('sub.s32', bh, asm.op('mul.lo.s32', b, g.Hq));
  const base = baseOf(asm, dq, { b: qB, h: qH, s: qS }, { b, h, start: asm.constant('b32', 0) }, spec.size);
  const rowBytes = asm.op('mul.lo.s64', qS, spec.size);
  const at = asm.op('add.s64', g.scratch, asm.op('mul.wide.s32', tile, SCRATCH_BYTES));
  asm.set(at, 'add.s64', at, asm.op('mul.wide.u32', lanes.lane, 16));
  // 16 queries by 32 columns at a time: more would not fit the registers.
  for (let first = 0; first < spec.D; first += 32) {
    const columns = Math.min(32, spec.D - first);
    // Columns from 64 on are the second part; queries from 64 on are, when heads are narrow.
    const bytes = Math.floor(first / PANEL) * PART_BYTES + (first % PANEL) * 256;
    const more = asm.label('rows');
    asm.place(more);
    const tiles = Array.from({ length: Math.ceil(columns / 8) }, (_, n) => {
      const regs = asm.regs('f32', 4);
      const list = `{${regs.map((r) => r.name).join(', ')}}`;
      asm.emit('ld.relaxed.gpu.global.v4.f32', list, asm.address('global', at, bytes + n * 2048));
      return regs;
    });
    for (const x of tiles.flat()) asm.set(x, 'mul.f32', x, g.scale);
    storeWide(asm, spec, {
      tiles: [tiles],
      rows: [row, asm.op('add.s32', row, 8)],
      limit: g.Sq,
      target: strided(asm, first === 0 ? base : asm.op('add.s64', base, first * spec.size), rowBytes),
      columns,
      grain: spec.grains.q,
      t: lanes.t,
    });
    asm.set(row, 'add.s32', row, 16);
    asm.set(at, 'add.s64', at, 512);
    if (queries > PANEL) {
      const turned = asm.op('setp.eq.s32', asm.op('and.b32', row, 48), 0);
      asm.when(turned, () => asm.set(at, 'add.s64', at, PART_BYTES - 2048));
    }
    const left = asm.op('and.b32', row, queries - 16);
    asm.branch(more, asm.op('setp.ne.s32', left, 0), { uniform: true });
    asm.set(row, 'sub.s32', row, queries);
    asm.set(at, 'sub.s64', at, queries > PANEL ? 2 * PART_BYTES : 2048);
  }
  asm.branch(loop);
  asm.place(other);
  asm.emit('nanosleep.u32', '100');
  asm.branch(loop);
  asm.place(end);
}
