/**
 * A computing warpgroup of the five-product backward: scores and dP of a step by products straight from shared memory, P and
 * dS in registers as left operands of the products that add to dV and dK, dS also in shared memory for dQ, which needs the
 * keys of both warpgroups.
 */
import { LOG2E } from '../../../core/math.ts';
import type { Assembler } from '../ptx/assembler.ts';
import { arrive, BARRIER_BYTES, type Cursor, cursorOf, fenceAsync, syncNamed, waitParity } from '../ptx/async.ts';
import { AssemblerError, type Reg } from '../ptx/registers.ts';

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
  COMPUTERS,
  type FusedConfig,
  type FusedLayout,
  KEYS,
  NOTE,
  PART_BYTES,
  ROWS,
  SUM,
} from './backward_wgmma_fused_shared.ts';
import { purge } from './backward_wgmma_purge.ts';
import { dropoutOf } from './dropout.ts';
import { slot } from './forward_wgmma_load.ts';
import { STOP } from './forward_wgmma_shared.ts';
import { storeWide } from './forward_wgmma_store.ts';
import { lanesOf, packPair, type Tile } from './fragments.ts';
import { gradientTiles } from './gradient.ts';
import type { Grain } from './loader.ts';
import { strided } from './loader.ts';
import { take, takeSides } from './parameters.ts';
import { baseOf, type Place } from './place.ts';
import { columnPositions, rowPositions, scorerOf } from './scores.ts';
import type { Spec } from './spec.ts';

/** Named barrier of the computing warpgroups. */
const COMPUTING = 1;

export interface ComputeInputs {
  readonly thread: Reg<'b32'>;
  readonly Hq: Reg<'b32'>;
  readonly Sq: Reg<'b32'>;
  readonly Sk: Reg<'b32'>;
  readonly scale: Reg<'f32'>;
  readonly scaleLog2: Reg<'f32'>;
}

const tilesOf = (regs: readonly Reg<'f32'>[]): Tile[] =>
  Array.from({ length: regs.length / 4 }, (_, n) => regs.slice(4 * n, 4 * n + 4));

export function emitFusedCompute(
  asm: Assembler,
  spec: Spec,
  config: FusedConfig,
  shared: FusedLayout,
  g: ComputeInputs,
): void {
  const { queries, qStages, doStages, overlap } = config;
  const storage = spec.storage as 'f16' | 'bf16';
  const { thread } = g;
  const sides = takeSides(asm, spec.sides.length);
  const o = take(asm, 'dk', 'kB', 'kH', 'kS', 'dv', 'vB', 'vH', 'vS');
  const group = uniform(asm, asm.op('sub.s32', asm.op('shr.u32', thread, 7), 1));
  const lanes = lanesOf(asm, thread);
  /** First of this warp's 16 keys. */
  const warpRow = asm.op('shl.b32', asm.op('sub.s32', asm.op('shr.u32', thread, 5), 4), 4);
  const firstLane = asm.op('setp.eq.s32', lanes.lane, 0);
  const yes = asm.op('setp.eq.s32', asm.constant('b32', 0), 0);
  const no = asm.op('not.pred', yes);
  const release = (empty: Reg<'b32'>): void => asm.when(firstLane, () => arrive(asm, empty));

  const part = asm.op('mul.lo.s32', group, 64 * PANEL_BYTES);
  const own = (base: Reg<'b32'>): Descriptor => descriptor(asm, asm.op('add.s32', part, base));
  const [ownK, ownV, ownDs] = [shared.k, shared.v, shared.dS].map(own);
  const [rightQ, rightOut] = [shared.q, shared.dOut].map((base) => descriptor(asm, base, queries * PANEL_BYTES));
  // dQ of 64 x 64 a warpgroup: a panel of the keys' columns each, or a panel of queries each.
  const byColumns = queries === PANEL;
  const panel = asm.op('mul.lo.s32', group, KEYS * PANEL_BYTES);
  const sumLeft = descriptor(asm, byColumns ? shared.dS : asm.op('add.s32', shared.dS, panel), KEYS * PANEL_BYTES);
  const sumRight = descriptor(asm, byColumns ? asm.op('add.s32', shared.k, panel) : shared.k, KEYS * PANEL_BYTES);
  // This lane's 16 bytes of a matrix store: row lane % 16 of the warp's keys, swizzled.
  const matrixRow = asm.op('add.s32', warpRow, asm.op('and.b32', lanes.lane, 15));
  const chunk = asm.op('xor.b32', asm.op('shr.u32', lanes.lane, 4), asm.op('and.b32', lanes.lane, 7));
  const dsAt = asm.op('add.s32', asm.op('mad.lo.s32', matrixRow, PANEL_BYTES, shared.dS), asm.op('shl.b32', chunk, 4));
  const groupThread = asm.op('and.b32', thread, 127);
  const sumAt = asm.op(
    'add.s32',
    asm.op('mad.lo.s32', group, PART_BYTES, shared.dQ),
    asm.op('shl.b32', groupThread, 4),
  );
  const s = asm.regs('f32', queries / 2);
  const dP = asm.regs('f32', queries / 2);
  const prob = asm.regs('b32', queries / 4);
  const dS = asm.regs('b32', queries / 4);
  const dQ = asm.regs('f32', 32);
  const dK = asm.regs('f32', spec.padD / 2);
  const dV = asm.regs('f32', spec.padDv / 2);
  const at = cursorOf(asm, qStages, 0);
  const atOut = cursorOf(asm, doStages, 0);
  const rowsParity = asm.constant('b32', 0);
  const sumParity = asm.constant('b32', 1);
  const atWriter = cursorOf(asm, config.writers, 0);
  const atDs = cursorOf(asm, 2, 0);
  const zero = asm.constant('b32', 0);

  const bh = asm.reg('b32');
  const dropout = spec.dropout ? dropoutOf(asm, bh) : null;

  const nextTile = asm.label('tile');
  const stop = asm.label('stop');
  asm.place(nextTile);
  asm.stage('a tile of keys');
  waitParity(asm, shared.rowsFull, rowsParity);
  /** Read where they are needed, because registers are few. */
  const say = (offset: number): Reg<'b32'> => asm.load('shared', 'b32', shared.rowsNote, offset);
  const rowsHere = (): Reg<'b32'>[] => rowPositions(asm, asm.op('add.s32', say(ROWS.row0), warpRow), lanes.g, 1);
  asm.branch(stop, asm.op('setp.lt.s32', say(ROWS.row0), 0), { uniform: true });
  const edges = spec.mask !== null || config.ragged;
  const plain = spec.mod === null && spec.folded && !spec.dropout;
  const anyWild =
    spec.mask === null
      ? null
      : purge(asm, {
          ...{ type: storage, keys: shared.k, rows: KEYS, panels: spec.padD / PANEL },
          ...{ index: asm.op('sub.s32', thread, 128), barrier: COMPUTING, threads: COMPUTERS, wild: shared.wild },
        });
  /** What makes scores of this thread's keys NaN where those were NaN or infinite. */
  const poison = (): Reg<'f32'>[] => {
    if (anyWild === null) return [0, 0].map((x) => asm.constant('f32', x));
    const mine = asm.op('mad.lo.s32', asm.op('add.s32', warpRow, lanes.g), 4, shared.wild);
    return [0, 8].map((below) => asm.load('shared', 'f32', mine, below * 4));
  };
  for (const x of [...dK, ...dV]) asm.set(x, 'mov.f32', 0);
  /** Barrier of the queries that queued products still read, or 0. */
  const reading = asm.constant('b32', 0);
  const releaseRead = (): void => {
    const none = asm.label('none');
    asm.branch(none, asm.op('setp.eq.s32', reading, 0), { uniform: true });
    release(reading);
    asm.place(none);
  };
  const note = asm.regs('b32', 4);
  const [column, edge, head, ends] = note;
  const readNote = (): void => {
    waitParity(asm, slot(asm, shared.qFull, at, BARRIER_BYTES), at.parity);
    const from = slot(asm, shared.note, at, NOTE.bytes);
    asm.emit('ld.shared.v4.b32', `{${note.map((r) => r.name).join(', ')}}`, asm.address('shared', from));
    if (anyWild !== null) asm.set(edge, 'or.b32', edge, anyWild);
  };
  const stageOf = (desc: Descriptor, cursor: Cursor, bytes: number): Descriptor =>
    asm.op('add.s64', desc, asm.op('mul.wide.u32', uniform(asm, cursor.stage), bytes >> 4));
  /** acc = left right^T along `columns`; panels of the left operand are 128 rows, of the right one `queries`. */
  const inner = (acc: readonly Reg<'f32'>[], left: Descriptor, right: Descriptor, columns: number): void => {
    wgmmaFence(asm);
    for (let i = 0; i < Math.ceil(columns / 16); i++) {
      const inside = (i % 4) * 32;
      const from = advance(asm, left, (i >> 2) * KEYS * PANEL_BYTES + inside);
      const by = advance(asm, right, (i >> 2) * queries * PANEL_BYTES + inside);
      wgmma(asm, acc, from, by, { type: storage, accumulate: i === 0 ? no : yes });
    }
    wgmmaCommit(asm);
  };
  /** acc += left right along the queries. */
  const outer = (acc: readonly Reg<'f32'>[], left: Descriptor | readonly Reg<'b32'>[], right: Descriptor): void => {
    wgmmaFence(asm);
    for (let i = 0; i < queries / 16; i++) {
      const from =
        'name' in left
          ? advance(asm, left as Descriptor, (i >> 2) * KEYS * PANEL_BYTES + (i % 4) * 32)
          : (left as readonly Reg<'b32'>[]).slice(4 * i, 4 * i + 4);
      wgmma(asm, acc, from, advance(asm, right, i * 16 * PANEL_BYTES), {
        type: storage,
        accumulate: yes,
        downRows: true,
      });
    }
    wgmmaCommit(asm);
  };
  const scoresNext = (): void => {
    asm.stage('S = K Q^T');
    inner(s, ownK, stageOf(rightQ, at, shared.bytes.q), spec.D);
  };
  const pack = (tiles: readonly Tile[], into: readonly Reg<'b32'>[]): void =>
    tiles.forEach((t, n) => {
      for (const r of [0, 1]) asm.set(into[2 * n + r], 'mov.b32', packPair(asm, storage, t[2 * r], t[2 * r + 1]));
    });

  /** Numbers of the step's queries: lse2, or delta. */
  const statsOf = (which: 0 | 1): ((c: number) => Reg<'f32'>) => {
    const known = new Map<number, Reg<'f32'>[]>();
    const stat = asm.op('mad.lo.s32', lanes.t, 8, slot(asm, shared.stats, at, shared.bytes.stats));
    return (c) => {
      let pair = known.get(c >> 1);
      if (pair === undefined) {
        pair = asm.loadVector('shared', 'f32', 2, stat, which * queries * 4 + (c >> 1) * 32);
        known.set(c >> 1, pair);
      }
      return pair[c & 1];
    };
  };
  /** lse2 of the next step's queries, where it is read before the products that need it are queued. */
  const lseAhead = plain && config.early ? asm.regs('f32', queries / 4) : [];
  const readLse = (): void => {
    if (lseAhead.length === 0) return;
    const stat = asm.op('mad.lo.s32', lanes.t, 8, slot(asm, shared.stats, at, shared.bytes.stats));
    for (let n = 0; n < queries / 8; n++) {
      const pair = lseAhead.slice(2 * n, 2 * n + 2).map((r) => r.name);
      asm.emit('ld.shared.v2.f32', `{${pair.join(', ')}}`, asm.address('shared', stat, n * 32));
    }
  };
  const addV = (): void => {
    asm.stage('dV += P dOut');
    outer(dV, prob, stageOf(rightOut, atOut, shared.bytes.dOut));
  };
  /** Emits code of steps where positions may be masked or keys missing. */
  const onEdges = (body: () => void): void => {
    if (edges) asm.if(asm.op('setp.ne.s32', edge, 0), body);
  };
  const here = () => {
    const place: Place = { b: say(ROWS.b), lenQ: g.Sq, lenK: g.Sk, qStart: zero, kStart: zero, sides };
    const rows = rowsHere();
    const columns = columnPositions(asm, column, lanes.t, queries / 8);
    return { scorer: scorerOf(asm, spec, place), grid: { rowsAre: 'kv', rows, columns, head } as const };
  };
  /** P while dP is still on its way, then dS. */
  const separately = (): void => {
    asm.stage('P');
    const [p, ds] = [tilesOf(s), tilesOf(dP)];
    const lse2 = lseAhead.length > 0 ? (c: number) => lseAhead[c] : statsOf(0);
    p.forEach((t, n) => {
      t.forEach((x, e) => {
        const exponent = asm.op('fma.rn.f32', x, g.scaleLog2, asm.op('neg.f32', lse2(2 * n + (e & 1))));
        asm.set(x, 'ex2.approx.ftz.f32', exponent);
      });
    });
    onEdges(() => {
      const { scorer, grid } = here();
      // Keys past the end are zeros, but 2^-lse2 need not be finite.
      const inside = grid.rows.map((r) => asm.op('setp.lt.s32', r, g.Sk));
      const wild = poison();
      p.forEach((t, n) => {
        const attends = scorer.attends(grid, 0, n);
        t.forEach((x, e) => {
          const counts = asm.op('and.pred', attends[e], inside[e >> 1]);
          asm.set(x, 'selp.f32', asm.op('add.f32', x, wild[e >> 1]), 0, counts);
        });
      });
    });
    if (overlap) {
      pack(p, prob);
      addV();
    }
    wgmmaWait(asm, overlap ? 1 : 0);
    asm.stage('dS = P (dP - delta)');
    const delta = statsOf(1);
    ds.forEach((t, n) => {
      t.forEach((x, e) => {
        asm.set(x, 'mul.f32', p[n][e], asm.op('sub.f32', x, delta(2 * n + (e & 1))));
      });
    });
    // dP may be NaN where a masked value row is, or delta.
    onEdges(() => {
      ds.forEach((t, n) => {
        t.forEach((x, e) => {
          asm.set(x, 'selp.f32', 0, x, asm.op('setp.eq.f32', p[n][e], 0));
        });
      });
    });
    // Tile by tile: what goes into a word is no longer needed as two.
    ds.forEach((t, n) => {
      pack([t], dS.slice(2 * n, 2 * n + 2));
      if (!overlap) pack([p[n]], prob.slice(2 * n, 2 * n + 2));
    });
  };
  /** P and dS tile by tile, with a modifier and its slope, or dropout. */
  const together = (): void => {
    wgmmaWait(asm, 0);
    if (overlap) throw new AssemblerError('dV cannot be queued before a modified score is known');
    const emit = (masked: boolean): void => {
      asm.stage('P and dS');
      if (dropout !== null) asm.set(bh, 'mad.lo.s32', say(ROWS.b), g.Hq, head);
      const { scorer, grid } = here();
      const [lse2, delta] = [statsOf(0), statsOf(1)];
      const inside = grid.rows.map((r) => asm.op('setp.lt.s32', r, g.Sk));
      const wild = masked ? poison() : [];
      const [p, ds] = [tilesOf(s), tilesOf(dP)];
      // Two tiles at a time: dropout draws for as many, and what goes into a word is no longer needed as two.
      for (let n = 0; n < p.length; n += 2) {
        const pair = [n, n + 1];
        const found = gradientTiles(asm, {
          spec,
          scorer,
          grid: { ...grid, columns: grid.columns.slice(2 * n, 2 * n + 4) },
          scores: [pair.map((i) => (masked ? p[i].map((x, e) => asm.op('add.f32', x, wild[e >> 1])) : p[i]))],
          dP: [pair.map((i) => ds[i])],
          lse2: (_, c) => lse2(2 * n + c),
          delta: (_, c) => delta(2 * n + c),
          edge: masked,
          scale: g.scale,
          toLog2: spec.folded ? g.scaleLog2 : asm.constant('f32', LOG2E),
          dropout,
        });
        // Keys past the end have a score, too.
        const within = (tile: Tile): Tile =>
          masked ? tile.map((x, e) => asm.op('selp.f32', x, 0, inside[e >> 1])) : tile;
        for (const i of pair) {
          pack([within(found.dScore[0][i - n])], dS.slice(2 * i, 2 * i + 2));
          pack([within(found.p[0][i - n])], prob.slice(2 * i, 2 * i + 2));
        }
      }
    };
    if (edges)
      asm.if(
        asm.op('setp.ne.s32', edge, 0),
        () => emit(true),
        () => emit(false),
      );
    else emit(false);
  };
  const leader = asm.op('setp.eq.s32', thread, 128);
  /** The note about dQ that was put down and not yet said to be there, or 0. */
  const owed = asm.constant('b32', 0);
  const sayQ = (): void => {
    const none = asm.label('none');
    asm.branch(none, asm.op('setp.eq.s32', owed, 0), { uniform: true });
    fenceAsync(asm);
    asm.emit('bar.warp.sync', '-1');
    asm.when(firstLane, () => arrive(asm, owed, SUM.full));
    asm.set(owed, 'mov.b32', 0);
    asm.place(none);
  };
  /** Tells a writer whose turn it should see come. */
  const askTurn = (): void => {
    const skip = asm.label('asked');
    asm.branch(skip, leader, { negate: true });
    const sum = asm.loadVector('shared', 'b32', 2, slot(asm, shared.note, at, NOTE.bytes), NOTE.tile);
    const sumNote = slot(asm, shared.sumNote, atWriter, SUM.bytes);
    asm.storeVector('shared', 'b32', sumNote, sum);
    arrive(asm, sumNote, SUM.asked);
    asm.place(skip);
    asm.emit('bar.warp.sync', '-1');
  };
  /** From queued scores to dS in shared memory, for all to read. */
  const middle = (): void => {
    waitParity(asm, slot(asm, shared.doFull, atOut, BARRIER_BYTES), atOut.parity);
    asm.stage('dP = V dOut^T');
    inner(dP, ownV, stageOf(rightOut, atOut, shared.bytes.dOut), spec.Dv);
    askTurn();
    wgmmaWait(asm, 1);
    releaseRead();
    if (plain) separately();
    else together();
    asm.stage('dS to shared memory');
    const buffer = asm.op('mad.lo.s32', atDs.stage, shared.bytes.dS, dsAt);
    for (let i = 0; i < queries / 16; i++) {
      const address = i % 4 === 0 ? buffer : asm.op('xor.b32', buffer, (i % 4) * 32);
      const words = dS.slice(4 * i, 4 * i + 4).map((r) => r.name);
      asm.emit(
        'stmatrix.sync.aligned.m8n8.x4.shared.b16',
        asm.address('shared', address, (i >> 2) * KEYS * PANEL_BYTES),
        `{${words.join(', ')}}`,
      );
    }
    fenceAsync(asm);
    syncNamed(asm, COMPUTING, COMPUTERS);
  };
  /** The products with dS. dQ is put down as soon as it is there, while dK is still worked on. */
  const outerProducts = (): void => {
    if (!overlap) addV();
    asm.stage("dQ' = dS K");
    const left = stageOf(sumLeft, atDs, shared.bytes.dS);
    wgmmaFence(asm);
    for (let i = 0; i < KEYS / 16; i++)
      wgmma(asm, dQ, advance(asm, left, i * 16 * PANEL_BYTES), advance(asm, sumRight, i * 16 * PANEL_BYTES), {
        type: storage,
        accumulate: i === 0 ? no : yes,
        downRows: true,
        leftDownRows: true,
      });
    wgmmaCommit(asm);
    asm.stage('dK += dS Q');
    outer(dK, stageOf(ownDs, atDs, shared.bytes.dS), stageOf(rightQ, at, shared.bytes.q));
    asm.set(reading, 'mov.b32', slot(asm, shared.qEmpty, at, BARRIER_BYTES));
    at.advance();
    atDs.advance();
    const outEmpty = slot(asm, shared.doEmpty, atOut, BARRIER_BYTES);
    atOut.advance();
    if (config.ahead) {
      readNote();
      readLse();
    }
    wgmmaWait(asm, 1);
    release(outEmpty);
    waitParity(asm, shared.dqEmpty, sumParity);
    asm.set(sumParity, 'xor.b32', sumParity, 1);
    for (let n = 0; n < 8; n++) asm.storeVector('shared', 'f32', sumAt, dQ.slice(4 * n, 4 * n + 4), n * 2048);
    asm.set(owed, 'mov.b32', slot(asm, shared.sumNote, atWriter, SUM.bytes));
    atWriter.advance();
  };

  const loop = asm.label('step');
  const done = asm.label('done');
  readNote();
  asm.branch(done, asm.op('setp.ne.s32', ends, 0), { uniform: true });
  if (config.ahead) readLse();
  asm.place(loop);
  if (!config.ahead) readLse();
  scoresNext();
  sayQ();
  middle();
  outerProducts();
  if (!config.ahead) readNote();
  asm.branch(loop, asm.op('setp.eq.s32', ends, 0), { uniform: true });
  asm.place(done);
  asm.stage('end of the tile');
  sayQ();
  const [rows, h, b] = [rowsHere(), say(ROWS.h), say(ROWS.b)];
  asm.emit('bar.warp.sync', '-1');
  // Only dK is still being multiplied, which needs neither keys nor values.
  release(shared.rowsEmpty);
  asm.set(rowsParity, 'xor.b32', rowsParity, 1);
  release(slot(asm, shared.qEmpty, at, BARRIER_BYTES));
  at.advance();
  wgmmaWait(asm, 0);
  releaseRead();
  for (const x of dK) asm.set(x, 'mul.f32', x, g.scale);
  const store = (
    tensor: Reg<'b64'>,
    acc: readonly Reg<'f32'>[],
    strides: { b: Reg<'b64'>; h: Reg<'b64'>; s: Reg<'b64'> },
    columns: number,
    grain: Grain,
  ): void => {
    const base = baseOf(asm, tensor, strides, { b, h, start: zero }, spec.size);
    storeWide(asm, spec, {
      tiles: [tilesOf(acc)],
      rows,
      limit: g.Sk,
      target: strided(asm, base, asm.op('mul.lo.s64', strides.s, spec.size)),
      columns,
      grain,
      t: lanes.t,
    });
  };
  store(o.dk, dK, { b: o.kB, h: o.kH, s: o.kS }, spec.D, spec.grains.k);
  store(o.dv, dV, { b: o.vB, h: o.vH, s: o.vS }, spec.Dv, spec.grains.v);
  asm.branch(nextTile);

  asm.place(stop);
  asm.stage('no more work');
  waitParity(asm, shared.dqEmpty, sumParity);
  for (let i = 0; i < config.writers; i++)
    asm.when(leader, () => asm.store('shared', 'b32', shared.sumNote, STOP, i * SUM.bytes + SUM.tile));
  for (let i = 0; i < config.writers; i++)
    asm.when(leader, () => arrive(asm, shared.sumNote, i * SUM.bytes + SUM.asked));
}
