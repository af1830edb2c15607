/**
 * Forward by tiles (Dao, "FlashAttention-2", 2023, algorithm 1) on the tensor cores of Ampere and later.
 *
 * A block of threads owns blockQ queries of one head; a warp owns 16 or 32 of its rows. Blocks of keys and values arrive by
 * asynchronous copies one step ahead of their use. Scores stay in the accumulators, where the modifier, the mask and the
 * running softmax see them; as probabilities they are the left operand of the second product without leaving registers.
 * Exponents are base 2 with the scale folded in; old output is rescaled only when some row of the warp found a new maximum.
 */
import { ceilDiv, LOG2E } from '../../../core/math.ts';
import type { Cost } from '../../../engine/contract.ts';
import { cachedBytes, flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { blockRuns } from '../../../problem/ranges.ts';
import { type CudaCaps, type CudaKernel, l2Of } from '../kernel.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { cpAsyncCommit, cpAsyncWait, shuffleXor } from '../ptx/tensor.ts';
import { dropoutOf } from './dropout.ts';
import { arithmeticOf, lanesOf, pitchOf, zeroTiles } from './fragments.ts';
import { loaderOf, STAGES, tileBytes } from './loader.ts';
import { fill, take } from './parameters.ts';
import { baseOf, keyRows, keysRefusal, placeOf, queryRows } from './place.ts';
import { accumulate, heldLeft, leftOf, multiply, ownBlock } from './products.ts';
import { addAttended, purge } from './purge.ts';
import { columnPositions, type Grid, rowPositions, scorerOf } from './scores.ts';
import { finishRow, sinkLogit, softmaxRows } from './softmax.ts';
import { type Spec, specOf } from './spec.ts';
import { storeRows } from './store.ts';
import { visitedBlocks } from './visits.ts';
import { walkOf } from './walk.ts';

export interface ForwardConfig extends Readonly<Record<string, number | string | boolean>> {
  readonly blockQ: number;
  readonly blockK: number;
  readonly warps: number;
  /** Blocks of threads that share a multiprocessor. */
  readonly perSm: number;
  /** Keep the fragments of Q in registers instead of reading them for every block of keys. */
  readonly hold: boolean;
}

const sharedBytes = (spec: Spec, c: ForwardConfig): number => {
  const rows = (n: number, columns: number): number => n * pitchOf(spec.storage, columns);
  return rows(c.blockQ, spec.padD) + STAGES * (rows(c.blockK, spec.padD) + rows(c.blockK, spec.padDv));
};

/** Tiles by head size, widest first; each was the fastest of those tried on an H200, or is what fits smaller cards. */
function candidates(spec: Spec): ForwardConfig[] {
  const widest = Math.max(spec.padD, spec.padDv);
  const tile = (blockQ: number, blockK: number, warps: number, perSm: number, hold = false): ForwardConfig => ({
    blockQ,
    blockK,
    warps,
    perSm,
    hold,
  });
  const fallback = [tile(64, 64, 4, 1), tile(64, 32, 4, 1)];
  // Modifiers and dropout need registers of their own; without them there is room to keep Q.
  const light = spec.folded && !spec.dropout;
  const plain = light && spec.mask === null;
  if (spec.storage === 'f32') {
    if (widest <= 64) return [tile(128, 32, 4, 2), tile(64, 32, 4, 3), tile(64, 16, 4, 2)];
    if (widest <= 128) return [plain ? tile(128, 16, 4, 2) : tile(64, 32, 4, 2), tile(64, 16, 4, 2)];
    return [tile(128, 16, 8, 1), tile(64, 16, 4, 1), tile(32, 16, 2, 1)];
  }
  if (widest <= 64) {
    const wide = plain ? [tile(128, 96, 4, 2, true)] : [];
    return [...wide, spec.dropout ? tile(128, 48, 4, 2) : tile(128, 64, 4, 2, light), ...fallback];
  }
  if (widest <= 128) return [...(spec.folded ? [tile(128, 64, 4, 2)] : []), tile(128, 48, 4, 2), ...fallback];
  return [...(plain ? [] : [tile(128, 64, 8, 1)]), tile(128, 32, 8, 1, plain), tile(64, 32, 4, 1)];
}

export const forwardMma: CudaKernel<ForwardConfig> = {
  name: 'forward_mma',
  pass: 'forward',
  refuse(problem, caps) {
    if (problem.dtype === 'f64') return 'f64 has no tensor-core arithmetic; the reference engine serves it';
    if (problem.B > 65535 || problem.Hq > 65535) return 'more than 65535 sequences or heads';
    const far = keysRefusal(problem);
    if (far !== null) return far;
    return forwardMma.configs(problem, caps).length === 0 ? 'no tile fits the shared memory of this device' : null;
  },
  configs(problem, caps) {
    const spec = specOf(problem);
    return candidates(spec).filter((c) => sharedBytes(spec, c) <= caps.sharedPerBlock);
  },
  cost: (problem, config, caps) => costOf(problem, config, caps),
  kernels: (problem, config) => [emitForward(problem, config)],
  emit: (problem, config) => [emitForward(problem, config)].map(({ name, text }) => ({ name, text })),
  launch({ problem, config, launches: [forward], stream, tables, addresses }) {
    const runs = blockRuns(problem, 'q', config.blockQ, config.blockK);
    const { rowStart, runs: triples, reverse } = tables.runs(runs);
    fill(forward, {
      problem,
      addresses: { ...addresses, rowStart, runs: triples },
      runs,
      numbers: { reverse: Number(reverse) },
    });
    forward.run(stream, ceilDiv(problem.Sq, config.blockQ), problem.Hq, problem.B);
  },
};

/** Rates of long sequences on an H200 over the caps' estimate, by the widest head size, and for f32. */
const RATE = { 64: 0.95, 128: 1.1, 256: 0.9, f32: 0.17 } as const;
/** Seconds a block of threads takes besides its blocks of keys: finding its place, the first copies, storing. */
const BLOCK_SECONDS = 4e-6;
/** What a block of keys costs besides its products (waiting, row maxima, rescaling), in keys. */
const BLOCK_KEYS = 4;

/** What one warp a scheduler reaches of what two do, and f32 with 16 rows a warp of what it does with 32. */
const ONE_WARP = 0.7;
const FEW_ROWS = 0.9;

function costOf(problem: Problem, config: ForwardConfig, caps: CudaCaps): Cost {
  const { B, Hq, Sq } = problem;
  const { blockQ, blockK, warps } = config;
  const spec = specOf(problem);
  const { padD, padDv, storage } = spec;
  const widest = Math.max(padD, padDv);
  const fitting = Math.floor((caps.sharedPerBlock + 1024) / (sharedBytes(spec, config) + 1024));
  const perSm = Math.max(Math.min(config.perSm, fitting), 1);
  const rate =
    caps.flops *
    (storage === 'f32' ? RATE.f32 : widest <= 64 ? RATE[64] : widest <= 128 ? RATE[128] : RATE[256]) *
    (warps * perSm < 8 ? ONE_WARP : 1) *
    (storage === 'f32' && blockQ / warps < 32 ? FEW_ROWS : 1);
  // Whole blocks are worked on, however much of them is masked or past the end.
  const keys = visitedBlocks(problem, 'q', blockQ, blockK) * (blockK + BLOCK_KEYS);
  const work = keys * blockQ * 2 * (padD + padDv);
  const tiled = tiledBytes(problem, 'forward', blockQ, blockK);
  const blocks = Math.max(ceilDiv(Sq, blockQ) * B * Hq, 1);
  const slots = caps.multiprocessors * perSm;
  const filled = Math.min(1, blocks / slots);
  const seconds = Math.max(work / rate / filled, tiled / caps.bandwidth) + ceilDiv(blocks, slots) * BLOCK_SECONDS;
  const bytes = cachedBytes(problem, 'forward', blockQ, blockK, l2Of(caps));
  return { flops: flopsOf(problem, 'forward'), bytes, workspace: 0, seconds };
}

export function emitForward(problem: Problem, config: ForwardConfig): KernelText {
  const spec = specOf(problem);
  const { blockQ, blockK, warps, perSm, hold } = config;
  const threads = warps * 32;
  const m = blockQ / warps / 16;
  const asm = new Assembler({ name: 'forward_mma', target: 'sm_80', threads, blocksPerSm: perSm });

  asm.stage('place: sequence, head and rows of this block');
  const thread = asm.special('tid.x');
  const warp = asm.op('shr.u32', thread, 5);
  const lanes = lanesOf(asm, thread);
  const h = asm.special('ctaid.y');
  const place = placeOf(asm, spec, asm.special('ctaid.z'));
  const p = take(asm, 'q', 'qB', 'qH', 'qS', 'rowStart', 'runs', 'runB', 'runH', 'reverse', 'scale', 'scaleLog2');
  const block = ownBlock(asm, p.reverse);
  const q0 = asm.op('mul.lo.s32', block, blockQ);
  const end = asm.label('end');
  asm.branch(end, asm.op('setp.lt.s32', q0, place.lenQ), { negate: true });
  const hkv = spec.group === 1 ? h : asm.op('div.u32', h, spec.group);

  const tileQ = { storage: spec.storage, rows: blockQ, columns: spec.D, padded: spec.padD, grain: spec.grains.q };
  const tileK = { ...tileQ, rows: blockK, grain: spec.grains.k };
  const tileV = { ...tileK, columns: spec.Dv, padded: spec.padDv, grain: spec.grains.v };
  const sQ = asm.sharedAddress(asm.shared('q', tileBytes(tileQ), 1024));
  const sK = asm.sharedAddress(asm.shared('k', tileBytes(tileK) * STAGES, 1024));
  const sV = asm.sharedAddress(asm.shared('v', tileBytes(tileV) * STAGES, 1024));

  asm.stage('load Q');
  const qRows = queryRows(asm, spec, place, h, p.q, { b: p.qB, h: p.qH, s: p.qS });
  loaderOf(asm, tileQ, threads, thread).reader(qRows).load(sQ, q0, place.lenQ);
  const source = keyRows(asm, spec, place, hkv);
  const readK = loaderOf(asm, tileK, threads, thread).reader(source.k);
  const readV = loaderOf(asm, tileV, threads, thread).reader(source.v);

  const walk = walkOf(asm, spec.mask !== null, p, { b: place.b, head: h, block, heads: 1 }, place.lenK, blockK);
  /** Byte offset of the buffers in use, in units of a tile: 0 or 1. */
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

  asm.stage('prologue: accumulators and row state');
  const arithmetic = arithmeticOf(asm, spec.storage, lanes, true);
  const acc = zeroTiles(asm, m, spec.padDv);
  const best = Array.from({ length: 2 * m }, () => asm.constant('f32', Number.NEGATIVE_INFINITY));
  const sum = Array.from({ length: 2 * m }, () => asm.constant('f32', 0));
  const warpRow = asm.op('mul.lo.s32', warp, 16 * m);
  // Computed anew where they are used: registers are what the loop is short of.
  const positions = (): Reg<'b32'>[] => rowPositions(asm, asm.op('add.s32', q0, warpRow), lanes.g, m);
  const pitchQ = pitchOf(spec.storage, spec.padD);
  const viewQ = arithmetic.view(asm.op('mad.lo.s32', warpRow, pitchQ, sQ), pitchQ, 'a');
  // Exponent of a score: log2(e) times what the softmax sees.
  const toLog2 = spec.folded ? p.scaleLog2 : asm.constant('f32', LOG2E);
  const bh = spec.dropout ? asm.op('mad.lo.s32', place.b, take(asm, 'Hq').Hq, h) : h;
  const dropout = spec.dropout ? dropoutOf(asm, bh) : null;

  let queries = leftOf(viewQ, m);
  if (hold) {
    cpAsyncWait(asm, 0);
    asm.barrier();
    queries = heldLeft(arithmetic, viewQ, m, spec.padD);
  }

  const loop = asm.label('loopKV');
  const done = asm.label('epilogue');
  asm.place(loop);
  asm.branch(done, walk.more, { negate: true, uniform: true });
  cpAsyncWait(asm, 0);
  asm.barrier();
  const here = asm.op('mov.b32', walk.block);
  const partial = asm.op('mov.b32', walk.partial);
  const viewK = arithmetic.view(asm.op('mad.lo.s32', stage, tileBytes(tileK), sK), pitchQ, 'b');
  const pitchV = pitchOf(spec.storage, spec.padDv);
  asm.set(stage, 'xor.b32', stage, 1);
  walk.advance();
  const last = asm.label('last');
  asm.branch(last, walk.more, { negate: true, uniform: true });
  asm.stage('load the next K and V');
  fetch();
  asm.place(last);
  cpAsyncCommit(asm);

  asm.stage('scores: S = Q K^T');
  const scores = multiply(asm, arithmetic, queries, m, viewK, blockK, spec.padD);
  const kv0 = asm.op('mul.lo.s32', here, blockK);
  const tail = asm.op('setp.gt.s32', asm.op('add.s32', kv0, blockK), place.lenK);
  const edge = spec.mask === null ? tail : asm.op('or.pred', tail, asm.op('setp.ne.s32', partial, 0));
  /** What only blocks with a position that may not attend need. */
  const whereEdge = (body: () => void): void => {
    const inside = asm.label('inside');
    asm.branch(inside, edge, { negate: true, uniform: true });
    body();
    asm.place(inside);
  };
  const grid = (): Grid => {
    const columns = columnPositions(asm, kv0, lanes.t, blockK / 8);
    return { rowsAre: 'q', rows: positions(), columns, head: h };
  };

  let tiles = scores;
  if (!spec.folded) tiles = tiles.map((r) => r.map((tile) => tile.map((s) => asm.op('mul.f32', s, p.scale))));
  if (spec.mod !== null) {
    asm.stage('mod');
    const [modified] = scorerOf(asm, spec, place).modify(tiles, grid(), [spec.mod]);
    // Equal values share a register, which the mask must not write to.
    tiles = modified.map((r) => r.map((tile) => tile.map((s) => asm.op('mov.f32', s))));
  }
  asm.stage('mask');
  whereEdge(() => {
    const scorer = scorerOf(asm, spec, place);
    const at = grid();
    tiles.forEach((row, i) => {
      row.forEach((tile, n) => {
        const attends = scorer.attends(at, i, n);
        tile.forEach((x, e) => {
          asm.set(x, 'selp.f32', x, Number.NEGATIVE_INFINITY, attends[e]);
        });
      });
    });
  });

  asm.stage('softmax');
  const { alphas, grew } = softmaxRows(asm, tiles, best, sum, toLog2);
  const unchanged = asm.label('unchanged');
  const anyGrew = asm.reg('pred');
  asm.emit('vote.sync.any.pred', anyGrew.name, grew.name, '-1');
  asm.branch(unchanged, anyGrew, { negate: true, uniform: true });
  for (let i = 0; i < m; i++)
    for (const tile of acc[i])
      tile.forEach((x, e) => {
        asm.set(x, 'mul.f32', x, alphas[2 * i + (e >> 1)]);
      });
  asm.place(unchanged);

  const vHere = asm.op('mad.lo.s32', asm.op('xor.b32', stage, 1), tileBytes(tileV), sV);
  if (spec.mask !== null) {
    asm.stage('values that no product may see where they are masked: NaN and infinity');
    whereEdge(() => {
      purge(asm, tileV, vHere, threads, thread, () =>
        addAttended(asm, { spec, place, acc, qPositions: positions(), kv0, h, base: vHere, tile: tileV, t: lanes.t }),
      );
    });
  }

  if (dropout !== null) {
    asm.stage('dropout');
    const { rows, columns } = grid();
    tiles.forEach((row, i) => {
      for (let n = 0; n < row.length; n += 2)
        dropout.keepOctets(rows[2 * i], columns[2 * n]).forEach((byRow, octet) => {
          const tile = row[n + octet];
          byRow.flat().forEach((keep, e) => {
            tile[e] = asm.op('selp.f32', tile[e], 0, keep);
          });
        });
    });
  }

  asm.stage('accumulate: O += P V');
  accumulate(arithmetic, acc, tiles, arithmetic.view(vHere, pitchV, 'bt'), blockK, spec.padDv);
  asm.branch(loop);

  asm.place(done);
  asm.stage('epilogue: join the sums of a row, add the sink, normalise');
  const qPositions = positions();
  cpAsyncWait(asm, 0);
  const logits = spec.sink ? sinkLogit(asm, h) : null;
  const lse: Reg<'f32'>[] = [];
  for (let r = 0; r < 2 * m; r++) {
    for (const lane of [1, 2]) asm.set(sum[r], 'add.f32', sum[r], shuffleXor(asm, sum[r], lane));
    const { scale, value } = finishRow(asm, best[r], sum[r], logits);
    const factor = dropout === null ? scale : asm.op('mul.f32', scale, dropout.keepScale);
    for (const tile of acc[r >> 1])
      for (const e of [(r & 1) * 2, (r & 1) * 2 + 1]) asm.set(tile[e], 'mul.f32', tile[e], factor);
    lse.push(value);
  }
  asm.stage('store out and lse');
  const o = take(asm, 'out', 'outB', 'outH', 'outS', 'lse', 'lseB', 'lseH', 'lseS');
  const outRows = queryRows(asm, spec, place, h, o.out, { b: o.outB, h: o.outH, s: o.outS });
  storeRows(asm, spec, {
    tiles: acc,
    rows: qPositions,
    limit: place.lenQ,
    target: outRows,
    columns: spec.Dv,
    grain: spec.grains.out,
    t: lanes.t,
  });
  const lseAt = baseOf(asm, o.lse, { b: o.lseB, h: o.lseH, s: o.lseS }, { b: place.b, h, start: place.qStart }, 4);
  const lseStep = asm.op('mul.lo.s64', o.lseS, 4);
  const firstLane = asm.op('setp.eq.s32', lanes.t, 0);
  qPositions.forEach((q, r) => {
    const inside = asm.op('and.pred', firstLane, asm.op('setp.lt.s32', q, place.lenQ));
    const at = asm.op('add.s64', lseAt, asm.op('mul.lo.s64', asm.op('cvt.s64.s32', q), lseStep));
    asm.when(inside, () => asm.store('global', 'f32', at, lse[r]));
  });
  asm.place(end);
  return asm.finish();
}
