import assert from 'node:assert/strict';
import test from 'node:test';
import { attentionWithGrads } from '../../src/api/grads.ts';
import { createRequest } from '../../src/api/request.ts';
import { backwardError, forwardError } from '../../src/cli/sampled.ts';
import { randomTensor } from '../../src/cli/shapes.ts';
import { alibiSlopes } from '../../src/mods/library.ts';

/** The sampled oracle was written apart from the reference engine: they must agree. */
test('sampled errors of the reference engine are rounding alone, and a planted error is seen', async () => {
  const shape = (h: number, s: number, d: number) => ({ dtype: 'f64', shape: [2, h, s, d] }) as const;
  const [q, k, v] = [
    randomTensor(shape(4, 21, 8), 1),
    randomTensor(shape(2, 30, 8), 2),
    randomTensor(shape(2, 30, 12), 3),
  ];
  for (const options of [{}, { causal: true }, { window: [5, 2] as const, softcap: 3 }, { alibi: alibiSlopes(4) }]) {
    const run = await attentionWithGrads(q, k, v, { ...options, engine: 'reference' });
    const dOut = randomTensor(run.out, 4);
    const { dq, dk, dv } = await run.backward(dOut);
    const { problem } = createRequest(q, k, v, options, {});
    const all = { q, k, v, out: run.out, lse: run.lse, dOut, dq: dq!, dk: dk!, dv: dv! };
    const { error, lse } = forwardError(problem, all, 40);
    assert.ok(error < 1e-12 && lse < 1e-12);
    assert.ok(backwardError(problem, all, 40).error < 1e-11);
    for (const t of [run.out, dq!, dk!, dv!]) t.data[t.data.length - 1] += 0.1;
    assert.ok(Math.abs(forwardError(problem, all, 40).error - 0.1) < 1e-9);
    assert.ok(backwardError(problem, all, 40).error > 0.09);
  }
});
