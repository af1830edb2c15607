/** The phases of backward around the chains: row statistics before them, and sums of what they left in parts after. */
import { BYTES } from '../../../core/dtype.ts';
import { LOG2E } from '../../../core/math.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { FuncBuilder, Local } from '../asm/func.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { type F32, f32, f32Const, f32x4, type I32, i32, i32x4, type V128, v128 } from '../asm/values.ts';
import { exp2Negative } from '../functions.ts';
import { loadFour, type Stored, storeFour } from '../storage.ts';
import { floats, ints, iota, type Shape, transpose4, Vectors } from '../tile.ts';
import { BACKWARD, HEAD } from './chains.ts';
import { emitClear } from './gemm.ts';
import { minimum } from './items.ts';
import { PARAMS, PHASE } from './params.ts';

/**
 * Phase `delta`, an item a query head: delta = rowsum(dOut * out) - dLse and lse, a row each; the head's part of
 * the sink's gradient, -sum over rows of exp(sink - lse) * delta; and the head's rows of dq cleared. Four rows at a time,
 * each summed in the order of dP, so that what cancels in dP - delta cancels exactly.
 *
 * @param dqRow bytes of an accumulated row of dq, 0 when there are none.
 */
export function emitDelta(m: ModuleBuilder, problem: Problem, shape: Shape, dqRow: number): void {
  const { Dv, grads } = problem;
  const dtype = problem.dtype as Stored;
  const sinks = grads?.sink === true;
  m.func(
    'delta',
    PHASE,
    (f, a) => {
      const v = new Vectors(f, { ...shape, lanes: 4 });
      const more = f.let(PARAMS.i32(a.params, 'more'), 'more');
      const head = f.let(i32.add(BACKWARD.i32(more, 'heads'), i32.mul(a.index, HEAD.bytes)), 'head');
      const field = (name: Parameters<typeof HEAD.i32>[1]) => f.let(HEAD.i32(head, name), name);
      const [lse, dLse, rowLse, delta] = [field('lse'), field('dLse'), field('rowLse'), field('delta')];
      const lenQ = field('lenQ');
      const stride = PARAMS.i32(a.params, 'strideOut');
      const logit = sinks ? v.splat(f32.load(i32.add(PARAMS.i32(a.params, 'sink'), i32.mul(field('h'), 4)))) : null;
      const total = f.let(ints(0), 'total');
      forFourRows(f, [field('out'), field('dOut')], stride, lenQ, (row, [out, dOut]) => {
        const [sum] = v.map((x) => x, [ints(0)]);
        const columns = (count: number): void => {
          const [x, y] = [out, dOut].map((four) =>
            transpose4(
              f,
              four.map((at) => f.let(loadFour(f, dtype, at))),
            ),
          );
          for (let i = 0; i < count; i++) f.set(sum, v.madd(y[i], x[i], sum));
          for (const at of [...out, ...dOut]) f.bump(at, 4 * BYTES[dtype]);
        };
        f.for(0, Dv >> 2, 1, () => columns(4));
        if (Dv % 4 > 0) columns(Dv % 4);
        const offset = f.let(i32.mul(row, 4), 'offset');
        f.if(dLse, () => f.set(sum, f32x4.sub(sum, v128.load(i32.add(dLse, offset)))));
        f.do(v128.store(i32.add(delta, offset), sum));
        const natural = f.let(v128.load(i32.add(lse, offset)), 'natural');
        const nothing = f32x4.eq(natural, floats(Number.NEGATIVE_INFINITY));
        const shown = f.let(v128.bitselect(floats(Number.POSITIVE_INFINITY), natural, nothing), 'shown');
        f.do(v128.store(i32.add(rowLse, offset), shown));
        if (logit === null) return;
        const [weight] = exp2Negative(
          v,
          v.map((x, y) => f32x4.mul(f32x4.sub(x, y), floats(LOG2E)), logit, [shown]),
        );
        const inside = i32x4.lt_s(iota(v, row)[0], i32x4.splat(lenQ));
        f.set(total, f32x4.sub(total, v128.and(f32x4.mul(weight, sum), inside)));
      });
      if (sinks) f.do(f32.store(field('sinkPart'), sumLanes(total)));
      if (dqRow > 0) {
        const part = BACKWARD.i32(more, 'partBytes');
        const dq = field('dq');
        f.for(0, f.let(BACKWARD.i32(more, 'splits'), 'splits'), 1, () => {
          emitClear(f, dq, i32.mul(lenQ, dqRow));
          f.bump(dq, part);
        });
      }
    },
    true,
  );
}

/** Rows four at a time; the addresses of rows past the end are those of the last. */
function forFourRows(
  f: FuncBuilder,
  tensors: readonly Local<'i32'>[],
  stride: I32,
  rows: Local<'i32'>,
  body: (row: Local<'i32'>, addresses: Local<'i32'>[][]) => void,
): void {
  const last = f.let(i32.sub(rows, 1), 'last');
  f.for(
    0,
    rows,
    4,
    (row) => {
      const offsets = [0, 1, 2, 3].map((i) => f.let(i32.mul(minimum(f, i32.add(row, i), last), stride), 'at'));
      body(
        row,
        tensors.map((start) => offsets.map((at) => f.let(i32.add(start, at), 'row'))),
      );
    },
    'row',
  );
}

const sumLanes = (x: V128): F32 => {
  const lane = (i: number) => f32x4.extract_lane(x, i);
  return f32.add(f32.add(lane(0), lane(1)), f32.add(lane(2), lane(3)));
};

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
      const piece = (x: Local<'i32'>, y: Local<'i32'>, count: number): void => {
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
