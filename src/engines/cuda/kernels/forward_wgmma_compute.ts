/**
 * The computing warpgroups of the Hopper forward. Each owns 64 queries of the tile; a thread holds the same places of every
 * 16x8 tile as in forward_mma. In a step the products S = Q K^T of this block and O += P V of the block before are queued
 * together, and the softmax of S runs while the second is still in flight. The warpgroups take turns at queueing, so that
 * one's softmax also overlaps the others' products.
 */
import { LOG2E } from '../../../core/math.ts';
import type { Assembler } from '../ptx/assembler.ts';
import { arrive, arriveNamed, BARRIER_BYTES, cursorOf, syncNamed, waitParity } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { shuffleXor } from '../ptx/tensor.ts';
import { advance, descriptor, PANEL_BYTES, wgmma, wgmmaCommit, wgmmaFence, wgmmaWait } from '../ptx/wgmma.ts';
import { dropoutOf } from './dropout.ts';
import { finishRow, sinkLogit } from './forward_mma.ts';
import type { HopperForwardConfig } from './forward_wgmma.ts';
import { slot } from './forward_wgmma_load.ts';
import { rescue } from './forward_wgmma_rescue.ts';
import { BLOCK, FOUND_BYTES, SCANNERS, type SharedLayout, TILE } from './forward_wgmma_shared.ts';
import { storeWide } from './forward_wgmma_store.ts';
import { lanesOf, packPair, type Tile } from './fragments.ts';
import { strided } from './loader.ts';
import { take, takeSides } from './parameters.ts';
import { baseOf, type Place, queryRows } from './place.ts';
import { columnPositions, rowPositions, scorerOf } from './scores.ts';
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
  { groups, blockK, stages }: HopperForwardConfig,
  shared: SharedLayout,
  inputs: ComputeInputs,
): void {
  const storage = spec.storage as 'f16' | 'bf16';
  const { q, k, v } = shared;
  const blockQ = groups * 64;
  const sides = takeSides(asm, spec.sides.length);
  const o = take(asm, 'out', 'outB', 'outH', 'outS', 'lse', 'lseB', 'lseH', 'lseS');
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
  const [atQ, atK, atV] = [cursorOf(asm, 1, 0), cursorOf(asm, stages, 0), cursorOf(asm, stages, 0)];

  const s = asm.regs('f32', blockK / 2);
  const p = asm.regs('b32', blockK / 4);
  const acc = asm.regs('f32', spec.padDv / 2);
  const best = asm.regs('f32', 2);
  const sum = asm.regs('f32', 2);
  const tilesOf = (regs: readonly Reg<'f32'>[]): Tile[] =>
    Array.from({ length: regs.length / 4 }, (_, n) => regs.slice(4 * n, 4 * n + 4));

  const release = (empty: Reg<'b32'>): void => asm.when(firstLane, () => arrive(asm, empty));
  const ownTurn = asm.op('add.s32', group, TURN);
  const nextGroup = asm.op('add.s32', group, 1);
  const wraps = asm.op('setp.eq.s32', nextGroup, groups);
  const nextTurn = asm.op('add.s32', asm.op('selp.b32', 0, nextGroup, wraps), TURN);
  const takeTurn = (): void => {
    if (groups > 1) syncNamed(asm, ownTurn, 256);
  };
  const passTurn = (): void => {
    if (groups > 1) arriveNamed(asm, nextTurn, 256);
  };
  // Somebody has to start.
  const lastGroup = asm.label('others');
  if (groups > 1) {
    asm.branch(lastGroup, wraps, { negate: true, uniform: true });
    passTurn();
    asm.place(lastGroup);
  }

  const nextTile = asm.label('tile');
  const finished = asm.label('finished');
  asm.place(nextTile);
  asm.stage('a tile of queries');
  waitParity(asm, q.full, atQ.parity);
  const note = (offset: number): Reg<'b32'> => asm.load('shared', 'b32', q.note, offset);
  const q0 = note(TILE.q0);
  asm.branch(finished, asm.op('setp.lt.s32', q0, 0), { uniform: true });
  const [h, b, keys] = [TILE.h, TILE.b, TILE.keys].map(note);
  const [lenQ, lenK, qStart, kStart] = [TILE.lenQ, TILE.lenK, TILE.qStart, TILE.kStart].map(note);
  const place: Place = { b, lenQ, lenK, qStart, kStart, sides };
  const qPositions = rowPositions(asm, asm.op('add.s32', q0, warpRow), lanes.g, 1);
  for (const r of acc) asm.set(r, 'mov.f32', 0);
  for (const r of best) asm.set(r, 'mov.f32', Number.NEGATIVE_INFINITY);
  for (const r of sum) asm.set(r, 'mov.f32', 0);
  const toLog2 = spec.folded ? inputs.scaleLog2 : asm.constant('f32', LOG2E);
  const dropout = spec.dropout ? dropoutOf(asm, asm.op('mad.lo.s32', b, inputs.Hq, h)) : null;

  /** The block being scored. */
  const kv0 = asm.reg('b32');
  const edge = asm.reg('b32');
  const last = asm.reg('b32');
  /** The block whose probabilities are in `p`. */
  const heldKv0 = asm.reg('b32');
  const heldEdge = asm.reg('b32');

  const waitForK = (): void => {
    waitParity(asm, slot(asm, k.full, atK, BARRIER_BYTES), atK.parity);
    const at = slot(asm, k.note, atK, BLOCK.bytes);
    for (const [to, offset] of [
      [kv0, BLOCK.kv0],
      [edge, BLOCK.edge],
      [last, BLOCK.last],
    ] as const)
      asm.emit('ld.shared.b32', to.name, asm.address('shared', at, offset));
  };
  const stageOf = (desc: Reg<'b64'>, stage: Reg<'b32'>, bytes: number): Reg<'b64'> =>
    asm.op('add.s64', desc, asm.op('mul.wide.u32', stage, bytes >> 4));
  const queueScores = (): void => {
    const right = stageOf(descK, atK.stage, k.bytes);
    wgmmaFence(asm);
    for (let i = 0; i < Math.ceil(spec.D / 16); i++) {
      const inside = (i % 4) * 32;
      const left = advance(asm, descQ, (i >> 2) * blockQ * PANEL_BYTES + inside);
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
  const waitForV = (): void => {
    const full = slot(asm, v.full, atV, BARRIER_BYTES);
    if (!shared.scans) {
      waitParity(asm, full, atV.parity);
      return;
    }
    const scanned = slot(asm, shared.scanned, atV, BARRIER_BYTES);
    const isEdge = asm.op('setp.ne.s32', heldEdge, 0);
    waitParity(asm, asm.op('selp.b32', scanned, full, isEdge), atV.parity);
  };
  const releaseK = (): void => {
    release(slot(asm, k.empty, atK, BARRIER_BYTES));
    atK.advance();
  };
  const releaseV = (): void => {
    release(slot(asm, v.empty, atV, BARRIER_BYTES));
    atV.advance();
  };

  const alphas = asm.regs('f32', 2);
  const grew = asm.reg('pred');
  /** From scores to probabilities, still in f32; `alphas` and `grew` say what that did to the rows' maxima. */
  const softmax = (): Tile[] => {
    let tiles = tilesOf(s);
    const scorer = scorerOf(asm, spec, place);
    const columns = columnPositions(asm, kv0, lanes.t, blockK / 8);
    const grid = { rowsAre: 'q', rows: qPositions, columns, head: h } as const;
    if (!spec.folded) for (const x of s) asm.set(x, 'mul.f32', x, inputs.scale);
    if (spec.mod !== null) {
      asm.stage('mod');
      tiles = scorer.modify([tiles], grid, [spec.mod])[0][0];
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
    asm.stage('softmax');
    const out = tiles.map((tile) => [...tile]);
    for (const r of [0, 1]) {
      const own = tiles.flatMap((tile) => tile.slice(2 * r, 2 * r + 2));
      const tops = own.slice(0, 2);
      for (let i = 2; i < own.length; i++) tops[i % 2] = asm.op('max.f32', tops[i % 2], own[i]);
      let top = asm.op('max.f32', tops[0], tops[1]);
      for (const lane of [1, 2]) top = asm.op('max.f32', top, shuffleXor(asm, top, lane));
      const next = asm.op('max.f32', best[r], asm.op('mul.f32', top, toLog2));
      const bigger = asm.op('setp.gt.f32', next, best[r]);
      asm.set(grew, 'or.pred', bigger, r === 0 ? bigger : grew);
      // As in forward_mma: a row that has seen nothing subtracts 0, and the number subtracted is the one scaled by.
      const empty = asm.op('setp.eq.f32', next, Number.NEGATIVE_INFINITY);
      const subtracted = asm.op('selp.f32', 0, next, empty);
      const shift = asm.op('neg.f32', subtracted);
      asm.set(alphas[r], 'ex2.approx.ftz.f32', asm.op('sub.f32', best[r], subtracted));
      asm.set(best[r], 'mov.f32', next);
      const sums: Reg<'f32'>[] = [];
      tiles.forEach((tile, n) => {
        for (const e of [2 * r, 2 * r + 1]) {
          const x = asm.op('ex2.approx.ftz.f32', asm.op('fma.rn.f32', tile[e], toLog2, shift));
          out[n][e] = x;
          const lane = (2 * n + e) % 4;
          sums[lane] = sums[lane] === undefined ? x : asm.op('add.f32', sums[lane], x);
        }
      });
      const total = sums.filter((x) => x !== undefined).reduce((x, y) => asm.op('add.f32', x, y));
      asm.set(sum[r], 'fma.rn.f32', sum[r], alphas[r], total);
    }
    if (dropout !== null) {
      asm.stage('dropout');
      out.forEach((tile, n) => {
        const pair = asm.op('shr.u32', columns[2 * n], 1);
        for (const r of [0, 1]) {
          const keep = dropout.keepPair(qPositions[r], pair);
          for (const j of [0, 1]) tile[2 * r + j] = asm.op('selp.f32', tile[2 * r + j], 0, keep[j]);
        }
      });
    }
    return out;
  };
  const rescale = (): void => {
    const same = asm.label('same');
    const any = asm.reg('pred');
    asm.emit('vote.sync.any.pred', any.name, grew.name, '-1');
    asm.branch(same, any, { negate: true, uniform: true });
    acc.forEach((x, i) => {
      asm.set(x, 'mul.f32', x, alphas[(i >> 1) & 1]);
    });
    asm.place(same);
  };
  const hold = (tiles: readonly Tile[]): void => {
    tiles.forEach((tile, n) => {
      for (const r of [0, 1]) {
        const packed = packPair(asm, storage, tile[2 * r], tile[2 * r + 1]);
        asm.set(p[2 * n + r], 'mov.b32', packed);
      }
    });
    asm.set(heldKv0, 'mov.b32', kv0);
    asm.set(heldEdge, 'mov.b32', edge);
  };
  /** After the product of `p` and V: values the scanners took out of V go where they belong. */
  const addFound = (): void => {
    if (values === null) return;
    const none = asm.label('none');
    asm.branch(none, asm.op('setp.eq.s32', heldEdge, 0), { uniform: true });
    const at = slot(asm, shared.found, atV, FOUND_BYTES);
    const words = Array.from({ length: SCANNERS }, (_, i) => asm.load('shared', 'b32', at, 4 * i));
    const any = words.reduce((x, y) => asm.op('or.b32', x, y));
    asm.branch(none, asm.op('setp.eq.s32', any, 0), { uniform: true });
    const hkv = spec.group === 1 ? h : asm.op('div.u32', h, spec.group);
    const strides = { b: values.vB, h: values.vH, s: values.vS };
    const base = baseOf(asm, values.v, strides, { b, h: hkv, start: kStart }, spec.size);
    const source = strided(asm, base, asm.op('mul.lo.s64', values.vS, spec.size));
    const acc16 = tilesOf(acc);
    rescue(asm, spec, { place, acc: acc16, qPositions, kv0: heldKv0, h, source, rows: blockK, t: lanes.t });
    asm.place(none);
  };

  const epilogue = asm.label('epilogue');
  const loop = asm.label('loopKV');
  const drain = asm.label('drain');
  asm.branch(epilogue, asm.op('setp.eq.s32', keys, 0), { uniform: true });

  asm.stage('first block: scores and probabilities');
  waitForK();
  queueScores();
  wgmmaWait(asm, 0);
  releaseK();
  hold(softmax());

  asm.place(loop);
  asm.branch(drain, asm.op('setp.ne.s32', last, 0), { uniform: true });
  waitForK();
  takeTurn();
  asm.stage('queue S = Q K^T of this block');
  queueScores();
  waitForV();
  asm.stage('queue O += P V of the block before');
  queueOutput();
  passTurn();
  wgmmaWait(asm, 1);
  releaseK();
  const probabilities = softmax();
  wgmmaWait(asm, 0);
  addFound();
  releaseV();
  rescale();
  hold(probabilities);
  asm.branch(loop);

  asm.place(drain);
  release(q.empty);
  asm.stage('O += P V of the last block');
  waitForV();
  queueOutput();
  wgmmaWait(asm, 0);
  addFound();
  releaseV();
  const done = asm.label('done');
  asm.branch(done);

  asm.place(epilogue);
  release(q.empty);
  asm.place(done);
  atQ.advance();
  asm.stage('join the sums of a row, add the sink, normalise');
  const logit = spec.sink ? sinkLogit(asm, h) : null;
  const lse: Reg<'f32'>[] = [];
  for (const r of [0, 1]) {
    for (const lane of [1, 2]) asm.set(sum[r], 'add.f32', sum[r], shuffleXor(asm, sum[r], lane));
    const { scale, value } = finishRow(asm, best[r], sum[r], logit);
    const factor = dropout === null ? scale : asm.op('mul.f32', scale, dropout.keepScale);
    acc.forEach((x, i) => {
      if (((i >> 1) & 1) === r) asm.set(x, 'mul.f32', x, factor);
    });
    lse.push(value);
  }
  asm.stage('store out and lse');
  storeWide(asm, spec, {
    tiles: [tilesOf(acc)],
    rows: qPositions,
    limit: lenQ,
    target: queryRows(asm, spec, place, h, o.out, { b: o.outB, h: o.outH, s: o.outS }),
    columns: spec.Dv,
    grain: spec.grains.out,
    t: lanes.t,
  });
  const lseAt = baseOf(asm, o.lse, { b: o.lseB, h: o.lseH, s: o.lseS }, { b, h, start: qStart }, 4);
  const lseStep = asm.op('mul.lo.s64', o.lseS, 4);
  const firstColumn = asm.op('setp.eq.s32', lanes.t, 0);
  qPositions.forEach((row, r) => {
    const inside = asm.op('and.pred', firstColumn, asm.op('setp.lt.s32', row, lenQ));
    const at = asm.op('add.s64', lseAt, asm.op('mul.lo.s64', asm.op('cvt.s64.s32', row), lseStep));
    asm.when(inside, () => asm.store('global', 'f32', at, lse[r]));
  });
  asm.branch(nextTile);
  asm.place(finished);
}
