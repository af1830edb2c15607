/**
 * Work items of backward. A chain is one key/value head of one batch, or every `splits`-th key block of it: its blocks are
 * worked on in order by one thread, so that what several blocks add to (dq, side gradients) is added in a fixed order.
 */
import { BYTES } from '../../../core/dtype.ts';
import { alignTo, ceilDiv } from '../../../core/math.ts';
import type { Problem } from '../../../problem/problem.ts';
import { blockRuns, lengthsOf } from '../../../problem/ranges.ts';
import type { Addresses, Heap } from '../kernel.ts';
import { rowBytes, writeRuns } from './items.ts';
import { layout } from './layout.ts';
import type { SidePlan } from './side_grads.ts';

/**
 * `k`, `v`, `dk`, `dv` are addresses of row 0 of the sequence; `heads` of the first of its query heads' records; `block` is
 * the chain's first key block; `dqPart` is added to addresses of dq; `sides` is where the chain's side gradients are.
 */
export const CHAIN = layout(['k', 'v', 'dk', 'dv', 'heads', 'block', 'dqPart', 'sides', 'b', 'lenQ', 'lenK']);

/**
 * A query head: addresses of row 0 of the sequence, and its first row of runs. `dq` is where gradients are accumulated,
 * `dqOut` where they belong; `rowLse` (lse, +inf where nothing attends) and
 * `delta` are f32 rows of the workspace.
 */
export const HEAD = layout([
  'q',
  'out',
  'dOut',
  'lse',
  'dLse',
  'dq',
  'dqOut',
  'rowLse',
  'delta',
  'b',
  'h',
  'lenQ',
  'run',
  'sinkPart',
]);

/** What backward reads besides PARAMS, at PARAMS.more. */
export const BACKWARD = layout([
  'heads',
  'group',
  'splits',
  'rowStart',
  'runs',
  'partBytes',
  'batches',
  'dSink',
  'sums',
]);

/** Chains of a problem: enough for eight threads, as far as there are key blocks. A function of the problem alone. */
export const splitsOf = ({ B, Hkv, Sk }: Problem, blockK: number): number =>
  Math.max(1, Math.min(ceilDiv(8, Math.max(B * Hkv, 1)), ceilDiv(Sk, blockK)));

/** How dq is accumulated: in place, or in f32 rows of whole Vecs that a later phase adds up and stores. */
export interface DqPlan {
  readonly inPlace: boolean;
  /** Elements of an accumulated row. */
  readonly row: number;
  /** Bytes of one part, all heads; 0 in place. */
  readonly partBytes: number;
}

export function dqPlanOf(problem: Problem, lanes: number, splits: number): DqPlan {
  const { B, Hq, Sq, D, dtype, strides } = problem;
  const inPlace = splits === 1 && dtype === 'f32' && D % lanes === 0 && strides.q.s === D;
  const row = inPlace ? D : ceilDiv(D, lanes) * lanes;
  return { inPlace, row, partBytes: inPlace ? 0 : B * Hq * Sq * row * 4 };
}

export interface ChainPlan {
  readonly blockQ: number;
  readonly blockK: number;
  readonly lanes: number;
  readonly sides: readonly SidePlan[];
}

export interface WrittenChains {
  readonly chains: number;
  readonly count: number;
  readonly steps: number;
  readonly headCount: number;
  /** Address of the BACKWARD record. */
  readonly more: number;
  readonly dqInPlace: boolean;
}

/** Writes all records of a backward pass. */
export function writeChains(problem: Problem, plan: ChainPlan, at: Addresses, heap: Heap): WrittenChains {
  const { B, Hq, Hkv, Sq, Sk, strides, dtype } = problem;
  const { blockQ, blockK } = plan;
  const bytes = BYTES[dtype];
  const splits = splitsOf(problem, blockK);
  const dq = dqPlanOf(problem, plan.lanes, splits);
  const wantsQ = at.dq !== 0;
  const group = Hq / Hkv;
  const found = blockRuns(problem, 'kv', blockQ, blockK);
  const runs = writeRuns(heap, found);
  const rowStart = heap.allocate(found.rowStart.length * 4);
  heap.i32.set(found.rowStart, rowStart >>> 2);
  const headCount = B * Hq;
  // Statistics are written four rows at a time.
  const statistics = alignTo(Sq, 4) * 4;
  const rows = heap.allocate(2 * headCount * statistics);
  const parts = wantsQ && !dq.inPlace ? heap.allocate(splits * dq.partBytes) : 0;
  const sinkParts = heap.allocate(Math.max(headCount, 1) * 4);
  const heads = heap.allocate(Math.max(headCount, 1) * HEAD.bytes);
  for (let b = 0; b < B; b++) {
    const { lenQ } = lengthsOf(problem, b);
    const qStart = problem.sequences[4 * b];
    for (let h = 0; h < Hq; h++) {
      const index = b * Hq + h;
      const row = (base: number, s: typeof strides.q, size: number): number =>
        base === 0 ? 0 : base + rowBytes(s, size, b, h, qStart);
      HEAD.write(heap, heads + index * HEAD.bytes, {
        q: row(at.q, strides.q, bytes),
        out: row(at.out, strides.out, bytes),
        dOut: row(at.dOut, strides.out, bytes),
        lse: row(at.lse, strides.lse, 4),
        dLse: row(at.dLse, strides.lse, 4),
        dq: dq.inPlace ? row(at.dq, strides.q, bytes) : parts + index * Sq * dq.row * 4,
        dqOut: row(at.dq, strides.q, bytes),
        rowLse: rows + index * statistics,
        delta: rows + (headCount + index) * statistics,
        b,
        h,
        lenQ,
        run: found.rowOf(b, h, 0),
        sinkPart: sinkParts + index * 4,
      });
    }
  }
  const count = B * Hkv * splits;
  const { table: sides, sums } = writeSideAddresses(plan, count, at, heap);
  const chains = heap.allocate(Math.max(count, 1) * CHAIN.bytes);
  for (let b = 0; b < B; b++) {
    const { lenQ, lenK } = lengthsOf(problem, b);
    const kStart = problem.sequences[4 * b + 2];
    for (let hkv = 0; hkv < Hkv; hkv++) {
      const row = (base: number, s: typeof strides.k): number =>
        base === 0 ? 0 : base + rowBytes(s, bytes, b, hkv, kStart);
      for (let split = 0; split < splits; split++) {
        const index = (b * Hkv + hkv) * splits + split;
        CHAIN.write(heap, chains + index * CHAIN.bytes, {
          k: row(at.k, strides.k),
          v: row(at.v, strides.v),
          dk: row(at.dk, strides.k),
          dv: row(at.dv, strides.v),
          heads: heads + (b * Hq + hkv * group) * HEAD.bytes,
          block: split,
          dqPart: split * dq.partBytes,
          sides: sides + index * plan.sides.length * 4,
          b,
          lenQ,
          lenK,
        });
      }
    }
  }
  const more = heap.allocate(BACKWARD.bytes);
  BACKWARD.write(heap, more, {
    heads,
    group,
    splits,
    rowStart,
    runs,
    partBytes: dq.partBytes,
    batches: B,
    dSink: at.dSink,
    sums,
  });
  return { chains, count, steps: ceilDiv(ceilDiv(Sk, blockK), splits), headCount, more, dqInPlace: dq.inPlace };
}

/**
 * Where each chain adds its part of each side gradient: the gradient itself when no two chains meet in an element, else a
 * copy of its own. All start as zeros. `table` is [chain][side plan] of addresses; `sums` has for each side plan what
 * phase `sum_side` reads.
 */
function writeSideAddresses(
  plan: ChainPlan,
  count: number,
  at: Addresses,
  heap: Heap,
): { table: number; sums: number } {
  const width = plan.sides.length;
  const table = heap.allocate(Math.max(count * width, 1) * 4);
  const sums = heap.allocate(Math.max(width, 1) * 16);
  plan.sides.forEach(({ side, owned, elements }, i) => {
    const base = owned ? at.dSides[side] : heap.allocate(Math.max(count, 1) * elements * 4);
    const { i32, f32 } = heap;
    f32.fill(0, base >>> 2, (base >>> 2) + (owned ? 1 : Math.max(count, 1)) * elements);
    i32.set([base, at.dSides[side], elements, count], (sums >>> 2) + 4 * i);
    for (let chain = 0; chain < count; chain++)
      i32[(table >>> 2) + chain * width + i] = owned ? base : base + chain * elements * 4;
  });
  return { table, sums };
}
