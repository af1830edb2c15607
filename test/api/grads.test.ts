import assert from 'node:assert/strict';
import test from 'node:test';
import { attention } from '../../src/api/attention.ts';
import { attentionWithGrads, type GradientsOf } from '../../src/api/grads.ts';
import type { GradOptions } from '../../src/api/options.ts';
import { openEngine } from '../../src/api/registry.ts';
import { DisposedError } from '../../src/core/errors.ts';
import { type HostTensor, tensor } from '../../src/core/tensor.ts';
import * as x from '../../src/mods/build.ts';
import { assertClose, bits, numbers, r, rand, rejects, where } from './support.ts';

/** d(sum(out * dOut) + sum(lse * dLse)) / d t[i], by central differences in float64. */
async function numeric(t: HostTensor, i: number, loss: () => Promise<number>): Promise<number> {
  const [was, h] = [t.data[i], 1e-5];
  t.data[i] = was + h;
  const up = await loss();
  t.data[i] = was - h;
  const down = await loss();
  t.data[i] = was;
  return (up - down) / (2 * h);
}

test('every gradient agrees with finite differences, through out and through lse', async () => {
  const f = (...shape: number[]) => rand('f64', ...shape);
  const [q, k, v] = [f(2, 4, 5, 6), f(2, 2, 7, 6), f(2, 2, 7, 3)];
  const [bias, alibi, sink, table] = [f(1, 4, 5, 7), f(2, 4), f(4), f(4, 7)];
  const [dOut, dLse] = [f(2, 4, 5, 3), f(2, 4, 5)];
  const options: GradOptions = {
    causal: true,
    softcap: 2,
    bias,
    alibi,
    sink,
    dropout: { p: 0.25, seed: 11 },
    mod: ({ score, h, kv }) => x.mul(score, x.exp(x.load(table, [h, kv]))),
  };
  const loss = async (): Promise<number> => {
    const { out, lse } = await attention(q, k, v, options);
    const dot = (a: HostTensor, b: HostTensor): number => {
      const ys = numbers(b);
      return numbers(a).reduce((sum, y, i) => sum + (Number.isFinite(y) ? y * ys[i] : 0), 0);
    };
    return dot(out, dOut) + dot(lse, dLse);
  };
  const run = await attentionWithGrads(q, k, v, options);
  const g = await run.backward(dOut, dLse);
  assert.equal(g.dSides.size, 3);
  assert.equal(g.dBias, g.dSides.get(bias));
  assert.equal(g.dSlopes, g.dSides.get(alibi));
  const all: [HostTensor, HostTensor | null | undefined][] = [
    [q, g.dq],
    [k, g.dk],
    [v, g.dv],
    [bias, g.dBias],
    [alibi, g.dSlopes],
    [sink, g.dSink],
    [table, g.dSides.get(table)],
  ];
  for (const [t, gradient] of all) {
    assert.ok(gradient);
    assert.deepEqual(gradient.shape, t.shape);
    for (let i = 0; i < t.data.length; i += Math.ceil(t.data.length / 7)) {
      const wanted = await numeric(t, i, loss);
      assert.ok(
        Math.abs(gradient.data[i] - wanted) < 1e-6 * (1 + Math.abs(wanted)),
        `${gradient.data[i]}, expected ${wanted}`,
      );
    }
  }
  run.dispose();
});

const [q, k, v] = [r(1, 4, 20, 16), r(1, 2, 33, 16), r(1, 2, 33, 8)];
const dOut = r(1, 4, 20, 8);
const names = ['dq', 'dk', 'dv', 'dBias', 'dSlopes', 'dSink'] as const;

test('only what is asked for is worked out', async () => {
  const options = { bias: r(20, 33), alibi: r(4), sink: r(4), engine: 'math' } as const;
  const asked = async (grads: GradOptions['grads']): Promise<string[]> => {
    const run = await attentionWithGrads(q, k, v, { ...options, grads });
    const g = await run.backward(dOut);
    run.dispose();
    return names.filter((name) => g[name] !== null);
  };
  assert.deepEqual(await asked(undefined), [...names]);
  assert.deepEqual(await asked({ q: false, sides: false }), ['dk', 'dv', 'dSink']);
  assert.deepEqual(await asked({ k: false, v: false, sink: false, sides: [options.bias] }), ['dq', 'dBias']);
});

test('backward may run again, and not after dispose', async () => {
  const engine = await openEngine('math');
  const run = await attentionWithGrads(q, k, v, { causal: true, dropout: 0.5, engine });
  const first = await run.backward(dOut);
  assert.deepEqual(await run.backward(dOut), first);
  const running = run.backward(dOut);
  run.dispose();
  assert.deepEqual((await running).dq, first.dq);
  await rejects(() => run.backward(dOut), DisposedError);
  assert.equal(engine.bytesInUse, 0);
  await engine.close();
});

for (const name of ['math', 'wasm'] as const)
  test(`${name}: engine tensors in, engine tensors out`, async () => {
    const engine = await openEngine(name);
    const options: GradOptions = { causal: true, bias: r(20, 33), sink: r(4), softcap: 4 };
    const host = await attentionWithGrads(q, k, v, { ...options, engine: 'math' });
    const wanted = await host.backward(dOut);
    host.dispose();
    const [eq, ek, ev, eOut] = [q, k, v, dOut].map((t) => engine.upload(t));
    const run = await attentionWithGrads(eq, ek, ev, options);
    const g = await run.backward(eOut);
    for (const one of names) {
      const [a, b] = [g[one], wanted[one]];
      assert.equal(a === null, b === null, one);
      if (a !== null && b !== null) assertClose(await a.read(), b, 1e-4);
    }
    for (const t of [g.dq, g.dk, g.dv, g.dBias, g.dSink, run.out, run.lse, eq, ek, ev, eOut]) t?.dispose();
    run.dispose();
    await engine.synchronize();
    assert.equal(engine.bytesInUse, 0);
    await engine.close();
  });

for (const [layout, packed] of [
  ['bhnd', false],
  ['bnhd', false],
  ['bhnd', true],
  ['bnhd', true],
] as const)
  test(`what does not fit is done in parts: ${layout}${packed ? ', packed' : ''}`, async () => {
    const S = 24;
    const shape = (H: number, D: number) => [packed ? 1 : 2, ...(layout === 'bhnd' ? [H, S] : [S, H]), D];
    const [pq, pk, pv, pOut] = [r(...shape(6, 8)), r(...shape(3, 8)), r(...shape(3, 4)), r(...shape(6, 4))];
    const dLse = packed ? r(6, S) : r(2, 6, S);
    const [B, N] = packed ? [3, 12] : [2, S];
    const options: GradOptions = {
      layout,
      causal: true,
      alibi: r(B, 6),
      bias: r(B, 1, N, N),
      mask: bits(0.8, 1, 6, N, N),
      sink: r(6),
      cuSeqlens: packed ? { q: [0, 5, 12, 24] } : undefined,
    };
    const whole = await attentionWithGrads(pq, pk, pv, { ...options, engine: 'math' });
    const wanted = await whole.backward(pOut, dLse);
    whole.dispose();
    for (const memory of packed ? [40_000, 20_000, 16_000] : [62_000, 44_000, 36_000]) {
      const engine = await openEngine('math', { memory });
      const shares: number[] = [];
      const forward = await attention(pq, pk, pv, { ...options, engine });
      assertClose(forward.out, whole.out, 1e-6);
      assertClose(forward.lse, whole.lse, 1e-6);
      const run = await attentionWithGrads(pq, pk, pv, { ...options, engine, onProgress: (s) => shares.push(s) });
      assertClose(run.out, whole.out, 1e-6);
      assert.equal(shares[shares.length - 1], 1);
      const g: GradientsOf<HostTensor> = await run.backward(pOut, dLse);
      run.dispose();
      for (const name of names) assertClose(g[name] as HostTensor, wanted[name] as HostTensor, 1e-5);
      assert.equal(engine.bytesInUse, 0);
      await engine.close();
    }
  });

test('no queries: zero gradients', async () => {
  const run = await attentionWithGrads(r(1, 4, 0, 16), k, v, { sink: r(4), engine: 'math' });
  const g = await run.backward(tensor(new Float32Array(0), [1, 4, 0, 8]));
  for (const t of [g.dk, g.dv, g.dSink]) assert.ok(t?.data.every((y) => y === 0));
  assert.deepEqual(g.dk?.shape, k.shape);
  run.dispose();
});

test('packed rows of no sequence hold no leftovers of the memory they lie in', async () => {
  const engine = await openEngine('wasm', { threads: 1 });
  const t = r(1, 9, 8);
  for (const cuSeqlens of [
    { q: [2, 6], k: [1, 7] },
    { q: [0, 9], k: [2, 5] },
    { q: [3, 3], k: [0, 9] },
    { q: [0], k: [0] },
  ]) {
    const wanted = await attentionWithGrads(t, t, t, { cuSeqlens, sink: r(1), engine: 'math' });
    const exact = await wanted.backward(t);
    // Memory that new tensors are then made of.
    const dirty = [1, 2, 3].map(() => engine.upload(tensor(new Float32Array(2000).fill(Number.NaN), [2000])));
    for (const d of dirty) d.dispose();
    const run = await attentionWithGrads(t, t, t, { cuSeqlens, sink: r(1), engine });
    const got = await run.backward(t);
    for (const name of ['dq', 'dk', 'dv'] as const) {
      const rows = numbers(got[name]).map((y, i) => (numbers(exact[name])[i] === 0 ? y : 0));
      assert.ok(
        rows.every((y) => y === 0),
        `${name} of ${JSON.stringify(cuSeqlens)}`,
      );
    }
    run.dispose();
    wanted.dispose();
  }
  await engine.close();
});

test('packed rows of no sequence have zero gradients', async () => {
  const t = r(1, 1, 9, 4);
  const run = await attentionWithGrads(t, t, t, { cuSeqlens: { q: [2, 6] }, engine: 'math' });
  const { dq, dk } = await run.backward(r(1, 1, 9, 4));
  for (const g of [dq, dk]) {
    assert.ok(g !== null);
    assert.ok(g.data.subarray(0, 8).every((y) => y === 0) && g.data.subarray(24).every((y) => y === 0));
    assert.ok(g.data.subarray(8, 24).some((y) => y !== 0));
  }
  run.dispose();
});

for (const dropout of [undefined, { p: 0.2, seed: 3 }])
  test(`a mask's host tensor may change after forward${dropout ? ', with dropout' : ''}`, async () => {
    const engine = await openEngine('wasm');
    const [qs, ks, vs, dOut] = [r(1, 2, 150, 16), r(1, 2, 150, 16), r(1, 2, 150, 16), r(1, 2, 150, 16)];
    const mask = where(150, 150, (i, j) => j <= i);
    const before = await attentionWithGrads(qs, ks, vs, { mask, dropout, engine });
    const wanted = await before.backward(dOut);
    const run = await attentionWithGrads(qs, ks, vs, { mask, dropout, engine });
    mask.data.fill(0);
    const got = await run.backward(dOut);
    for (const name of ['dq', 'dk', 'dv'] as const) assertClose(got[name], wanted[name], 0);
    before.dispose();
    run.dispose();
    await engine.close();
  });
