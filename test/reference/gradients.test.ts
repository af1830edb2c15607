import assert from 'node:assert/strict';
import test from 'node:test';
import { flags, floats, holes, integers, slopes } from '../../src/conformance/sides.ts';
import { type Inputs, instantiate, type Spec } from '../../src/conformance/spec.ts';
import type { HostTensor } from '../../src/core/tensor.ts';
import * as x from '../../src/mods/build.ts';
import type { F32, Mod, ScoreContext } from '../../src/mods/expr.ts';
import {
  alibi,
  and,
  biasTensor,
  blockLayout,
  causal,
  compose,
  documents,
  maskOf,
  maskTensor,
  modOf,
  not,
  or,
  prefix,
  relativeBias,
  slidingWindow,
  softcap,
} from '../../src/mods/library.ts';
import type { OpName } from '../../src/mods/ops.ts';
import type { Problem } from '../../src/problem/problem.ts';
import { results } from './support.ts';

const SIZES: Spec = { dtype: 'f64', B: 2, Hq: 2, Hkv: 1, Sq: 4, Sk: 5, D: 3, Dv: 2, dLse: true };

/** Sum of dOut * out + dLse * lse over what is finite: the scalar that backward differentiates. */
async function loss(problem: Problem, inputs: Inputs, spec: Spec): Promise<number> {
  const got = await results(problem, inputs, spec, false);
  const dot = (a: HostTensor, b: HostTensor | null): number => {
    let sum = 0;
    // Rows that attend to nothing have an lse of -inf, and rows of no sequence a dOut of NaN.
    if (b !== null)
      for (let i = 0; i < a.data.length; i++)
        if (Number.isFinite(a.data[i]) && !Number.isNaN(b.data[i])) sum += a.data[i] * b.data[i];
    return sum;
  };
  return dot(got.get('out')!, inputs.dOut) + dot(got.get('lse')!, inputs.dLse);
}

/** Every gradient of the spec against central differences in float64. */
async function checkGradients(name: string, changes: Spec): Promise<void> {
  const spec: Spec = { ...SIZES, ...changes };
  const { problem, inputs } = instantiate(name, spec);
  const got = await results(problem, inputs, spec);
  const wanted: [string, HostTensor | null][] = [
    ['dq', inputs.q],
    ['dk', inputs.k],
    ['dv', inputs.v],
    ['dSink', inputs.sink],
    ...inputs.sides.map((side, i): [string, HostTensor] => [`dSide${i}`, side]),
  ];
  for (const [gradient, input] of wanted) {
    const analytic = got.get(gradient);
    if (analytic === undefined || input === null) continue;
    assert.equal(input.dtype, 'f64', `${gradient}: differences need float64 inputs`);
    for (let i = 0; i < input.data.length; i++) {
      const value = input.data[i];
      if (!Number.isFinite(value)) {
        assert.ok(analytic.data[i] === 0, `${name} ${gradient}[${i}]`);
        continue;
      }
      const h = 1e-5;
      input.data[i] = value + h;
      const up = await loss(problem, inputs, spec);
      input.data[i] = value - h;
      const down = await loss(problem, inputs, spec);
      input.data[i] = value;
      const numeric = (up - down) / (2 * h);
      assert.ok(
        Math.abs(analytic.data[i] - numeric) <= 1e-8 * (1 + Math.abs(numeric)),
        `${name} ${gradient}[${i}]: backward says ${analytic.data[i]}, differences say ${numeric}`,
      );
    }
  }
}

const table = (title: string, specs: Readonly<Record<string, Spec>>): void => {
  for (const [name, spec] of Object.entries(specs)) test(`${title}: ${name}`, () => checkGradients(name, spec));
};

table('gradients', {
  plain: {},
  'no dLse': { dLse: false },
  bnhd: { layout: 'bnhd', guard: 2 },
  sink: { sink: true },
  'sink without dLse': { sink: true, dLse: false },
  dropout: { dropout: { p: 0.4, seed: [1, 2], offset: 3 } },
  'dropout, sink, causal': { dropout: { p: 0.4, seed: [1, 2], offset: 3 }, sink: true, mask: () => causal() },
  packed: {
    lengths: [
      [3, 4],
      [0, 2],
      [2, 0],
      [1, 1],
    ],
    sink: true,
    mask: () => causal(),
  },
  paged: {
    lengths: [
      [3, 4],
      [1, 5],
    ],
    storage: 'paged',
    pageSize: 2,
  },
});

table('gradients through masks', {
  causal: { mask: () => causal() },
  'causal, tall': { Sq: 5, Sk: 3, mask: () => causal(), sink: true },
  'causal, top left': { mask: () => causal({ align: 'top-left' }) },
  window: { mask: () => slidingWindow(1, 1) },
  'causal window': { mask: () => and(causal(), slidingWindow(2)) },
  prefix: { mask: () => prefix(2) },
  'prefix by batch': { mask: () => prefix(integers([2], (i) => i + 1)) },
  documents: { Sq: 5, mask: (_s, r) => documents(integers([2, 5], () => r.below(2))) },
  blocks: { mask: (_s, r) => blockLayout(flags(r, [2, 1, 2, 3]), 2) },
  'boolean tensor': { mask: (_s, r) => maskTensor(flags(r, [2, 1, 4, 5], 0.5)) },
  or: {
    mask: () =>
      or(
        slidingWindow(0, 0),
        maskOf(({ kv }) => x.lt(kv, 1)),
      ),
  },
  not: { mask: () => not(causal()) },
  nothing: { mask: () => maskOf(() => x.constant('bool', 0)) },
});

table('gradients through modifiers', {
  softcap: { mod: () => softcap(0.7) },
  alibi: { mod: (_s, r) => alibi(wide(slopes(r, [2]))) },
  'alibi by batch': { mod: (_s, r) => alibi(wide(slopes(r, [2, 2]))), mask: () => causal() },
  bias: { mod: (_s, r) => biasTensor(floats(r, [2, 2, 4, 5], 1, 'f64')) },
  'bias of rows': { mod: (_s, r) => biasTensor(floats(r, [4, 1], 1, 'f64')) },
  'bias of keys': {
    mod: (_s, r) => biasTensor(floats(r, [5], 1, 'f64')),
    dropout: { p: 0.3, seed: [5, 6], offset: 0 },
  },
  'bias with -inf': { mod: (_s, r) => biasTensor(wide(holes(r, [4, 5], [2]))) },
  relative: { mod: (_s, r) => relativeBias(floats(r, [2, 5], 1, 'f64')) },
  composed: {
    sink: true,
    mask: () => causal(),
    mod: (_s, r) => compose(softcap(2), alibi(wide(slopes(r, [2]))), biasTensor(floats(r, [4, 5], 1, 'f64'))),
  },
  'one tensor read twice': {
    mod: (_s, r) => {
      const table = floats(r, [5], 1, 'f64');
      return modOf(({ score, q, kv }) => x.add(x.mul(score, x.load(table, [q])), x.load(table, [kv])));
    },
  },
});

function wide(t: HostTensor): HostTensor {
  return { ...t, dtype: 'f64', data: Float64Array.from(t.data) };
}

/** A float modifier that passes through each op; the compiler asks for one for every op there is. */
type Through = (at: ScoreContext, load: F32) => F32;
const floatOf = (i: ReturnType<typeof x.idiv>): F32 => x.mul(x.toF32(i), 0.1);
const choose = (c: Parameters<typeof x.select>[0], at: ScoreContext, load: F32): F32 =>
  x.select(c, x.mul(at.score, load), x.add(at.score, 0.3)) as F32;
const OPERATIONS: Readonly<Record<OpName, Through>> = {
  add: ({ score }, load) => x.add(score, load),
  sub: ({ score }, load) => x.sub(load, score),
  mul: ({ score }, load) => x.mul(score, load),
  div: ({ score }, load) => x.div(score, x.add(x.mul(load, load), 1)),
  min: ({ score }, load) => x.min(score, load),
  max: ({ score }, load) => x.max(score, load),
  neg: ({ score }) => x.neg(score),
  abs: ({ score }, load) => x.add(x.abs(score), load),
  exp: ({ score }, load) => x.exp(x.mul(score, load)),
  log: ({ score }, load) => x.log(x.add(x.mul(score, score), x.add(x.mul(load, load), 0.5))),
  tanh: ({ score }, load) => x.tanh(x.add(score, load)),
  sqrt: ({ score }, load) => x.sqrt(x.add(x.mul(score, score), x.add(x.mul(load, load), 0.5))),
  floor: ({ score }, load) => x.add(score, x.floor(x.detach(load))),
  round: ({ score }, load) => x.add(score, x.round(x.detach(x.mul(load, 2)))),
  detach: ({ score, kv }, load) => x.add(x.mul(score, load), x.detach(x.toF32(kv))),
  select: (at, load) => choose(x.lt(at.kv, 2), at, load),
  iadd: ({ score, q, kv }) => x.add(score, floatOf(x.add(q, kv))),
  isub: ({ score, q, kv }) => x.add(score, floatOf(x.sub(q, kv))),
  imul: ({ score, q, kv }) => x.add(score, floatOf(x.mul(q, kv))),
  idiv: ({ score, kv }) => x.add(score, floatOf(x.idiv(kv, 2))),
  imod: ({ score, kv }) => x.add(score, floatOf(x.mod(kv, 3))),
  imin: ({ score, q, kv }) => x.add(score, floatOf(x.min(q, kv))),
  imax: ({ score, q, kv }) => x.add(score, floatOf(x.max(q, kv))),
  iand: ({ score, q, kv }) => x.add(score, floatOf(x.bitAnd(q, kv))),
  ior: ({ score, q, kv }) => x.add(score, floatOf(x.bitOr(q, kv))),
  ixor: ({ score, q, kv }) => x.add(score, floatOf(x.bitXor(q, kv))),
  ishl: ({ score, kv }) => x.add(score, floatOf(x.shl(kv, 1))),
  ishr: ({ score, kv }) => x.add(score, floatOf(x.shr(kv, 1))),
  iabs: ({ score, q, kv }) => x.add(score, floatOf(x.abs(x.sub(q, kv)))),
  iselect: ({ score, q, kv }) => x.add(score, floatOf(x.select(x.lt(kv, 2), q, kv))),
  toF32: ({ score, h }, load) => x.mul(score, x.add(load, x.toF32(h))),
  toI32: ({ score }, load) => x.add(score, floatOf(x.toI32(x.detach(x.mul(load, 3))))),
  lt: (at, load) => choose(x.lt(at.score, load), at, load),
  le: (at, load) => choose(x.le(load, at.score), at, load),
  eq: (at, load) => choose(x.eq(at.score, load), at, load),
  ilt: (at, load) => choose(x.lt(at.kv, at.q), at, load),
  ile: (at, load) => choose(x.le(at.kv, at.q), at, load),
  ieq: (at, load) => choose(x.eq(at.kv, at.q), at, load),
  and: (at, load) => choose(x.and(x.lt(at.kv, 3), x.lt(at.q, 2)), at, load),
  or: (at, load) => choose(x.or(x.lt(at.kv, 1), x.lt(at.q, 2)), at, load),
  not: (at, load) => choose(x.not(x.lt(at.kv, 3)), at, load),
};

for (const [op, through] of Object.entries(OPERATIONS))
  test(`gradients through the op ${op}`, () =>
    checkGradients(op, {
      Sq: 3,
      D: 2,
      mod: (_s, r): Mod => {
        const table = floats(r, [5], 1, 'f64');
        return modOf((at) => through(at, x.load(table, [at.kv])));
      },
    }));
