/**
 * The three computing warpgroups of the five-product backward for wide heads. Each walks the same steps: the first works out
 * P, the second dS from it, the third dQ' from that; products of one run while another works on its numbers.
 */
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
import {
  advance,
  type Descriptor,
  descriptor,
  PANEL,
  PANEL_BYTES,
  uniform,
  wgmma,
  wgmmaCommit,
  wgmmaFence,
  wgmmaWait,
} from '../ptx/wgmma.ts';
import {
  KEYS_NOTE,
  NOTE,
  PANEL_SIZE,
  type PairConfig,
  type PairLayout,
  type PairShape,
  ROWS,
} from './backward_wgmma_pair_shared.ts';
import { askTurn, emitSums, PART_BYTES, SUM, TURN, turnCursor, WRITERS } from './backward_wgmma_sums.ts';
import { clearWild, flagsOf, slot, WILD } from './forward_wgmma_load.ts';
import { storeWide } from './forward_wgmma_store.ts';
import { type Lanes, lanesOf, packPair, type Tile } from './fragments.ts';
import type { Grain } from './loader.ts';
import { strided } from './loader.ts';
import { take, takeSides } from './parameters.ts';
import { baseOf, type Place } from './place.ts';
import { columnPositions, rowPositions, scorerOf } from './scores.ts';
import type { Spec } from './spec.ts';

/** Named barriers of the warpgroups. */
const BARRIER = { scores: 1, gradients: 2, queries: 3 } as const;

export interface PairInputs {
  readonly thread: Reg<'b32'>;
  readonly rank: Reg<'b32'>;
  readonly other: Reg<'b32'>;
  readonly Sq: Reg<'b32'>;
  readonly Sk: Reg<'b32'>;
  readonly scale: Reg<'f32'>;
  readonly scaleLog2: Reg<'f32'>;
}

const tilesOf = (regs: readonly Reg<'f32'>[]): Tile[] =>
  Array.from({ length: regs.length / 4 }, (_, n) => regs.slice(4 * n, 4 * n + 4));

/** What the warpgroups have in common. */
function warpgroup(asm: Assembler, spec: Spec, shape: PairShape, shared: PairLayout, thread: Reg<'b32'>) {
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
        const inside = (i % 4) * 32;
        const from = advance(asm, left, (i >> 2) * PANEL_SIZE + inside);
        const by = advance(asm, right, (i >> 2) * shape.queryPanel + inside);
        wgmma(asm, acc, from, by, { type, accumulate: i === 0 ? no : yes });
      }
      wgmmaCommit(asm);
    },
    /** acc += left right along the rows of `right`, two panels of its columns at a time. */
    outer(acc: readonly Reg<'f32'>[], left: readonly Reg<'b32'>[], right: Descriptor): void {
      wgmmaFence(asm);
      for (let i = 0; i < shape.queries / 16; i++)
        for (let from = 0; from < acc.length; from += PANEL) {
          const by = advance(asm, right, ((2 * from) / PANEL) * shape.queryPanel + i * 16 * PANEL_BYTES);
          const options = { type, accumulate: yes, downRows: true };
          wgmma(asm, acc.slice(from, from + PANEL), left.slice(4 * i, 4 * i + 4), by, options);
        }
      wgmmaCommit(asm);
    },
    yes,
    no,
  };
}

const stageOf = (asm: Assembler, desc: Descriptor, cursor: Cursor, bytes: number): Descriptor =>
  asm.op('add.s64', desc, asm.op('mul.wide.u32', uniform(asm, cursor.stage), bytes >> 4));

/** lse2 (0) or delta (1) of the step's queries, by a thread's columns. */
function statsOf(
  asm: Assembler,
  { queries, statsBytes }: PairShape,
  shared: PairLayout,
  at: Cursor,
  lanes: Lanes,
  which: 0 | 1,
): (column: number) => Reg<'f32'> {
  const known = new Map<number, Reg<'f32'>[]>();
  const mine = asm.op('mad.lo.s32', lanes.t, 8, slot(asm, shared.stats, at, statsBytes));
  return (c) => {
    let pair = known.get(c >> 1);
    if (pair === undefined) {
      pair = asm.loadVector('shared', 'f32', 2, mine, which * queries * 4 + (c >> 1) * 32);
      known.set(c >> 1, pair);
    }
    return pair[c & 1];
  };
}

/** Scores, P, and dV. */
export function emitPairScores(
  asm: Assembler,
  spec: Spec,
  shape: PairShape,
  config: PairConfig,
  shared: PairLayout,
  g: PairInputs,
): void {
  const { qStages, pStages } = config;
  const { queries, queryBytes, queryPanel, pBytes, panels } = shape;
  const sides = takeSides(asm, spec.sides.length);
  const o = take(asm, 'dv', 'vB', 'vH', 'vS');
  const wg = warpgroup(asm, spec, shape, shared, g.thread);
  const { lanes, release, say, type } = wg;
  const descK = descriptor(asm, shared.k);
  const descQ = descriptor(asm, shared.q);
  const descOut = descriptor(asm, shared.dOut, queryPanel);
  const pAt = asm.op('add.s32', shared.p, asm.op('shl.b32', wg.index, 4));
  const s = asm.regs('f32', queries / 2);
  const prob = asm.regs('b32', queries / 4);
  const dV = asm.regs('f32', spec.padDv / 2);
  const at = cursorOf(asm, qStages, 0);
  const atP = cursorOf(asm, pStages, 1);
  const outParity = asm.constant('b32', 0);
  const note = asm.regs('b32', 4);
  const [column, edge, head, ends] = note;
  const edges = spec.mask !== null || config.ragged;
  const zero = asm.constant('b32', 0);

  const nextTile = asm.label('tile');
  const stop = asm.label('stop');
  asm.place(nextTile);
  asm.stage('scores: a tile of keys');
  wg.waitRows();
  asm.branch(stop, asm.op('setp.lt.s32', say(KEYS_NOTE.row0), 0), { uniform: true });
  const anyWild = spec.mask === null ? null : purge(asm, type, shared.k, panels, wg.index, BARRIER.scores, shared.wild);
  for (const x of dV) asm.set(x, 'mov.f32', 0);
  const rowsHere = (): Reg<'b32'>[] =>
    rowPositions(asm, asm.op('add.s32', say(KEYS_NOTE.row0), wg.warpRow), lanes.g, 1);
  const readNote = (): void => {
    waitParity(asm, slot(asm, shared.qFull, at, BARRIER_BYTES), at.parity);
    const from = slot(asm, shared.note, at, NOTE.bytes);
    asm.emit('ld.shared.v4.b32', `{${note.map((r) => r.name).join(', ')}}`, asm.address('shared', from));
    if (anyWild !== null) asm.set(edge, 'or.b32', edge, anyWild);
  };
  const scores = (): void => {
    asm.stage('S = K Q^T');
    wg.inner(s, descK, stageOf(asm, descQ, at, queryBytes), spec.D);
  };
  const p = tilesOf(s);
  /** What was masked, or is past the end, becomes 0; what was NaN or infinite in a key makes NaN of its scores. */
  const onEdge = (): void => {
    const place: Place = { b: say(KEYS_NOTE.b), lenQ: g.Sq, lenK: g.Sk, qStart: zero, kStart: zero, sides };
    const scorer = scorerOf(asm, spec, place);
    const rows = rowsHere();
    const grid = { rowsAre: 'kv', rows, columns: columnPositions(asm, column, lanes.t, queries / 8), head } as const;
    const inside = rows.map((r) => asm.op('setp.lt.s32', r, g.Sk));
    const wildAt = asm.op('mad.lo.s32', asm.op('add.s32', wg.warpRow, lanes.g), 4, shared.wild);
    const wild =
      anyWild === null
        ? [0, 0].map((x) => asm.constant('f32', x))
        : [0, 8].map((below) => asm.load('shared', 'f32', wildAt, below * 4));
    p.forEach((t, n) => {
      const attends = scorer.attends(grid, 0, n);
      t.forEach((x, e) => {
        const counts = asm.op('and.pred', attends[e], inside[e >> 1]);
        asm.set(x, 'selp.f32', asm.op('add.f32', x, wild[e >> 1]), 0, counts);
      });
    });
  };

  const [loop, done, fresh] = [asm.label('step'), asm.label('done'), asm.label('fresh')];
  /** Whether dV of the step before is still being added to. */
  const adding = asm.constant('b32', 0);
  readNote();
  asm.branch(done, asm.op('setp.ne.s32', ends, 0), { uniform: true });
  scores();
  asm.place(loop);
  wgmmaWait(asm, 1);
  asm.branch(fresh, asm.op('setp.eq.s32', adding, 0), { uniform: true });
  release(shared.doEmpty);
  asm.place(fresh);
  wgmmaWait(asm, 0);
  asm.stage('P');
  const lse2 = statsOf(asm, shape, shared, at, lanes, 0);
  p.forEach((t, n) => {
    t.forEach((x, e) => {
      const exponent = asm.op('fma.rn.f32', x, g.scaleLog2, asm.op('neg.f32', lse2(2 * n + (e & 1))));
      asm.set(x, 'ex2.approx.ftz.f32', exponent);
    });
  });
  if (edges) asm.if(asm.op('setp.ne.s32', edge, 0), onEdge);
  asm.stage('P for the second warpgroup');
  release(slot(asm, shared.qEmpty, at, BARRIER_BYTES));
  waitParity(asm, slot(asm, shared.pEmpty, atP, BARRIER_BYTES), atP.parity);
  const target = asm.op('mad.lo.s32', atP.stage, pBytes, pAt);
  for (let i = 0; i < queries / 16; i++) {
    const words = [0, 1].flatMap((j) =>
      [0, 1].map((r) => packPair(asm, 'f16', p[2 * i + j][2 * r], p[2 * i + j][2 * r + 1])),
    );
    asm.storeVector('shared', 'b32', target, words, i * 2048);
  }
  release(slot(asm, shared.pFull, atP, BARRIER_BYTES));
  atP.advance();
  p.forEach((t, n) => {
    for (const r of [0, 1]) asm.set(prob[2 * n + r], 'mov.b32', packPair(asm, type, t[2 * r], t[2 * r + 1]));
  });
  asm.stage('dV += P dOut');
  waitParity(asm, shared.doFull, outParity);
  asm.set(outParity, 'xor.b32', outParity, 1);
  wg.outer(dV, prob, descOut);
  asm.set(adding, 'mov.b32', 1);
  at.advance();
  readNote();
  asm.branch(done, asm.op('setp.ne.s32', ends, 0), { uniform: true });
  scores();
  asm.branch(loop);

  asm.place(done);
  asm.stage('end of the tile');
  release(slot(asm, shared.qEmpty, at, BARRIER_BYTES));
  at.advance();
  const [rows, h, b] = [rowsHere(), say(KEYS_NOTE.h), say(KEYS_NOTE.b)];
  // Only dV is still being multiplied, which needs no keys.
  release(shared.rowsEmpty);
  wgmmaWait(asm, 0);
  const none = asm.label('none');
  asm.branch(none, asm.op('setp.eq.s32', adding, 0), { uniform: true });
  release(shared.doEmpty);
  asm.place(none);
  storeRowsOf(
    asm,
    spec,
    { tensor: o.dv, b: o.vB, h: o.vH, s: o.vS },
    { rows, h, b },
    dV,
    g.Sk,
    spec.grains.v,
    lanes,
    spec.Dv,
  );
  asm.branch(nextTile);
  asm.place(stop);
}

/** dP, dS, and dK. */
export function emitPairGradients(
  asm: Assembler,
  spec: Spec,
  shape: PairShape,
  config: PairConfig,
  shared: PairLayout,
  g: PairInputs,
): void {
  const { qStages, pStages, dsStages } = config;
  const { queries, queryBytes, queryPanel, pBytes, dsBytes } = shape;
  const o = take(asm, 'dk', 'kB', 'kH', 'kS');
  const wg = warpgroup(asm, spec, shape, shared, g.thread);
  const { lanes, release, say } = wg;
  const descV = descriptor(asm, shared.v);
  const descOut = descriptor(asm, shared.dOut);
  const descQ = descriptor(asm, shared.q, queryPanel);
  const pAt = asm.op('add.s32', shared.p, asm.op('shl.b32', wg.index, 4));
  // This lane's 16 bytes of a matrix store: row lane % 16 of the warp's keys, swizzled.
  const matrixRow = asm.op('add.s32', wg.warpRow, asm.op('and.b32', lanes.lane, 15));
  const chunk = asm.op('xor.b32', asm.op('shr.u32', lanes.lane, 4), asm.op('and.b32', lanes.lane, 7));
  const dsAt = asm.op('add.s32', asm.op('mad.lo.s32', matrixRow, PANEL_BYTES, shared.dS), asm.op('shl.b32', chunk, 4));
  const leader = asm.op('setp.eq.s32', wg.index, 0);
  const dP = asm.regs('f32', queries / 2);
  const dS = asm.regs('b32', queries / 4);
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
  const source = asm.op('mad.lo.s32', atP.stage, pBytes, pAt);
  const words = Array.from({ length: queries / 16 }, (_, i) =>
    asm.loadVector('shared', 'b32', 4, source, i * 2048),
  ).flat();
  release(own(shared.pEmpty, atP, BARRIER_BYTES));
  atP.advance();
  asm.stage('dS = P (dP - delta)');
  const delta = statsOf(asm, shape, shared, at, lanes, 1);
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
  const buffer = asm.op('mad.lo.s32', atDs.stage, 2 * dsBytes, dsAt);
  for (let i = 0; i < queries / 16; i++)
    asm.emit(
      'stmatrix.sync.aligned.m8n8.x4.shared.b16',
      asm.address('shared', i % 4 === 0 ? buffer : asm.op('xor.b32', buffer, (i % 4) * 32), (i >> 2) * PANEL_SIZE),
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
  arriveExpecting(asm, full, dsBytes);
  askTurn(asm, own(shared.turnNote, atTurn, TURN.bytes), sum[0], sum[1]);
  const mine = own(shared.dS, atDs, 2 * dsBytes);
  const theirs = peerAddress(asm, asm.op('add.s32', mine, dsBytes), g.other);
  copyToPeer(asm, theirs, mine, dsBytes, peerAddress(asm, full, g.other));
  asm.place(told);
  asm.emit('bar.warp.sync', '-1');
  atDs.advance();
  atTurn.advance();
  asm.stage('dK += dS Q');
  wg.outer(dK, dS, stageOf(asm, descQ, at, queryBytes));
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
  shape: PairShape,
  { dsStages, ordered }: PairConfig,
  shared: PairLayout,
  g: PairInputs,
): void {
  const wg = warpgroup(asm, spec, shape, shared, g.thread);
  const { release, say, type, firstLane } = wg;
  const scratch = asm.parameter('scratch', 'b64');
  const left = descriptor(asm, shared.dS);
  const half = asm.op('mul.lo.s32', g.rank, shape.half * PANEL_SIZE);
  const keys = [asm.op('add.s32', shared.k, half), shared.kOther].map((base) => descriptor(asm, base));
  const at = cursorOf(asm, dsStages, 0);
  const atTurn = turnCursor(asm);
  const mine = asm.op('add.s64', scratch, asm.op('mul.wide.u32', g.rank, shape.half * PART_BYTES));

  const nextTile = asm.label('tile');
  const stop = asm.label('stop');
  asm.place(nextTile);
  asm.stage('queries: a tile of keys');
  wg.waitRows();
  asm.branch(stop, asm.op('setp.lt.s32', say(KEYS_NOTE.row0), 0), { uniform: true });
  if (spec.mask !== null) purge(asm, type, shared.kOther, shape.half, wg.index, BARRIER.queries, null);
  emitSums(asm, {
    type,
    index: wg.index,
    at,
    full: shared.dsFull,
    sumNote: shared.sumNote,
    atTurn,
    turnNote: shared.turnNote,
    dS: () => stageOf(asm, left, at, 2 * shape.dsBytes),
    partBytes: shape.dsBytes,
    blocks: shape.queries / ROWS,
    blockBytes: shape.panels * PART_BYTES,
    keys,
    panels: shape.half,
    panelBytes: PANEL_SIZE,
    scratch: mine,
    tileBytes: shape.tileBytes,
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

/** Writes a block's rows of dK or dV. */
function storeRowsOf(
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

/**
 * Keys that are NaN or infinite become zeros, because dS K would spread them to queries that do not attend to them. What to
 * add to their scores instead is left in `wild`. Returns 1 when there was any, else 0.
 */
function purge(
  asm: Assembler,
  type: 'f16' | 'bf16',
  keys: Reg<'b32'>,
  panels: number,
  index: Reg<'b32'>,
  barrier: number,
  wild: Reg<'b32'> | null,
): Reg<'b32'> {
  asm.stage('keys that are NaN or infinite');
  const row = asm.op('shr.u32', index, 1);
  const half = asm.op('and.b32', index, 1);
  const line = asm.op('mad.lo.s32', row, PANEL_BYTES, asm.op('mad.lo.s32', half, PANEL_BYTES / 2, keys));
  const seen = asm.constant('b32', 0);
  const pieces = Array.from({ length: panels * 4 }, (_, i) => (i >> 2) * PANEL_SIZE + (i & 3) * 16);
  for (const offset of pieces)
    for (const word of asm.loadVector('shared', 'b32', 4, line, offset))
      asm.set(seen, 'or.b32', seen, flagsOf(asm, WILD[type], word));
  const clean = asm.label('clean');
  const other = asm.reg('b32');
  asm.emit('shfl.sync.bfly.b32', other.name, seen.name, '1', '31', '-1');
  const found = asm.op('setp.ne.s32', asm.op('or.b32', seen, other), 0);
  if (wild !== null)
    asm.store('shared', 'b32', asm.op('mad.lo.s32', row, 4, wild), asm.op('selp.b32', 0x7fc00000, 0, found));
  asm.branch(clean, asm.op('setp.eq.s32', seen, 0));
  for (const offset of pieces) {
    const address = asm.op('add.s32', line, offset);
    clearWild(asm, type, address, asm.loadVector('shared', 'b32', 4, address));
  }
  asm.place(clean);
  fenceAsync(asm);
  const any = asm.reg('pred');
  asm.emit('bar.red.or.pred', any.name, String(barrier), '128', found.name);
  return asm.op('selp.b32', 1, 0, any);
}
