import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { abs, add, and, eq, le, lt, mul, neg, not, or, select, sub } from '../../src/mods/build.ts';
import { evaluate } from '../../src/mods/evaluate.ts';
import { apply, CONTEXT, constant, type Expr, nodesOf } from '../../src/mods/expr.ts';
import { type ExprType, OPS, type OpName } from '../../src/mods/ops.ts';
import { printExpr } from '../../src/mods/print.ts';
import { createSimplifier, simplify } from '../../src/mods/simplify.ts';
import { expressions, POINTS, TABLES } from './support.ts';

const { q, kv, b, score } = CONTEXT;
const print = (e: Expr): string => printExpr(simplify(e), Object.values(TABLES));

for (const type of ['f32', 'i32', 'bool'] as const)
  test(`simplified ${type} expressions have the same values, and no more nodes`, () => {
    fc.assert(
      fc.property(expressions(type, 4, { score: true }), POINTS, (e, at) => {
        const small = simplify(e);
        const [want, got] = [evaluate(e, at), evaluate(small, at)];
        // 0 and -0 are one value here: x + 0 is x.
        assert.ok(want === got || (Number.isNaN(want) && Number.isNaN(got)), `${print(e)}: ${want} became ${got}`);
        assert.equal(small.type, e.type);
        assert.ok(nodesOf(small).length <= nodesOf(e).length);
        assert.equal(print(small), print(e));
      }),
      { numRuns: 1500 },
    );
  });

test('every op over equal arguments, and over 0, 1 and -1, keeps its value', () => {
  const leaves: Readonly<Record<ExprType, readonly Expr[]>> = {
    f32: [score, apply('neg', score), apply('abs', score), ...[0, 1, -1, 2].map((v) => constant('f32', v))],
    i32: [q, kv, ...[0, 1, -1, 3].map((v) => constant('i32', v))],
    bool: [lt(q, kv), le(kv, q), not(lt(q, kv)), constant('bool', 0), constant('bool', 1)],
  };
  const at = { b: 0, h: 0, lenQ: 4, lenK: 4 };
  const points = [-2.5, 0, 1, Number.NaN, Number.POSITIVE_INFINITY].flatMap((s) =>
    [0, 2, 3].map((k) => ({ ...at, score: s, q: 2, kv: k })),
  );
  for (const op of Object.keys(OPS) as OpName[]) {
    let calls: Expr[][] = [[]];
    for (const type of OPS[op].args) calls = calls.flatMap((args) => leaves[type].map((leaf) => [...args, leaf]));
    for (const args of calls) {
      const e = apply(op, ...args);
      for (const point of points) {
        const [want, got] = [evaluate(e, point), evaluate(simplify(e), point)];
        assert.ok(want === got || (Number.isNaN(want) && Number.isNaN(got)), `${printExpr(e)}: ${want} became ${got}`);
      }
    }
  }
});

test('identities disappear', () => {
  assert.equal(print(add(mul(score, 1), 0)), 'score');
  assert.equal(print(sub(add(q, 0), q)), '0');
  assert.equal(print(neg(neg(score))), 'score');
  assert.equal(print(abs(neg(score))), 'abs(score)');
  assert.equal(print(select(constant('bool', 1), score, mul(score, 2))), 'score');
  assert.equal(print(and(le(kv, q), constant('bool', 1))), 'ile(kv,q)');
  assert.equal(print(or(le(kv, q), constant('bool', 1))), 'true');
  assert.equal(print(not(le(kv, q))), 'ilt(q,kv)');
  assert.equal(print(eq(q, q)), 'true');
  assert.equal(print(mul(add(q, 2), add(q, 2))), 't0=iadd(q,2);imul(t0,t0)');
});

test('what f32 arithmetic does not allow is left alone', () => {
  assert.equal(print(mul(score, 0)), 'mul(score,0f)');
  assert.equal(print(sub(score, score)), 'sub(score,score)');
  assert.equal(print(apply('le', score, score)), 'le(score,score)');
  assert.equal(print(add(add(score, 1), 2)), 'add(add(score,1f),2f)');
});

test('constants that a target cannot write are not made', () => {
  assert.equal(print(apply('div', constant('f32', 1), constant('f32', 0))), 'div(1f,0f)');
  assert.equal(print(sub(constant('i32', -(2 ** 31) + 1), 1)), 'isub(-2147483647,1)');
});

test('equal nodes become one node, also with arguments of commutative ops swapped', () => {
  const s = createSimplifier();
  assert.equal(s.simplify(add(q, kv)), s.simplify(add(kv, q)));
  assert.notEqual(s.simplify(sub(q, kv)), s.simplify(sub(kv, q)));
});

test('an expression of many shared levels stays small and quick', () => {
  let e: Expr<'i32'> = b;
  for (let i = 0; i < 2000; i++) e = add(mul(e, 3), mul(e, 3));
  const small = simplify(e);
  assert.ok(nodesOf(small).length <= 4002);
  assert.ok(printExpr(small).length < 200_000);
  assert.equal(evaluate(small, { score: 0, b: 0, h: 0, q: 0, kv: 0, lenQ: 1, lenK: 1 }), 0);
});
