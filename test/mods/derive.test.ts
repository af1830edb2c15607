import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { ExpressionError } from '../../src/core/errors.ts';
import { tensor } from '../../src/core/tensor.ts';
import {
  abs,
  add,
  detach,
  div,
  exp,
  floor,
  load,
  log,
  lt,
  max,
  min,
  mul,
  neg,
  round,
  select,
  sqrt,
  sub,
  tanh,
  toF32,
  toI32,
} from '../../src/mods/build.ts';
import { derive } from '../../src/mods/derive.ts';
import { compileEvaluator, evaluate, type Point } from '../../src/mods/evaluate.ts';
import { CONTEXT, type F32, nodesOf } from '../../src/mods/expr.ts';
import { OPS } from '../../src/mods/ops.ts';
import { printExpr } from '../../src/mods/print.ts';
import { expressions, POINTS } from './support.ts';

const { score, q, kv, h } = CONTEXT;
const AT: Point = { score: 0.7, b: 0, h: 1, q: 3, kv: 1, lenQ: 4, lenK: 4 };

function central(f: (x: number) => number, x: number, step: number): number {
  return (f(x + step) - f(x - step)) / (2 * step);
}
const numeric = (e: F32, at: Point): number => central((s) => evaluate(e, { ...at, score: s }), at.score, 1e-5);
const close = (got: number, want: number, what: string): void =>
  assert.ok(Math.abs(got - want) <= 1e-6 * Math.max(1, Math.abs(want)), `${what}: got ${got}, expected ${want}`);

/** Every f32 op that has a derivative, with the score in every f32 place in turn. */
const SAMPLES: Readonly<Record<string, readonly F32[]>> = {
  add: [add(score, 2), add(2, score), add(score, score)],
  sub: [sub(score, 2), sub(2, score)],
  mul: [mul(score, 3), mul(3, score), mul(score, score)],
  div: [div(score, 3), div(3, score), div(exp(score), score)],
  min: [min(score, 1), min(score, 0.2), min(1, score), min(0.2, score), min(mul(score, 2), mul(score, 3))],
  max: [max(score, 1), max(score, 0.2), max(1, score), max(0.2, score)],
  neg: [neg(score)],
  abs: [abs(score), abs(neg(exp(score)))],
  exp: [exp(score), exp(mul(score, -2))],
  log: [log(score)],
  tanh: [tanh(score)],
  sqrt: [sqrt(score)],
  select: [select(lt(score, 5), mul(score, 2), mul(score, 3)), select(lt(5, score), mul(score, 2), mul(score, 3))],
};

test('every op with a derivative agrees with finite differences', () => {
  // detach and toF32 have derivatives that are zero by definition.
  const expected = Object.entries(OPS).filter(([, op]) => op.result === 'f32' && op.derivative !== null);
  assert.deepEqual(
    expected
      .map(([name]) => name)
      .filter((name) => name !== 'detach' && name !== 'toF32')
      .sort(),
    Object.keys(SAMPLES).sort(),
  );
  for (const [name, samples] of Object.entries(SAMPLES))
    for (const e of samples) close(evaluate(derive(e).dScore, AT), numeric(e, AT), `${name} ${printExpr(e)}`);
});

test('random smooth modifiers agree with finite differences', () => {
  const smooth = expressions('f32', 4, {
    score: true,
    ops: (op) => ['add', 'sub', 'mul', 'tanh', 'neg', 'toF32', 'iadd', 'exp'].includes(op),
  }) as fc.Arbitrary<F32>;
  let compared = 0;
  fc.assert(
    fc.property(smooth, POINTS, (e, at) => {
      const f = compileEvaluator(e);
      // Infinity times a derivative that vanishes is NaN in any arithmetic: only where every node is moderate.
      if (!nodesOf(e).every((node) => Math.abs(evaluate(node, at)) < 1e4)) return;
      const coarse = central((s) => f({ ...at, score: s }), at.score, 1e-4);
      const fine = central((s) => f({ ...at, score: s }), at.score, 5e-5);
      // Only where the difference quotient itself has converged.
      if (!(Math.abs(coarse - fine) <= 1e-6 * Math.max(1, Math.abs(fine)))) return;
      const got = evaluate(derive(e).dScore, at);
      assert.ok(
        Math.abs(got - fine) <= 1e-4 * Math.max(1, Math.abs(fine), Math.abs(f(at))),
        `${got}, expected ${fine}`,
      );
      compared++;
    }),
    { numRuns: 1000 },
  );
  assert.ok(compared > 300, `only ${compared} comparisons`);
});

test('derivatives of loads, shared by equal loads', () => {
  const slopes = tensor(new Float32Array([0.5, 0.25]), [2]);
  const bias = tensor(new Float32Array([1, 2, 3, 4]), [4]);
  const distance = toF32(sub(q, kv));
  const e = add(sub(score, mul(load(slopes, [h]), distance)), mul(load(bias, [kv]), mul(load(bias, [kv]), score)));
  const { dLoads, dScore } = derive(e);
  assert.deepEqual(
    [...dLoads.keys()].map((l) => l.tensor),
    [slopes, bias],
  );
  const [bySlope, byBias] = [...dLoads.values()].map((d) => evaluate(d, AT));
  assert.equal(bySlope, -2);
  close(byBias, 2 * 2 * AT.score, 'bias');
  close(evaluate(dScore, AT), 1 + 4, 'score');
});

test('value, dScore and dLoads share nodes', () => {
  const { value, dScore } = derive(mul(tanh(div(score, 30)), 30));
  assert.equal(printExpr(value), 'mul(tanh(div(score,30f)),30f)');
  assert.ok(printExpr(dScore).startsWith('t0=tanh(div(score,30f));'));
});

test('detach blocks, and so do integers', () => {
  const bias = tensor(new Float32Array([1, 2]), [2]);
  const e = add(mul(detach(score), score), mul(detach(load(bias, [h])), 2));
  const { dScore, dLoads } = derive(e);
  assert.equal(printExpr(dScore), 'detach(score)');
  assert.equal(dLoads.size, 0);
  assert.equal(printExpr(derive(toF32(q)).dScore), '0f');
});

test('a branch not taken leaks no NaN', () => {
  const e = select(lt(score, 0), mul(score, 0.5), sqrt(score));
  assert.equal(evaluate(derive(e).dScore, { ...AT, score: -1 }), 0.5);
  assert.equal(evaluate(derive(e).dScore, { ...AT, score: 4 }), 0.25);
  const clamped = max(log(score), -3);
  assert.equal(evaluate(derive(clamped).dScore, { ...AT, score: 0 }), 0);
  const outer = mul(3, tanh(select(lt(score, 1), 0, log(sub(score, 1)))));
  assert.equal(evaluate(derive(outer).dScore, { ...AT, score: 0.5 }), 0);
});

test('ties of min and max give the derivative to the first argument', () => {
  assert.equal(evaluate(derive(min(mul(score, 2), mul(score, 3))).dScore, { ...AT, score: 0 }), 2);
  assert.equal(evaluate(derive(max(mul(score, 2), mul(score, 3))).dScore, { ...AT, score: 0 }), 2);
});

test('an op without derivative is an error exactly when its derivative is needed', () => {
  const bias = tensor(new Float32Array([1, 2]), [2]);
  assert.throws(() => derive(floor(score)), { name: 'ExpressionError', message: /^floor: .*score.*detach/ });
  assert.throws(() => derive(add(score, round(load(bias, [h])))), ExpressionError);
  assert.throws(() => derive(mul(score, toF32(toI32(score)))), {
    name: 'ExpressionError',
    message: /^toI32: .*detach/,
  });
  assert.equal(printExpr(derive(mul(score, toF32(toI32(detach(score))))).dScore), 'toF32(toI32(detach(score)))');
  const { dLoads } = derive(add(score, round(load(bias, [h]))), () => false);
  assert.equal(dLoads.size, 0);
  assert.equal(printExpr(derive(add(score, detach(floor(detach(score))))).dScore), '1f');
});
