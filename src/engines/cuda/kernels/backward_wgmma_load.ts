/** The data-moving warp of the Hopper backward: for every tile its rows, then the columns that attend, step by step. */
import type { Assembler } from '../ptx/assembler.ts';
import {
  arrive,
  arriveCopies,
  arriveExpecting,
  BARRIER_BYTES,
  copyBox,
  cursorOf,
  prefetchMap,
  TENSOR_MAP,
  tensorMap,
  waitParity,
} from '../ptx/async.ts';
import type { Operand, Reg } from '../ptx/registers.ts';
import { cpAsync } from '../ptx/tensor.ts';
import { PANEL, PANEL_BYTES } from '../ptx/wgmma.ts';
import { type Part, type PartLayout, type PartTile, ROWS, STEP } from './backward_wgmma_shared.ts';
import { aloneOf, resetCounters, slot, tileAt } from './forward_wgmma_load.ts';
import { panels, STOP } from './forward_wgmma_shared.ts';
import { take } from './parameters.ts';
import { baseOf } from './place.ts';
import type { Spec } from './spec.ts';

export interface LoadInputs {
  readonly thread: Reg<'b32'>;
  readonly Sq: Reg<'b32'>;
  readonly Sk: Reg<'b32'>;
  readonly Hq: Reg<'b32'>;
  /** Statistics of queries: addresses and strides. */
  readonly lse2: Reg<'b64'>;
  readonly delta: Reg<'b64'>;
  readonly lseStrides: { b: Reg<'b64'>; h: Reg<'b64'>; s: Reg<'b64'> };
}

/** A whole warp: its lanes walk together, lane 0 queues the copies of tiles, all lanes those of row statistics. */
export function emitPartLoads(
  asm: Assembler,
  spec: Spec,
  part: Part,
  tile: PartTile,
  shared: PartLayout,
  inputs: LoadInputs,
): void {
  const { groups, block, stages } = tile;
  const rows = groups * 64;
  const byQueries = part.rows === 'q';
  const maps = Object.fromEntries(
    (['q', 'out', 'k', 'v'] as const).map((name) => [
      name,
      tensorMap(asm, asm.parameterBytes(`${name}Map`, TENSOR_MAP.bytes, TENSOR_MAP.align)),
    ]),
  ) as Record<'q' | 'out' | 'k' | 'v', Reg<'b64'>>;
  for (const map of Object.values(maps)) prefetchMap(asm, map);
  const counter = asm.parameter('counter', 'b64');
  const p = take(asm, 'rowStart', 'runs', 'runB', 'runH', 'reverse');
  const [tiles, blocks, section, heads] = ['tiles', 'blocks', 'section', 'heads'].map((n) => asm.parameter(n, 'b32'));
  const perBatch = byQueries
    ? inputs.Hq
    : spec.group === 1
      ? inputs.Hq
      : asm.op('div.u32', inputs.Hq, asm.constant('b32', spec.group));
  const at = cursorOf(asm, stages, 1);
  const atRows = cursorOf(asm, 1, 1);
  const lane = asm.op('and.b32', inputs.thread, 31);
  const others = asm.op('setp.ne.s32', lane, 0);
  const alone = aloneOf(asm, others);
  const copy = (
    target: Reg<'b32'>,
    map: Reg<'b64'>,
    columns: number,
    count: number,
    where: readonly Operand<'b32'>[],
    full: Reg<'b32'>,
  ): void => {
    for (let i = 0; i < panels(columns); i++)
      copyBox(asm, target, i * count * PANEL_BYTES, map, [asm.constant('b32', i * PANEL), ...where], full);
  };

  const grid = asm.special('nctaid.x');
  const number = asm.special('ctaid.x');
  const nextTile = asm.label('tile');
  const stop = asm.label('stop');
  asm.place(nextTile);
  asm.branch(stop, asm.op('setp.ge.s32', number, tiles), { uniform: true });
  // One lane asks; the answer is needed when this tile is queued.
  const given = asm.constant('b32', 0);
  alone(() => asm.emit('atom.global.add.u32', given.name, asm.address('global', counter), '1'));
  const place = tileAt(asm, number, { section, blocks, heads, reverse: p.reverse, perBatch });
  const row0 = asm.op('mul.lo.s32', place.block, rows);
  const keyHead = byQueries && spec.group > 1 ? asm.op('div.u32', place.h, spec.group) : place.h;
  const head = asm.op('mul.lo.s32', place.h, byQueries ? 1 : spec.group);
  const lastHead = asm.op('add.s32', head, byQueries ? 1 : spec.group);

  asm.stage('rows');
  waitParity(asm, shared.rowsEmpty, atRows.parity);
  const { bytes } = shared;
  alone(() => {
    asm.store('shared', 'b32', shared.rowsNote, row0, ROWS.row0);
    asm.store('shared', 'b32', shared.rowsNote, place.h, ROWS.h);
    asm.store('shared', 'b32', shared.rowsNote, place.b, ROWS.b);
    arriveExpecting(asm, shared.rowsFull, bytes.a1 + bytes.a2);
    const where = [row0, place.h, place.b];
    copy(shared.a1, byQueries ? maps.q : maps.k, spec.padD, rows, where, shared.rowsFull);
    if (bytes.a2 > 0) copy(shared.a2, byQueries ? maps.out : maps.v, spec.padDv, rows, where, shared.rowsFull);
  });
  atRows.advance();

  asm.stage('columns, for every query head that shares the keys');
  const nextHead = asm.label('head');
  const nextRun = asm.label('run');
  const nextBlock = asm.label('block');
  const headDone = asm.label('headDone');
  asm.place(nextHead);
  const row = asm.op('mad.lo.s32', place.b, p.runB, asm.op('mad.lo.s32', head, p.runH, place.block));
  const rowAt = asm.op('add.s64', p.rowStart, asm.op('mul.wide.s32', row, 4));
  const firstRun = asm.load('global', 'b32', rowAt, 0, 'nc');
  const run = asm.load('global', 'b32', rowAt, 4, 'nc');
  const statAt = (tensor: Reg<'b64'>): Reg<'b64'> =>
    baseOf(asm, tensor, inputs.lseStrides, { b: place.b, h: head, start: lane }, 4);
  const stats = byQueries ? [] : [statAt(inputs.lse2), statAt(inputs.delta)];
  const statStep = asm.op('mul.lo.s64', inputs.lseStrides.s, 4);
  asm.place(nextRun);
  asm.branch(headDone, asm.op('setp.le.s32', run, firstRun), { uniform: true });
  asm.set(run, 'sub.s32', run, 1);
  const runAt = asm.op('add.s64', p.runs, asm.op('mul.wide.s32', run, 12));
  const lowest = asm.load('global', 'b32', runAt, 0, 'nc');
  const index = asm.load('global', 'b32', runAt, 4, 'nc');
  const partial = asm.load('global', 'b32', runAt, 8, 'nc');
  asm.place(nextBlock);
  asm.set(index, 'sub.s32', index, 1);
  const column = asm.op('mul.lo.s32', index, block);
  const length = byQueries ? inputs.Sk : inputs.Sq;
  const tail = asm.op('setp.gt.s32', asm.op('add.s32', column, block), length);
  const edge = asm.op('or.b32', partial, asm.op('selp.b32', 1, 0, tail));
  const full = slot(asm, shared.full, at, BARRIER_BYTES);
  waitParity(asm, slot(asm, shared.empty, at, BARRIER_BYTES), at.parity);
  alone(() => {
    const note = slot(asm, shared.note, at, STEP.bytes);
    asm.storeVector('shared', 'b32', note, [column, edge, head, asm.constant('b32', 0)]);
    arriveExpecting(asm, full, bytes.b1 + bytes.b2);
    const where = [column, byQueries ? keyHead : head, place.b];
    copy(slot(asm, shared.b1, at, bytes.b1), byQueries ? maps.k : maps.q, spec.padD, block, where, full);
    copy(slot(asm, shared.b2, at, bytes.b2), byQueries ? maps.v : maps.out, spec.padDv, block, where, full);
  });
  if (!byQueries) {
    const target = asm.op('mad.lo.s32', lane, 4, slot(asm, shared.stats, at, shared.statBytes));
    for (let i = 0; i * 32 < block; i++) {
      const q = asm.op('add.s32', column, asm.op('add.s32', lane, i * 32));
      const inside = asm.op('setp.lt.s32', q, length);
      const valid = asm.op('selp.b32', 4, 0, inside);
      // `stats` already points at row `lane`.
      const from = asm.op('selp.b32', asm.op('add.s32', column, i * 32), 0, inside);
      const offset = asm.op('mul.lo.s64', asm.op('cvt.s64.s32', from), statStep);
      const skip = asm.label('stat');
      if (i * 32 + 32 > block) asm.branch(skip, asm.op('setp.ge.s32', lane, block - i * 32));
      stats.forEach((base, j) => {
        cpAsync(asm, 4, target, i * 128 + j * block * 4, asm.op('add.s64', base, offset), valid);
      });
      asm.place(skip);
    }
    arriveCopies(asm, full);
  }
  at.advance();
  asm.branch(nextBlock, asm.op('setp.gt.s32', index, lowest), { uniform: true });
  asm.branch(nextRun);
  asm.place(headDone);
  asm.set(head, 'add.s32', head, 1);
  asm.branch(nextHead, asm.op('setp.lt.s32', head, lastHead), { uniform: true });

  /** A step without data. */
  const say = (first: number): void => {
    waitParity(asm, slot(asm, shared.empty, at, BARRIER_BYTES), at.parity);
    const end = slot(asm, shared.full, at, BARRIER_BYTES);
    alone(() => {
      const note = slot(asm, shared.note, at, STEP.bytes);
      const zero = asm.constant('b32', 0);
      asm.storeVector('shared', 'b32', note, [asm.constant('b32', first), zero, zero, asm.constant('b32', 1)]);
      arrive(asm, end);
    });
    if (!byQueries) arrive(asm, end);
    at.advance();
  };
  asm.stage('end of the tile');
  say(0);
  asm.emit('shfl.sync.idx.b32', given.name, given.name, '0', '31', '-1');
  asm.set(number, 'add.s32', given, grid);
  asm.branch(nextTile);

  asm.place(stop);
  asm.stage('no more work');
  waitParity(asm, shared.rowsEmpty, atRows.parity);
  alone(() => {
    asm.store('shared', 'b32', shared.rowsNote, asm.constant('b32', STOP), ROWS.row0);
    arrive(asm, shared.rowsFull);
  });
  if (shared.scans) say(STOP);
  alone(() => resetCounters(asm, counter, grid));
}
