import assert from 'node:assert/strict';
import test from 'node:test';
import { type HostTensor, type TensorLike, tensor } from '../../src/core/tensor.ts';
import { le, lt, mul } from '../../src/mods/build.ts';
import { evaluate } from '../../src/mods/evaluate.ts';
import { CONTEXT, type Mask, type Mod } from '../../src/mods/expr.ts';
import * as lib from '../../src/mods/library.ts';
import { verifyLoads } from '../../src/mods/verify.ts';

/** Rows of the mask as text: x attends. */
function picture(mask: Mask, lenQ: number, lenK: number, b = 0, h = 0): string[] {
  const expr = mask.build(CONTEXT);
  return Array.from({ length: lenQ }, (_, q) =>
    Array.from({ length: lenK }, (_, kv) => (evaluate(expr, { score: 0, b, h, q, kv, lenQ, lenK }) ? 'x' : '.')).join(
      '',
    ),
  );
}
const modified = (mod: Mod, at: Partial<Parameters<typeof evaluate>[1]>): number =>
  evaluate(mod.build(CONTEXT), { score: 0, b: 0, h: 0, q: 0, kv: 0, lenQ: 4, lenK: 4, ...at });

test('causal aligns at the bottom right, or at the top left', () => {
  assert.deepEqual(picture(lib.causal(), 2, 4), ['xxx.', 'xxxx']);
  assert.deepEqual(picture(lib.causal({ align: 'top-left' }), 2, 4), ['x...', 'xx..']);
  assert.deepEqual(picture(lib.causal(), 4, 2), ['..', '..', 'x.', 'xx']);
});

test('a window of n keeps exactly n keys under causal, as (i >= j) & (i - j < n) does', () => {
  assert.deepEqual(picture(lib.and(lib.causal(), lib.slidingWindow(2)), 4, 4), ['x...', 'xx..', '.xx.', '..xx']);
  assert.deepEqual(picture(lib.slidingWindow(2), 3, 4), ['xxxx', '.xxx', '..xx']);
  const expr = lib.and(lib.causal(), lib.slidingWindow(1024)).build(CONTEXT);
  let kept = 0;
  for (let kv = 0; kv < 4096; kv++)
    kept += evaluate(expr, { score: 0, b: 0, h: 0, q: 3000, kv, lenQ: 4096, lenK: 4096 });
  assert.equal(kept, 1024);
});

test('a window of (left, right) counts neighbours, aligned at the bottom right', () => {
  assert.deepEqual(picture(lib.slidingWindow(1, 0), 4, 4), ['x...', 'xx..', '.xx.', '..xx']);
  assert.deepEqual(picture(lib.slidingWindow(1, 1), 3, 3), ['xx.', 'xxx', '.xx']);
  assert.deepEqual(picture(lib.slidingWindow(1, 0), 2, 4), ['.xx.', '..xx']);
  assert.deepEqual(picture(lib.slidingWindow(Number.POSITIVE_INFINITY, 0), 2, 3), ['xx.', 'xxx']);
  assert.deepEqual(picture(lib.slidingWindow(0, Number.POSITIVE_INFINITY), 2, 2), ['xx', '.x']);
});

test('prefix, documents, blocks and tensors', () => {
  assert.deepEqual(picture(lib.prefix(2), 3, 3), ['xx.', 'xx.', 'xxx']);
  assert.deepEqual(picture(lib.prefix(tensor(new Int32Array([0, 3]), [2])), 3, 3, 1), ['xxx', 'xxx', 'xxx']);
  const ids = tensor(new Int32Array([5, 5, 6]), [3]);
  assert.deepEqual(picture(lib.documents(ids), 3, 3), ['xx.', 'xx.', '..x']);
  assert.deepEqual(picture(lib.documents(tensor(new Int32Array([6, 5]), [1, 2]), ids), 2, 3, 1), ['..x', 'xx.']);
  const layout = tensor(new Uint8Array([1, 0, 0, 1]), [1, 1, 2, 2]);
  assert.deepEqual(picture(lib.blockLayout(layout, 2), 4, 3, 1, 1), ['xx.', 'xx.', '..x', '..x']);
  const keys = tensor(new Uint8Array([1, 0, 1, 1, 1, 0]), [2, 1, 1, 3]);
  assert.deepEqual(picture(lib.maskTensor(keys), 2, 3, 0), ['x.x', 'x.x']);
  assert.deepEqual(picture(lib.maskTensor(keys), 1, 3, 1), ['xx.']);
});

test('and, or and not join masks, and conditions inside functions', () => {
  const near = lib.maskOf((at) => lib.or(lib.and(le(at.kv, at.q), lt(at.q, 2)), lib.not(lt(at.kv, 2))), 'near');
  assert.deepEqual(picture(near, 3, 3), ['x.x', 'xxx', '..x']);
  assert.deepEqual(picture(lib.or(lib.not(lib.causal()), lib.slidingWindow(0, 0)), 2, 2), ['xx', '.x']);
  assert.equal(lib.and(lib.causal(), lib.slidingWindow(8)).label, 'causal+window8');
  assert.equal(lib.and(lib.or(lib.causal(), near), lib.prefix(3)).label, '(causal|near)+prefix3');
  assert.equal(lib.not(lib.and(lib.causal(), near)).label, '!(causal+near)');
  const mixed = lib.and as (...terms: unknown[]) => unknown;
  assert.throws(() => mixed(lib.causal(), lt(CONTEXT.q, 2)), { name: 'ExpressionError', message: /masks only/ });
});

test('score modifiers', () => {
  const slopes = tensor(new Float32Array([0.5, 0.25]), [2]);
  assert.equal(modified(lib.alibi(slopes), { score: 1, h: 1, q: 0, kv: 3 }), 1 - 0.25 * 3);
  assert.equal(modified(lib.alibi(slopes), { score: 1, h: 0, q: 1, kv: 0, lenQ: 2, lenK: 4 }), 1 - 0.5 * 3);
  const perBatch = tensor(new Float32Array([0, 0, 1, 2]), [2, 2]);
  assert.equal(modified(lib.alibi(perBatch), { b: 1, h: 1, q: 1, kv: 0 }), -2);
  assert.ok(Math.abs(modified(lib.softcap(30), { score: 40 }) - 30 * Math.tanh(40 / 30)) < 1e-12);
  const bias = tensor(new Float32Array([1, 2, 3, 4]), [1, 4]);
  assert.equal(modified(lib.biasTensor(bias), { score: 1, kv: 2 }), 4);
  const table = tensor(new Float32Array([10, 20, 30, 40, 50]), [1, 5]);
  const relative = lib.relativeBias(table);
  assert.deepEqual(
    [0, 1, 2, 3].map((kv) => modified(relative, { q: 3, kv })),
    [10, 10, 20, 30],
  );
  const doubled = lib.modOf((at) => mul(at.score, 2), 'double');
  assert.equal(modified(lib.compose(doubled, lib.biasTensor(bias), doubled), { score: 3, kv: 0 }), 14);
  assert.equal(lib.compose(doubled, lib.softcap(5)).label, 'double+softcap5');
});

test('broadcasting tensors must have the axes of the scores', () => {
  const range = (n: number) => ({ lo: 0, hi: n - 1 });
  const domain = { b: range(2), h: range(4), q: range(8), kv: range(16), lenQ: range(9), lenK: range(17) };
  const check = (m: { build: Mask['build'] } | Mod): void => verifyLoads((m as Mask).build(CONTEXT), domain);
  const bytes = (...shape: number[]): HostTensor => tensor(new Uint8Array(shape.reduce((x, y) => x * y, 1)), shape);
  for (const shape of [[2, 4, 8, 16], [1, 1, 8, 16], [8, 16], [16], [1], [], [2, 1, 1, 16], [8, 1]])
    check(lib.maskTensor(bytes(...shape)));
  for (const shape of [
    [8, 15],
    [8, 17],
    [3, 1, 1, 1],
    [1, 5, 1, 1],
    [9, 16],
  ])
    assert.throws(() => check(lib.maskTensor(bytes(...shape))), { name: 'ExpressionError', message: /broadcasts/ });
  assert.throws(() => check(lib.alibi(tensor(new Float32Array(8), [8]))), { name: 'ExpressionError' });
});

test('arguments that make no sense are named', () => {
  const wrong = (f: () => unknown, argument: string): void =>
    assert.throws(f, (e: Error & { argument?: string }) => e.name === 'ArgumentError' && e.argument === argument);
  const f32 = (...shape: number[]): TensorLike => ({ dtype: 'f32', shape });
  wrong(() => lib.causal({ align: 'left' as never }), 'align');
  wrong(() => lib.slidingWindow(0), 'n');
  wrong(() => lib.slidingWindow(1.5, 0), 'left');
  wrong(() => lib.slidingWindow(1, -1), 'right');
  wrong(() => lib.prefix(-1), 'n');
  wrong(() => lib.prefix(f32(2)), 'n');
  wrong(() => lib.documents(f32(2)), 'idsQ');
  wrong(() => lib.blockLayout({ dtype: 'u8', shape: [2, 2] }, 16), 'layout');
  wrong(() => lib.blockLayout({ dtype: 'u8', shape: [1, 1, 2, 2] }, 0), 'blockSize');
  wrong(() => lib.maskTensor(f32(2, 2)), 'mask');
  wrong(() => lib.maskTensor({ dtype: 'u8', shape: [1, 1, 1, 1, 1] }), 'mask');
  wrong(() => lib.maskTensor(undefined as never), 'mask');
  wrong(() => lib.alibi({ dtype: 'i32', shape: [2] }), 'slopes');
  wrong(() => lib.softcap(0), 'cap');
  wrong(() => lib.softcap(Number.NaN), 'cap');
  wrong(() => lib.relativeBias(f32(2, 4)), 'table');
});

test("ALiBi's slopes are the paper's, also for head counts that are no power of two", () => {
  assert.deepEqual([...lib.alibiSlopes(8).data].slice(0, 3), [0.5, 0.25, 0.125]);
  const twelve = [...lib.alibiSlopes(12).data];
  assert.deepEqual(twelve.slice(0, 2), [0.5, 0.25]);
  assert.equal(twelve.length, 12);
  assert.ok(Math.abs(twelve[8] - 2 ** -0.5) < 1e-7);
  assert.throws(() => lib.alibiSlopes(0), /heads/);
});
