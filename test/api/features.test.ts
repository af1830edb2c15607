import assert from 'node:assert/strict';
import test from 'node:test';
import { attention } from '../../src/api/attention.ts';
import type { AttentionOptions } from '../../src/api/options.ts';
import { tensor } from '../../src/core/tensor.ts';
import * as x from '../../src/mods/build.ts';
import { alibi, biasTensor, causal, maskOf, modOf, softcap } from '../../src/mods/library.ts';
import { assertClose, bits, r, rand, rows, swap, where } from './support.ts';

const [B, Hq, Hkv, Sq, Sk, D, Dv] = [2, 4, 2, 37, 51, 24, 20];
const q = r(B, Hq, Sq, D);
const k = r(B, Hkv, Sk, D);
const v = r(B, Hkv, Sk, Dv);
const slopes = r(Hq);
const bias = r(1, Hq, Sq, Sk);
const layout = bits(0.5, 1, 1, 3, 4);

/** Each option, and the same thing said in another way. */
const SAME: readonly (readonly [name: string, a: AttentionOptions, b: AttentionOptions])[] = [
  ['causal is bottom-right', { causal: true }, { mask: where(Sq, Sk, (i, j) => j <= i + Sk - Sq) }],
  ['causal top-left', { causal: 'top-left' }, { mask: where(Sq, Sk, (i, j) => j <= i) }],
  ['causal false', { causal: false }, {}],
  ['window of n', { window: 8 }, { mask: where(Sq, Sk, (i, j) => j <= i + Sk - Sq && j > i + Sk - Sq - 8) }],
  [
    'window left and right',
    { window: [5, 3] },
    { mask: where(Sq, Sk, (i, j) => j >= i + Sk - Sq - 5 && j <= i + Sk - Sq + 3) },
  ],
  ['window open on the left', { window: [null, 0] }, { causal: true }],
  ['mask function', { mask: ({ q: i, kv, lenQ, lenK }) => x.le(kv, x.add(i, x.sub(lenK, lenQ))) }, { causal: true }],
  ['mask object', { mask: causal() }, { causal: true }],
  [
    'causal and mask',
    { causal: true, mask: where(Sq, Sk, (_, j) => j % 3 !== 0) },
    { mask: where(Sq, Sk, (i, j) => j % 3 !== 0 && j <= i + Sk - Sq) },
  ],
  [
    'block layout',
    { blockSparse: { layout, blockSize: 16 } },
    { mask: where(Sq, Sk, (i, j) => layout.data[Math.floor(i / 16) * 4 + Math.floor(j / 16)] === 1) },
  ],
  ['softcap', { softcap: 3 }, { mod: ({ score }) => x.mul(3, x.tanh(x.div(score, 3))) }],
  ['bias', { bias }, { mod: ({ score, h, q: i, kv }) => x.add(score, x.load(bias, [0, h, i, kv])) }],
  ['alibi', { alibi: slopes }, { mod: alibi(slopes) }],
  [
    'order of modifiers',
    { softcap: 2, bias, mod: ({ score }) => x.mul(score, 2) },
    { mod: [softcap(2), biasTensor(bias), modOf(({ score }) => x.mul(2, score))] },
  ],
  ['scale', { scale: 0.5 }, { scale: 1, mod: ({ score }) => x.mul(score, 0.5) }],
  ['dropout of nothing', { dropout: 0 }, { dropout: { p: 0 } }],
  ['dropout seeds', { dropout: { p: 0.3, seed: 7 } }, { dropout: { p: 0.3, seed: 7n, offset: 0 } }],
];

for (const engine of ['math', 'wasm'] as const) {
  for (const [name, a, b] of SAME)
    test(`${engine}: ${name}`, async () => {
      const [one, two] = [await attention(q, k, v, { ...a, engine }), await attention(q, k, v, { ...b, engine })];
      assertClose(one.out, two.out);
      assertClose(one.lse, two.lse);
      assert.equal(one.plan.engine, engine === 'math' ? 'reference' : 'wasm');
    });

  test(`${engine}: layouts`, async () => {
    const a = await attention(q, k, v, { causal: true, engine });
    const b = await attention(swap(q), swap(k), swap(v), { causal: true, layout: 'bnhd', engine });
    assert.deepEqual(b.out.shape, [B, Sq, Hq, Dv]);
    assertClose(a.out, swap(b.out));
    assertClose(a.lse, b.lse);
  });

  test(`${engine}: packed sequences are the sequences one by one`, async () => {
    const [starts, startsK] = [
      [0, 5, 5, 30, 37],
      [0, 11, 20, 20, 51],
    ];
    const [pq, pk, pv] = [rows(q, 0, 0, 1), rows(k, 0, 0, 1), rows(v, 0, 0, 1)];
    const cuSeqlens = { q: Int32Array.from(starts), k: Int32Array.from(startsK) };
    const packed = await attention(pq, pk, pv, { causal: true, cuSeqlens, engine });
    assert.deepEqual(
      [packed.out.shape, packed.lse.shape],
      [
        [1, Hq, Sq, Dv],
        [Hq, Sq],
      ],
    );
    const flat = (t: typeof q) => tensor(t.data, t.shape.slice(1), t.dtype);
    const three = await attention(flat(pq), flat(pk), flat(pv), { causal: true, cuSeqlens, engine });
    assert.deepEqual(three.out.shape, [Hq, Sq, Dv]);
    for (let s = 0; s < 4; s++) {
      if (starts[s] === starts[s + 1]) continue;
      const one = await attention(
        rows(pq, 2, starts[s], starts[s + 1]),
        rows(pk, 2, startsK[s], startsK[s + 1]),
        rows(pv, 2, startsK[s], startsK[s + 1]),
        { causal: true, engine },
      );
      assertClose(rows(packed.out, 2, starts[s], starts[s + 1]), one.out);
      assertClose(rows(three.out, 1, starts[s], starts[s + 1]), tensor(one.out.data, one.out.shape.slice(1)));
    }
  });

  test(`${engine}: packed rows of no sequence are zero, and -inf in lse`, async () => {
    const [pq, pk, pv] = [rows(q, 0, 0, 1), rows(k, 0, 0, 1), rows(v, 0, 0, 1)];
    const { out, lse } = await attention(pq, pk, pv, { cuSeqlens: { q: [3, 10, 20] }, engine });
    for (let h = 0; h < Hq; h++)
      for (const row of [0, 2, 20, Sq - 1]) {
        assert.equal(lse.data[h * Sq + row], Number.NEGATIVE_INFINITY);
        assert.equal(out.data[(h * Sq + row) * Dv], 0);
      }
    assert.ok(Number.isFinite(lse.data[3]));
  });

  test(`${engine}: a sink takes its share of every row`, async () => {
    const sink = r(Hq);
    const [plain, sunk] = [await attention(q, k, v, { engine }), await attention(q, k, v, { sink, engine })];
    for (let i = 0; i < plain.lse.data.length; i++) {
      const h = Math.floor(i / Sq) % Hq;
      const lse = Math.log(Math.exp(plain.lse.data[i]) + Math.exp(sink.data[h]));
      assert.ok(Math.abs(sunk.lse.data[i] - lse) < 1e-5);
      const share = Math.exp(plain.lse.data[i] - lse);
      assert.ok(Math.abs(sunk.out.data[i * Dv] - share * plain.out.data[i * Dv]) < 1e-5);
    }
  });

  test(`${engine}: nothing to attend to`, async () => {
    const none = await attention(q, k, v, { mask: maskOf(({ kv }) => x.lt(kv, 0)), engine });
    assert.ok(none.out.data.every((y) => y === 0) && none.lse.data.every((y) => y === Number.NEGATIVE_INFINITY));
    const noKeys = await attention(q, r(B, Hkv, 0, D), r(B, Hkv, 0, Dv), { engine });
    assert.ok(noKeys.out.data.every((y) => y === 0) && noKeys.lse.data.every((y) => y === Number.NEGATIVE_INFINITY));
    const noRows = await attention(r(B, Hq, 0, D), k, v, { engine });
    assert.deepEqual(
      [noRows.out.shape, noRows.lse.shape],
      [
        [B, Hq, 0, Dv],
        [B, Hq, 0],
      ],
    );
    const noBatch = await attention(r(0, Hq, 3, D), r(0, Hkv, 4, D), r(0, Hkv, 4, Dv), {
      causal: true,
      bias: r(1, 1, 3, 4),
      engine,
    });
    assert.deepEqual(noBatch.out.shape, [0, Hq, 3, Dv]);
  });

  test(`${engine}: an additive mask of -inf hides everything too`, async () => {
    const closed = tensor(new Float32Array(Sq * Sk).fill(Number.NEGATIVE_INFINITY), [Sq, Sk]);
    const { out, lse } = await attention(q, k, v, { bias: closed, engine });
    assert.ok(out.data.every((y) => y === 0) && lse.data.every((y) => y === Number.NEGATIVE_INFINITY));
  });

  for (const dtype of ['f16', 'bf16'] as const)
    test(`${engine}: ${dtype} storage`, async () => {
      const [a, b, c] = [rand(dtype, 1, 2, 33, 16), rand(dtype, 1, 1, 40, 16), rand(dtype, 1, 1, 40, 8)];
      const { out, lse } = await attention(a, b, c, { causal: true, engine });
      const exact = await attention(a, b, c, { causal: true, engine: 'math' });
      assert.deepEqual([out.dtype, lse.dtype], [dtype, 'f32']);
      assertClose(out, exact.out, dtype === 'f16' ? 2e-3 : 2e-2);
    });
}

test('a random seed is told, and gives the same bits when given back', async () => {
  const options = { causal: true, engine: 'math' } as const;
  const first = await attention(q, k, v, { ...options, dropout: 0.5 });
  assert.ok(first.dropout !== null);
  const [lo, hi] = first.dropout.seed;
  const seed = BigInt(lo) | (BigInt(hi) << 32n);
  const again = await attention(q, k, v, { ...options, dropout: { p: 0.5, seed } });
  assert.deepEqual(again.out.data, first.out.data);
  const other = await attention(q, k, v, { ...options, dropout: 0.5 });
  assert.notDeepEqual(other.out.data, first.out.data);
});

test('float64 goes to the reference engine by itself', async () => {
  const t = rand('f64', 1, 2, 9, 8);
  const { out, lse, plan } = await attention(t, t, t, { sink: rand('f64', 2) });
  assert.deepEqual([plan.engine, out.dtype, lse.dtype], ['reference', 'f64', 'f64']);
  assert.ok(plan.refusals.some((refusal) => refusal.engine === 'wasm'));
});
