/**
 * What forward and decode have in common: a group of lanes (queries, or query heads of one key head at one query) that
 * goes over blocks of keys.
 */
import type { Problem } from '../../../problem/problem.ts';
import type { Callable, FuncBuilder, Local } from '../asm/func.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { f32, f32Const, type I32, i32, i32Const } from '../asm/values.ts';
import type { Stored } from '../storage.ts';
import { ConstantTable, type Shape, Vectors } from '../tile.ts';
import type { Routines } from './calls.ts';
import { expressionsOf, type LaneAxis } from './expressions.ts';
import { ITEM, minimum } from './items.ts';
import { emitCheckFinite, emitFetch } from './keys.ts';
import { arrays } from './layout.ts';
import { PARAMS, type PHASE } from './params.ts';
import { emitTransposeIn, emitTransposeOut } from './rows.ts';
import { emitDrop, emitModify, emitSpan } from './scores.ts';
import { emitCarefulOut, emitEmpty, emitFinish, emitOut, emitScores, emitSoftmax, groupOf, workOf } from './softmax.ts';

export type PhaseArguments = { readonly [K in keyof typeof PHASE]: Local<'i32'> };

/** Scratch of a thread: `groups` groups of lanes, one block's scores, and copies of K and V rows. */
export function attentionLayout({ D, Dv }: Problem, shape: Shape, groups: number, blockK: number) {
  const block = { shape, D, Dv, blockK, routines: null };
  const group = groupOf(shape, D, Dv);
  const work = workOf(block);
  const scratch = arrays({
    groups: groups * group.total,
    work: work.total,
    k: blockK * D * 4 + 16,
    v: blockK * Dv * 4 + 16,
    flag: 4,
  });
  return { block, group, work, scratch };
}

export type AttentionLayout = ReturnType<typeof attentionLayout>;

/** The groups of an item at run time. */
export interface Groups {
  /** Address of the first group, and of the first byte past the last. */
  readonly first: Local<'i32'>;
  readonly end: Local<'i32'>;
  readonly rows: Local<'i32'>;
}

/** Code for the parts of an item's work, to be put together by a kernel's entry function. */
export interface Attention {
  /** Fills in constants, loads `rows` rows of q that are `stride` bytes apart, and empties their state. */
  begin(f: FuncBuilder, a: PhaseArguments, item: Local<'i32'>, rows: Local<'i32'>, stride: I32): Groups;
  /** One block of keys. */
  visit(
    f: FuncBuilder,
    a: PhaseArguments,
    item: Local<'i32'>,
    groups: Groups,
    block: Local<'i32'>,
    partial: Local<'i32'>,
  ): void;
  /** Writes `rows` rows of out and lse. `sink` is the address of a logit, or 0. */
  end(
    f: FuncBuilder,
    a: PhaseArguments,
    item: Local<'i32'>,
    groups: Groups,
    strides: { out: I32; lse: I32 },
    sink: I32,
  ): void;
}

export function emitAttention(
  m: ModuleBuilder,
  problem: Problem,
  { block: planned, group, work, scratch }: AttentionLayout,
  routines: Routines | null,
  lanesAre: LaneAxis & ('q' | 'h'),
): Attention {
  const { D, Dv, mod, mask, dropout } = problem;
  const { shape, blockK } = planned;
  const dtype = problem.dtype as Stored;
  const table = new ConstantTable();
  const block = { ...planned, routines };
  const loadQ = emitTransposeIn(m, 'load_q', shape, dtype, D, group.total);
  const storeOut = emitTransposeOut(m, 'store_out', shape, dtype, Dv, group.total);
  const fetchK = emitFetch(m, problem, 'k');
  const fetchV = emitFetch(m, problem, 'v');
  const empty = emitEmpty(m, block, group);
  const finish = emitFinish(m, block, group, lanesAre === 'q' ? 'one' : 'each');
  const scores = emitScores(m, block);
  const softmax = emitSoftmax(m, block, group, work, table);
  const out = emitOut(m, block);
  const expressions = expressionsOf(problem);
  const unmasked = { ...expressions, mask: null };
  const modify = mod && emitModify(m, 'modify', block, group, work, unmasked, table, lanesAre);
  const modifyPartial = mask && emitModify(m, 'modify_partial', block, group, work, expressions, table, lanesAre);
  const span = mask && emitSpan(m, block, work, expressions, table, lanesAre);
  const carefulOut = mask && emitCarefulOut(m, block);
  const checkFinite = mask && emitCheckFinite(m);
  const drop = dropout && emitDrop(m, block, work, lanesAre);

  const step = {
    params: 'i32',
    item: 'i32',
    lane0: 'i32',
    kv0: 'i32',
    k: 'i32',
    v: 'i32',
    rows: 'i32',
    group: 'i32',
    work: 'i32',
    partial: 'i32',
    flag: 'i32',
  } as const;
  /** One block of keys against one group of queries. */
  const attend = m.func('attend', step, (f, a) => {
    const v = new Vectors(f, shape);
    if (span)
      f.if(a.partial, () => {
        // The lanes at hand may need fewer keys than the whole block of queries does.
        f.call(span, a.params, a.item, a.lane0, a.kv0, a.work, a.rows);
        // Dropout draws for four keys at a time.
        const first = f.let(i32.and(i32.load(a.work, work.span), -4), 'first');
        f.set(a.rows, i32.sub(i32.load(a.work, work.span + 4), first));
        f.if(i32.eqz(a.rows), () => f.return());
        f.bump(a.kv0, first);
        f.bump(a.k, i32.mul(first, 4 * D));
        f.bump(a.v, i32.mul(first, 4 * Dv));
      });
    const p = f.let(i32.add(a.work, work.p), 'p');
    v.store(a.work, v.load(a.group, group.max), work.max);
    f.call(scores, a.k, i32.add(a.group, group.q), p, i32.add(a.work, work.max), a.rows);
    const change = (by: Callable): void => f.call(by, a.params, a.item, a.lane0, a.kv0, a.group, a.work, a.rows);
    if (modifyPartial) f.if(a.partial, () => change(modifyPartial), modify ? () => change(modify) : undefined);
    else if (modify) change(modify);
    f.call(softmax, a.group, a.work, a.rows, PARAMS.f32(a.params, 'slope'));
    if (drop) f.call(drop, a.params, a.item, a.lane0, a.kv0, a.work, a.rows);
    const add = (by: Callable): void =>
      f.call(by, a.v, p, i32.add(a.group, group.out), i32.add(a.work, work.alpha), a.rows);
    if (carefulOut)
      f.if(
        a.flag,
        () => add(carefulOut),
        () => add(out),
      );
    else add(out);
  });

  return {
    begin(f, a, item, rows, stride) {
      const first = f.let(i32.add(a.scratch, scratch.groups), 'groups');
      const count = i32.div_u(i32.add(rows, shape.lanes - 1), shape.lanes);
      const end = f.let(i32.add(first, i32.mul(count, group.total)), 'end');
      table.fill(f, f.let(i32.add(a.scratch, scratch.work + work.constants), 'constants'));
      const factor = PARAMS.f32(a.params, 'factor');
      f.call(loadQ, ITEM.i32(item, 'q'), stride, rows, factor, i32.add(first, group.q));
      f.sweep(first, end, group.total, (g) => f.call(empty, g));
      return { first, end, rows };
    },
    visit(f, a, item, { first, end }, index, partial) {
      const { params } = a;
      const kv0 = f.let(i32.mul(index, blockK), 'kv0');
      const n = f.let(minimum(f, i32.sub(ITEM.i32(item, 'lenK'), kv0), i32Const(blockK)), 'n');
      const k = fetchK(f, params, item, kv0, n, i32.add(a.scratch, scratch.k));
      const v = fetchV(f, params, item, kv0, n, i32.add(a.scratch, scratch.v));
      const flag = f.let(i32Const(0), 'flag');
      if (checkFinite)
        f.if(partial, () => {
          f.call(checkFinite, v, i32.mul(n, Dv), i32.add(a.scratch, scratch.flag));
          f.set(flag, i32.load(a.scratch, scratch.flag));
        });
      const lane0 = f.let(ITEM.i32(item, lanesAre === 'q' ? 'q0' : 'h'), 'lane0');
      const workspace = f.let(i32.add(a.scratch, scratch.work), 'work');
      f.sweep(first, end, group.total, (g) => {
        f.call(attend, params, item, lane0, kv0, k, v, n, g, workspace, partial, flag);
        f.bump(lane0, shape.lanes);
      });
    },
    end(f, a, item, { first, end, rows }, strides, sink) {
      const toScore = mod ? f32Const(1) : PARAMS.f32(a.params, 'toScore');
      const logits = f.let(sink, 'sink');
      f.sweep(first, end, group.total, (g) => {
        f.call(finish, g, toScore, PARAMS.f32(a.params, 'keepScale'), logits);
        if (lanesAre === 'h' && problem.sink) f.bump(logits, shape.lanes * 4);
      });
      f.call(storeOut, i32.add(first, group.out), i32.add(first, group.sum), ITEM.i32(item, 'out'), strides.out, rows);
      const lse = f.let(ITEM.i32(item, 'lse'), 'lse');
      f.for(0, rows, 1, (r) => {
        const own = i32.add(first, i32.mul(i32.div_u(r, shape.lanes), group.total));
        const from = i32.add(own, i32.mul(i32.and(r, shape.lanes - 1), 4));
        f.do(f32.store(lse, f32.load(from, group.max)));
        f.bump(lse, strides.lse);
      });
    },
  };
}
