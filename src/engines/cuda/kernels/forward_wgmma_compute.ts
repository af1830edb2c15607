/**
 * The computing warpgroups of the Hopper forward. Each owns 64 queries of the tile; a thread holds the same places of every
 * 16x8 tile as in forward_mma. In a step the products S = Q K^T of this block and O += P V of the block before are queued
 * together: maxima of S are found while the second is still in flight, its powers once O is there to be scaled with them. The
 * warpgroups are at different places, so that one's softmax overlaps the others' products; most tiles make them take turns.
 */
import { LOG2E } from '../../../core/math.ts';
import type { Expr } from '../../../mods/expr.ts';
import { lower } from '../../../mods/lower.ts';
import type { Value } from '../math.ts';
import type { Assembler, Label } from '../ptx/assembler.ts';
import { arrive, arriveNamed, BARRIER_BYTES, cursorOf, syncNamed, testParity, waitParity } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { shuffleXor } from '../ptx/tensor.ts';
import { advance, descriptor, PANEL_BYTES, wgmma, wgmmaCommit, wgmmaFence, wgmmaWait } from '../ptx/wgmma.ts';
import { ceilingOf } from './ceiling.ts';
import { dropoutOf } from './dropout.ts';
import type { HopperForwardConfig } from './forward_wgmma.ts';
import { addLine } from './forward_wgmma_line.ts';
import { slot } from './forward_wgmma_load.ts';
import { rescue } from './forward_wgmma_rescue.ts';
import { rowsOf, topsOf } from './forward_wgmma_rows.ts';
import { BLOCK, FIRST, FOUND_BYTES, LAST, SCANNERS, type SharedLayout, TILE } from './forward_wgmma_shared.ts';
import { storeWide } from './forward_wgmma_store.ts';
import { lanesOf, packPair, type Tile } from './fragments.ts';
import { strided } from './loader.ts';
import { take, takeSides } from './parameters.ts';
import { baseOf, type Place, queryRows } from './place.ts';
import { columnPositions, perHead, rowPositions, scorerOf } from './scores.ts';
import { finishRow } from './softmax.ts';
import type { Spec } from './spec.ts';

/** Named barrier of warpgroup 0's turn; the others' follow. 0 is the whole block's. */
const TURN = 1;

export interface ComputeInputs {
  readonly thread: Reg<'b32'>;
  readonly scale: Reg<'f32'>;
  readonly scaleLog2: Reg<'f32'>;
  readonly Hq: Reg<'b32'>;
}

export function emitCompute(
  asm: Assembler,
  spec: Spec,
  { groups, blockK, stages, turns }: HopperForwardConfig,
  shared: SharedLayout,
  inputs: ComputeInputs,
): void {
  const storage = spec.storage as 'f16' | 'bf16';
  const { q, k, v } = shared;
  const blockQ = groups * 64;
  const sides = takeSides(asm, spec.sides.length);
  const o = take(asm, 'out', 'outB', 'outH', 'outS', 'lse', 'lseB', 'lseH', 'lseS');
  const sink = spec.sink ? take(asm, 'sink').sink : null;
  const values = shared.scans ? take(asm, 'v', 'vB', 'vH', 'vS') : null;
  const group = asm.op('sub.s32', asm.op('shr.u32', inputs.thread, 7), 1);
  const lanes = lanesOf(asm, inputs.thread);
  const warpRow = asm.op('shl.b32', asm.op('sub.s32', asm.op('shr.u32', inputs.thread, 5), 4), 4);
  const firstLane = asm.op('setp.eq.s32', lanes.lane, 0);
  const yes = asm.op('setp.eq.s32', asm.constant('b32', 0), 0);
  const no = asm.op('not.pred', yes);

  const rowBytes = 64 * PANEL_BYTES;
  const descQ = descriptor(asm, asm.op('mad.lo.s32', group, rowBytes, q.data));
  const descK = descriptor(asm, k.data);
  const descV = descriptor(asm, v.data, blockK * PANEL_BYTES);
  const [atQ, atK, atV] = [cursorOf(asm, q.buffers, 0), cursorOf(asm, stages, 0), cursorOf(asm, stages, 0)];

  const s = asm.regs('f32', blockK / 2);
  const p = asm.regs('b32', blockK / 4);
  const acc = asm.regs('f32', spec.padDv / 2);
  const inverse = spec.line === null ? inputs.scale : asm.op('rcp.rn.f32', inputs.scale);
  const tilesOf = (regs: readonly Reg<'f32'>[]): Tile[] =>
    Array.from({ length: regs.length / 4 }, (_, n) => regs.slice(4 * n, 4 * n + 4));

  const release = (empty: Reg<'b32'>): void => asm.when(firstLane, () => arrive(asm, empty));
  const ownTurn = asm.op('add.s32', group, TURN);
  const nextGroup = asm.op('add.s32', group, 1);
  const wraps = asm.op('setp.eq.s32', nextGroup, groups);
  const nextTurn = asm.op('add.s32', asm.op('selp.b32', 0, nextGroup, wraps), TURN);
  const takeTurn = (): void => {
    if (turns) syncNamed(asm, ownTurn, 256);
  };
  const passTurn = (): void => {
    if (turns) arriveNamed(asm, nextTurn, 256);
  };
  // Somebody has to start.
  const lastGroup = asm.label('others');
  if (turns) {
    asm.branch(lastGroup, wraps, { negate: true, uniform: true });
    passTurn();
    asm.place(lastGroup);
  }

  /** The block being scored, and its tile. */
  const [kv0, edge, ends, tile] = asm.regs('b32', 4);
  const [h, b, lenQ, lenK] = asm.regs('b32', 4);
  const qPositions = asm.regs('b32', 2);
  /** The block whose probabilities are in `p`, and its tile's note. */
  const held = { kv0: asm.reg('b32'), edge: asm.reg('b32'), tile: asm.reg('b32') };
  const zero = asm.constant('b32', 0);
  const place: Place = { b, lenQ, lenK, qStart: zero, kStart: zero, sides };
  const ceiling = storage === 'bf16' ? ceilingOf(spec.mod) : null;
  const rows = rowsOf(asm, ceiling);
  const bh = asm.reg('b32');
  const dropout = spec.dropout ? dropoutOf(asm, bh) : null;
  /** Parts of the modifier that change with the tile alone. */
  const fixed = new Map<Expr, Reg>(perHead(spec.mod).map((e) => [e, asm.reg(e.type === 'f32' ? 'f32' : 'b32')]));
  const readNote = (to: Reg<'b32'>, note: Reg<'b32'>, offset: number): void =>
    asm.emit('ld.shared.b32', to.name, asm.address('shared', note, offset));
  const positionsOf = (q0: Reg<'b32'>): Reg<'b32'>[] => rowPositions(asm, asm.op('add.s32', q0, warpRow), lanes.g, 1);

  const next = asm.regs('b32', 4);
  const [readyK, readyV] = asm.regs('pred', 2);
  const readNext = (): void => {
    const at = slot(asm, k.note, atK, BLOCK.bytes);
    asm.emit('ld.shared.v4.b32', `{${next.map((r) => r.name).join(', ')}}`, asm.address('shared', at));
  };
  /** Looks whether the next block is here, and at its note, long before it is needed. */
  const peekK = (): void => {
    testParity(asm, readyK, slot(asm, k.full, atK, BARRIER_BYTES), atK.parity);
    asm.when(readyK, readNext);
  };
  const waitForK = (stopped: Label): void => {
    const here = asm.label('here');
    asm.branch(here, readyK);
    waitParity(asm, slot(asm, k.full, atK, BARRIER_BYTES), atK.parity);
    readNext();
    asm.place(here);
    [kv0, edge, ends, tile].forEach((r, i) => {
      asm.set(r, 'mov.b32', next[i]);
    });
    asm.branch(stopped, asm.op('setp.lt.s32', kv0, 0), { uniform: true });
  };
  const isFirst = asm.reg('pred');
  const isLast = asm.reg('pred');
  const openTile = (): void => {
    asm.set(isFirst, 'setp.ne.s32', asm.op('and.b32', ends, FIRST), 0);
    asm.set(isLast, 'setp.ne.s32', asm.op('and.b32', ends, LAST), 0);
    const known = asm.label('known');
    asm.branch(known, isFirst, { negate: true, uniform: true });
    waitParity(asm, slot(asm, q.full, atQ, BARRIER_BYTES), atQ.parity);
    for (const [to, offset] of [
      [h, TILE.h],
      [b, TILE.b],
      [lenQ, TILE.lenQ],
      [lenK, TILE.lenK],
    ] as const)
      readNote(to, tile, offset);
    positionsOf(asm.load('shared', 'b32', tile, TILE.q0)).forEach((row, r) => {
      asm.set(qPositions[r], 'mov.b32', row);
    });
    const opening = scorerOf(asm, spec, place).scope;
    const nowhere = { score: null, index: { b, h, lenQ, lenK, q: zero, kv: zero } };
    for (const [e, r] of fixed) {
      const value = opening.reg(lower<Value>(e, opening.at(nowhere)));
      if (r.type === 'f32') asm.set(r as Reg<'f32'>, 'mov.f32', value as Reg<'f32'>);
      else asm.set(r as Reg<'b32'>, 'mov.b32', value as Reg<'b32'>);
    }
    if (dropout !== null) asm.set(bh, 'mad.lo.s32', b, inputs.Hq, h);
    asm.place(known);
  };
  const stageOf = (desc: Reg<'b64'>, stage: Reg<'b32'>, bytes: number): Reg<'b64'> =>
    asm.op('add.s64', desc, asm.op('mul.wide.u32', stage, bytes >> 4));
  const queueScores = (): void => {
    const right = stageOf(descK, atK.stage, k.bytes);
    const rows = q.buffers === 1 ? descQ : stageOf(descQ, atQ.stage, q.bytes);
    wgmmaFence(asm);
    for (let i = 0; i < Math.ceil(spec.D / 16); i++) {
      const inside = (i % 4) * 32;
      const left = advance(asm, rows, (i >> 2) * blockQ * PANEL_BYTES + inside);
      const own = advance(asm, right, (i >> 2) * blockK * PANEL_BYTES + inside);
      wgmma(asm, s, left, own, { type: storage, accumulate: i === 0 ? no : yes });
    }
    wgmmaCommit(asm);
  };
  const queueOutput = (): void => {
    const right = stageOf(descV, atV.stage, v.bytes);
    wgmmaFence(asm);
    for (let i = 0; i < blockK / 16; i++)
      wgmma(asm, acc, p.slice(4 * i, 4 * i + 4), advance(asm, right, i * 16 * PANEL_BYTES), {
        type: storage,
        accumulate: yes,
        downRows: true,
      });
    wgmmaCommit(asm);
  };
  /** What says that values are here, and looked through where masked ones could reach a product. */
  const arrivalOfV = (): Reg<'b32'> => {
    const full = slot(asm, v.full, atV, BARRIER_BYTES);
    if (!shared.scans) return full;
    const scanned = slot(asm, shared.scanned, atV, BARRIER_BYTES);
    return asm.op('selp.b32', scanned, full, asm.op('setp.ne.s32', held.edge, 0));
  };
  const peekV = (): void => testParity(asm, readyV, arrivalOfV(), atV.parity);
  const waitForV = (): void => {
    const here = asm.label('here');
    asm.branch(here, readyV);
    waitParity(asm, arrivalOfV(), atV.parity);
    asm.place(here);
  };
  const releaseK = (): void => {
    release(slot(asm, k.empty, atK, BARRIER_BYTES));
    atK.advance();
    const more = asm.label('more');
    asm.branch(more, isLast, { negate: true, uniform: true });
    release(slot(asm, q.empty, atQ, BARRIER_BYTES));
    atQ.advance();
    asm.place(more);
  };
  const releaseV = (): void => {
    release(slot(asm, v.empty, atV, BARRIER_BYTES));
    atV.advance();
  };

  /** The modifier's share of a row's exponents in this block, where the modifier is a line. */
  const lifts = spec.line === null ? null : asm.regs('f32', 2);
  /** Scores with modifier and mask, and what brings them to base 2. */
  const scored = (): { tiles: Tile[]; toLog2: Reg<'f32'> } => {
    let tiles = tilesOf(s);
    let toLog2 = inputs.scaleLog2;
    const scorer = scorerOf(asm, spec, place, fixed);
    const columns = columnPositions(asm, kv0, lanes.t, blockK / 8);
    const grid = { rowsAre: 'q', rows: qPositions, columns, head: h } as const;
    if (spec.line !== null && lifts !== null) {
      asm.stage('modifier: a line along the keys');
      const first = { q: asm.op('sub.s32', qPositions[0], lanes.g), kv: kv0 };
      addLine(asm, spec, { place, line: spec.line, fixed, inverse, first, blockK }, grid, s, lifts);
    } else if (spec.mod !== null) {
      asm.stage('modifier');
      const modified = scorer.modified(tiles, grid, spec.mod, inputs.scale);
      tiles = modified.tiles;
      toLog2 = asm.constant('f32', LOG2E * modified.factor);
    } else if (!spec.folded) {
      for (const x of s) asm.set(x, 'mul.f32', x, inputs.scale);
      toLog2 = asm.constant('f32', LOG2E);
    }
    const full = asm.label('full');
    asm.branch(full, asm.op('setp.eq.s32', edge, 0), { uniform: true });
    asm.stage('mask');
    const masker = scorerOf(asm, spec, place);
    tiles.forEach((tile, n) => {
      const attends = masker.attends(grid, 0, n);
      tile.forEach((x, e) => {
        asm.set(x, 'selp.f32', x, Number.NEGATIVE_INFINITY, attends[e]);
      });
    });
    asm.place(full);
    return { tiles, toLog2 };
  };
  /** Probabilities of the block, in `p`. `settle` brings `acc` to where it may be scaled. */
  const softmax = (settle: () => void): void => {
    const { tiles, toLog2 } = scored();
    asm.stage('softmax');
    peekK();
    const tops = topsOf(asm, tiles, toLog2, lifts);
    settle();
    rows.raise(tops, acc);
    const powers = rows.powers(tiles, toLog2, lifts);
    if (dropout !== null) {
      asm.stage('dropout');
      const columns = columnPositions(asm, kv0, lanes.t, blockK / 8);
      for (let n = 0; n < powers.length; n += 2)
        dropout.keepOctets(qPositions[0], columns[2 * n]).forEach((kept, octet) => {
          const tile = powers[n + octet];
          kept.flat().forEach((keep, e) => {
            tile[e] = asm.op('selp.f32', tile[e], 0, keep);
          });
        });
    }
    powers.forEach((tile, n) => {
      for (const r of [0, 1]) {
        const packed = packPair(asm, storage, tile[2 * r], tile[2 * r + 1]);
        asm.set(p[2 * n + r], 'mov.b32', packed);
      }
    });
    asm.set(held.kv0, 'mov.b32', kv0);
    asm.set(held.edge, 'mov.b32', edge);
    asm.set(held.tile, 'mov.b32', tile);
  };
  /** After the product of `p` and V: values the scanners took out of V go where they belong. */
  const addFound = (): void => {
    if (values === null) return;
    const none = asm.label('none');
    asm.branch(none, asm.op('setp.eq.s32', held.edge, 0), { uniform: true });
    const at = slot(asm, shared.found, atV, FOUND_BYTES);
    const words = Array.from({ length: SCANNERS }, (_, i) => asm.load('shared', 'b32', at, 4 * i));
    const any = words.reduce((x, y) => asm.op('or.b32', x, y));
    asm.branch(none, asm.op('setp.eq.s32', any, 0), { uniform: true });
    const note = (offset: number): Reg<'b32'> => asm.load('shared', 'b32', held.tile, offset);
    const own: Place = {
      b: note(TILE.b),
      lenQ: note(TILE.lenQ),
      lenK: note(TILE.lenK),
      qStart: note(TILE.qStart),
      kStart: note(TILE.kStart),
      sides,
    };
    const head = note(TILE.h);
    const hkv = spec.group === 1 ? head : asm.op('div.u32', head, spec.group);
    const strides = { b: values.vB, h: values.vH, s: values.vS };
    const base = baseOf(asm, values.v, strides, { b: own.b, h: hkv, start: own.kStart }, spec.size);
    rescue(asm, spec, {
      place: own,
      acc: tilesOf(acc),
      qPositions: positionsOf(note(TILE.q0)),
      kv0: held.kv0,
      h: head,
      source: strided(asm, base, asm.op('mul.lo.s64', values.vS, spec.size)),
      rows: blockK,
      t: lanes.t,
    });
    asm.place(none);
  };
  /** Normalises and stores the tile in `acc`. */
  const finish = (top: readonly Reg<'f32'>[], total: readonly Reg<'f32'>[]): void => {
    asm.stage('join the sums of a row, add the sink, normalise');
    const note = (offset: number): Reg<'b32'> => asm.load('shared', 'b32', held.tile, offset);
    const [head, batch, length, start] = [TILE.h, TILE.b, TILE.lenQ, TILE.qStart].map(note);
    const positions = positionsOf(note(TILE.q0));
    const logit = sink === null ? null : sinkOf(asm, sink, head);
    const lse: Reg<'f32'>[] = [];
    for (const r of [0, 1]) {
      let all = total[r];
      for (const lane of [1, 2]) all = asm.op('add.f32', all, shuffleXor(asm, all, lane));
      const empty = asm.op('setp.eq.f32', all, 0);
      const most = ceiling === null ? top[r] : asm.op('selp.f32', Number.NEGATIVE_INFINITY, ceiling, empty);
      const { scale, value } = finishRow(asm, most, all, logit, 'rcp.approx.ftz.f32');
      const factor = dropout === null ? scale : asm.op('mul.f32', scale, dropout.keepScale);
      acc.forEach((x, i) => {
        if (((i >> 1) & 1) === r) asm.set(x, 'mul.f32', x, factor);
      });
      lse.push(value);
    }
    asm.stage('store out and lse');
    const own: Place = { b: batch, lenQ: length, lenK: zero, qStart: start, kStart: zero, sides };
    storeWide(asm, spec, {
      tiles: [tilesOf(acc)],
      rows: positions,
      limit: length,
      target: queryRows(asm, spec, own, head, o.out, { b: o.outB, h: o.outH, s: o.outS }),
      columns: spec.Dv,
      grain: spec.grains.out,
      t: lanes.t,
    });
    const lseAt = baseOf(asm, o.lse, { b: o.lseB, h: o.lseH, s: o.lseS }, { b: batch, h: head, start }, 4);
    const lseStep = asm.op('mul.lo.s64', o.lseS, 4);
    const firstColumn = asm.op('setp.eq.s32', lanes.t, 0);
    positions.forEach((row, r) => {
      const inside = asm.op('and.pred', firstColumn, asm.op('setp.lt.s32', row, length));
      const at = asm.op('add.s64', lseAt, asm.op('mul.lo.s64', asm.op('cvt.s64.s32', row), lseStep));
      asm.when(inside, () => asm.store('global', 'f32', at, lse[r]));
    });
  };
  /** Old maxima and sums go to the tile they belong to; a new tile starts with none. */
  const [heldBest, heldSum] = [asm.regs('f32', 2), asm.regs('f32', 2)];
  const startRows = (): void => {
    for (const r of [0, 1]) {
      asm.set(heldBest[r], 'mov.f32', rows.best[r]);
      asm.set(heldSum[r], 'mov.f32', rows.sum[r]);
    }
    rows.start();
  };
  const clear = (): void => {
    for (const x of acc) asm.set(x, 'mov.f32', 0);
  };

  const loop = asm.label('loopKV');
  const drain = asm.label('drain');
  const finished = asm.label('finished');
  asm.stage('first block of all: scores and probabilities');
  asm.set(readyK, 'not.pred', yes);
  waitForK(finished);
  openTile();
  queueScores();
  startRows();
  clear();
  wgmmaWait(asm, 0);
  releaseK();
  softmax(() => {});

  asm.place(loop);
  peekV();
  waitForK(drain);
  openTile();
  takeTurn();
  asm.stage('queue S = Q K^T of this block');
  queueScores();
  waitForV();
  asm.stage('queue O += P V of the block before, which may end a tile');
  queueOutput();
  passTurn();
  wgmmaWait(asm, 1);
  releaseK();
  const sameTile = asm.label('sameTile');
  asm.branch(sameTile, isFirst, { negate: true, uniform: true });
  startRows();
  asm.place(sameTile);
  softmax(() => {
    wgmmaWait(asm, 0);
    addFound();
    releaseV();
    const goOn = asm.label('goOn');
    asm.branch(goOn, isFirst, { negate: true, uniform: true });
    finish(heldBest, heldSum);
    clear();
    asm.place(goOn);
  });
  asm.branch(loop);

  asm.place(drain);
  asm.stage('O += P V of the last block of all');
  waitForV();
  queueOutput();
  wgmmaWait(asm, 0);
  addFound();
  releaseV();
  finish(rows.best, rows.sum);
  asm.place(finished);
}

/** log2(e) times the sink of head h. */
function sinkOf(asm: Assembler, sink: Reg<'b64'>, h: Reg<'b32'>): Reg<'f32'> {
  const at = asm.op('add.s64', sink, asm.op('mul.wide.u32', h, 4));
  return asm.op('mul.f32', asm.load('global', 'f32', at, 0, 'nc'), LOG2E);
}
