/**
 * Backward by recomputation in one pass of five products (FlashAttention-2, algorithm 2, with keys as lanes). A chain goes
 * over its blocks of keys, one a step, keeping in scratch the block's K and V as columns and its dK and dV; for every block
 * of queries that the mask leaves, and every group of lanes:
 *
 *     S = Q . Kt        P = 2^(S - lse)        dVt += dO' . P        dP = dO . Vt        dS = P * (dP - delta)
 *     dKt += Q' . dS    and, over all groups,  dQ += dS . K
 */
import { ceilDiv } from '../../../core/math.ts';
import type { Config, Cost } from '../../../engine/contract.ts';
import { type Derivatives, derive } from '../../../mods/derive.ts';
import { flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { Callable, FuncBuilder, Local } from '../asm/func.ts';
import { ModuleBuilder } from '../asm/module.ts';
import { f32Const, type I32, i32, i32Const } from '../asm/values.ts';
import type { Phase, WasmCaps, WasmKernel } from '../kernel.ts';
import type { RoutineKind } from '../native/routines.ts';
import type { Stored } from '../storage.ts';
import { ConstantTable, floats, type Shape, shapeOf, Vectors } from '../tile.ts';
import { DESCRIPTOR_BYTES, Routines } from './calls.ts';
import { BACKWARD, CHAIN, dqPlanOf, HEAD, splitsOf, writeChains } from './chains.ts';
import { emitDelta, emitSumDq, emitSumSide, emitSumSink, SIDE_ITEM } from './delta.ts';
import { expressionsOf } from './expressions.ts';
import { emitCarefulProduct, emitClear, emitProduct } from './gemm.ts';
import { BLOCK, emitDropWeights, emitQuerySpan, emitScoreGradients, emitWeights } from './gradients.ts';
import { codeKey, refuseStorage } from './identity.ts';
import { minimum } from './items.ts';
import { emitCheckFinite, straightener } from './keys.ts';
import { arrays } from './layout.ts';
import { PARAMS, PHASE, writeParams } from './params.ts';
import { emitTransposeIn, emitTransposeOut } from './rows.ts';
import { type SidePlan, type SideTerm, sidePlans } from './side_grads.ts';

export interface BackwardConfig extends Config {
  /** Queries at a time: a multiple of 4. */
  readonly blockQ: number;
  /** Keys of a step: whole groups of lanes. */
  readonly blockK: number;
  /** Lanes of a Vec on this machine, on which the layout of the workspace depends. */
  readonly lanes: number;
}

interface Plan {
  readonly shape: Shape;
  readonly derivatives: Derivatives | null;
  readonly sides: readonly SidePlan[];
  readonly terms: readonly SideTerm[];
  /** Elements of an accumulated row of dq; 0 when dq is not asked for. */
  readonly dqRow: number;
  readonly dqInPlace: boolean;
  readonly group: ReturnType<typeof groupOf>;
  readonly scratch: ReturnType<typeof scratchOf>;
}

/** One group of lanes: K and V as columns, their gradients as columns, and ones. */
const groupOf = (lanes: number, D: number, Dv: number) => {
  const row = lanes * 4;
  return arrays({ k: D * row, v: Dv * row, dk: D * row, dv: Dv * row, ones: row });
};

const scratchOf = ({ D, Dv }: Problem, { blockQ, blockK }: BackwardConfig, lanes: number, group: number) => {
  const scores = blockQ * lanes * 4;
  return arrays({
    groups: (blockK / lanes) * group,
    q: blockQ * D * 4 + 16,
    dOut: blockQ * Dv * 4 + 16,
    k: blockK * D * 4 + lanes * 4,
    s: scores,
    p: scores,
    kept: scores,
    dp: scores,
    ds: blockQ * blockK * 4,
    flag: 4,
    span: 8,
    constants: ConstantTable.bytes,
    descriptor: DESCRIPTOR_BYTES,
  });
};

/** Lanes that stay in registers between the products; machine code has more of them in a group. */
const PIECE = 16;

const routinesOf = ({ native, lanes }: Shape): readonly RoutineKind[] =>
  native ? (['zero', 'add'] as const).map((routine) => ({ routine, N: lanes })) : [];

const derivativesOf = ({ mod, sides, grads }: Problem): Derivatives | null =>
  mod && derive(mod.expr, (t) => grads?.sides[sides.indexOf(t)] === true);

function planOf(problem: Problem, config: BackwardConfig, caps: WasmCaps): Plan {
  const shape = shapeOf(caps);
  const { D, Dv, grads } = problem;
  const splits = splitsOf(problem, config.blockK);
  const derivatives = derivativesOf(problem);
  const { plans, terms } = sidePlans(problem, derivatives?.dLoads ?? new Map(), splits);
  const dq = dqPlanOf(problem, shape.lanes, splits);
  const group = groupOf(shape.lanes, D, Dv);
  const scratch = scratchOf(problem, config, shape.lanes, group.total);
  const dqRow = grads?.q ? dq.row : 0;
  return { shape, derivatives, sides: plans, terms, dqRow, dqInPlace: dq.inPlace, group, scratch };
}

function build(problem: Problem, config: BackwardConfig, caps: WasmCaps): ModuleBuilder {
  const plan = planOf(problem, config, caps);
  const { shape, derivatives, sides, terms, dqRow, dqInPlace, group, scratch } = plan;
  const { D, Dv, mask, dropout, grads } = problem;
  const { blockQ, blockK } = config;
  const dtype = problem.dtype as Stored;
  const row = shape.lanes * 4;
  const dsRow = blockK * 4;
  const m = new ModuleBuilder(caps.shared);
  const table = new ConstantTable();
  const routines = shape.native ? new Routines(m, routinesOf(shape)) : null;
  const piece = { ...shape, lanes: Math.min(shape.lanes, PIECE) };
  emitDelta(m, problem, shape, dqRow * 4);
  const loadK = emitTransposeIn(m, 'load_k', shape, dtype, D, group.total);
  const loadV = emitTransposeIn(m, 'load_v', shape, dtype, Dv, group.total);
  const storeDk = emitTransposeOut(m, 'store_dk', shape, dtype, D, group.total);
  const storeDv = emitTransposeOut(m, 'store_dv', shape, dtype, Dv, group.total);
  const straightenD = straightener(m, 'straighten_d', dtype, D);
  const straightenDv = straightener(m, 'straighten_dv', dtype, Dv);
  const checkFinite = mask && dqRow > 0 && emitCheckFinite(m);

  const rows = { aRow: 4, cRow: row } as const;
  const byQuery = { start: 'zero', aStep: 4, bRow: row, cRow: row } as const;
  const scores = emitProduct(m, 'scores', shape, { ...byQuery, aRow: 4 * D }, null, routines);
  const dProbabilities = emitProduct(m, 'd_p', shape, { ...byQuery, aRow: 4 * Dv }, null, routines);
  const dValues = emitProduct(m, 'd_v', shape, { ...rows, start: 'add', aStep: 4 * Dv, bRow: row }, Dv, routines);
  const dKeys = emitProduct(m, 'd_k', shape, { ...rows, start: 'add', aStep: 4 * D, bRow: dsRow }, D, routines);
  const dqSpec = { start: 'add', aRow: dsRow, aStep: 4, bRow: 4 * D, cRow: 4 * dqRow } as const;
  const dQueries = emitProduct(m, 'd_q', shape, dqSpec, null, routines);
  const carefulQueries = checkFinite && emitCarefulProduct(m, 'careful_d_q', shape, dqSpec);

  const expressions = { ...expressionsOf(problem), mod: derivatives?.value ?? null };
  const weights = emitWeights(m, 'weights', piece, row, { ...expressions, mask: null }, table);
  const maskedWeights = mask && emitWeights(m, 'masked_weights', piece, row, expressions, table);
  const span = mask && emitQuerySpan(m, shape, expressions, table);
  const drop = dropout && emitDropWeights(m, piece, row);
  const dScore = derivatives?.dScore ?? null;
  const gradients = emitScoreGradients(
    m,
    piece,
    row,
    dsRow,
    { ...expressions, dScore, terms, dropped: dropout !== null },
    table,
  );

  const operands = { q: 'i32', dOut: 'i32', group: 'i32', scratch: 'i32', ds: 'i32', partial: 'i32' } as const;
  /** One block of queries against one group of keys. */
  const pair = m.func('pair', { ...BLOCK, ...operands }, (f, a) => {
    const part = (name: 's' | 'p' | 'kept' | 'dp') => f.let(i32.add(a.scratch, scratch[name]), name);
    const s = part('s');
    const p = derivatives ? part('p') : s;
    const kept = drop ? part('kept') : p;
    const dp = part('dp');
    const descriptor = f.let(i32.add(a.scratch, scratch.descriptor), 'descriptor');
    /** Calls for every piece of the lanes; `buffers` are addresses of the first. */
    const pieces = (call: Callable, ...buffers: I32[]): void => {
      for (let lane = 0; lane < shape.lanes; lane += piece.lanes)
        f.call(
          call,
          ...[a.constants, a.params, a.chain, a.head, i32.add(a.kv0, lane), a.q0, a.rows],
          ...buffers.map((b) => i32.add(b, lane * 4)),
        );
    };
    if (span)
      f.if(a.partial, () => {
        // The lanes at hand may be seen by fewer queries than the whole block of keys is: the others' dS is zero.
        const to = f.let(i32.add(a.scratch, scratch.span), 'span');
        f.call(span, a.constants, a.params, a.chain, a.head, a.kv0, a.q0, a.rows, to);
        const [first, last] = [f.let(i32.load(to), 'first'), f.let(i32.load(to, 4), 'last')];
        const v = new Vectors(f, shape);
        const clear = (from: I32, end: I32): void =>
          f.for(from, f.let(end, 'end'), 1, (r) => v.store(i32.add(a.ds, i32.mul(r, dsRow)), v.repeat(floats(0))));
        clear(i32Const(0), first);
        clear(last, a.rows);
        f.set(a.rows, i32.sub(last, first));
        f.if(i32.eqz(a.rows), () => f.return());
        f.bump(a.q0, first);
        f.bump(a.q, i32.mul(first, 4 * D));
        f.bump(a.dOut, i32.mul(first, 4 * Dv));
        f.bump(a.ds, i32.mul(first, dsRow));
      });
    f.call(scores, a.q, i32.add(a.group, group.k), s, a.rows, D, descriptor);
    const plain = (): void => pieces(weights, s, p);
    if (maskedWeights) f.if(a.partial, () => pieces(maskedWeights, s, p), plain);
    else plain();
    if (drop) pieces(drop, p, kept);
    if (grads?.v) f.call(dValues, a.dOut, kept, i32.add(a.group, group.dv), 0, a.rows, descriptor);
    f.call(dProbabilities, a.dOut, i32.add(a.group, group.v), dp, a.rows, Dv, descriptor);
    pieces(gradients, s, p, kept, dp, a.ds);
    if (grads?.k) f.call(dKeys, a.q, a.ds, i32.add(a.group, group.dk), 0, a.rows, descriptor);
  });

  const emitStep = (f: FuncBuilder, a: { readonly [K in keyof typeof PHASE]: Local<'i32'> }): void => {
    const { params } = a;
    const at = (name: Exclude<keyof typeof scratch, 'total'>) => i32.add(a.scratch, scratch[name]);
    const more = f.let(PARAMS.i32(params, 'more'), 'more');
    const chain = f.let(i32.add(PARAMS.i32(params, 'items'), i32.mul(a.index, CHAIN.bytes)), 'chain');
    const strides = {
      q: f.let(PARAMS.i32(params, 'strideQ'), 'strideQ'),
      k: f.let(PARAMS.i32(params, 'strideK'), 'strideK'),
      v: f.let(PARAMS.i32(params, 'strideV'), 'strideV'),
      out: f.let(PARAMS.i32(params, 'strideOut'), 'strideOut'),
    };
    const block = f.let(i32.add(CHAIN.i32(chain, 'block'), i32.mul(a.step, BACKWARD.i32(more, 'splits'))), 'block');
    const kv0 = f.let(i32.mul(block, blockK), 'kv0');
    const left = f.let(i32.sub(CHAIN.i32(chain, 'lenK'), kv0), 'left');
    f.if(i32.le_s(left, 0), () => f.return());
    const keys = f.let(minimum(f, left, i32Const(blockK)), 'keys');
    const constants = f.let(at('constants'), 'constants');
    table.fill(f, constants);
    const groups = f.let(at('groups'), 'groups');
    const count = i32.div_u(i32.add(keys, shape.lanes - 1), shape.lanes);
    const end = f.let(i32.add(groups, i32.mul(count, group.total)), 'end');
    const rowOf = (name: 'k' | 'v' | 'dk' | 'dv', stride: Local<'i32'>) =>
      f.let(i32.add(CHAIN.i32(chain, name), i32.mul(kv0, stride)), name);

    const k = rowOf('k', strides.k);
    f.call(loadK, k, strides.k, keys, PARAMS.f32(params, 'factor'), i32.add(groups, group.k));
    f.call(loadV, rowOf('v', strides.v), strides.v, keys, f32Const(1), i32.add(groups, group.v));
    const flag = f.let(i32Const(0), 'flag');
    if (dqRow > 0) straightenD(f, k, strides.k, keys, at('k'));
    if (checkFinite) {
      f.call(checkFinite, k, i32.mul(keys, D), at('flag'));
      f.set(flag, i32.load(a.scratch, scratch.flag));
    }
    f.sweep(groups, end, group.total, (g) => {
      emitClear(f, i32.add(g, group.dk), group.ones - group.dk);
      const v = new Vectors(f, shape);
      v.store(g, v.repeat(floats(1)), group.ones);
    });

    const head = f.let(CHAIN.i32(chain, 'heads'), 'head');
    const lenQ = f.let(CHAIN.i32(chain, 'lenQ'), 'lenQ');
    f.for(0, f.let(BACKWARD.i32(more, 'group'), 'group'), 1, () => {
      forQueryBlocks(f, more, i32.add(HEAD.i32(head, 'run'), block), (index, partial) => {
        const q0 = f.let(i32.mul(index, blockQ), 'q0');
        const n = f.let(minimum(f, i32.sub(lenQ, q0), i32Const(blockQ)), 'n');
        const q = f.let(i32.add(HEAD.i32(head, 'q'), i32.mul(q0, strides.q)), 'q');
        straightenD(f, q, strides.q, n, at('q'));
        const dOut = f.let(i32.add(HEAD.i32(head, 'dOut'), i32.mul(q0, strides.out)), 'dOut');
        straightenDv(f, dOut, strides.out, n, at('dOut'));
        const ds = f.let(at('ds'), 'ds');
        const lane0 = f.let(kv0, 'lane0');
        f.sweep(groups, end, group.total, (g) => {
          f.call(pair, constants, params, chain, head, lane0, q0, n, q, dOut, g, a.scratch, ds, partial);
          f.bump(lane0, shape.lanes);
          f.bump(ds, row);
        });
        if (dqRow === 0) return;
        const dq = f.let(
          i32.add(i32.add(HEAD.i32(head, 'dq'), CHAIN.i32(chain, 'dqPart')), i32.mul(q0, 4 * dqRow)),
          'dq',
        );
        const columns = f.let(k, 'columns');
        f.for(0, ceilDiv(D, shape.lanes), 1, () => {
          const operands = [at('ds'), columns, dq, n, keys, at('descriptor')] as const;
          const product = () => f.call(dQueries, ...operands);
          if (carefulQueries) f.if(i32.and(flag, partial), () => f.call(carefulQueries, ...operands), product);
          else product();
          f.bump(columns, row);
          f.bump(dq, row);
        });
      });
      f.bump(head, HEAD.bytes);
    });
    const ones = i32.add(groups, group.ones);
    if (grads?.k) f.call(storeDk, i32.add(groups, group.dk), ones, rowOf('dk', strides.k), strides.k, keys);
    if (grads?.v) f.call(storeDv, i32.add(groups, group.dv), ones, rowOf('dv', strides.v), strides.v, keys);
  };
  m.func('backward', PHASE, emitStep, true);
  if (dqRow > 0 && !dqInPlace) emitSumDq(m, problem, dqRow);
  if (grads?.sink) emitSumSink(m);
  for (const [i, { owned }] of sides.entries()) if (!owned) emitSumSide(m, i);
  return m;
}

/** Emits a loop over the query blocks of a row of runs. */
function forQueryBlocks(
  f: FuncBuilder,
  more: Local<'i32'>,
  row: ReturnType<typeof i32.add>,
  body: (block: Local<'i32'>, partial: Local<'i32'>) => void,
): void {
  const start = f.let(i32.add(BACKWARD.i32(more, 'rowStart'), i32.mul(row, 4)), 'start');
  const last = f.let(i32.load(start, 4), 'last');
  f.for(i32.load(start), last, 1, (r) => {
    const run = f.let(i32.add(BACKWARD.i32(more, 'runs'), i32.mul(r, 12)), 'run');
    const end = f.let(i32.load(run, 4), 'end');
    const partial = f.let(i32.load(run, 8), 'partial');
    f.for(i32.load(run), end, 1, (block) => body(block, partial), 'block');
  });
}

export const backward: WasmKernel<BackwardConfig> = {
  name: 'backward',
  pass: 'backward',
  refuse(problem) {
    if (problem.kv.kind === 'paged') return 'paged keys: gradients are for strided tensors';
    return refuseStorage(problem);
  },
  configs: (problem, caps) => {
    const { lanes, native } = shapeOf(caps);
    // 48 is whole register tiles and up to 5 % faster at D=128; 64 divides the usual block layouts.
    const block = native ? 96 : problem.mask === null ? 48 : 64;
    return [
      { blockQ: block, blockK: Math.max(4 * lanes, block), lanes },
      { blockQ: 24, blockK: 2 * lanes, lanes },
    ];
  },
  cost(problem, config, caps): Cost {
    const flops = flopsOf(problem, 'backward');
    const bytes = tiledBytes(problem, 'backward', config.blockQ, config.blockK);
    const { shape, scratch, sides } = planOf(problem, config, caps);
    const { B, Hq, Hkv, Sq } = problem;
    const splits = splitsOf(problem, config.blockK);
    const parts = problem.grads?.q ? splits * dqPlanOf(problem, shape.lanes, splits).partBytes : 0;
    const copies = sides.reduce((sum, s) => sum + (s.owned ? 0 : B * Hkv * splits * s.elements * 4), 0);
    const workspace = caps.threads * scratch.total + 8 * B * Hq * Sq + parts + copies;
    return { flops, bytes, workspace, seconds: Math.max(flops / caps.flops, bytes / caps.bandwidth) };
  },
  emit: (problem, config, caps) => [{ name: 'backward', text: build(problem, config, caps).text() }],
  key(problem, config, caps) {
    const { sides, dqInPlace } = planOf(problem, config, caps);
    const owned = sides.map((s) => s.owned);
    return `${codeKey('backward', problem, config, caps)}|${JSON.stringify([problem.grads, dqInPlace, owned])}`;
  },
  compile: (problem, config, caps) => ({
    module: build(problem, config, caps).bytes(),
    scratch: planOf(problem, config, caps).scratch.total,
    routines: routinesOf(shapeOf(caps)),
  }),
  launch(problem, config, at, heap) {
    const { lanes, blockQ, blockK } = config;
    const { grads } = problem;
    const { plans: sides } = sidePlans(problem, derivativesOf(problem)?.dLoads ?? new Map(), splitsOf(problem, blockK));
    const work = writeChains(problem, { blockQ, blockK, lanes, sides }, at, heap);
    const params = writeParams(problem, at, heap, work.chains, work.more);
    const phases: Phase[] = [
      { entry: 'delta', items: work.headCount, steps: 1 },
      { entry: 'backward', items: work.count, steps: work.steps },
    ];
    if (grads?.q && !work.dqInPlace) phases.push({ entry: 'sum_dq', items: work.headCount, steps: 1 });
    if (grads?.sink) phases.push({ entry: 'sum_sink', items: problem.Hq, steps: 1 });
    for (const [i, { owned, elements }] of sides.entries())
      if (!owned) phases.push({ entry: `sum_side${i}`, items: ceilDiv(elements, SIDE_ITEM), steps: 1 });
    return { params, phases };
  },
};
