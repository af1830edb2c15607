import assert from 'node:assert/strict';
import test from 'node:test';
import { openStandard } from '../../demo/opponent.ts';
import { measure, plausible } from '../../src/cli/measure.ts';
import { randomTensor } from '../../src/cli/shapes.ts';
import { UnsupportedError } from '../../src/core/errors.ts';

const inputs = (n: number, m = n, D = 64) => {
  const make = (s: number, seed: number) => randomTensor({ dtype: 'f32', shape: [2, 3, s, D] }, seed);
  return { q: make(n, 1), k: make(m, 2), v: make(m, 3) };
};

test('the opponent is right, forward and backward, for one thread and two', async () => {
  for (const threads of [1, 2]) {
    const engine = await openStandard({ threads });
    try {
      for (const [n, m] of [
        [16, 16],
        [48, 48],
        [112, 112],
        [64, 272],
      ])
        for (const causal of n === m ? [false, true] : [false]) {
          const { forward, backward, plan } = await measure(
            engine,
            { ...inputs(n, m), options: { causal }, grads: true },
            { seconds: 0, samples: 48 },
          );
          assert.deepEqual([plan.forward.kernel, plan.backward?.kernel], ['standard', 'standard']);
          assert.ok(plausible('f32', forward.check!), `forward ${n} ${m} ${causal} ${forward.check?.error}`);
          assert.ok(plausible('f32', backward!.check!), `backward ${n} ${m} ${causal} ${backward?.check?.error}`);
          assert.ok(forward.scratch >= 2 * 3 * n * m * 4, 'its matrix is counted');
        }
    } finally {
      await engine.close();
    }
  }
});

test('it refuses what it is not made for', async () => {
  const engine = await openStandard({ threads: 1 });
  const run = (options: object, n = 16) => measure(engine, { ...inputs(n), options, grads: false }, { seconds: 0 });
  await assert.rejects(run({ softcap: 3 }), UnsupportedError);
  await assert.rejects(run({ window: 3 }), UnsupportedError);
  await assert.rejects(run({}, 17), UnsupportedError);
  await engine.close();
});
