/** The data-moving warpgroup of the Hopper forward: one thread queues copies, three warps look for NaN and infinity. */
import type { Assembler } from '../ptx/assembler.ts';
import {
  arrive,
  arriveExpecting,
  BARRIER_BYTES,
  type Cursor,
  copyBox,
  cursorOf,
  fenceAsync,
  prefetchMap,
  TENSOR_MAP,
  tensorMap,
  waitParity,
} from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { PANEL, PANEL_BYTES } from '../ptx/wgmma.ts';
import type { HopperForwardConfig } from './forward_wgmma.ts';
import {
  BLOCK,
  FIRST,
  FOUND_BYTES,
  LAST,
  panels,
  type Ring,
  SCANNERS,
  type SharedLayout,
  STOP,
  TILE,
} from './forward_wgmma_shared.ts';
import { take } from './parameters.ts';
import type { Spec } from './spec.ts';

/** Address of a ring's barrier, note or buffer at the cursor. */
export const slot = (asm: Assembler, base: Reg<'b32'>, cursor: Cursor, bytes: number): Reg<'b32'> =>
  asm.op('mad.lo.s32', cursor.stage, bytes, base);

/** Numbers of a launch that parameters.ts has no source for; the launch sets them itself. */
const own = (asm: Assembler, name: string): Reg<'b32'> => asm.parameter(name, 'b32');

export interface TileOrder {
  /** Heads whose tiles are mixed, because their operands fit the L2 cache together. */
  readonly section: Reg<'b32'>;
  /** Tiles of a head. */
  readonly blocks: Reg<'b32'>;
  /** Heads of all batches. */
  readonly heads: Reg<'b32'>;
  /** 1 when later blocks have more work and start first. */
  readonly reverse: Reg<'b32'>;
  /** Heads of a batch. */
  readonly perBatch: Reg<'b32'>;
}

/** Block, batch and head of a tile's number: sections of heads one after the other, heaviest blocks of a section first. */
export function tileAt(
  asm: Assembler,
  tile: Reg<'b32'>,
  { section, blocks, heads, reverse, perBatch }: TileOrder,
): { block: Reg<'b32'>; b: Reg<'b32'>; h: Reg<'b32'> } {
  const perSection = asm.op('mul.lo.s32', section, blocks);
  const sectionIndex = asm.op('div.u32', tile, perSection);
  const inSection = asm.op('sub.s32', tile, asm.op('mul.lo.s32', sectionIndex, perSection));
  const firstHead = asm.op('mul.lo.s32', sectionIndex, section);
  const width = asm.op('min.s32', section, asm.op('sub.s32', heads, firstHead));
  const ascending = asm.op('div.u32', inSection, width);
  const bh = asm.op('add.s32', firstHead, asm.op('sub.s32', inSection, asm.op('mul.lo.s32', ascending, width)));
  const descending = asm.op('sub.s32', asm.op('sub.s32', blocks, 1), ascending);
  const block = asm.op('selp.b32', descending, ascending, asm.op('setp.ne.s32', reverse, 0));
  const b = asm.op('div.u32', bh, perBatch);
  return { block, b, h: asm.op('sub.s32', bh, asm.op('mul.lo.s32', b, perBatch)) };
}

/** Runs code in lane 0 of a warp alone: `others` holds in the lanes that wait for it. */
export const aloneOf =
  (asm: Assembler, others: Reg<'pred'>) =>
  (body: () => void): void => {
    const skip = asm.label('lane');
    asm.branch(skip, others);
    body();
    asm.place(skip);
    asm.emit('bar.warp.sync', '-1');
  };

/** Sets the launch's counters back when every block has stopped: the last one does it. */
export function resetCounters(asm: Assembler, counter: Reg<'b64'>, grid: Reg<'b32'>): void {
  const stopped = asm.reg('b32');
  const others = asm.op('sub.s32', grid, 1);
  asm.emit('fence.acq_rel.gpu');
  asm.emit('atom.global.inc.u32', stopped.name, asm.address('global', counter, 4), others.name);
  asm.when(asm.op('setp.eq.s32', stopped, others), () => asm.store('global', 'b32', counter, 0));
}

/** One thread: for every tile of this block, its queries, then its keys from last to first and values one step behind. */
export function emitLoads(
  asm: Assembler,
  spec: Spec,
  config: HopperForwardConfig,
  shared: SharedLayout,
  Hq: Reg<'b32'>,
): void {
  const { groups, blockK, stages } = config;
  const blockQ = groups * 64;
  const [mapQ, mapK, mapV] = (['qMap', 'kMap', 'vMap'] as const).map((name) =>
    tensorMap(asm, asm.parameterBytes(name, TENSOR_MAP.bytes, TENSOR_MAP.align)),
  );
  for (const map of [mapQ, mapK, mapV]) prefetchMap(asm, map);
  const p = take(asm, 'rowStart', 'runs', 'runB', 'runH', 'reverse');
  const dense = spec.dense ? { ...take(asm, 'Sq', 'Sk'), zero: asm.constant('b32', 0) } : null;
  const sequences = spec.dense ? null : take(asm, 'sequences').sequences;
  const [tiles, blocks, section, heads] = ['tiles', 'blocks', 'section', 'heads'].map((n) => own(asm, n));
  const [bStepQ, bStepK] = ['bStepQ', 'bStepK'].map((n) => own(asm, n));
  const counter = asm.parameter('counter', 'b64');
  const { q, k, v } = shared;
  const [atQ, atK, atV] = [cursorOf(asm, q.buffers, 1), cursorOf(asm, stages, 1), cursorOf(asm, stages, 1)];

  const copyRows = (
    ring: Ring,
    at: Cursor,
    map: Reg<'b64'>,
    columns: number,
    rows: number,
    where: readonly Reg<'b32'>[],
  ): void => {
    const full = slot(asm, ring.full, at, BARRIER_BYTES);
    const target = slot(asm, ring.data, at, ring.bytes);
    arriveExpecting(asm, full, ring.bytes);
    for (let i = 0; i < panels(columns); i++)
      copyBox(asm, target, i * rows * PANEL_BYTES, map, [asm.constant('b32', i * PANEL), ...where], full);
  };

  const grid = asm.special('nctaid.x');
  const tile = asm.special('ctaid.x');
  const tileNumber = asm.constant('b32', 0);
  const nextTile = asm.label('tile');
  const stop = asm.label('stop');
  const advanceTile = asm.label('advance');
  asm.place(nextTile);
  asm.branch(stop, asm.op('setp.ge.s32', tile, tiles));
  // Asked for now, needed when this tile is queued.
  const given = asm.reg('b32');
  asm.emit('atom.global.add.u32', given.name, asm.address('global', counter), '1');

  asm.stage('which queries');
  const { block, b, h } = tileAt(asm, tile, { section, blocks, heads, reverse: p.reverse, perBatch: Hq });
  const hkv = spec.group === 1 ? h : asm.op('div.u32', h, spec.group);
  const q0 = asm.op('mul.lo.s32', block, blockQ);
  let [qStart, lenQ, kStart, lenK]: Reg<'b32'>[] = [];
  if (dense !== null) [qStart, lenQ, kStart, lenK] = [dense.zero, dense.Sq, dense.zero, dense.Sk];
  else if (sequences !== null) {
    const row = asm.op('add.s64', sequences, asm.op('mul.wide.u32', b, 16));
    [qStart, lenQ, kStart, lenK] = asm.loadVector('global', 'b32', 4, row, 0, 'nc');
    asm.branch(advanceTile, asm.op('setp.ge.s32', q0, lenQ));
  }

  asm.stage('Q and the note about its tile');
  const row = asm.op('mad.lo.s32', b, p.runB, asm.op('mad.lo.s32', h, p.runH, block));
  const rowAt = asm.op('add.s64', p.rowStart, asm.op('mul.wide.s32', row, 4));
  const firstRun = asm.load('global', 'b32', rowAt, 0, 'nc');
  const run = asm.load('global', 'b32', rowAt, 4, 'nc');
  const tileNote = asm.op('mad.lo.s32', asm.op('and.b32', tileNumber, TILE.kept - 1), TILE.bytes, q.note);
  asm.set(tileNumber, 'add.s32', tileNumber, 1);
  waitParity(asm, slot(asm, q.empty, atQ, BARRIER_BYTES), atQ.parity);
  for (const [offset, value] of [
    [TILE.q0, q0],
    [TILE.h, h],
    [TILE.b, b],
    [TILE.lenQ, lenQ],
    [TILE.lenK, lenK],
    [TILE.qStart, qStart],
    [TILE.kStart, kStart],
  ] as const)
    asm.store('shared', 'b32', tileNote, value, offset);
  const batchQ = asm.op('mul.lo.s32', b, bStepQ);
  const batchK = asm.op('mul.lo.s32', b, bStepK);
  copyRows(q, atQ, mapQ, spec.padD, blockQ, [asm.op('add.s32', qStart, q0), h, batchQ]);
  atQ.advance();

  /** Key row of the block whose V is still to come, and its note. */
  const pending = asm.constant('b32', STOP);
  const pendingEdge = asm.constant('b32', 0);
  const loadV = (): void => {
    waitParity(asm, slot(asm, v.empty, atV, BARRIER_BYTES), atV.parity);
    if (shared.scans) {
      const note = slot(asm, v.note, atV, BLOCK.bytes);
      asm.store('shared', 'b32', note, pending, BLOCK.kv0);
      asm.store('shared', 'b32', note, pendingEdge, BLOCK.edge);
    }
    copyRows(v, atV, mapV, spec.padDv, blockK, [asm.op('add.s32', kStart, pending), hkv, batchK]);
    atV.advance();
  };

  asm.stage('K of this step, V of the step before');
  const nextRun = asm.label('run');
  const nextBlock = asm.label('block');
  const none = asm.label('none');
  const lowest = asm.reg('b32');
  const kvBlock = asm.reg('b32');
  const partial = asm.reg('b32');
  const lastRun = asm.reg('pred');
  asm.branch(none, asm.op('setp.ge.s32', firstRun, run));
  asm.place(nextRun);
  asm.set(run, 'sub.s32', run, 1);
  const runAt = asm.op('add.s64', p.runs, asm.op('mul.wide.s32', run, 12));
  for (const [to, offset] of [
    [lowest, 0],
    [kvBlock, 4],
    [partial, 8],
  ] as const)
    asm.emit('ld.global.nc.b32', to.name, asm.address('global', runAt, offset));
  asm.set(lastRun, 'setp.le.s32', run, firstRun);
  asm.branch(nextBlock);
  asm.place(none);
  // A tile that attends to nothing still is a step: one block past the end of the keys.
  asm.set(kvBlock, 'add.s32', asm.op('div.u32', lenK, blockK), 2);
  asm.set(lowest, 'mov.b32', kvBlock);
  asm.set(partial, 'mov.b32', 1);
  asm.set(lastRun, 'setp.le.s32', run, firstRun);

  asm.place(nextBlock);
  asm.set(kvBlock, 'sub.s32', kvBlock, 1);
  const kv0 = asm.op('mul.lo.s32', kvBlock, blockK);
  const tail = asm.op('setp.gt.s32', asm.op('add.s32', kv0, blockK), lenK);
  const edge = asm.op('or.b32', partial, asm.op('selp.b32', 1, 0, tail));
  const lastBlock = asm.op('setp.le.s32', kvBlock, lowest);
  const last = asm.op('and.pred', lastBlock, lastRun);
  const first = asm.op('setp.eq.s32', pending, STOP);
  const ends = asm.op('or.b32', asm.op('selp.b32', LAST, 0, last), asm.op('selp.b32', FIRST, 0, first));
  waitParity(asm, slot(asm, k.empty, atK, BARRIER_BYTES), atK.parity);
  const note = slot(asm, k.note, atK, BLOCK.bytes);
  asm.storeVector('shared', 'b32', note, [kv0, edge, ends, tileNote]);
  copyRows(k, atK, mapK, spec.padD, blockK, [asm.op('add.s32', kStart, kv0), hkv, batchK]);
  atK.advance();
  const held = asm.label('held');
  asm.branch(held, first);
  loadV();
  asm.place(held);
  asm.set(pending, 'mov.b32', kv0);
  asm.set(pendingEdge, 'mov.b32', edge);
  asm.branch(nextBlock, lastBlock, { negate: true });
  asm.branch(nextRun, lastRun, { negate: true });
  loadV();

  asm.place(advanceTile);
  asm.set(tile, 'add.s32', given, grid);
  asm.branch(nextTile);

  asm.place(stop);
  asm.stage('no more work');
  waitParity(asm, slot(asm, k.empty, atK, BARRIER_BYTES), atK.parity);
  const end = asm.constant('b32', STOP);
  asm.store('shared', 'b32', slot(asm, k.note, atK, BLOCK.bytes), end, BLOCK.kv0);
  arrive(asm, slot(asm, k.full, atK, BARRIER_BYTES));
  if (shared.scans) {
    waitParity(asm, slot(asm, v.empty, atV, BARRIER_BYTES), atV.parity);
    asm.store('shared', 'b32', slot(asm, v.note, atV, BLOCK.bytes), end, BLOCK.kv0);
    arrive(asm, slot(asm, v.full, atV, BARRIER_BYTES));
  }
  resetCounters(asm, counter, grid);
}

/** Sign bits of a pair of halves are set where the half is NaN or infinite. */
export const WILD = {
  bf16: { exponent: 0x7f807f80, carry: 0x00800080 },
  f16: { exponent: 0x7c007c00, carry: 0x04000400 },
} as const;

export const flagsOf = (
  asm: Assembler,
  { exponent, carry }: { exponent: number; carry: number },
  word: Reg<'b32'>,
): Reg<'b32'> => asm.op('and.b32', asm.op('add.s32', asm.op('and.b32', word, exponent), carry), 0x80008000);

/** Writes the words back with zeros where they are NaN or infinite. */
export function clearWild(
  asm: Assembler,
  storage: 'f16' | 'bf16',
  address: Reg<'b32'>,
  words: readonly Reg<'b32'>[],
): void {
  words.forEach((w, i) => {
    const flags = flagsOf(asm, WILD[storage], w);
    const ones = asm.op('mul.lo.s32', asm.op('shr.u32', flags, 15), 0xffff);
    asm.store('shared', 'b32', address, asm.op('and.b32', w, asm.op('not.b32', ones)), 4 * i);
  });
}

/** Buffers to look through: each has a note with `kv0` and `edge`. */
export interface Scanned {
  readonly data: Reg<'b32'>;
  /** Bytes from buffer to buffer, and bytes of one to look at. */
  readonly stride: number;
  readonly bytes: number;
  readonly stages: number;
  readonly note: Reg<'b32'>;
  readonly noteBytes: number;
  readonly full: Reg<'b32'>;
  readonly empty: Reg<'b32'>;
  readonly scanned: Reg<'b32'>;
  readonly found: Reg<'b32'>;
  /** Chunks of 16 bytes that a thread looks at side by side. */
  readonly ahead: number;
  /** Whether what is found becomes zeros at once. */
  readonly clears: boolean;
}

/**
 * Three warps: rows of edge blocks with NaN or infinity are found, and cleared, before a product that multiplies them by
 * zeros, because 0 * NaN is NaN. `found` tells the readers, who know where such a row does belong.
 */
export function emitScan(asm: Assembler, storage: 'f16' | 'bf16', ring: Scanned, thread: Reg<'b32'>): void {
  const { stages, scanned, found } = ring;
  const at = cursorOf(asm, stages, 0);
  const lane = asm.op('and.b32', thread, 31);
  const firstLane = asm.op('setp.eq.s32', lane, 0);
  const scanner = asm.op('sub.s32', asm.op('shr.u32', thread, 5), 1);
  const index = asm.op('sub.s32', thread, 32);
  const wild = WILD[storage];
  const loop = asm.label('scanning');
  const clean = asm.label('clean');
  const end = asm.label('scannedAll');
  asm.place(loop);
  waitParity(asm, slot(asm, ring.full, at, BARRIER_BYTES), at.parity);
  const note = slot(asm, ring.note, at, ring.noteBytes);
  asm.branch(end, asm.op('setp.eq.s32', asm.load('shared', 'b32', note, BLOCK.kv0), STOP));
  asm.branch(clean, asm.op('setp.eq.s32', asm.load('shared', 'b32', note, BLOCK.edge), 0));
  const seen = asm.constant('b32', 0);
  const chunk = asm.op('mov.b32', index);
  const next = asm.label('chunk');
  const data = slot(asm, ring.data, at, ring.stride);
  asm.place(next);
  // Several chunks are on their way at a time; past the end the last one is looked at again.
  const last = ring.bytes / 16 - 1;
  const places = Array.from({ length: ring.ahead }, (_, i) => {
    const at = i === 0 ? chunk : asm.op('min.s32', asm.op('add.s32', chunk, i * SCANNERS * 32), last);
    return asm.op('mad.lo.s32', at, 16, data);
  });
  const loaded = places.map((address) => asm.loadVector('shared', 'b32', 4, address));
  loaded.forEach((words, i) => {
    const flags = words.map((w) => flagsOf(asm, wild, w));
    const any = flags.reduce((x, y) => asm.op('or.b32', x, y));
    const finite = asm.label('finite');
    asm.branch(finite, asm.op('setp.eq.s32', any, 0));
    asm.set(seen, 'or.b32', seen, any);
    if (ring.clears) clearWild(asm, storage, places[i], words);
    asm.place(finite);
  });
  asm.set(chunk, 'add.s32', chunk, ring.ahead * SCANNERS * 32);
  asm.branch(next, asm.op('setp.lt.s32', chunk, ring.bytes / 16));
  fenceAsync(asm);
  const anywhere = asm.reg('pred');
  asm.emit('vote.sync.any.pred', anywhere.name, asm.op('setp.ne.s32', seen, 0).name, '-1');
  const word = asm.op('mad.lo.s32', scanner, 4, slot(asm, found, at, FOUND_BYTES));
  const said = asm.op('selp.b32', 1, 0, anywhere);
  asm.when(firstLane, () => asm.store('shared', 'b32', word, said));
  asm.place(clean);
  asm.emit('bar.warp.sync', '-1');
  const ready = slot(asm, scanned, at, BARRIER_BYTES);
  const empty = slot(asm, ring.empty, at, BARRIER_BYTES);
  asm.when(firstLane, () => {
    arrive(asm, ready);
    arrive(asm, empty);
  });
  at.advance();
  asm.branch(loop);
  asm.place(end);
}
