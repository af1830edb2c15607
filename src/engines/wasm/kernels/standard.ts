/**
 * Standard attention, with the matrix of all scores in memory: what tiled attention is compared with. It is made of the same
 * products and the same softmax as the tiled kernels, on all threads, so that the comparison is about the algorithm. The
 * planner never chooses it; give it to an engine by name. As usual for this method, infinities and NaN in masked rows of V show.
 *
 * Phases, with a barrier after each: S = Q . K' for every head, P = softmax(mask(mod(S))), out = P . V.
 */
import { alignTo, ceilDiv } from '../../../core/math.ts';
import type { Config, Cost } from '../../../engine/contract.ts';
import { standardCost } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { FuncBuilder, Local } from '../asm/func.ts';
import { ModuleBuilder } from '../asm/module.ts';
import { f32, f32Const, i32, i32Const } from '../asm/values.ts';
import type { WasmCaps, WasmKernel } from '../kernel.ts';
import type { Stored } from '../storage.ts';
import { ConstantTable, floats, type Shape, shapeOf, Vectors } from '../tile.ts';
import { PHASE, type PhaseArguments } from './attend.ts';
import { expressionsOf } from './expressions.ts';
import { codeKey, refuseStorage } from './identity.ts';
import { ITEM, minimum, writeQueryItems } from './items.ts';
import { emitFetch } from './keys.ts';
import { arrays } from './layout.ts';
import { PARAMS, writeParams } from './params.ts';
import { emitTransposeIn, emitTransposeOut } from './rows.ts';
import { emitDrop, emitModify } from './scores.ts';
import { emitEmpty, emitFinish, emitOut, emitScores, emitSoftmax, groupOf, workOf } from './softmax.ts';

export interface StandardConfig extends Config {
  /** Query rows of an item: whole groups of lanes. */
  readonly blockQ: number;
  /** Keys that are fetched at a time. */
  readonly blockK: number;
  /** Columns of the matrix: Sk or a little more. */
  readonly columns: number;
  /** Lanes of a Vec on this machine, on which the layout of the matrix depends. */
  readonly lanes: number;
}

/** A group of lanes in memory: its state, then its columns of the matrix. */
function layoutOf({ D, Dv }: Problem, { blockK, columns }: StandardConfig, shape: Shape) {
  const block = { shape, D, Dv, blockK: columns, routines: null };
  const group = groupOf(shape, D, Dv);
  const work = workOf(block);
  const scratch = arrays({ k: blockK * D * 4 + 16, v: blockK * Dv * 4 + 16 });
  return { block, group, work, scratch, stride: group.total + work.total };
}

/** Products are WASM here in all modes. */
const plain = (caps: WasmCaps): Shape => shapeOf({ ...caps, native: 0 });

/** Bytes of an item's part of the matrix. */
function itemBytes(problem: Problem, config: StandardConfig): number {
  const { lanes, blockQ } = config;
  const { stride } = layoutOf(problem, config, { lanes, rows: 1, unroll: 1, relaxed: false, native: false });
  return (blockQ / lanes) * stride;
}

function build(problem: Problem, config: StandardConfig, caps: WasmCaps): ModuleBuilder {
  const { D, Dv, mod, mask, dropout } = problem;
  const shape = plain(caps);
  const { block, group, work, scratch, stride } = layoutOf(problem, config, shape);
  const dtype = problem.dtype as Stored;
  const row = shape.lanes * 4;
  const m = new ModuleBuilder(caps.shared);
  const table = new ConstantTable();
  const loadQ = emitTransposeIn(m, 'load_q', shape, dtype, D, stride);
  const storeOut = emitTransposeOut(m, 'store_out', shape, dtype, Dv, stride);
  const fetchK = emitFetch(m, problem, 'k');
  const fetchV = emitFetch(m, problem, 'v');
  const empty = emitEmpty(m, block, group);
  const finish = emitFinish(m, block, group, 'one');
  const scores = emitScores(m, block);
  const softmax = emitSoftmax(m, block, group, work, table);
  const out = emitOut(m, block);
  const modify = (mod || mask) && emitModify(m, 'modify', block, group, work, expressionsOf(problem), table, 'q');
  const drop = dropout && emitDrop(m, block, work, 'q');

  /** A phase: `body` gets the item and a loop over its groups of lanes, each with its address and its first query. */
  const phase = (
    name: string,
    body: (
      f: FuncBuilder,
      a: PhaseArguments,
      item: Local<'i32'>,
      each: (visit: (g: Local<'i32'>, w: Local<'i32'>, lane0: Local<'i32'>) => void) => void,
    ) => void,
  ): void => {
    const emit = (f: FuncBuilder, a: PhaseArguments): void => {
      const item = f.let(i32.add(PARAMS.i32(a.params, 'items'), i32.mul(a.index, ITEM.bytes)), 'item');
      const groups = f.let(ITEM.i32(item, 'part'), 'groups');
      const count = i32.div_u(i32.add(ITEM.i32(item, 'rows'), shape.lanes - 1), shape.lanes);
      const end = f.let(i32.add(groups, i32.mul(count, stride)), 'end');
      body(f, a, item, (visit) => {
        const lane0 = f.let(ITEM.i32(item, 'q0'), 'lane0');
        f.sweep(groups, end, stride, (g) => {
          visit(g, f.let(i32.add(g, group.total), 'work'), lane0);
          f.bump(lane0, shape.lanes);
        });
      });
    };
    m.func(name, PHASE, emit, true);
  };
  const forKeys = (f: FuncBuilder, item: Local<'i32'>, body: (kv0: Local<'i32'>, n: Local<'i32'>) => void): void => {
    const lenK = f.let(ITEM.i32(item, 'lenK'), 'lenK');
    f.for(0, lenK, config.blockK, (kv0) => {
      body(kv0, f.let(minimum(f, i32.sub(lenK, kv0), i32Const(config.blockK)), 'n'));
    });
  };

  phase('scores', (f, a, item, each) => {
    const { params } = a;
    const v = new Vectors(f, shape);
    const first = i32.add(ITEM.i32(item, 'part'), group.q);
    const factor = PARAMS.f32(params, 'factor');
    f.call(loadQ, ITEM.i32(item, 'q'), PARAMS.i32(params, 'strideQ'), ITEM.i32(item, 'rows'), factor, first);
    each((g, w) => {
      f.call(empty, g);
      v.store(w, v.load(g, group.max), work.max);
    });
    forKeys(f, item, (kv0, n) => {
      const k = fetchK(f, params, item, kv0, n, i32.add(a.scratch, scratch.k));
      each((g, w) => {
        const p = i32.add(i32.add(w, work.p), i32.mul(kv0, row));
        f.call(scores, k, i32.add(g, group.q), p, i32.add(w, work.max), n);
      });
    });
  });
  phase('softmax', (f, a, item, each) => {
    const lenK = f.let(ITEM.i32(item, 'lenK'), 'lenK');
    each((g, w, lane0) => {
      table.fill(f, f.let(i32.add(w, work.constants), 'constants'));
      if (modify) f.call(modify, a.params, item, lane0, 0, g, w, lenK);
      f.call(softmax, g, w, lenK, PARAMS.f32(a.params, 'slope'));
      if (drop) f.call(drop, a.params, item, lane0, 0, w, lenK);
    });
  });
  phase('out', (f, a, item, each) => {
    const { params } = a;
    const v = new Vectors(f, shape);
    each((_, w) => v.store(w, v.repeat(floats(1)), work.alpha));
    forKeys(f, item, (kv0, n) => {
      const values = fetchV(f, params, item, kv0, n, i32.add(a.scratch, scratch.v));
      each((g, w) => {
        const p = i32.add(i32.add(w, work.p), i32.mul(kv0, row));
        f.call(out, values, p, i32.add(g, group.out), i32.add(w, work.alpha), n);
      });
    });
    const logit = i32.add(PARAMS.i32(params, 'sink'), i32.mul(ITEM.i32(item, 'h'), 4));
    const scale = mod ? f32Const(1) : PARAMS.f32(params, 'toScore');
    each((g) => f.call(finish, g, scale, PARAMS.f32(params, 'keepScale'), problem.sink ? logit : i32Const(0)));
    const rows = f.let(ITEM.i32(item, 'rows'), 'rows');
    const groups = f.let(ITEM.i32(item, 'part'), 'groups');
    const factors = i32.add(groups, group.sum);
    const pitch = PARAMS.i32(params, 'strideOut');
    f.call(storeOut, i32.add(groups, group.out), factors, ITEM.i32(item, 'out'), pitch, rows);
    f.for(0, rows, 1, (r) => {
      const own = i32.add(groups, i32.mul(i32.div_u(r, shape.lanes), stride));
      const from = i32.add(own, i32.mul(i32.and(r, shape.lanes - 1), 4));
      f.do(f32.store(i32.add(ITEM.i32(item, 'lse'), i32.mul(r, 4)), f32.load(from, group.max)));
    });
  });
  return m;
}

export const standard: WasmKernel<StandardConfig> = {
  name: 'standard',
  pass: 'forward',
  refuse: refuseStorage,
  configs(problem, caps) {
    const { lanes } = plain(caps);
    return [{ blockQ: 4 * lanes, blockK: 96, columns: alignTo(Math.max(problem.Sk, 1), 12), lanes }];
  },
  cost(problem, config, caps): Cost {
    const workspace = problem.B * problem.Hq * ceilDiv(problem.Sq, config.blockQ) * itemBytes(problem, config);
    return { ...standardCost({ ...problem, grads: null }, caps), workspace };
  },
  emit: (problem, config, caps) => [{ name: 'standard', text: build(problem, config, caps).text() }],
  key: (problem, config, caps) => codeKey('standard', problem, config, caps),
  compile: (problem, config, caps) => ({
    module: build(problem, config, caps).bytes(),
    scratch: layoutOf(problem, config, plain(caps)).scratch.total,
  }),
  launch(problem, config, at, heap) {
    const { items, count } = writeQueryItems(problem, config.blockQ, config.blockK, at, heap);
    const bytes = itemBytes(problem, config);
    const matrix = heap.allocate(Math.max(count, 1) * bytes);
    for (let n = 0; n < count; n++) heap.i32[(items + n * ITEM.bytes + ITEM.offset('part')) >>> 2] = matrix + n * bytes;
    const params = writeParams(problem, at, heap, items);
    const phases = ['scores', 'softmax', 'out'].map((entry) => ({ entry, items: count, steps: 1 }));
    return { params, phases };
  },
};
