/**
 * dK and dV: a block of threads owns blockK keys of one key head and walks the queries that attend to them, for every query
 * head of the group. Scores are computed transposed, S^T = K Q^T, so that P^T and dS^T are left operands of the second
 * products straight from the accumulators. Nothing is added across blocks: the sums have one order.
 */
import { LOG2E } from '../../../core/math.ts';
import type { Problem } from '../../../problem/problem.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { cpAsync, cpAsyncCommit, cpAsyncWait } from '../ptx/tensor.ts';
import type { BackwardTile } from './backward_mma.ts';
import { dropoutOf } from './dropout.ts';
import { arithmeticOf, lanesOf, pitchOf, type Tile, zeroTiles } from './fragments.ts';
import { gradientTiles } from './gradient.ts';
import { loaderOf, STAGES, strided, tileBytes } from './loader.ts';
import { take } from './parameters.ts';
import { baseOf, keyRows, placeOf, queryRows } from './place.ts';
import { accumulate, leftOf, multiply, ownBlock } from './products.ts';
import { columnPositions, rowPositions, scorerOf } from './scores.ts';
import { type Spec, specOf } from './spec.ts';
import { storeRows } from './store.ts';
import { walkOf } from './walk.ts';

/** Which of the two a program computes: both do not fit the registers for wide heads. */
export interface KeyOutputs {
  readonly k: boolean;
  readonly v: boolean;
}

export function keysSharedBytes(spec: Spec, { blockQ, blockK }: BackwardTile, outputs: KeyOutputs): number {
  const rows = (n: number, columns: number): number => n * pitchOf(spec.storage, columns);
  const own = rows(blockK, spec.padD) + (outputs.k ? rows(blockK, spec.padDv) : 0);
  return own + STAGES * (rows(blockQ, spec.padD) + rows(blockQ, spec.padDv) + blockQ * 8) + 2048;
}

export function emitKeys(problem: Problem, tile: BackwardTile, outputs: KeyOutputs): KernelText {
  const spec = specOf(problem);
  const { blockQ, blockK, warps, perSm } = tile;
  const threads = warps * 32;
  const m = blockK / warps / 16;
  const name = `backward_d${outputs.k ? 'k' : ''}${outputs.v ? 'v' : ''}`;
  const asm = new Assembler({ name, target: 'sm_80', threads, blocksPerSm: perSm });

  asm.stage('place: sequence, key head and keys of this block');
  const thread = asm.special('tid.x');
  const warp = asm.op('shr.u32', thread, 5);
  const lanes = lanesOf(asm, thread);
  const hkv = asm.special('ctaid.y');
  const place = placeOf(asm, spec, asm.special('ctaid.z'));
  const p = take(asm, 'q', 'qB', 'qH', 'qS', 'dOut', 'outB', 'outH', 'outS', 'lse2', 'delta', 'lseB', 'lseH', 'lseS');
  const w = take(asm, 'rowStart', 'runs', 'runB', 'runH', 'scale', 'scaleLog2', 'reverse');
  const block = ownBlock(asm, w.reverse);
  const kv0 = asm.op('mul.lo.s32', block, blockK);
  const end = asm.label('end');
  asm.branch(end, asm.op('setp.lt.s32', kv0, place.lenK), { negate: true });
  const h0 = asm.op('mul.lo.s32', hkv, spec.group);

  const tileK = { storage: spec.storage, rows: blockK, columns: spec.D, padded: spec.padD, grain: spec.grains.k };
  const tileV = { ...tileK, columns: spec.Dv, padded: spec.padDv, grain: spec.grains.v };
  const tileQ = { ...tileK, rows: blockQ, grain: spec.grains.q };
  const tileO = { ...tileV, rows: blockQ, grain: spec.grains.out };
  const sK = asm.sharedAddress(asm.shared('k', tileBytes(tileK), 1024));
  const sV = outputs.k ? asm.sharedAddress(asm.shared('v', tileBytes(tileV), 1024)) : null;
  const sQ = asm.sharedAddress(asm.shared('q', tileBytes(tileQ) * STAGES, 1024));
  const sO = asm.sharedAddress(asm.shared('dOut', tileBytes(tileO) * STAGES, 1024));
  // lse2 then delta of the block's queries.
  const statBytes = blockQ * 8;
  const sStat = asm.sharedAddress(asm.shared('lse2, delta', statBytes * STAGES));

  asm.stage('load K and V');
  const source = keyRows(asm, spec, place, hkv);
  loaderOf(asm, tileK, threads, thread).reader(source.k).load(sK, kv0, place.lenK);
  if (sV !== null) loaderOf(asm, tileV, threads, thread).reader(source.v).load(sV, kv0, place.lenK);

  const owned = { b: place.b, head: h0, block, heads: spec.group };
  const walk = walkOf(asm, spec.mask !== null, w, owned, place.lenQ, blockQ);
  const stage = asm.constant('b32', 0);
  const qRows = queryRows(asm, spec, place, h0, p.q, { b: p.qB, h: p.qH, s: p.qS });
  const oRows = queryRows(asm, spec, place, h0, p.dOut, { b: p.outB, h: p.outH, s: p.outS });
  const at = { b: place.b, h: h0, start: place.qStart };
  const statStrides = { b: p.lseB, h: p.lseH, s: p.lseS };
  const lse2Rows = strided(asm, baseOf(asm, p.lse2, statStrides, at, 4), asm.op('mul.lo.s64', p.lseS, 4));
  const deltaRows = strided(asm, baseOf(asm, p.delta, statStrides, at, 4), asm.op('mul.lo.s64', p.lseS, 4));
  const loadQ = loaderOf(asm, tileQ, threads, thread);
  const loadO = loaderOf(asm, tileO, threads, thread);
  const perHead = (stride: Reg<'b64'>, size: number): Reg<'b64'> =>
    asm.op('mul.lo.s64', asm.op('mul.lo.s64', asm.op('cvt.s64.s32', walk.row), stride), size);
  const fetch = (): void => {
    const first = asm.op('mul.lo.s32', walk.block, blockQ);
    const grouped = spec.group > 1;
    const q = grouped ? qRows.from(perHead(p.qH, spec.size)) : qRows;
    const o = grouped ? oRows.from(perHead(p.outH, spec.size)) : oRows;
    loadQ.reader(q).load(asm.op('mad.lo.s32', stage, tileBytes(tileQ), sQ), first, place.lenQ);
    loadO.reader(o).load(asm.op('mad.lo.s32', stage, tileBytes(tileO), sO), first, place.lenQ);
    const skip = asm.label('stat');
    asm.branch(skip, asm.op('setp.ge.s32', thread, blockQ));
    const index = asm.op('add.s32', first, thread);
    const valid = asm.op('selp.b32', 4, 0, asm.op('setp.lt.s32', index, place.lenQ));
    const slot = asm.op('mad.lo.s32', stage, statBytes, asm.op('mad.lo.s32', thread, 4, sStat));
    const shift = grouped ? perHead(p.lseH, 4) : null;
    const from = (rows: typeof lse2Rows): Reg<'b64'> => (shift === null ? rows : rows.from(shift)).row(index);
    cpAsync(asm, 4, slot, 0, from(lse2Rows), valid);
    cpAsync(asm, 4, slot, blockQ * 4, from(deltaRows), valid);
    asm.place(skip);
  };
  const skip = asm.label('empty');
  asm.branch(skip, walk.more, { negate: true });
  fetch();
  asm.place(skip);
  cpAsyncCommit(asm);

  asm.stage('prologue: accumulators');
  const arithmetic = arithmeticOf(asm, spec.storage, lanes);
  const dK = outputs.k ? zeroTiles(asm, m, spec.padD) : [];
  const dV = outputs.v ? zeroTiles(asm, m, spec.padDv) : [];
  const warpRow = asm.op('mul.lo.s32', warp, 16 * m);
  const positions = (): Reg<'b32'>[] => rowPositions(asm, asm.op('add.s32', kv0, warpRow), lanes.g, m);
  const usesPositions = spec.mask !== null || spec.mod !== null || spec.dropout;
  let kvPositions = usesPositions ? positions() : [];
  const pitchD = pitchOf(spec.storage, spec.padD);
  const pitchV = pitchOf(spec.storage, spec.padDv);
  const viewK = arithmetic.view(asm.op('mad.lo.s32', warpRow, pitchD, sK), pitchD, 'a');
  const viewV = sV === null ? null : arithmetic.view(asm.op('mad.lo.s32', warpRow, pitchV, sV), pitchV, 'a');
  const toLog2 = spec.folded ? w.scaleLog2 : asm.constant('f32', LOG2E);
  const Hq = spec.dropout ? take(asm, 'Hq').Hq : null;
  const bh = asm.reg('b32');
  const dropout = spec.dropout ? dropoutOf(asm, bh) : null;

  const loop = asm.label('loopQ');
  const done = asm.label('epilogue');
  asm.place(loop);
  asm.branch(done, walk.more, { negate: true, uniform: true });
  cpAsyncWait(asm, 0);
  asm.barrier();
  const here = asm.op('mov.b32', walk.block);
  const partial = asm.op('mov.b32', walk.partial);
  const h = asm.op('add.s32', h0, walk.row);
  if (Hq !== null) asm.set(bh, 'mad.lo.s32', place.b, Hq, h);
  const viewQ = arithmetic.view(asm.op('mad.lo.s32', stage, tileBytes(tileQ), sQ), pitchD, 'b', 'bt');
  const viewO = arithmetic.view(asm.op('mad.lo.s32', stage, tileBytes(tileO), sO), pitchV, 'b', 'bt');
  const stat = asm.op('mad.lo.s32', stage, statBytes, asm.op('mad.lo.s32', lanes.t, 8, sStat));
  asm.set(stage, 'xor.b32', stage, 1);
  walk.advance();
  const last = asm.label('last');
  asm.branch(last, walk.more, { negate: true, uniform: true });
  asm.stage('load the next Q and dOut');
  fetch();
  asm.place(last);
  cpAsyncCommit(asm);

  asm.stage('scores: S^T = K Q^T');
  const scores = multiply(asm, arithmetic, leftOf(viewK, m), m, viewQ, blockQ, spec.padD);
  let dP: Tile[][] | null = null;
  if (viewV !== null) {
    asm.stage('dP^T = V dOut^T');
    dP = multiply(asm, arithmetic, leftOf(viewV, m), m, viewO, blockQ, spec.padDv);
  }
  const q0 = asm.op('mul.lo.s32', here, blockQ);
  const tail = asm.op('setp.gt.s32', asm.op('add.s32', q0, blockQ), place.lenQ);

  const addBlock = (edge: boolean): void => {
    asm.stage('P^T and dS^T');
    const columns = usesPositions ? columnPositions(asm, q0, lanes.t, blockQ / 8) : [];
    const grid = { rowsAre: 'kv', rows: kvPositions, columns, head: h } as const;
    const statOf = (offset: number): Reg<'f32'>[] =>
      Array.from({ length: blockQ / 8 }, (_, n) => asm.loadVector('shared', 'f32', 2, stat, offset + n * 32)).flat();
    const lse2 = statOf(0);
    const delta = outputs.k ? statOf(blockQ * 4) : [];
    const scorer = scorerOf(asm, spec, place);
    const input = { spec, scorer, grid, scores, dP, edge, scale: w.scale, toLog2, dropout };
    const { p: probabilities, dScore } = gradientTiles(asm, {
      ...input,
      lse2: (_, c) => lse2[c],
      delta: (_, c) => delta[c],
    });
    if (outputs.v) {
      asm.stage('dV += P^T dOut');
      accumulate(arithmetic, dV, probabilities, viewO, blockQ, spec.padDv);
    }
    if (outputs.k) {
      asm.stage('dK += dS^T Q');
      accumulate(arithmetic, dK, dScore, viewQ, blockQ, spec.padD);
    }
  };
  // Queries past the end are zeros with lse2 and delta of zero: without a modifier they add nothing.
  if (spec.mask === null && spec.mod === null) addBlock(false);
  else {
    const edge = asm.op('or.pred', tail, asm.op('setp.ne.s32', partial, 0));
    asm.if(
      edge,
      () => addBlock(true),
      () => addBlock(false),
    );
  }
  asm.branch(loop);

  asm.place(done);
  asm.stage('store dK and dV');
  cpAsyncWait(asm, 0);
  if (!usesPositions) kvPositions = positions();
  const out = (tensor: 'dk' | 'dv', tiles: Tile[][], letter: 'k' | 'v'): void => {
    const o = take(asm, tensor);
    const strides = letter === 'k' ? source.kStrides : source.vStrides;
    const base = baseOf(asm, o[tensor], strides, { b: place.b, h: hkv, start: place.kStart }, spec.size);
    storeRows(asm, spec, {
      tiles,
      rows: kvPositions,
      limit: place.lenK,
      target: strided(asm, base, asm.op('mul.lo.s64', strides.s, spec.size)),
      columns: letter === 'k' ? spec.D : spec.Dv,
      grain: letter === 'k' ? spec.grains.k : spec.grains.v,
      t: lanes.t,
    });
  };
  for (const x of dK.flat(2)) asm.set(x, 'mul.f32', x, w.scale);
  if (outputs.k) out('dk', dK, 'k');
  if (outputs.v) out('dv', dV, 'v');
  asm.place(end);
  return asm.finish();
}
