import assert from 'node:assert/strict';
import test from 'node:test';
import { attention } from '../../src/api/attention.ts';
import { KvCache } from '../../src/api/cache.ts';
import { closeSharedEngines, doctor, type LoadableEngine, openEngine, sharedEngine } from '../../src/api/registry.ts';
import { type SdpaOptions, scaledDotProductAttention, sdpaKernel } from '../../src/api/sdpa.ts';
import { ArgumentError, UnsupportedError } from '../../src/core/errors.ts';
import { type HostTensor, sizeOf, tensor } from '../../src/core/tensor.ts';
import { assertClose, bits, numbers, r, rand, rejects } from './support.ts';

/** PyTorch's own few lines, over [n, L, E], [n, S, E], [n, S, Ev] and a mask by (n, i, j). */
function plain(
  q: HostTensor,
  k: HostTensor,
  v: HostTensor,
  scale: number,
  bias: (n: number, i: number, j: number) => number,
) {
  const [L, E] = q.shape.slice(-2);
  const [S, Ev] = v.shape.slice(-2);
  const n = sizeOf(q.shape.slice(0, -2));
  const [x, y, z] = [numbers(q), numbers(k), numbers(v)];
  const out = new Float64Array(n * L * Ev);
  for (let m = 0; m < n; m++)
    for (let i = 0; i < L; i++) {
      const scores = Array.from({ length: S }, (_, j) => {
        let sum = 0;
        for (let d = 0; d < E; d++) sum += x[(m * L + i) * E + d] * y[(m * S + j) * E + d];
        return sum * scale + bias(m, i, j);
      });
      const most = Math.max(...scores);
      const weights = scores.map((s) => (most === Number.NEGATIVE_INFINITY ? 0 : Math.exp(s - most)));
      const total = weights.reduce((a, b) => a + b, 0) || 1;
      for (let d = 0; d < Ev; d++)
        out[(m * L + i) * Ev + d] = weights.reduce((sum, w, j) => sum + (w / total) * z[(m * S + j) * Ev + d], 0);
    }
  return tensor(Float32Array.from(out), [...q.shape.slice(0, -1), Ev]);
}

const NONE = Number.NEGATIVE_INFINITY;
const LEADING: readonly (readonly number[])[] = [[], [3], [2, 3], [2, 3, 2]];

for (const leading of LEADING)
  test(`leading axes [${leading.join(', ')}]`, async () => {
    const [L, S, E, Ev] = [5, 7, 8, 6];
    const [q, k, v] = [r(...leading, L, E), r(...leading, S, E), r(...leading, S, Ev)];
    const n = sizeOf(leading);
    const same = async (options: SdpaOptions, bias: (n: number, i: number, j: number) => number, scale = E ** -0.5) =>
      assertClose(await scaledDotProductAttention(q, k, v, options), plain(q, k, v, scale, bias));
    await same({}, () => 0);
    await same({ scale: 0.3 }, () => 0, 0.3);
    await same({ isCausal: true }, (_, i, j) => (j <= i ? 0 : NONE));
    const shared = bits(0.6, L, S);
    await same({ attnMask: shared }, (_, i, j) => (shared.data[i * S + j] ? 0 : NONE));
    const float = r(...leading, L, S);
    await same({ attnMask: float }, (m, i, j) => float.data[(m * L + i) * S + j]);
    const one = bits(0.6, ...leading.map(() => 1), 1, S);
    await same({ attnMask: one }, (_, _i, j) => (one.data[j] ? 0 : NONE));
    if (leading.length > 0) {
      // Broadcast over every leading axis but the first.
      const first = r(leading[0], ...leading.slice(1).map(() => 1), L, 1);
      await same({ attnMask: first }, (m, i) => first.data[Math.floor(m / (n / leading[0])) * L + i]);
    }
  });

test('grouped heads only when they are asked for', async () => {
  const [q, k, v] = [r(2, 6, 5, 8), r(2, 2, 7, 8), r(2, 2, 7, 8)];
  await rejects(() => scaledDotProductAttention(q, k, v), ArgumentError, 'key');
  const out = await scaledDotProductAttention(q, k, v, { enableGqa: true });
  assertClose(out, (await attention(q, k, v)).out);
  await rejects(() => scaledDotProductAttention(r(2, 5, 5, 8), k, v, { enableGqa: true }), ArgumentError, 'k');
});

test('what PyTorch refuses is refused by name', async () => {
  const t = r(1, 2, 4, 8);
  await rejects(
    () => scaledDotProductAttention(t, t, t, { isCausal: true, attnMask: bits(1, 4, 4) }),
    ArgumentError,
    'attnMask',
  );
  await rejects(() => scaledDotProductAttention(t, t, t, { attnMask: bits(1, 4, 5) }), ArgumentError, 'attnMask');
  await rejects(
    () => scaledDotProductAttention(t, t, t, { attnMask: bits(1, 1, 1, 2, 4, 4) }),
    ArgumentError,
    'attnMask',
  );
  await rejects(() => scaledDotProductAttention(t, t, t, { dropoutP: 1.5 }), ArgumentError, 'dropout');
  await rejects(() => scaledDotProductAttention(t, r(2, 4, 8), t), ArgumentError, 'key');
  await rejects(() => scaledDotProductAttention(r(8), r(8), r(8)), ArgumentError, 'query');
});

test('dropout drops about as many as it says, and keeps the mean', async () => {
  const [q, k] = [r(1, 1, 64, 8), r(1, 1, 64, 8)];
  const ones = tensor(new Float32Array(64 * 8).fill(1), [1, 1, 64, 8]);
  const out = await scaledDotProductAttention(q, k, ones, { dropoutP: 0.25 });
  const mean = numbers(out).reduce((a, b) => a + b, 0) / out.data.length;
  assert.ok(Math.abs(mean - 1) < 0.1, `mean ${mean}`);
  assert.ok(numbers(out).some((y) => Math.abs(y - 1) > 0.01));
});

test('sdpaKernel forces, orders and falls back', async () => {
  const t = r(1, 2, 9, 8);
  const d = rand('f64', 1, 2, 9, 8);
  const engines = async (order: Parameters<typeof sdpaKernel>[0], x = t) =>
    (await sdpaKernel(order).attention(x, x, x)).plan.engine;
  assert.equal(await engines('math'), 'reference');
  assert.equal(await engines(['wasm', 'math']), 'wasm');
  assert.equal(await engines(['wasm', 'math'], d), 'reference');
  const here = (await doctor()).filter((p) => p.available).map((p) => p.engine);
  assert.ok(here.includes((await engines('auto')) as LoadableEngine));
  await rejects(() => engines('wasm', d), UnsupportedError);
  assert.throws(() => sdpaKernel(['flash' as 'wasm']), ArgumentError);
  const out = await sdpaKernel(['math'], (sdp) => sdp.scaledDotProductAttention(t, t, t, { isCausal: true }));
  assertClose(out, await scaledDotProductAttention(t, t, t, { isCausal: true }));
  const engine = await openEngine('math');
  const mine = sdpaKernel(engine);
  const cache = KvCache.create(engine, { B: 1, Hkv: 2, D: 8, capacity: 9 });
  cache.append(t, t);
  await mine.attentionDecode(r(1, 2, 1, 8), cache);
  await rejects(() => sdpaKernel('wasm').attentionDecode(r(1, 2, 1, 8), cache), ArgumentError, 'engine');
  const run = await mine.attentionWithGrads(t, t, t);
  assert.equal(run.plan.engine, 'reference');
  run.dispose();
  assert.equal((await mine.explain(t, t, t)).plan.engine, 'reference');
  await engine.close();
});

test('a call of three axes is one for sdpa alone, also when it is remembered', async () => {
  const engine = await openEngine('math');
  const t = r(2, 3, 4);
  await scaledDotProductAttention(t, t, t, { engine });
  await rejects(() => attention(t, t, t, { engine }), ArgumentError, 'q');
  await engine.close();
});

test('shared engines open once, and again after they were closed', async () => {
  const engine = await sharedEngine('reference');
  assert.equal(await sharedEngine('reference'), engine);
  await closeSharedEngines();
  assert.notEqual(await sharedEngine('reference'), engine);
  const t = r(1, 1, 3, 4);
  await attention(t, t, t, { engine: 'math' });
  await closeSharedEngines();
});

test('the doctor says what runs here', async () => {
  const probes = await doctor();
  const names = probes.map((p) => p.engine);
  assert.ok(names.includes('wasm'));
  assert.equal(names[names.length - 1], 'reference');
  for (const p of probes) assert.ok((p.available ? p.detail : p.reason).length > 0);
  await rejects(() => openEngine('nope' as 'wasm'), ArgumentError, 'engine');
});
