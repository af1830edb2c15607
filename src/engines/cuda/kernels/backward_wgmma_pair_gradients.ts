/** The second and third warpgroups of the five-product backward for wide heads: dP, dS and dK; and dQ. */
import type { Assembler } from '../ptx/assembler.ts';
import {
  arrive,
  arriveExpecting,
  arrivePeer,
  BARRIER_BYTES,
  type Cursor,
  copyToPeer,
  cursorOf,
  fenceAsync,
  peerAddress,
  syncNamed,
  waitParity,
} from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { descriptor, PANEL_BYTES, wgmmaWait } from '../ptx/wgmma.ts';
import {
  BARRIER,
  type PairInputs,
  stageOf,
  statsOf,
  storeRowsOf,
  tilesOf,
  warpgroup,
} from './backward_wgmma_pair_group.ts';
import {
  DS_BYTES,
  HALF,
  KEYS_NOTE,
  NOTE,
  OPERAND_BYTES,
  P_BYTES,
  PANEL_SIZE,
  type PairConfig,
  type PairLayout,
  ROWS,
  TILE_BYTES,
} from './backward_wgmma_pair_shared.ts';
import { purge } from './backward_wgmma_purge.ts';
import { askTurn, emitSums, PART_BYTES, SUM, TURN, turnCursor, WRITERS } from './backward_wgmma_sums.ts';
import { slot } from './forward_wgmma_load.ts';
import { packPair } from './fragments.ts';
import { take } from './parameters.ts';
import { rowPositions } from './scores.ts';
import type { Spec } from './spec.ts';

/** dP, dS, and dK. */
export function emitPairGradients(
  asm: Assembler,
  spec: Spec,
  config: PairConfig,
  shared: PairLayout,
  g: PairInputs,
): void {
  const { qStages, pStages, dsStages } = config;
  const o = take(asm, 'dk', 'kB', 'kH', 'kS');
  const wg = warpgroup(asm, spec, shared, g.thread);
  const { lanes, release, say } = wg;
  const descV = descriptor(asm, shared.v);
  const descOut = descriptor(asm, shared.dOut);
  const descQ = descriptor(asm, shared.q, PANEL_SIZE);
  const pAt = asm.op('add.s32', shared.p, asm.op('shl.b32', wg.index, 4));
  // This lane's 16 bytes of a matrix store: row lane % 16 of the warp's keys, swizzled.
  const matrixRow = asm.op('add.s32', wg.warpRow, asm.op('and.b32', lanes.lane, 15));
  const chunk = asm.op('xor.b32', asm.op('shr.u32', lanes.lane, 4), asm.op('and.b32', lanes.lane, 7));
  const dsAt = asm.op('add.s32', asm.op('mad.lo.s32', matrixRow, PANEL_BYTES, shared.dS), asm.op('shl.b32', chunk, 4));
  const leader = asm.op('setp.eq.s32', wg.index, 0);
  const dP = asm.regs('f32', ROWS / 2);
  const dS = asm.regs('b32', ROWS / 4);
  const dK = asm.regs('f32', spec.padD / 2);
  const at = cursorOf(asm, qStages, 0);
  const atP = cursorOf(asm, pStages, 0);
  const atDs = cursorOf(asm, dsStages, 1);
  const atTurn = turnCursor(asm);
  const outParity = asm.constant('b32', 0);
  const note = asm.regs('b32', 4);
  const [, edge, , ends] = note;
  const edges = spec.mask !== null || config.ragged;

  const nextTile = asm.label('tile');
  const stop = asm.label('stop');
  asm.place(nextTile);
  asm.stage('gradients: a tile of keys');
  wg.waitRows();
  asm.branch(stop, asm.op('setp.lt.s32', say(KEYS_NOTE.row0), 0), { uniform: true });
  for (const x of dK) asm.set(x, 'mov.f32', 0);
  /** Barrier of the queries that queued products still read, or 0. */
  const reading = asm.constant('b32', 0);
  const readNote = (): void => {
    waitParity(asm, slot(asm, shared.qFull, at, BARRIER_BYTES), at.parity);
    const from = slot(asm, shared.note, at, NOTE.bytes);
    asm.emit('ld.shared.v4.b32', `{${note.map((r) => r.name).join(', ')}}`, asm.address('shared', from));
  };
  const releaseRead = (): void => {
    const none = asm.label('none');
    asm.branch(none, asm.op('setp.eq.s32', reading, 0), { uniform: true });
    release(reading);
    asm.place(none);
  };
  const products = (): void => {
    asm.stage('dP = V dOut^T');
    waitParity(asm, shared.doFull, outParity);
    asm.set(outParity, 'xor.b32', outParity, 1);
    wg.inner(dP, descV, descOut, spec.Dv);
  };
  const own = (base: Reg<'b32'>, cursor: Cursor, bytes: number): Reg<'b32'> => slot(asm, base, cursor, bytes);

  const [loop, done] = [asm.label('step'), asm.label('done')];
  readNote();
  asm.branch(done, asm.op('setp.ne.s32', ends, 0), { uniform: true });
  products();
  asm.place(loop);
  wgmmaWait(asm, 1);
  releaseRead();
  wgmmaWait(asm, 0);
  release(shared.doEmpty);
  asm.stage('P of the first warpgroup');
  waitParity(asm, own(shared.pFull, atP, BARRIER_BYTES), atP.parity);
  const source = asm.op('mad.lo.s32', atP.stage, P_BYTES, pAt);
  const words = [0, 1, 2, 3].flatMap((i) => asm.loadVector('shared', 'b32', 4, source, i * 2048));
  release(own(shared.pEmpty, atP, BARRIER_BYTES));
  atP.advance();
  asm.stage('dS = P (dP - delta)');
  const delta = statsOf(asm, shared, at, lanes, 1);
  const ds = tilesOf(dP);
  const gradient = (masked: boolean): void =>
    ds.forEach((t, n) => {
      for (const r of [0, 1]) {
        const halves = asm.regs('b16', 2);
        asm.emit('mov.b32', `{${halves.map((x) => x.name).join(', ')}}`, words[2 * n + r].name);
        halves.forEach((half, c) => {
          const [x, e] = [t[2 * r + c], asm.op('cvt.f32.f16', half)];
          asm.set(x, 'mul.f32', e, asm.op('sub.f32', x, delta(2 * n + c)));
          // dP may be NaN where a masked value row is, or delta.
          if (masked) asm.set(x, 'selp.f32', 0, x, asm.op('setp.eq.f32', e, 0));
        });
        asm.set(dS[2 * n + r], 'mov.b32', packPair(asm, wg.type, t[2 * r], t[2 * r + 1]));
      }
    });
  // Loaded once for both branches.
  if (edges) {
    for (let n = 0; n < ds.length; n++) delta(2 * n);
    asm.if(
      asm.op('setp.ne.s32', edge, 0),
      () => gradient(true),
      () => gradient(false),
    );
  } else gradient(false);
  asm.stage('dS to shared memory, here and in the other block');
  waitParity(asm, own(shared.dsEmpty, atDs, BARRIER_BYTES), atDs.parity);
  const buffer = asm.op('mad.lo.s32', atDs.stage, DS_BYTES, dsAt);
  for (let i = 0; i < ROWS / 16; i++)
    asm.emit(
      'stmatrix.sync.aligned.m8n8.x4.shared.b16',
      asm.address('shared', i === 0 ? buffer : asm.op('xor.b32', buffer, i * 32)),
      `{${dS
        .slice(4 * i, 4 * i + 4)
        .map((r) => r.name)
        .join(', ')}}`,
    );
  fenceAsync(asm);
  syncNamed(asm, BARRIER.gradients, 128);
  const told = asm.label('told');
  asm.branch(told, leader, { negate: true });
  const sum = asm.loadVector('shared', 'b32', 2, own(shared.note, at, NOTE.bytes), NOTE.tile);
  const sumNote = own(shared.sumNote, atDs, SUM.bytes);
  asm.storeVector('shared', 'b32', sumNote, [...sum, asm.constant('b32', 0), asm.constant('b32', 0)]);
  const full = own(shared.dsFull, atDs, BARRIER_BYTES);
  arriveExpecting(asm, full, PANEL_SIZE);
  askTurn(asm, own(shared.turnNote, atTurn, TURN.bytes), sum[0], sum[1]);
  const mine = own(shared.dS, atDs, DS_BYTES);
  const theirs = peerAddress(asm, asm.op('add.s32', mine, PANEL_SIZE), g.other);
  copyToPeer(asm, theirs, mine, PANEL_SIZE, peerAddress(asm, full, g.other));
  asm.place(told);
  asm.emit('bar.warp.sync', '-1');
  atDs.advance();
  atTurn.advance();
  asm.stage('dK += dS Q');
  wg.outer(dK, dS, stageOf(asm, descQ, at, OPERAND_BYTES));
  asm.set(reading, 'mov.b32', slot(asm, shared.qEmpty, at, BARRIER_BYTES));
  at.advance();
  readNote();
  asm.branch(done, asm.op('setp.ne.s32', ends, 0), { uniform: true });
  products();
  asm.branch(loop);

  asm.place(done);
  asm.stage('end of the tile');
  release(slot(asm, shared.qEmpty, at, BARRIER_BYTES));
  at.advance();
  const rows = rowPositions(asm, asm.op('add.s32', say(KEYS_NOTE.row0), wg.warpRow), lanes.g, 1);
  const [h, b] = [say(KEYS_NOTE.h), say(KEYS_NOTE.b)];
  release(shared.rowsEmpty);
  waitParity(asm, own(shared.dsEmpty, atDs, BARRIER_BYTES), atDs.parity);
  const endNote = own(shared.sumNote, atDs, SUM.bytes);
  const endFull = own(shared.dsFull, atDs, BARRIER_BYTES);
  const one = asm.constant('b32', 1);
  asm.when(leader, () => asm.storeVector('shared', 'b32', endNote, [one, one, one, one]));
  asm.when(leader, () => arrive(asm, endFull));
  asm.emit('bar.warp.sync', '-1');
  atDs.advance();
  wgmmaWait(asm, 0);
  releaseRead();
  for (const x of dK) asm.set(x, 'mul.f32', x, g.scale);
  storeRowsOf(
    asm,
    spec,
    { tensor: o.dk, b: o.kB, h: o.kH, s: o.kS },
    { rows, h, b },
    dK,
    g.Sk,
    spec.grains.k,
    lanes,
    spec.D,
  );
  asm.branch(nextTile);
  asm.place(stop);
  const home = asm.constant('b32', -1);
  const left = asm.label('left');
  asm.branch(left, leader, { negate: true });
  for (let i = 0; i < WRITERS; i++) askTurn(asm, asm.op('add.s32', shared.turnNote, i * TURN.bytes), home, home);
  asm.place(left);
}

/** dQ' and its sums. */
export function emitPairQueries(
  asm: Assembler,
  spec: Spec,
  { dsStages, ordered }: PairConfig,
  shared: PairLayout,
  g: PairInputs,
): void {
  const wg = warpgroup(asm, spec, shared, g.thread);
  const { release, say, type, firstLane } = wg;
  const scratch = asm.parameter('scratch', 'b64');
  const left = descriptor(asm, shared.dS);
  const half = asm.op('mul.lo.s32', g.rank, HALF * PANEL_SIZE);
  const keys = [asm.op('add.s32', shared.k, half), shared.kOther].map((base) => descriptor(asm, base));
  const at = cursorOf(asm, dsStages, 0);
  const atTurn = turnCursor(asm);
  const mine = asm.op('add.s64', scratch, asm.op('mul.wide.u32', g.rank, HALF * PART_BYTES));

  const nextTile = asm.label('tile');
  const stop = asm.label('stop');
  asm.place(nextTile);
  asm.stage('queries: a tile of keys');
  wg.waitRows();
  asm.branch(stop, asm.op('setp.lt.s32', say(KEYS_NOTE.row0), 0), { uniform: true });
  if (spec.mask !== null)
    purge(asm, {
      ...{ type, keys: shared.kOther, rows: ROWS, panels: HALF },
      ...{ index: wg.index, barrier: BARRIER.queries, threads: 128, wild: null },
    });
  emitSums(asm, {
    type,
    index: wg.index,
    at,
    full: shared.dsFull,
    sumNote: shared.sumNote,
    atTurn,
    turnNote: shared.turnNote,
    dS: () => stageOf(asm, left, at, DS_BYTES),
    keys,
    panels: HALF,
    panelBytes: PANEL_SIZE,
    scratch: mine,
    tileBytes: TILE_BYTES,
    ordered,
    release: () => {
      const empty = slot(asm, shared.dsEmpty, at, BARRIER_BYTES);
      release(empty);
      const there = peerAddress(asm, empty, g.other);
      asm.when(firstLane, () => arrivePeer(asm, there));
    },
  });
  release(shared.rowsEmpty);
  asm.branch(nextTile);
  asm.place(stop);
}
