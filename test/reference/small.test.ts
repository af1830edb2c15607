import assert from 'node:assert/strict';
import test from 'node:test';
import { instantiate, type Spec } from '../../src/conformance/spec.ts';
import { type HostTensor, tensor } from '../../src/core/tensor.ts';
import { causal, softcap } from '../../src/mods/library.ts';
import { keeps } from '../../src/problem/philox.ts';
import { results } from './support.ts';

const f64 = (shape: readonly number[], ...values: number[]): HostTensor => tensor(Float64Array.from(values), shape);

/** One head of width 1 unless said otherwise, so that every number can be worked out by hand. */
async function attend(
  spec: Spec,
  q: number[],
  k: number[],
  v: number[],
  more: { dOut?: number[]; sink?: number } = {},
) {
  const full: Spec = { dtype: 'f64', B: 1, Hq: 1, Sq: q.length, Sk: k.length, D: 1, scale: 1, ...spec };
  const { problem, inputs } = instantiate('by hand', full);
  const shape = (n: number): number[] => [1, 1, n, 1];
  const given = {
    ...inputs,
    q: f64(shape(q.length), ...q),
    k: f64(shape(k.length), ...k),
    v: f64(shape(v.length), ...v),
    dOut: more.dOut ? f64(shape(q.length), ...more.dOut) : inputs.dOut,
    sink: more.sink === undefined ? null : f64([1], more.sink),
  };
  const got = await results(problem, given, full);
  return (name: string): number[] => Array.from(got.get(name)!.data);
}

function close(got: number[], expected: number[]): void {
  assert.equal(got.length, expected.length);
  got.forEach((x, i) => {
    assert.ok(Math.abs(x - expected[i]) < 1e-12, `[${i}]: expected ${expected[i]}, got ${x}`);
  });
}

const ln = Math.log;

test('two keys, weights 1/4 and 3/4', async () => {
  const got = await attend({}, [1], [0, ln(3)], [8, 4], { dOut: [1] });
  close(got('out'), [5]);
  close(got('lse'), [ln(4)]);
  close(got('dv'), [0.25, 0.75]);
  // dP = v, delta = 5: dS = P * (v - 5) = 3/4, -3/4.
  close(got('dq'), [-0.75 * ln(3)]);
  close(got('dk'), [0.75, -0.75]);
});

test('the scale multiplies scores and both gradients', async () => {
  const got = await attend({ scale: 0.5 }, [2], [0, ln(3)], [8, 4], { dOut: [1] });
  close(got('out'), [5]);
  close(got('dq'), [-0.375 * ln(3)]);
  close(got('dk'), [0.75, -0.75]);
});

test('a causal row sees the keys up to itself', async () => {
  const got = await attend({ mask: () => causal() }, [0, 0, 0], [1, 2, 3], [3, 6, 12]);
  close(got('out'), [3, 4.5, 7]);
  close(got('lse'), [0, ln(2), ln(3)]);
});

test('bottom-right and top-left alignment differ when keys are more than queries', async () => {
  const right = await attend({ mask: () => causal() }, [0, 0], [0, 0, 0], [3, 6, 12]);
  close(right('out'), [4.5, 7]);
  const left = await attend({ mask: () => causal({ align: 'top-left' }) }, [0, 0], [0, 0, 0], [3, 6, 12]);
  close(left('out'), [3, 4.5]);
});

test('rows above the first key give 0, -inf and no gradient', async () => {
  const got = await attend({ mask: () => causal(), dLse: true }, [5, 6, 7], [1], [9], { dOut: [1, 1, 1] });
  assert.deepEqual(got('out'), [0, 0, 9]);
  assert.deepEqual(got('lse'), [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY, 7]);
  assert.deepEqual(got('dq').slice(0, 2), [0, 0]);
  assert.deepEqual(got('dv'), [1]);
});

test('NaN in a masked key and value row changes nothing', async () => {
  const got = await attend({ mask: () => causal({ align: 'top-left' }) }, [1], [2, Number.NaN], [5, Number.NaN], {
    dOut: [3],
  });
  assert.deepEqual(got('out'), [5]);
  assert.deepEqual(got('dq'), [0]);
  assert.deepEqual(got('dk'), [0, 0]);
  assert.deepEqual(got('dv'), [3, 0]);
});

test('a sink takes its share of the row and of the gradient', async () => {
  // Weights: sink 2/4, keys 1/4 each.
  const got = await attend({ sink: true }, [1], [0, 0], [4, 8], { dOut: [1], sink: ln(2) });
  close(got('out'), [3]);
  close(got('lse'), [ln(4)]);
  // delta = 3, the sink's dP is 0: dSink = 1/2 * (0 - 3).
  close(got('dSink'), [-1.5]);
  close(got('dv'), [0.25, 0.25]);
  close(got('dk'), [0.25, 1.25]);
});

test('a row that attends to nothing gives its sink no gradient and has an lse of -inf', async () => {
  const got = await attend({ sink: true, dLse: true, mask: () => causal() }, [1, 1], [0], [4], {
    dOut: [1, 1],
    sink: 0,
  });
  assert.equal(got('lse')[0], Number.NEGATIVE_INFINITY);
  close([got('lse')[1]], [ln(2)]);
  close(got('out'), [0, 2]);
});

test('softcap bends the score before the softmax', async () => {
  const cap = 2;
  const got = await attend({ mod: () => softcap(cap) }, [1], [0, 3], [0, 1]);
  const bent = Math.exp(cap * Math.tanh(3 / cap));
  close(got('out'), [bent / (1 + bent)]);
});

test('dropout scales what it keeps and leaves lse alone', async () => {
  const dropout = { p: 0.5, seed: [12, 0] as const, offset: 2 };
  const keys = [0, 0, 0, 0, 0, 0, 0, 0];
  const values = [1, 2, 4, 8, 16, 32, 64, 128];
  const got = await attend({ dropout }, [1], keys, values, { dOut: [1] });
  const kept = values.map((_, kv) => (keeps(dropout, 0, 0, kv) ? 2 / 8 : 0));
  assert.ok(kept.includes(0) && kept.includes(0.25), 'the seed keeps some and drops some');
  close(got('out'), [values.reduce((sum, v, i) => sum + v * kept[i], 0)]);
  close(got('dv'), kept);
  close(got('lse'), [ln(8)]);
});

test('query heads that share a key head add up in its gradients', async () => {
  const spec: Spec = { dtype: 'f64', Hq: 2, Hkv: 1, Sq: 1, Sk: 1, D: 1, scale: 1 };
  const { problem, inputs } = instantiate('shared head', spec);
  const given = { ...inputs, v: f64([1, 1, 1, 1], 7), dOut: f64([1, 2, 1, 1], 2, 3) };
  const got = await results(problem, given, spec);
  close(Array.from(got.get('out')!.data), [7, 7]);
  close(Array.from(got.get('dv')!.data), [5]);
});

test('results are rounded to the storage type', async () => {
  const spec: Spec = { dtype: 'bf16', Hq: 1, Sq: 1, Sk: 3, D: 1, scale: 1, noGrads: true };
  const { problem, inputs } = instantiate('rounded', spec);
  const bits = (...x: number[]): HostTensor => tensor(Uint16Array.from(x), [1, 1, x.length, 1], 'bf16');
  // q = 0, v = 1, 1, 2: 4 / 3 = 1.3333 is 0x3fab in bfloat16.
  const given = { ...inputs, q: bits(0), k: bits(0, 0, 0), v: bits(0x3f80, 0x3f80, 0x4000) };
  const got = await results(problem, given, spec);
  assert.deepEqual(Array.from(got.get('out')!.data), [0x3fab]);
  assert.deepEqual(Array.from(got.get('lse')!.data), [Math.fround(ln(3))]);
});
