import assert from 'node:assert/strict';
import test from 'node:test';
import { tensor } from '../../src/core/tensor.ts';
import * as x from '../../src/mods/build.ts';
import { evaluate } from '../../src/mods/evaluate.ts';
import { CONTEXT, type Expr } from '../../src/mods/expr.ts';
import { printExpr } from '../../src/mods/print.ts';

const { score, q, kv, h } = CONTEXT;
const AT = { score: -1.5, b: 0, h: 1, q: 7, kv: 2, lenQ: 8, lenK: 8 };
const value = (e: Expr): number => evaluate(e, AT);

test('numbers take the type of the other argument', () => {
  assert.equal(printExpr(x.add(q, 1)), 'iadd(q,1)');
  assert.equal(printExpr(x.add(1, q)), 'iadd(1,q)');
  assert.equal(printExpr(x.add(score, 1)), 'add(score,1f)');
  assert.equal(printExpr(x.add(1, 2)), 'add(1f,2f)');
  assert.equal(printExpr(x.neg(q)), 'isub(0,q)');
  assert.equal(printExpr(x.neg(score)), 'neg(score)');
  assert.equal(printExpr(x.gt(q, 3)), 'ilt(3,q)');
  assert.equal(printExpr(x.ge(score, 3)), 'le(3f,score)');
  assert.equal(printExpr(x.where(x.lt(q, kv), 1, q)), 'iselect(ilt(q,kv),1,q)');
  assert.equal(printExpr(x.select(x.lt(q, kv), score, 0)), 'select(ilt(q,kv),score,0f)');
});

test('every builder means what its name says', () => {
  const table: readonly (readonly [Expr, number])[] = [
    [x.add(q, kv), 9],
    [x.sub(q, kv), 5],
    [x.mul(q, kv), 14],
    [x.div(score, 2), -0.75],
    [x.neg(q), -7],
    [x.abs(score), 1.5],
    [x.abs(x.sub(kv, q)), 5],
    [x.min(q, 3), 3],
    [x.max(score, 0), 0],
    [x.exp(0), 1],
    [x.log(1), 0],
    [x.tanh(score), Math.tanh(-1.5)],
    [x.sqrt(4), 2],
    [x.floor(score), -2],
    [x.round(score), -2],
    [x.detach(score), -1.5],
    [x.select(x.lt(q, kv), q, kv), 2],
    [x.select(x.lt(q, kv), x.lt(q, 100), x.lt(q, 0)), 0],
    [x.where(x.gt(q, kv), score, 3), -1.5],
    [x.le(q, 7), 1],
    [x.gt(q, 7), 0],
    [x.ge(q, 7), 1],
    [x.eq(score, -1.5), 1],
    [x.ne(q, kv), 1],
    [x.and(), 1],
    [x.or(), 0],
    [x.and(true, x.lt(kv, q), x.lt(kv, 3)), 1],
    [x.or(false, x.lt(q, kv), x.eq(q, 0)), 0],
    [x.not(x.lt(q, kv)), 1],
    [x.toF32(q), 7],
    [x.toF32(x.lt(kv, q)), 1],
    [x.toI32(score), -1],
    [x.toI32(x.lt(q, kv)), 0],
    [x.mod(x.sub(kv, q), 4), 3],
    [x.idiv(x.sub(kv, q), 4), -2],
    [x.bitAnd(q, 5), 5],
    [x.bitOr(q, 8), 15],
    [x.bitXor(q, 1), 6],
    [x.shl(q, 2), 28],
    [x.shr(x.sub(kv, q), 1), -3],
    [x.load(tensor(new Float32Array([1, 2, 3, 4]), [2, 2]), [h, 0]), 3],
  ];
  for (const [e, want] of table) assert.equal(value(e), want, printExpr(e, e.kind === 'load' ? [e.tensor] : []));
});

test('wrong arguments are named, with what was expected and what came', () => {
  const wrong = (f: () => unknown, message: RegExp): void =>
    assert.throws(f, (e: Error) => e.name === 'ExpressionError' && message.test(e.message));
  const any = (v: unknown): never => v as never;
  wrong(() => x.add(any(q), any(score)), /^add: expected arguments of one type, got i32 and f32; convert with toF32/);
  wrong(() => x.add(q, 0.5), /^add: expected an integer that fits i32 as argument 1, got 0.5/);
  wrong(() => x.exp(any(q)), /^exp: expected f32 as argument 0, got i32/);
  wrong(() => x.div(any(q), any(kv)), /^div: expected f32 arguments, got i32; use idiv/);
  wrong(() => x.mod(any(score), 2), /^mod: expected i32 as argument 0, got f32/);
  wrong(() => x.and(any(q)), /^and: expected bool as argument 0, got i32/);
  wrong(() => x.select(any(q), 1, 2), /^select: expected bool as argument 0, got i32/);
  wrong(() => x.lt(any(undefined), any('a')), /^lt: expected f32 as argument 0, got undefined/);
  wrong(() => x.mul(any(null), 2), /^mul: expected f32 as argument 0, got null/);
  const t = tensor(new Float32Array(4), [2, 2]);
  wrong(() => x.load(t, [q]), /^load: expected 2 indices for shape \[2, 2\], got 1/);
  wrong(() => x.load(t, [q, any(score)]), /^load: expected i32 as argument 1, got f32/);
});
