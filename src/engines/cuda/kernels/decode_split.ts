/**
 * Forward for few queries and many keys: bound by the bytes of K and V, so every one is read once.
 *
 * The query heads of a key head and their queries are packed into the rows of one product. Keys are split among blocks of
 * threads, and within a block among its warps, each with a softmax of its own; warps join through shared memory, splits in
 * the last block of threads to finish, in a fixed order. Several blocks of keys are under way at a time.
 */
import { BYTES } from '../../../core/dtype.ts';
import { alignTo, ceilDiv, LOG2E } from '../../../core/math.ts';
import { flopsOf } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { lengthsOf } from '../../../problem/ranges.ts';
import type { CudaCaps, CudaKernel, RunContext } from '../kernel.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { cpAsyncCommit, cpAsyncWait, shuffleXor } from '../ptx/tensor.ts';
import { awaitLast, combineBytes, combineSplits, unpackItem, WIDTH, writeColumns } from './combine.ts';
import {
  attendedBlocks,
  type DecodeConfig,
  packedRows,
  packedSource,
  partBytes,
  splitsOf,
  unpackRow,
} from './decode_rows.ts';
import { dropoutOf } from './dropout.ts';
import { arithmeticOf, lanesOf, pitchOf, type Tile, zeroTiles } from './fragments.ts';
import { loaderOf, tileBytes } from './loader.ts';
import { fill, take } from './parameters.ts';
import { keyRows, keysRefusal, placeOf } from './place.ts';
import { addAttended, purge } from './purge.ts';
import { columnPositions, scorerOf } from './scores.ts';
import { softmaxRows } from './softmax.ts';
import { type Spec, specOf } from './spec.ts';

/** Rows one block of threads can hold: packed query heads times queries. */
const MOST_ROWS = 32;

const rowTiles = (spec: Spec, c: DecodeConfig): number => ceilDiv(packedRows(spec, c), 16);

/** Bytes between rows of a warp's outputs. */
const joinPitchOf = (spec: Spec): number => alignTo(spec.padDv * 4, 128) + 32;

function sharedBytes(spec: Spec, c: DecodeConfig): number {
  const rows = (n: number, columns: number): number => n * pitchOf(spec.storage, columns);
  const ring = c.stages * (rows(c.blockK, spec.padD) + rows(c.blockK, spec.padDv));
  const join = c.warps * packedRows(spec, c) * (joinPitchOf(spec) + 8);
  const combine = combineBytes(packedRows(spec, c), spec.padDv, c.warps * 32);
  return rows(rowTiles(spec, c) * 16, spec.padD) + Math.max(ring, join, combine) + 2048;
}

function candidates(spec: Spec, { B, Hkv, Sq }: Problem, { multiprocessors }: CudaCaps): DecodeConfig[] {
  const tile = (blockK: number, stages: number, perSm: number): DecodeConfig => ({
    queries: Sq,
    blockK,
    warps: blockK / 16,
    stages,
    perSm,
  });
  if (Math.max(spec.padD, spec.padDv) * spec.size > 256) return [tile(64, 3, 1), tile(32, 2, 1), tile(16, 2, 1)];
  // More warps look up pages faster, and have an edge where every multiprocessor serves several heads.
  const many = spec.pageSize > 0 || B * Hkv > multiprocessors;
  return [...(many ? [tile(128, 3, 1)] : []), tile(64, 3, 2), tile(64, 2, 2), tile(32, 2, 1)];
}

export const decodeSplit: CudaKernel<DecodeConfig> = {
  name: 'decode_split',
  pass: 'forward',
  refuse(problem, caps) {
    if (problem.dtype === 'f64') return 'f64 has no tensor-core arithmetic; the reference engine serves it';
    if (problem.B > 65535 || problem.Hkv > 65535) return 'more than 65535 sequences or heads';
    const far = keysRefusal(problem);
    if (far !== null) return far;
    const rows = specOf(problem).group * problem.Sq;
    if (rows > MOST_ROWS) return `${rows} query rows a key head: more than ${MOST_ROWS} are not decoding`;
    return decodeSplit.configs(problem, caps).length === 0 ? 'no tile fits the shared memory of this device' : null;
  },
  configs(problem, caps) {
    const spec = specOf(problem);
    return candidates(spec, problem, caps).filter((c) => sharedBytes(spec, c) <= caps.sharedPerBlock);
  },
  cost(problem, config, caps) {
    const { B, Hkv, D, Dv, dtype } = problem;
    let keys = 0;
    for (let b = 0; b < B; b++) keys += lengthsOf(problem, b).lenK;
    const bytes = keys * Hkv * (D + Dv) * BYTES[dtype];
    const splits = splitsOf(problem, config, caps);
    const workspace = splits === 1 ? 0 : partBytes(problem, config, splits).total;
    // Beginning and end, at which little is under way.
    const seconds = (bytes + 2 * workspace) / caps.bandwidth + 6e-6;
    return { flops: flopsOf(problem, 'forward'), bytes: bytes + 2 * workspace, workspace, seconds };
  },
  kernels: (problem, config) => [emitDecode(problem, config)],
  emit: (problem, config) => [emitDecode(problem, config)].map(({ name, text }) => ({ name, text })),
  launch,
};

const rangesOf = new WeakMap<Problem, Int32Array>();

function launch(run: RunContext<DecodeConfig>): void {
  const { problem, config, caps, launches, stream, tables, addresses } = run;
  const [decode] = launches;
  if (problem.Sq === 0) return;
  const splits = splitsOf(problem, config, caps);
  let ranges = 0;
  if (problem.mask !== null) {
    let table = rangesOf.get(problem);
    if (table === undefined) {
      table = attendedBlocks(problem, config.blockK);
      rangesOf.set(problem, table);
    }
    ranges = tables.array(table);
  }
  const bytes = partBytes(problem, config, splits);
  const partOut = splits > 1 ? run.scratch(bytes.total) : 0;
  const counters = splits > 1 ? tables.counters(decode, problem.B * problem.Hkv) : 0;
  fill(decode, {
    problem,
    addresses: { ...addresses, ranges, partOut, partState: partOut + bytes.out, counters },
    numbers: { splits },
  });
  decode.run(stream, splits, problem.Hkv, problem.B);
}

function emitDecode(problem: Problem, config: DecodeConfig): KernelText {
  const spec = specOf(problem);
  const { blockK, warps, stages, perSm } = config;
  const queries = Math.max(config.queries, 1);
  const rows = packedRows(spec, config);
  const m = rowTiles(spec, config);
  const threads = warps * 32;
  const asm = new Assembler({ name: 'decode_split', target: 'sm_80', threads, blocksPerSm: perSm });

  asm.stage('place: sequence, key head and split of this block');
  const thread = asm.special('tid.x');
  const warp = asm.op('shr.u32', thread, 5);
  const lanes = lanesOf(asm, thread);
  const split = asm.special('ctaid.x');
  const hkv = asm.special('ctaid.y');
  const place = placeOf(asm, spec, asm.special('ctaid.z'));
  const p = take(asm, 'q', 'qB', 'qH', 'qS', 'splits', 'ranges', 'scale', 'scaleLog2');
  const end = asm.label('end');
  asm.branch(end, asm.op('setp.gt.s32', place.lenQ, 0), { negate: true });
  const h0 = asm.op('mul.lo.s32', hkv, spec.group);

  asm.stage('the blocks of keys of this split');
  let firstBlock = asm.constant('b32', 0);
  let endBlock = asm.op('div.u32', asm.op('add.s32', place.lenK, blockK - 1), blockK);
  if (spec.mask !== null) {
    const at = asm.op('add.s64', p.ranges, asm.op('mul.wide.u32', place.b, 8));
    [firstBlock, endBlock] = asm.loadVector('global', 'b32', 2, at, 0, 'nc');
  }
  // Splits take turns, so that those of a head read next to each other.
  const block = asm.op('add.s32', firstBlock, split);

  const tileQ = { storage: spec.storage, rows: m * 16, columns: spec.D, padded: spec.padD, grain: spec.grains.q };
  const tileK = { ...tileQ, rows: blockK, grain: spec.grains.k };
  const tileV = { ...tileK, columns: spec.Dv, padded: spec.padDv, grain: spec.grains.v };
  const stageBytes = tileBytes(tileK) + tileBytes(tileV);
  const sQ = asm.sharedAddress(asm.shared('q', tileBytes(tileQ), 1024));
  const ring = asm.shared('k and v', stageBytes * stages, 1024);
  // Eight rows are stored at once, two columns a lane: rows are 8 words more than whole lines apart.
  const joinPitch = joinPitchOf(spec);
  const joinBytes = warps * rows * (joinPitch + 8);
  const over = Math.max(joinBytes, combineBytes(rows, spec.padDv, threads));
  const sJoin = asm.sharedAddress(asm.sharedOver(ring, 'parts of the warps, then weights of the splits', over));
  const sRing = asm.sharedAddress(ring);

  asm.stage('load Q and the first blocks of K and V');
  const source = keyRows(asm, spec, place, hkv);
  const readK = loaderOf(asm, tileK, threads, thread).reader(source.k);
  const readV = loaderOf(asm, tileV, threads, thread).reader(source.v);
  const loadQ = (): void => {
    const qSource = packedSource(asm, spec, place, h0, queries, p.q, { b: p.qB, h: p.qH, s: p.qS });
    loaderOf(asm, tileQ, threads, thread).reader(qSource).load(sQ, asm.constant('b32', 0), asm.constant('b32', rows));
  };
  const coming = asm.op('mov.b32', block);
  const slot = asm.constant('b32', 0);
  const nextSlot = (r: Reg<'b32'>): void => {
    asm.set(r, 'add.s32', r, 1);
    asm.set(r, 'selp.b32', 0, r, asm.op('setp.ge.s32', r, stages));
  };
  const fetch = (withQ = false): void => {
    const none = asm.label('none');
    asm.branch(none, asm.op('setp.lt.s32', coming, endBlock), { negate: true, uniform: true });
    const first = asm.op('mul.lo.s32', coming, blockK);
    const target = asm.op('mad.lo.s32', slot, stageBytes, sRing);
    readK.load(target, first, place.lenK);
    readV.load(asm.op('add.s32', target, tileBytes(tileK)), first, place.lenK);
    asm.place(none);
    asm.set(coming, 'add.s32', coming, p.splits);
    nextSlot(slot);
    if (withQ) loadQ();
    cpAsyncCommit(asm);
  };
  // Keys and values first: they take longest.
  for (let i = 0; i < stages - 1; i++) fetch(i === 0);

  asm.stage('prologue: row state; a row is a query head and a query');
  const arithmetic = arithmeticOf(asm, spec.storage, lanes, true);
  const acc = zeroTiles(asm, m, spec.padDv);
  const best = Array.from({ length: 2 * m }, () => asm.constant('f32', Number.NEGATIVE_INFINITY));
  const sum = Array.from({ length: 2 * m }, () => asm.constant('f32', 0));
  const usesPositions = spec.mask !== null || spec.mod !== null || spec.dropout;
  const own = !usesPositions
    ? []
    : Array.from({ length: 2 * m }, (_, r) => {
        const row = asm.op('min.s32', asm.op('add.s32', lanes.g, r * 8), rows - 1);
        return unpackRow(asm, row, h0, queries);
      });
  const rowHead = own.map((r) => r.h);
  const qPositions = own.map((r) => r.q);
  const pitchD = pitchOf(spec.storage, spec.padD);
  const pitchV = pitchOf(spec.storage, spec.padDv);
  const viewQ = arithmetic.view(sQ, pitchD, 'a');
  const toLog2 = spec.folded ? p.scaleLog2 : asm.constant('f32', LOG2E);
  const Hq = spec.dropout ? take(asm, 'Hq').Hq : null;
  const dropouts = Hq === null ? null : dropoutOf(asm, asm.op('mad.lo.s32', place.b, Hq, h0));
  const using = asm.constant('b32', 0);

  const loop = asm.label('loopKV');
  const done = asm.label('join');
  asm.place(loop);
  asm.branch(done, asm.op('setp.lt.s32', block, endBlock), { negate: true, uniform: true });
  cpAsyncWait(asm, stages - 2);
  asm.barrier();
  fetch();
  const kHere = asm.op('mad.lo.s32', using, stageBytes, sRing);
  const vHere = asm.op('add.s32', kHere, tileBytes(tileK));
  nextSlot(using);
  const kv0 = asm.op('mad.lo.s32', block, blockK, asm.op('shl.b32', warp, 4));
  const warpK = asm.op('mad.lo.s32', warp, 16 * pitchD, kHere);
  const warpV = asm.op('mad.lo.s32', warp, 16 * pitchV, vHere);
  const viewK = arithmetic.view(warpK, pitchD, 'b');
  const viewV = arithmetic.view(warpV, pitchV, 'bt');

  asm.stage('scores: S = Q K^T, 16 keys a warp');
  let tiles: Tile[][] = zeroTiles(asm, m, 16);
  for (let k = 0; k < spec.padD / arithmetic.kStep; k++) {
    const pair = viewK.b(0, k);
    for (let i = 0; i < m; i++) {
      const a = viewQ.a(i, k);
      pair.forEach((b, j) => {
        arithmetic.mma(tiles[i][j], a, b);
      });
    }
  }
  const scorer = scorerOf(asm, spec, place);
  const columns = columnPositions(asm, kv0, lanes.t, 2);
  const grid = { rowsAre: 'q', rows: qPositions, columns, head: h0, rowHead } as const;
  if (!spec.folded) tiles = tiles.map((r) => r.map((tile) => tile.map((s) => asm.op('mul.f32', s, p.scale))));
  if (spec.mod !== null) tiles = scorer.modify(tiles, grid, [spec.mod])[0];
  tiles = tiles.map((r, i) =>
    r.map((tile, n) => {
      const attends = scorer.attends(grid, i, n);
      return tile.map((x, e) => asm.op('selp.f32', x, Number.NEGATIVE_INFINITY, attends[e]));
    }),
  );

  asm.stage('softmax');
  const { alphas } = softmaxRows(asm, tiles, best, sum, toLog2);
  acc.forEach((row, i) => {
    for (const tile of row)
      tile.forEach((x, e) => {
        asm.set(x, 'mul.f32', x, alphas[2 * i + (e >> 1)]);
      });
  });
  if (spec.mask !== null) {
    asm.stage('values that no product may see where they are masked: NaN and infinity');
    purge(asm, tileV, vHere, threads, thread, () =>
      addAttended(asm, {
        ...{ spec, place, acc, qPositions, kv0, h: h0, rowHead, t: lanes.t },
        base: warpV,
        tile: { ...tileV, rows: 16 },
      }),
    );
  }
  if (dropouts !== null && Hq !== null) {
    asm.stage('dropout');
    tiles.forEach((row, i) => {
      row.forEach((tile, n) => {
        const pair = asm.op('shr.u32', columns[2 * n], 1);
        for (const half of [0, 1]) {
          const r = 2 * i + half;
          const keep = dropouts.keepPair(qPositions[r], pair, asm.op('mad.lo.s32', place.b, Hq, rowHead[r]));
          for (const j of [0, 1]) tile[half * 2 + j] = asm.op('selp.f32', tile[half * 2 + j], 0, keep[j]);
        }
      });
    });
  }
  asm.stage('accumulate: O += P V');
  for (let k = 0; k < 16 / arithmetic.kStep; k++) {
    const a = tiles.map((row) => arithmetic.fromTiles(row, k));
    for (let n = 0; n < spec.padDv / 16; n++)
      viewV.bt(k, n).forEach((b, j) => {
        for (let i = 0; i < m; i++) arithmetic.mma(acc[i][2 * n + j], a[i], b);
      });
  }
  asm.set(block, 'add.s32', block, p.splits);
  asm.branch(loop);

  asm.place(done);
  asm.stage('join the warps: state, then outputs over a common maximum');
  cpAsyncWait(asm, 0);
  asm.barrier();
  // Of each warp: rows of outputs; behind all of them, (best, sum) of each row.
  const outBytes = rows * joinPitch;
  const stateAt = asm.op('add.s32', sJoin, warps * outBytes);
  const firstLane = asm.op('setp.eq.s32', lanes.t, 0);
  for (let r = 0; r * 8 < rows; r++) {
    for (const lane of [1, 2]) asm.set(sum[r], 'add.f32', sum[r], shuffleXor(asm, sum[r], lane));
    const row = asm.op('add.s32', lanes.g, r * 8);
    const skip = asm.label('row');
    if ((r + 1) * 8 > rows) asm.branch(skip, asm.op('setp.ge.s32', row, rows));
    const at = asm.op('mad.lo.s32', asm.op('mad.lo.s32', warp, rows, row), 8, stateAt);
    asm.when(firstLane, () => asm.storeVector('shared', 'f32', at, [best[r], sum[r]]));
    const line = asm.op('mad.lo.s32', row, joinPitch, asm.op('mad.lo.s32', warp, outBytes, sJoin));
    const place_ = asm.op('mad.lo.s32', lanes.t, 8, line);
    acc[r >> 1].forEach((tile, n) => {
      asm.storeVector('shared', 'f32', place_, [tile[(r & 1) * 2], tile[(r & 1) * 2 + 1]], n * 32);
    });
    asm.place(skip);
  }
  asm.barrier();

  asm.stage('sum the warps: one thread 4 columns of a row, and write');
  const o = take(asm, 'out', 'outB', 'outH', 'outS', 'lse', 'lseB', 'lseH', 'lseS', 'partOut', 'partState', 'counters');
  const target = {
    ...{ spec, place, h0, queries, dropout: dropouts, sink: spec.sink ? take(asm, 'sink').sink : null },
    ...{ out: o.out, outStrides: { b: o.outB, h: o.outH, s: o.outS } },
    ...{ lse: o.lse, lseStrides: { b: o.lseB, h: o.lseH, s: o.lseS } },
  };
  const group = asm.op('mad.lo.s32', place.b, asm.special('nctaid.y'), hkv);
  const alone = asm.op('setp.eq.s32', p.splits, 1);
  const written = asm.label('written');
  const item = asm.op('mov.b32', thread);
  const writing = asm.label('write');
  asm.place(writing);
  asm.branch(written, asm.op('setp.ge.s32', item, rows * (spec.padDv / WIDTH)));
  const { row, column } = unpackItem(asm, spec, item);
  const states = Array.from({ length: warps }, (_, i) => {
    const at = asm.op('mad.lo.s32', row, 8, stateAt);
    return asm.loadVector('shared', 'f32', 2, at, i * rows * 8);
  });
  const highest = states.map((s) => s[0]).reduce((x, y) => asm.op('max.f32', x, y));
  const nothing = asm.op('setp.eq.f32', highest, Number.NEGATIVE_INFINITY);
  const base = asm.op('selp.f32', 0, highest, nothing);
  const at = asm.op('mad.lo.s32', column, 4, asm.op('mad.lo.s32', row, joinPitch, sJoin));
  const total = asm.constant('f32', 0);
  const values = Array.from({ length: WIDTH }, () => asm.constant('f32', 0));
  states.forEach(([top, part], i) => {
    const weight = asm.op('ex2.approx.ftz.f32', asm.op('sub.f32', top, base));
    asm.set(total, 'fma.rn.f32', weight, part, total);
    asm.loadVector('shared', 'f32', WIDTH, at, i * outBytes).forEach((x, j) => {
      asm.set(values[j], 'fma.rn.f32', weight, x, values[j]);
    });
  });
  asm.if(
    alone,
    () => writeColumns(asm, target, row, column, values, highest, total),
    () => {
      const part = asm.op('mad.lo.s32', asm.op('mad.lo.s32', group, p.splits, split), rows, row);
      const partAt = asm.op('add.s64', o.partState, asm.op('mul.wide.s32', part, 8));
      const isFirst = asm.op('setp.eq.s32', column, 0);
      asm.when(isFirst, () => asm.storeVector('global', 'f32', partAt, [highest, total]));
      const line = asm.op('mul.lo.s64', asm.op('cvt.s64.s32', part), spec.padDv * 4);
      const outAt = asm.op('add.s64', asm.op('add.s64', o.partOut, line), asm.op('mul.wide.s32', column, 4));
      asm.storeVector('global', 'f32', outAt, values);
    },
  );
  asm.set(item, 'add.s32', item, threads);
  asm.branch(writing);

  asm.place(written);
  asm.branch(end, alone, { uniform: true });
  asm.stage('count the splits that are done: the last one joins them');
  const parts = {
    ...{ rows, splits: p.splits, group },
    partOut: o.partOut,
    partState: o.partState,
    counters: o.counters,
  };
  awaitLast(asm, parts, thread, end);
  combineSplits(asm, { ...parts, ...target, thread, threads, shared: sJoin });
  asm.place(end);
  return asm.finish();
}
