/**
 * Forward: one item is a block of query rows of one head, which goes over the blocks of keys its mask leaves
 * (FlashAttention-2, algorithm 1, with queries as lanes: see softmax.ts).
 */
import { alignTo, ceilDiv } from '../../../core/math.ts';
import type { Config, Cost, Listing } from '../../../engine/contract.ts';
import { flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { ModuleBuilder } from '../asm/module.ts';
import { i32, i32Const } from '../asm/values.ts';
import type { WasmCaps, WasmKernel } from '../kernel.ts';
import type { RoutineKind } from '../native/routines.ts';
import { type Shape, shapeOf } from '../tile.ts';
import { attentionLayout, emitAttention } from './attend.ts';
import { Routines } from './calls.ts';
import { codeKey, refuseStorage } from './identity.ts';
import { forBlocks, ITEM, writeQueryItems } from './items.ts';
import { PARAMS, PHASE, writeParams } from './params.ts';

export interface ForwardConfig extends Config {
  /** Query rows of an item: whole groups of lanes. */
  readonly blockQ: number;
  /** Keys at a time: a multiple of 4. 64 divides the usual block layouts, so that their blocks are skip or full; 48 to 128 run alike. */
  readonly blockK: number;
}

const layoutOf = (problem: Problem, { blockQ, blockK }: ForwardConfig, shape: Shape) =>
  attentionLayout(problem, shape, blockQ / shape.lanes, blockK);

const ROUTINES = ['zero', 'rescale', 'maximum', 'softmax'] as const;
const routinesOf = ({ native, lanes }: Shape): readonly RoutineKind[] =>
  native ? ROUTINES.map((routine) => ({ routine, N: lanes })) : [];

/** Whether K and V are not neighbouring f32 rows as they lie: see keys.ts. */
const copiesKeys = ({ dtype, kv, strides, D, Dv }: Problem): boolean =>
  dtype !== 'f32' || kv.kind === 'paged' || strides.k.s !== D || strides.v.s !== Dv;

function build(problem: Problem, config: ForwardConfig, caps: WasmCaps): ModuleBuilder {
  const shape = shapeOf(caps);
  const m = new ModuleBuilder(caps.shared);
  const routines = shape.native ? new Routines(m, routinesOf(shape)) : null;
  const attention = emitAttention(m, problem, layoutOf(problem, config, shape), routines, 'q');
  m.func(
    'forward',
    PHASE,
    (f, a) => {
      const item = f.let(i32.add(PARAMS.i32(a.params, 'items'), i32.mul(a.index, ITEM.bytes)), 'item');
      const rows = f.let(ITEM.i32(item, 'rows'), 'rows');
      const groups = attention.begin(f, a, item, rows, PARAMS.i32(a.params, 'strideQ'));
      forBlocks(f, item, (block, partial) => attention.visit(f, a, item, groups, block, partial));
      const logit = i32.add(PARAMS.i32(a.params, 'sink'), i32.mul(ITEM.i32(item, 'h'), 4));
      const strides = { out: PARAMS.i32(a.params, 'strideOut'), lse: i32Const(4) };
      attention.end(f, a, item, groups, strides, problem.sink ? logit : i32Const(0));
    },
    true,
  );
  return m;
}

export const forward: WasmKernel<ForwardConfig> = {
  name: 'forward',
  pass: 'forward',
  refuse: refuseStorage,
  configs(problem, caps) {
    const { lanes, native } = shapeOf(caps);
    const { mask, Sq } = problem;
    // Rows that have to be copied or decoded are so once an item: more queries share the work.
    const shared = copiesKeys(problem) && Sq > 8 * lanes ? [{ blockQ: 8 * lanes, blockK: 64 }] : [];
    // Machine code gains 5 % from larger blocks; a mask loses more at its edges.
    const large = { blockQ: 8 * lanes, blockK: 128 };
    return [
      ...(native && mask === null ? [large] : shared),
      { blockQ: 4 * lanes, blockK: 64 },
      { blockQ: 2 * lanes, blockK: 64 },
    ];
  },
  cost(problem, config, caps): Cost {
    const flops = flopsOf(problem, 'forward');
    // Lanes past the last query work for nothing, and threads without an item do not work.
    const { B, Hq, Sq } = problem;
    const padding = alignTo(Sq, shapeOf(caps).lanes) / Math.max(Sq, 1);
    const share = Math.min(1, (B * Hq * ceilDiv(Sq, config.blockQ)) / caps.threads) || 1;
    const bytes = tiledBytes(problem, 'forward', config.blockQ, config.blockK);
    const { scratch } = layoutOf(problem, config, shapeOf(caps));
    const workspace = caps.threads * scratch.total;
    return {
      flops,
      bytes,
      workspace,
      seconds: Math.max((flops * padding) / (caps.flops * share), bytes / caps.bandwidth),
    };
  },
  emit: (problem, config, caps): Listing[] => [{ name: 'forward', text: build(problem, config, caps).text() }],
  key: (problem, config, caps) => codeKey('forward', problem, config, caps),
  compile: (problem, config, caps) => ({
    module: build(problem, config, caps).bytes(),
    scratch: layoutOf(problem, config, shapeOf(caps)).scratch.total,
    routines: routinesOf(shapeOf(caps)),
  }),
  launch(problem, config, at, heap) {
    const { items, count } = writeQueryItems(problem, config.blockQ, config.blockK, at, heap);
    const params = writeParams(problem, at, heap, items);
    return { params, phases: [{ entry: 'forward', items: count, steps: 1 }] };
  },
};
