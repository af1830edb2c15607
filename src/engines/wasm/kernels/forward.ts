/**
 * Forward: one item is a block of query rows of one head, which goes over the blocks of keys its mask leaves
 * (FlashAttention-2, algorithm 1, with queries as lanes: see softmax.ts).
 */
import type { Config, Cost, Listing } from '../../../engine/contract.ts';
import { flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { Callable } from '../asm/func.ts';
import { ModuleBuilder } from '../asm/module.ts';
import { f32, f32Const, i32, i32Const } from '../asm/values.ts';
import type { WasmCaps, WasmKernel } from '../kernel.ts';
import type { RoutineKind } from '../native/routines.ts';
import type { Stored } from '../storage.ts';
import { ConstantTable, type Shape, shapeOf, Vectors } from '../tile.ts';
import { Routines } from './calls.ts';
import { expressionsOf } from './expressions.ts';
import { codeKey, refuseStorage } from './identity.ts';
import { forBlocks, ITEM, minimum, writeQueryItems } from './items.ts';
import { emitCheckFinite, emitFetch } from './keys.ts';
import { arrays } from './layout.ts';
import { PARAMS, writeParams } from './params.ts';
import { emitTransposeIn, emitTransposeOut } from './rows.ts';
import { emitDrop, emitModify } from './scores.ts';
import { emitCarefulOut, emitEmpty, emitFinish, emitOut, emitScores, emitSoftmax, groupOf, workOf } from './softmax.ts';

export interface ForwardConfig extends Config {
  /** Query rows of an item: whole groups of lanes. */
  readonly blockQ: number;
  /** Keys at a time: whole register tiles, and a multiple of 4. */
  readonly blockK: number;
}

function plan(problem: Problem, config: ForwardConfig, shape: Shape) {
  const { D, Dv } = problem;
  const { blockQ, blockK } = config;
  const block = { shape, D, Dv, blockK, routines: null };
  const group = groupOf(shape, D, Dv);
  const work = workOf(block);
  const scratch = arrays({
    groups: (blockQ / shape.lanes) * group.total,
    work: work.total,
    k: blockK * D * 4 + 16,
    v: blockK * Dv * 4 + 16,
    flag: 4,
  });
  return { block, group, work, scratch };
}

const ROUTINES = ['zero', 'rescale', 'maximum', 'softmax'] as const;
const routinesOf = ({ native, lanes }: Shape): readonly RoutineKind[] =>
  native ? ROUTINES.map((routine) => ({ routine, N: lanes })) : [];

function build(problem: Problem, config: ForwardConfig, caps: WasmCaps): ModuleBuilder {
  const shape = shapeOf(caps);
  const { D, Dv, mod, mask, dropout, sink } = problem;
  const dtype = problem.dtype as Stored;
  const { group, work, scratch, ...planned } = plan(problem, config, shape);
  const m = new ModuleBuilder(caps.shared);
  const table = new ConstantTable();
  const block = { ...planned.block, routines: shape.native ? new Routines(m, routinesOf(shape)) : null };
  const loadQ = emitTransposeIn(m, 'load_q', shape, dtype, D, group.total);
  const storeOut = emitTransposeOut(m, 'store_out', shape, dtype, Dv, group.total);
  const fetchK = emitFetch(m, problem, 'k');
  const fetchV = emitFetch(m, problem, 'v');
  const empty = emitEmpty(m, block, group);
  const finish = emitFinish(m, block, group);
  const scores = emitScores(m, block);
  const softmax = emitSoftmax(m, block, group, work, table);
  const out = emitOut(m, block);
  const expressions = expressionsOf(problem);
  const modify = mod && emitModify(m, 'modify', block, group, work, { ...expressions, mask: null }, table);
  const modifyPartial = mask && emitModify(m, 'modify_partial', block, group, work, expressions, table);
  const carefulOut = mask && emitCarefulOut(m, block);
  const checkFinite = mask && emitCheckFinite(m);
  const drop = dropout && emitDrop(m, block, work);

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

  const entry = { params: 'i32', index: 'i32', step: 'i32', scratch: 'i32' } as const;
  const body: Parameters<typeof m.func<typeof entry>>[2] = (f, a) => {
    const { params } = a;
    const item = f.let(i32.add(PARAMS.i32(params, 'items'), i32.mul(a.index, ITEM.bytes)), 'item');
    const rows = f.let(ITEM.i32(item, 'rows'), 'rows');
    const lenK = f.let(ITEM.i32(item, 'lenK'), 'lenK');
    const groups = f.let(i32.add(a.scratch, scratch.groups), 'groups');
    const count = i32.div_u(i32.add(rows, shape.lanes - 1), shape.lanes);
    const end = f.let(i32.add(groups, i32.mul(count, group.total)), 'end');
    const workspace = f.let(i32.add(a.scratch, scratch.work), 'work');
    table.fill(f, f.let(i32.add(workspace, work.constants), 'constants'));
    const factor = PARAMS.f32(params, 'factor');
    f.call(loadQ, ITEM.i32(item, 'q'), PARAMS.i32(params, 'strideQ'), rows, factor, i32.add(groups, group.q));
    const logit = sink
      ? f.let(i32.add(PARAMS.i32(params, 'sink'), i32.mul(ITEM.i32(item, 'h'), 4)), 'sink')
      : i32Const(0);
    f.sweep(groups, end, group.total, (g) => f.call(empty, g));
    forBlocks(f, item, (index, partial) => {
      const kv0 = f.let(i32.mul(index, config.blockK), 'kv0');
      const n = f.let(minimum(f, i32.sub(lenK, kv0), i32Const(config.blockK)), 'n');
      const k = fetchK(f, params, item, kv0, n, i32.add(a.scratch, scratch.k));
      const v = fetchV(f, params, item, kv0, n, i32.add(a.scratch, scratch.v));
      const flag = f.let(i32Const(0), 'flag');
      if (checkFinite)
        f.if(partial, () => {
          f.call(checkFinite, v, i32.mul(n, Dv), i32.add(a.scratch, scratch.flag));
          f.set(flag, i32.load(a.scratch, scratch.flag));
        });
      const lane0 = f.let(ITEM.i32(item, 'q0'), 'lane0');
      f.sweep(groups, end, group.total, (g) => {
        f.call(attend, params, item, lane0, kv0, k, v, n, g, workspace, partial, flag);
        f.bump(lane0, shape.lanes);
      });
    });
    const [toScore, keepScale] = [mod ? f32Const(1) : PARAMS.f32(params, 'toScore'), PARAMS.f32(params, 'keepScale')];
    f.sweep(groups, end, group.total, (g) => f.call(finish, g, toScore, keepScale, logit));
    const factors = i32.add(groups, group.sum);
    const target = ITEM.i32(item, 'out');
    f.call(storeOut, i32.add(groups, group.out), factors, target, PARAMS.i32(params, 'strideOut'), rows);
    const lse = f.let(ITEM.i32(item, 'lse'), 'lse');
    f.for(0, rows, 1, (r) => {
      const group0 = i32.add(groups, i32.mul(i32.div_u(r, shape.lanes), group.total));
      const from = i32.add(group0, i32.mul(i32.and(r, shape.lanes - 1), 4));
      f.do(f32.store(i32.add(lse, i32.mul(r, 4)), f32.load(from, group.max)));
    });
  };
  m.func('forward', entry, body, true);
  return m;
}

export const forward: WasmKernel<ForwardConfig> = {
  name: 'forward',
  pass: 'forward',
  refuse: refuseStorage,
  configs: (_problem, caps) => {
    const { lanes } = shapeOf(caps);
    return [
      { blockQ: 4 * lanes, blockK: 48 },
      { blockQ: 2 * lanes, blockK: 48 },
    ];
  },
  cost(problem, config, caps): Cost {
    const flops = flopsOf(problem, 'forward');
    const bytes = tiledBytes(problem, 'forward', config.blockQ, config.blockK);
    const { scratch } = plan(problem, config, shapeOf(caps));
    const workspace = caps.threads * scratch.total;
    return { flops, bytes, workspace, seconds: Math.max(flops / caps.flops, bytes / caps.bandwidth) };
  },
  emit: (problem, config, caps): Listing[] => [{ name: 'forward', text: build(problem, config, caps).text() }],
  key: (problem, config, caps) => codeKey('forward', problem, config, caps),
  compile: (problem, config, caps) => ({
    module: build(problem, config, caps).bytes(),
    scratch: plan(problem, config, shapeOf(caps)).scratch.total,
    routines: routinesOf(shapeOf(caps)),
  }),
  launch(problem, config, at, heap) {
    const { items, count } = writeQueryItems(problem, config.blockQ, config.blockK, at, heap);
    const params = writeParams(problem, at, heap, items);
    return { params, phases: [{ entry: 'forward', items: count, steps: 1 }] };
  },
};
