/**
 * Few queries against many keys (FlashDecoding): lanes are the query heads that share a key head, at one query; keys are
 * split over items, whose running states are merged in order by a second phase.
 */
import { BYTES } from '../../../core/dtype.ts';
import { alignTo, ceilDiv } from '../../../core/math.ts';
import type { Config, Cost } from '../../../engine/contract.ts';
import { flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { blockRuns, lengthsOf } from '../../../problem/ranges.ts';
import type { FuncBuilder, Local } from '../asm/func.ts';
import { ModuleBuilder } from '../asm/module.ts';
import { f32x4, i32, i32Const, select } from '../asm/values.ts';
import { exp2Negative } from '../functions.ts';
import type { Addresses, Heap, WasmCaps, WasmKernel } from '../kernel.ts';
import { type Shape, shapeOf, Vectors } from '../tile.ts';
import { attentionLayout, emitAttention } from './attend.ts';
import { codeKey, refuseStorage } from './identity.ts';
import { ITEM, rowBytes, writeRuns } from './items.ts';
import { layout } from './layout.ts';
import { PARAMS, PHASE, writeParams } from './params.ts';
import type { Group } from './softmax.ts';

export interface DecodeConfig extends Config {
  /** Lanes of a Vec: at least the query heads of a key head, if it may be. */
  readonly lanes: number;
  /** Keys at a time, and keys of an item. */
  readonly blockK: number;
  readonly chunk: number;
}

/** Most query rows a head may have; more make whole lanes of queries worth while. */
const MOST_QUERIES = 8;

/** What decode reads besides PARAMS: strides between query heads in bytes, splits, bytes of a part. */
const DECODE = layout(['headQ', 'headOut', 'headLse', 'splits', 'partBytes']);

const groupSize = ({ Hq, Hkv }: Problem): number => Hq / Hkv;

/** One register of four lanes, or two, where that is enough heads; tiles of eight rows then fill the registers. */
function decodeShape(config: DecodeConfig, caps: WasmCaps): Shape {
  const shape = shapeOf({ ...caps, native: 0 });
  const rows = config.lanes === 4 ? 8 : shape.rows;
  return { ...shape, lanes: config.lanes, rows };
}

function layoutOf(problem: Problem, config: DecodeConfig, caps: WasmCaps) {
  const shape = decodeShape(config, caps);
  return attentionLayout(problem, shape, ceilDiv(groupSize(problem), config.lanes), config.blockK);
}

const splitsOf = (problem: Problem, { chunk }: DecodeConfig): number => Math.max(1, ceilDiv(problem.Sk, chunk));

function build(problem: Problem, config: DecodeConfig, caps: WasmCaps): ModuleBuilder {
  const m = new ModuleBuilder(caps.shared);
  const planned = layoutOf(problem, config, caps);
  const { group } = planned;
  const { shape } = planned.block;
  const attention = emitAttention(m, problem, planned, null, 'h');
  const item = (f: FuncBuilder, a: { params: Local<'i32'> }, index: ReturnType<typeof i32.add>) =>
    f.let(i32.add(PARAMS.i32(a.params, 'items'), i32.mul(index, ITEM.bytes)), 'item');
  /** Output, maximum and sum of a group are neighbours in memory, from `out` to the end. */
  const stateBytes = group.total - group.out;

  m.func(
    'decode',
    PHASE,
    (f, a) => {
      const own = item(f, a, a.index);
      const more = f.let(PARAMS.i32(a.params, 'more'), 'more');
      const rows = f.let(ITEM.i32(own, 'rows'), 'rows');
      const groups = attention.begin(f, a, own, rows, DECODE.i32(more, 'headQ'));
      forBlocksWithin(f, own, (block, partial) => attention.visit(f, a, own, groups, block, partial));
      const to = f.let(ITEM.i32(own, 'part'), 'to');
      const v = new Vectors(f, shape);
      f.sweep(groups.first, groups.end, group.total, (g) => {
        const from = f.let(i32.add(g, group.out), 'from');
        f.for(0, stateBytes, v.bytes, () => {
          v.store(to, v.load(from));
          f.bump(from, v.bytes);
          f.bump(to, v.bytes);
        });
      });
    },
    true,
  );

  const merge = emitMerge(m, shape, group);
  m.func(
    'combine',
    PHASE,
    (f, a) => {
      const more = f.let(PARAMS.i32(a.params, 'more'), 'more');
      const splits = f.let(DECODE.i32(more, 'splits'), 'splits');
      const own = item(f, a, i32.mul(a.index, splits));
      const rows = f.let(ITEM.i32(own, 'rows'), 'rows');
      const groups = attention.begin(f, a, own, rows, DECODE.i32(more, 'headQ'));
      const part = f.let(ITEM.i32(own, 'part'), 'part');
      f.sweep(groups.first, groups.end, group.total, (g) => {
        const from = f.let(part, 'from');
        f.for(0, splits, 1, () => {
          f.call(merge, g, from, PARAMS.f32(a.params, 'slope'));
          f.bump(from, DECODE.i32(more, 'partBytes'));
        });
        f.bump(part, stateBytes);
      });
      const strides = { out: DECODE.i32(more, 'headOut'), lse: DECODE.i32(more, 'headLse') };
      const logits = i32.add(PARAMS.i32(a.params, 'sink'), i32.mul(ITEM.i32(own, 'h'), 4));
      attention.end(f, a, own, groups, strides, problem.sink ? logits : i32Const(0));
    },
    true,
  );
  return m;
}

/** (group, part, slope): a part's maximum, sum and output joined to a group's; problem/merge.ts has the algebra. */
function emitMerge(m: ModuleBuilder, shape: Shape, group: Group) {
  return m.func('merge', { group: 'i32', part: 'i32', slope: 'f32' }, (f, a) => {
    const v = new Vectors(f, shape);
    const slope = v.splat(a.slope);
    const at = (name: 'out' | 'max' | 'sum'): number => group[name] - group.out;
    const [x, y] = [v.load(a.group, group.max), v.load(a.part, at('max'))];
    const max = v.map((p, q) => f32x4.pmax(p, q), x, y);
    const factor = (before: typeof x) =>
      exp2Negative(
        v,
        v.map((p, q, c) => f32x4.mul(f32x4.sub(p, q), c), before, max, slope),
      );
    const [s, t] = [factor(x), factor(y)];
    const join = (p: typeof x, q: typeof x) => v.map((u, c, w, d) => v.madd(u, c, f32x4.mul(w, d)), p, s, q, t);
    v.store(a.group, max, group.max);
    v.store(a.group, join(v.load(a.group, group.sum), v.load(a.part, at('sum'))), group.sum);
    f.for(0, at('max'), v.bytes, () => {
      v.store(a.group, join(v.load(a.group, group.out), v.load(a.part)), group.out);
      f.bump(a.group, v.bytes);
      f.bump(a.part, v.bytes);
    });
  });
}

/** Emits a loop over those blocks of an item's runs that lie in its range. */
function forBlocksWithin(
  f: FuncBuilder,
  item: Local<'i32'>,
  body: (block: Local<'i32'>, partial: Local<'i32'>) => void,
): void {
  const run = f.let(ITEM.i32(item, 'runs'), 'run');
  const first = f.let(ITEM.i32(item, 'first'), 'first');
  const last = f.let(ITEM.i32(item, 'last'), 'last');
  f.for(0, f.let(ITEM.i32(item, 'count'), 'count'), 1, () => {
    const from = f.let(i32.load(run), 'from');
    const end = f.let(i32.load(run, 4), 'end');
    f.set(from, select(i32.lt_s(from, first), first, from));
    f.set(end, select(i32.lt_s(last, end), last, end));
    const partial = f.let(i32.load(run, 8), 'partial');
    f.for(from, end, 1, (block) => body(block, partial), 'block');
    f.bump(run, 12);
  });
}

/** Writes the items [(b, key head, query)][split]; returns their address and the number of (b, key head, query). */
function writeItems(
  problem: Problem,
  config: DecodeConfig,
  partBytes: number,
  at: Addresses,
  heap: Heap,
): { items: number; outputs: number } {
  const { B, Hkv, strides, dtype } = problem;
  const { blockK, chunk } = config;
  const bytes = BYTES[dtype];
  const found = blockRuns(problem, 'q', 1, blockK);
  const runs = writeRuns(heap, found);
  // Heads of one item may attend to different keys: then all blocks are visited, and masked.
  const everything = heap.allocate(12);
  heap.i32.set([0, ceilDiv(problem.Sk, blockK), 1], everything >>> 2);
  const perHead = found.strideH !== 0;
  const splits = splitsOf(problem, config);
  const size = groupSize(problem);
  const queries = Array.from({ length: B }, (_, b) => lengthsOf(problem, b).lenQ);
  const outputs = queries.reduce((sum, n) => sum + n, 0) * Hkv;
  const items = heap.allocate(Math.max(outputs * splits, 1) * ITEM.bytes);
  const parts = heap.allocate(Math.max(outputs * splits, 1) * partBytes);
  let index = 0;
  for (let b = 0; b < B; b++) {
    const { lenQ, lenK } = lengthsOf(problem, b);
    const [qStart, , kStart] = problem.sequences.subarray(4 * b, 4 * b + 3);
    const [kb, k0] = problem.kv.kind === 'paged' ? [0, 0] : [b, kStart];
    for (let hkv = 0; hkv < Hkv; hkv++)
      for (let q0 = 0; q0 < lenQ; q0++)
        for (let split = 0; split < splits; split++) {
          const h = hkv * size;
          const row = found.rowOf(b, h, q0);
          ITEM.write(heap, items + index * ITEM.bytes, {
            q: at.q + rowBytes(strides.q, bytes, b, h, qStart + q0),
            k: at.k + rowBytes(strides.k, bytes, kb, hkv, k0),
            v: at.v + rowBytes(strides.v, bytes, kb, hkv, k0),
            out: at.out + rowBytes(strides.out, bytes, b, h, qStart + q0),
            lse: at.lse + rowBytes(strides.lse, 4, b, h, qStart + q0),
            b,
            h,
            q0,
            rows: size,
            lenQ,
            lenK,
            runs: perHead ? everything : runs + 12 * found.rowStart[row],
            count: perHead ? 1 : found.count(row),
            first: (split * chunk) / blockK,
            last: Math.min(((split + 1) * chunk) / blockK, ceilDiv(lenK, blockK)),
            part: parts + index * partBytes,
          });
          index++;
        }
  }
  return { items, outputs };
}

const partBytesOf = (problem: Problem, { lanes }: DecodeConfig): number => {
  const row = alignTo(lanes * 4, 64);
  return ceilDiv(groupSize(problem), lanes) * (alignTo(problem.Dv * lanes * 4, 64) + 2 * row);
};

export const decode: WasmKernel<DecodeConfig> = {
  name: 'decode',
  pass: 'forward',
  refuse(problem) {
    if (problem.Sq > MOST_QUERIES) return `${problem.Sq} query rows a head, at most ${MOST_QUERIES}`;
    return refuseStorage(problem);
  },
  configs(problem, caps) {
    const size = groupSize(problem);
    const lanes = size <= 4 ? 4 : size <= 8 ? 8 : shapeOf({ ...caps, native: 0 }).lanes;
    return [{ lanes, blockK: 96, chunk: 960 }];
  },
  cost(problem, config, caps): Cost {
    const flops = flopsOf(problem, 'forward');
    const bytes = tiledBytes(problem, 'forward', 1, config.blockK) / Math.max(groupSize(problem), 1);
    const size = groupSize(problem);
    const padding = alignTo(size, config.lanes) / size;
    const items = problem.B * problem.Hkv * problem.Sq * splitsOf(problem, config);
    const workspace =
      items * (partBytesOf(problem, config) + ITEM.bytes) +
      caps.threads * layoutOf(problem, config, caps).scratch.total;
    const share = Math.min(1, items / caps.threads);
    const seconds = Math.max((flops * padding) / (caps.flops * share), bytes / caps.bandwidth);
    return { flops, bytes, workspace, seconds };
  },
  emit: (problem, config, caps) => [{ name: 'decode', text: build(problem, config, caps).text() }],
  key: (problem, config, caps) => `${codeKey('decode', problem, config, caps)}|${groupSize(problem)}`,
  compile: (problem, config, caps) => ({
    module: build(problem, config, caps).bytes(),
    scratch: layoutOf(problem, config, caps).scratch.total,
  }),
  launch(problem, config, at, heap) {
    const partBytes = partBytesOf(problem, config);
    const splits = splitsOf(problem, config);
    const { items, outputs } = writeItems(problem, config, partBytes, at, heap);
    const { strides, dtype } = problem;
    const more = heap.allocate(DECODE.bytes);
    DECODE.write(heap, more, {
      headQ: strides.q.h * BYTES[dtype],
      headOut: strides.out.h * BYTES[dtype],
      headLse: strides.lse.h * 4,
      splits,
      partBytes,
    });
    const params = writeParams(problem, at, heap, items, more);
    return {
      params,
      phases: [
        { entry: 'decode', items: outputs * splits, steps: 1 },
        { entry: 'combine', items: outputs, steps: 1 },
      ],
    };
  },
};
