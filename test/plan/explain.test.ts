import assert from 'node:assert/strict';
import test from 'node:test';
import { explain } from '../../src/api/explain.ts';
import { tensor } from '../../src/core/tensor.ts';
import { CONTEXT } from '../../src/mods/expr.ts';
import { causal } from '../../src/mods/library.ts';
import { choosePlan } from '../../src/plan/choose.ts';
import { explainPlan } from '../../src/plan/explain.ts';
import { engine, kernel, problem } from './support.ts';

test('blocks, pairs and bytes of a causal problem', () => {
  const p = problem({ mask: { label: 'causal', expr: causal().build(CONTEXT) } });
  const wasm = engine('wasm', [kernel('no', 'forward', [1], 'not today'), kernel('yes', 'forward', [1])]);
  const e = explainPlan(choosePlan(p, [wasm]), p);
  // 128 positions in blocks of 16 x 64: rows 0 .. 3 see one block, 4 .. 7 two; the last of each row is masked.
  assert.deepEqual(e.blocks, { blockQ: 16, blockK: 64, visited: 4 * (4 + 8), partial: 4 * 8, all: 4 * 16 });
  assert.deepEqual(e.density, { pairs: (128 * 129) / 2 / 128 ** 2, exact: true });
  assert.deepEqual(e.memory, {
    inputs: 4 * 128 * 32 * (4 + 2 + 2),
    outputs: 4 * 128 * 4 * (32 + 1),
    gradients: 0,
    workspace: 0,
    standard: 2 * 4 * 128 * 128 * 4,
  });
  assert.deepEqual(e.features, ['causal']);
  for (const word of ['wasm:forward:f32', 'B=1 Hq=4 Hkv=2', '75.0 %', 'yes', 'not today', '512 KiB'])
    assert.ok(e.text.includes(word), `${word} in\n${e.text}`);
  assert.deepEqual(JSON.parse(JSON.stringify(e)), e);
});

test('shapes are enough to explain a call', async () => {
  const q = { dtype: 'f16', shape: [2, 8, 1024, 64] } as const;
  const k = { dtype: 'f16', shape: [2, 2, 1024, 64] } as const;
  const e = await explain(q, k, k, { window: 128, softcap: 30, grads: {}, engine: 'math' });
  assert.equal(e.plan.engine, 'reference');
  assert.ok(e.plan.backward !== null);
  assert.ok(Math.abs(e.density.pairs - 128 / 1024) < 0.01);
  assert.deepEqual(
    e.features,
    ['softcap30', 'causal+window128', 'gradients'].map((f, i) => (i === 1 ? e.features[1] : f)),
  );
  assert.ok(e.memory.gradients === e.memory.inputs);
});

test('packed lengths are counted one by one', async () => {
  const t = tensor(new Float32Array(100 * 8), [1, 100, 8]);
  const e = await explain(t, t, t, { cuSeqlens: { q: [0, 10, 100] }, engine: 'math' });
  assert.equal(e.density.pairs, 1);
  assert.equal(e.memory.standard, 2 * 4 * (10 * 10 + 90 * 90));
});
