import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { tensor } from '../../src/core/tensor.ts';
import * as x from '../../src/mods/build.ts';
import { evaluate, type Point } from '../../src/mods/evaluate.ts';
import { CONTEXT, type F32, type Mod } from '../../src/mods/expr.ts';
import { alibi, biasTensor, compose, softcap } from '../../src/mods/library.ts';
import { linearBias } from '../../src/mods/linear.ts';
import { simplify } from '../../src/mods/simplify.ts';

const slopes = tensor(Float32Array.of(0.5, -0.25), [2]);
const built = (mod: Mod): F32 => simplify(mod.build(CONTEXT));
const { score, q, kv, h } = CONTEXT;
const distance = x.toF32(x.abs(x.sub(q, kv)));
const LINES: Record<string, F32> = {
  alibi: built(alibi(slopes)),
  'a bias on the left, twice': x.add(x.mul(distance, x.load(slopes, [h])), x.add(x.toF32(kv), score)),
  'a hinge off the diagonal, and one in a hinge': x.sub(
    score,
    x.add(x.toF32(x.abs(x.add(x.sub(kv, q), 3))), x.mul(x.toF32(x.abs(x.sub(x.abs(x.sub(q, kv)), 5))), 0.5)),
  ),
  'queries may bend it, turns may not': x.add(score, x.add(x.mul(x.toF32(q), x.toF32(q)), x.toF32(kv))),
};

test('what is a line along the keys, and what is not', () => {
  for (const [name, mod] of Object.entries(LINES)) assert.notEqual(linearBias(mod), null, name);
  const others: Record<string, F32> = {
    softcap: built(softcap(20)),
    'a table': built(biasTensor(tensor(new Float32Array(64), [64]))),
    'no key': x.add(score, x.toF32(q)),
    'steps that differ between queries': x.add(score, x.mul(x.toF32(q), x.toF32(kv))),
    'a curve': x.add(score, x.mul(x.toF32(kv), x.toF32(kv))),
    'a bent turn': x.add(score, x.toF32(x.abs(x.sub(x.mul(q, q), kv)))),
    'a score scaled': x.add(x.mul(score, 2), x.toF32(kv)),
    'a score subtracted': x.sub(x.toF32(kv), score),
    'a score twice': x.add(score, x.add(score, x.toF32(kv))),
    'a score capped first': built(compose(softcap(20), alibi(slopes))),
  };
  for (const [name, mod] of Object.entries(others)) assert.equal(linearBias(mod), null, name);
});

test('in a box where no turn changes its sign, a bias is what it is at the first key and its slope', () => {
  const at = (qAt: number, kvAt: number): Point => ({ score: 0, b: 0, h: 1, q: qAt, kv: kvAt, lenQ: 64, lenK: 64 });
  const box = fc.record({
    name: fc.constantFrom(...Object.keys(LINES)),
    q0: fc.nat(50),
    kv0: fc.nat(50),
    rows: fc.integer({ min: 1, max: 8 }),
    keys: fc.integer({ min: 1, max: 8 }),
  });
  let straight = 0;
  fc.assert(
    fc.property(box, ({ name, q0, kv0, rows, keys }) => {
      const mod = LINES[name];
      const line = linearBias(mod);
      assert.ok(line !== null);
      const corners = [q0, q0 + rows - 1].flatMap((i) => [kv0, kv0 + keys - 1].map((j) => at(i, j)));
      const bent = line.turns.some((e) => new Set(corners.map((p) => evaluate(e, p) < 0)).size > 1);
      if (bent) return;
      straight++;
      const slope = evaluate(line.slope, corners[0]);
      for (let i = q0; i < q0 + rows; i++)
        for (let j = kv0; j < kv0 + keys; j++) {
          const whole = evaluate(mod, { ...at(i, j), score: 0.25 });
          assert.ok(Math.abs(0.25 + evaluate(line.bias, at(i, kv0)) + slope * (j - kv0) - whole) < 1e-9);
        }
    }),
  );
  assert.ok(straight > 20);
});
