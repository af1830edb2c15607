/**
 * dQ: a block of threads owns blockQ queries of one head and walks the keys they attend to, as forward does. dS stays in
 * registers as the left operand of dQ += dS K.
 */
import { LOG2E } from '../../../core/math.ts';
import type { Problem } from '../../../problem/problem.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { cpAsyncCommit, cpAsyncWait } from '../ptx/tensor.ts';
import type { BackwardTile } from './backward_mma.ts';
import { dropoutOf } from './dropout.ts';
import { arithmeticOf, lanesOf, pitchOf, zeroTiles } from './fragments.ts';
import { gradientTiles } from './gradient.ts';
import { loaderOf, STAGES, strided, tileBytes } from './loader.ts';
import { take } from './parameters.ts';
import { baseOf, keyRows, placeOf, queryRows } from './place.ts';
import { accumulate, heldLeft, leftOf, multiply, ownBlock } from './products.ts';
import { purge } from './purge.ts';
import { columnPositions, rowPositions, scorerOf } from './scores.ts';
import { type SideGradient, sideSums } from './sides.ts';
import { type Spec, specOf } from './spec.ts';
import { storeRows } from './store.ts';
import { walkOf } from './walk.ts';

export function queriesSharedBytes(spec: Spec, { blockQ, blockK }: BackwardTile): number {
  const rows = (n: number): number => n * (pitchOf(spec.storage, spec.padD) + pitchOf(spec.storage, spec.padDv));
  return rows(blockQ) + STAGES * rows(blockK) + 1024;
}

/** @param side the gradient of a side tensor to sum instead of dQ. */
export function emitQueries(problem: Problem, tile: BackwardTile, side: SideGradient | null = null): KernelText {
  const spec = specOf(problem);
  const { blockQ, blockK, warps, perSm } = tile;
  const threads = warps * 32;
  const m = blockQ / warps / 16;
  const name = side === null ? 'backward_dq' : 'backward_side';
  const asm = new Assembler({ name, target: 'sm_80', threads, blocksPerSm: perSm });

  asm.stage('place: sequence, head and rows of this block');
  const thread = asm.special('tid.x');
  const warp = asm.op('shr.u32', thread, 5);
  const lanes = lanesOf(asm, thread);
  const h = asm.special('ctaid.y');
  const place = placeOf(asm, spec, asm.special('ctaid.z'));
  const p = take(asm, 'q', 'qB', 'qH', 'qS', 'dOut', 'outB', 'outH', 'outS', 'lse2', 'delta', 'lseB', 'lseH', 'lseS');
  const w = take(asm, 'rowStart', 'runs', 'runB', 'runH', 'scale', 'scaleLog2', 'reverse');
  const block = ownBlock(asm, w.reverse);
  const q0 = asm.op('mul.lo.s32', block, blockQ);
  const end = asm.label('end');
  asm.branch(end, asm.op('setp.lt.s32', q0, place.lenQ), { negate: true });
  const hkv = spec.group === 1 ? h : asm.op('div.u32', h, spec.group);

  const tileQ = { storage: spec.storage, rows: blockQ, columns: spec.D, padded: spec.padD, grain: spec.grains.q };
  const tileO = { ...tileQ, columns: spec.Dv, padded: spec.padDv, grain: spec.grains.out };
  const tileK = { ...tileQ, rows: blockK, grain: spec.grains.k };
  const tileV = { ...tileO, rows: blockK, grain: spec.grains.v };
  const sQ = asm.sharedAddress(asm.shared('q', tileBytes(tileQ), 1024));
  const sO = asm.sharedAddress(asm.shared('dOut', tileBytes(tileO), 1024));
  const sK = asm.sharedAddress(asm.shared('k', tileBytes(tileK) * STAGES, 1024));
  const sV = asm.sharedAddress(asm.shared('v', tileBytes(tileV) * STAGES, 1024));

  asm.stage('load Q and dOut');
  const qRows = queryRows(asm, spec, place, h, p.q, { b: p.qB, h: p.qH, s: p.qS });
  const oRows = queryRows(asm, spec, place, h, p.dOut, { b: p.outB, h: p.outH, s: p.outS });
  loaderOf(asm, tileQ, threads, thread).reader(qRows).load(sQ, q0, place.lenQ);
  loaderOf(asm, tileO, threads, thread).reader(oRows).load(sO, q0, place.lenQ);
  const source = keyRows(asm, spec, place, hkv);
  const readK = loaderOf(asm, tileK, threads, thread).reader(source.k);
  const readV = loaderOf(asm, tileV, threads, thread).reader(source.v);

  const walk = walkOf(asm, spec.mask !== null, w, { b: place.b, head: h, block, heads: 1 }, place.lenK, blockK);
  const stage = asm.constant('b32', 0);
  const fetch = (): void => {
    const first = asm.op('mul.lo.s32', walk.block, blockK);
    readK.load(asm.op('mad.lo.s32', stage, tileBytes(tileK), sK), first, place.lenK);
    readV.load(asm.op('mad.lo.s32', stage, tileBytes(tileV), sV), first, place.lenK);
  };
  const skip = asm.label('empty');
  asm.branch(skip, walk.more, { negate: true });
  fetch();
  asm.place(skip);
  cpAsyncCommit(asm);

  asm.stage('prologue: accumulators, lse2 and delta of the rows of this thread');
  const arithmetic = arithmeticOf(asm, spec.storage, lanes);
  const dQ = side === null ? zeroTiles(asm, m, spec.padD) : [];
  const sums = side === null ? null : sideSums(asm, side);
  const warpRow = asm.op('mul.lo.s32', warp, 16 * m);
  const qPositions = rowPositions(asm, asm.op('add.s32', q0, warpRow), lanes.g, m);
  const at = { b: place.b, h, start: place.qStart };
  const strides = { b: p.lseB, h: p.lseH, s: p.lseS };
  const statistic = (tensor: Reg<'b64'>, otherwise: number): Reg<'f32'>[] => {
    const rows = strided(asm, baseOf(asm, tensor, strides, at, 4), asm.op('mul.lo.s64', p.lseS, 4));
    return qPositions.map((q) => {
      const value = asm.constant('f32', otherwise);
      const address = rows.row(q);
      const inside = asm.op('setp.lt.s32', q, place.lenQ);
      asm.when(inside, () => asm.emit('ld.global.nc.f32', value.name, asm.address('global', address)));
      return value;
    });
  };
  const lse2 = statistic(p.lse2, Number.POSITIVE_INFINITY);
  const delta = statistic(p.delta, 0);
  const pitchD = pitchOf(spec.storage, spec.padD);
  const pitchV = pitchOf(spec.storage, spec.padDv);
  const viewQ = arithmetic.view(asm.op('mad.lo.s32', warpRow, pitchD, sQ), pitchD, 'a');
  const viewO = arithmetic.view(asm.op('mad.lo.s32', warpRow, pitchV, sO), pitchV, 'a');
  const toLog2 = spec.folded ? w.scaleLog2 : asm.constant('f32', LOG2E);
  const dropout = spec.dropout ? dropoutOf(asm, asm.op('mad.lo.s32', place.b, take(asm, 'Hq').Hq, h)) : null;

  // Fragments of Q and dOut stay in registers where there is room, instead of being read for every block of keys.
  let [leftQ, leftO] = [leftOf(viewQ, m), leftOf(viewO, m)];
  if (tile.hold) {
    cpAsyncWait(asm, 0);
    asm.barrier();
    leftQ = heldLeft(arithmetic, viewQ, m, spec.padD);
    leftO = heldLeft(arithmetic, viewO, m, spec.padDv);
  }

  const loop = asm.label('loopKV');
  const done = asm.label('epilogue');
  asm.place(loop);
  asm.branch(done, walk.more, { negate: true, uniform: true });
  cpAsyncWait(asm, 0);
  asm.barrier();
  const here = asm.op('mov.b32', walk.block);
  const partial = asm.op('mov.b32', walk.partial);
  const kHere = asm.op('mad.lo.s32', stage, tileBytes(tileK), sK);
  const viewK = arithmetic.view(kHere, pitchD, 'b', 'bt');
  const viewV = arithmetic.view(asm.op('mad.lo.s32', stage, tileBytes(tileV), sV), pitchV, 'b');
  asm.set(stage, 'xor.b32', stage, 1);
  walk.advance();
  const last = asm.label('last');
  asm.branch(last, walk.more, { negate: true, uniform: true });
  asm.stage('load the next K and V');
  fetch();
  asm.place(last);
  cpAsyncCommit(asm);

  asm.stage('scores: S = Q K^T');
  const scores = multiply(asm, arithmetic, leftQ, m, viewK, blockK, spec.padD);
  asm.stage('dP = dOut V^T');
  const dP = multiply(asm, arithmetic, leftO, m, viewV, blockK, spec.padDv);
  const kv0 = asm.op('mul.lo.s32', here, blockK);
  const tail = asm.op('setp.gt.s32', asm.op('add.s32', kv0, blockK), place.lenK);

  const addBlock = (edge: boolean): void => {
    if (edge && spec.mask !== null && side === null) {
      asm.stage('keys that no product may see where they are masked: NaN and infinity');
      purge(asm, tileK, kHere, threads, thread, () => {});
    }
    asm.stage('dS');
    const columns = columnPositions(asm, kv0, lanes.t, blockK / 8);
    const grid = { rowsAre: 'q', rows: qPositions, columns, head: h } as const;
    const scorer = scorerOf(asm, spec, place);
    const tiles = gradientTiles(
      asm,
      {
        ...{ spec, scorer, grid, scores, dP, edge, scale: w.scale, toLog2, dropout },
        lse2: (r) => lse2[r],
        delta: (r) => delta[r],
      },
      side === null ? [] : [side.slope],
    );
    if (sums !== null) {
      asm.stage('sum the gradient of the side tensor');
      sums.add(tiles.dModified, tiles.extra[0], scorer, grid, edge);
      return;
    }
    asm.stage('dQ += dS K');
    accumulate(arithmetic, dQ, tiles.dScore, viewK, blockK, spec.padD);
  };
  const edge = asm.op('or.pred', tail, asm.op('setp.ne.s32', partial, 0));
  asm.if(
    edge,
    () => addBlock(true),
    () => addBlock(false),
  );
  asm.branch(loop);

  asm.place(done);
  cpAsyncWait(asm, 0);
  if (sums !== null) sums.finish();
  else {
    asm.stage('store dQ');
    for (const x of dQ.flat(2)) asm.set(x, 'mul.f32', x, w.scale);
    const target = queryRows(asm, spec, place, h, take(asm, 'dq').dq, { b: p.qB, h: p.qH, s: p.qS });
    storeRows(asm, spec, {
      tiles: dQ,
      rows: qPositions,
      limit: place.lenQ,
      target,
      columns: spec.D,
      grain: spec.grains.q,
      t: lanes.t,
    });
  }
  asm.place(end);
  return asm.finish();
}
