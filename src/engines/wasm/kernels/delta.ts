/** The phases of backward around the chains: row statistics before them, and sums of what they left in parts after. */
import { BYTES } from '../../../core/dtype.ts';
import { LOG2E } from '../../../core/math.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { f32, f32Const, f32x4, i32, select, type V128, v128, v128Const } from '../asm/values.ts';
import { exp2Negative } from '../functions.ts';
import { loadFour, type Stored, storeFour } from '../storage.ts';
import { ints, type Shape, Vectors } from '../tile.ts';
import { BACKWARD, HEAD } from './chains.ts';
import { emitClear } from './gemm.ts';
import { PARAMS } from './params.ts';

/** Parameters of every phase. */
export const PHASE = { params: 'i32', index: 'i32', step: 'i32', scratch: 'i32' } as const;

/** Lanes below `count` of four. */
const firstLanes = (count: number): V128 =>
  v128Const([0, 1, 2, 3].map((i) => (i < count ? -1 : 0)) as [number, number, number, number]);

/**
 * Phase `delta`, an item a query head: delta = rowsum(dOut * out) - dLse and lse in base 2, a row each; the head's part of
 * the sink's gradient, -sum over rows of exp(sink - lse) * delta; and the head's rows of dq cleared.
 *
 * @param dqRow bytes of an accumulated row of dq, 0 when there are none.
 */
export function emitDelta(m: ModuleBuilder, problem: Problem, shape: Shape, dqRow: number): void {
  const { Dv, grads } = problem;
  const dtype = problem.dtype as Stored;
  m.func(
    'delta',
    PHASE,
    (f, a) => {
      const more = f.let(PARAMS.i32(a.params, 'more'), 'more');
      const head = f.let(i32.add(BACKWARD.i32(more, 'heads'), i32.mul(a.index, HEAD.bytes)), 'head');
      const field = (name: Parameters<typeof HEAD.i32>[1]) => f.let(HEAD.i32(head, name), name);
      const [out, dOut, lse, dLse] = [field('out'), field('dOut'), field('lse'), field('dLse')];
      const [base2, delta, lenQ] = [field('base2'), field('delta'), field('lenQ')];
      const stride = f.let(PARAMS.i32(a.params, 'strideOut'), 'stride');
      const one = new Vectors(f, { ...shape, lanes: 4 });
      const sinks = grads?.sink === true;
      const logit = sinks ? f.let(f32.load(i32.add(PARAMS.i32(a.params, 'sink'), i32.mul(field('h'), 4)))) : null;
      const total = f.let(f32Const(0), 'total');
      f.for(0, lenQ, 1, (q) => {
        const at = f.let(i32.mul(q, stride), 'at');
        const [x, y] = [f.let(i32.add(out, at), 'x'), f.let(i32.add(dOut, at), 'y')];
        const sum = f.let(ints(0), 'sum');
        const term = (): V128 => f32x4.mul(loadFour(f, dtype, x), loadFour(f, dtype, y));
        f.for(0, Dv >> 2, 1, () => {
          f.set(sum, f32x4.add(sum, term()));
          for (const p of [x, y]) f.bump(p, 4 * BYTES[dtype]);
        });
        if (Dv % 4 > 0) f.set(sum, f32x4.add(sum, v128.and(term(), firstLanes(Dv % 4))));
        const lane = (i: number) => f32x4.extract_lane(sum, i);
        const value = f.let(f32.add(f32.add(lane(0), lane(1)), f32.add(lane(2), lane(3))), 'value');
        const offset = i32.mul(q, 4);
        f.if(dLse, () => f.set(value, f32.sub(value, f32.load(i32.add(dLse, offset)))));
        f.do(f32.store(i32.add(delta, offset), value));
        const natural = f.let(f32.load(i32.add(lse, offset)), 'natural');
        const nothing = f32.eq(natural, Number.NEGATIVE_INFINITY);
        const shown = f.let(select(nothing, f32Const(Number.POSITIVE_INFINITY), natural), 'shown');
        f.do(f32.store(i32.add(base2, offset), f32.mul(shown, LOG2E)));
        if (logit) {
          const weight = exp2Negative(one, one.splat(f32.mul(f32.sub(logit, shown), LOG2E)));
          f.set(total, f32.sub(total, f32.mul(f32x4.extract_lane(weight[0], 0), value)));
        }
      });
      if (logit) f.do(f32.store(field('sinkPart'), total));
      if (dqRow > 0) {
        const part = BACKWARD.i32(more, 'partBytes');
        const splits = f.let(BACKWARD.i32(more, 'splits'), 'splits');
        const dq = field('dq');
        f.for(0, splits, 1, () => {
          emitClear(f, dq, i32.mul(lenQ, dqRow));
          f.bump(dq, part);
        });
      }
    },
    true,
  );
}

/** Phase `sum_dq`, an item a query head: parts of dq added in order, and stored. @param row elements of a part's row. */
export function emitSumDq(m: ModuleBuilder, problem: Problem, row: number): void {
  const dtype = problem.dtype as Stored;
  m.func(
    'sum_dq',
    PHASE,
    (f, a) => {
      const more = f.let(PARAMS.i32(a.params, 'more'), 'more');
      const head = f.let(i32.add(BACKWARD.i32(more, 'heads'), i32.mul(a.index, HEAD.bytes)), 'head');
      const splits = f.let(BACKWARD.i32(more, 'splits'), 'splits');
      const partBytes = f.let(BACKWARD.i32(more, 'partBytes'), 'partBytes');
      const from = f.let(HEAD.i32(head, 'dq'), 'from');
      const to = f.let(HEAD.i32(head, 'dqOut'), 'to');
      const piece = (x: import('../asm/func.ts').Local<'i32'>, y: typeof x, count: number): void => {
        const sum = f.let(v128.load(x), 'sum');
        const part = f.let(x, 'part');
        f.for(1, splits, 1, () => {
          f.bump(part, partBytes);
          f.set(sum, f32x4.add(sum, v128.load(part)));
        });
        storeFour(f, dtype, y, sum, count);
      };
      f.for(0, f.let(HEAD.i32(head, 'lenQ'), 'lenQ'), 1, () => {
        const [x, y] = [f.let(from, 'x'), f.let(to, 'y')];
        f.for(0, problem.D >> 2, 1, () => {
          piece(x, y, 4);
          f.bump(x, 16);
          f.bump(y, 4 * BYTES[dtype]);
        });
        if (problem.D % 4 > 0) piece(x, y, problem.D % 4);
        f.bump(from, row * 4);
        f.bump(to, PARAMS.i32(a.params, 'strideQ'));
      });
    },
    true,
  );
}

/** Phase `sum_sink`, an item a query head: what the batches found, added in order. */
export function emitSumSink(m: ModuleBuilder): void {
  m.func(
    'sum_sink',
    PHASE,
    (f, a) => {
      const more = f.let(PARAMS.i32(a.params, 'more'), 'more');
      const head = f.let(i32.add(BACKWARD.i32(more, 'heads'), i32.mul(a.index, HEAD.bytes)), 'head');
      const step = f.let(i32.mul(PARAMS.i32(a.params, 'heads'), HEAD.bytes), 'step');
      const total = f.let(f32Const(0), 'total');
      f.for(0, f.let(BACKWARD.i32(more, 'batches'), 'batches'), 1, () => {
        f.set(total, f32.add(total, f32.load(HEAD.i32(head, 'sinkPart'))));
        f.bump(head, step);
      });
      f.do(f32.store(i32.add(BACKWARD.i32(more, 'dSink'), i32.mul(a.index, 4)), total));
    },
    true,
  );
}

/** Elements of a side gradient that an item of `sum_side` adds up. */
export const SIDE_ITEM = 4096;

/**
 * Phase `sum_side<k>`: an item is SIDE_ITEM elements of side plan k, the chains' copies of which are added in order. The
 * record at `sums + 16 * k` holds (first copy, gradient, elements, copies).
 */
export function emitSumSide(m: ModuleBuilder, plan: number): void {
  m.func(
    `sum_side${plan}`,
    PHASE,
    (f, a) => {
      const record = f.let(i32.add(BACKWARD.i32(f.let(PARAMS.i32(a.params, 'more')), 'sums'), 16 * plan), 'record');
      const elements = f.let(i32.load(record, 8), 'elements');
      const copies = f.let(i32.load(record, 12), 'copies');
      const first = f.let(i32.mul(a.index, SIDE_ITEM), 'first');
      const end = f.let(i32.add(first, SIDE_ITEM), 'end');
      f.if(i32.lt_s(elements, end), () => f.set(end, elements));
      f.for(first, end, 1, (i) => {
        const from = f.let(i32.add(i32.load(record), i32.mul(i, 4)), 'from');
        const sum = f.let(f32.load(from), 'sum');
        f.for(1, copies, 1, () => {
          f.bump(from, i32.mul(elements, 4));
          f.set(sum, f32.add(sum, f32.load(from)));
        });
        f.do(f32.store(i32.add(i32.load(record, 4), i32.mul(i, 4)), sum));
      });
    },
    true,
  );
}
