import assert from 'node:assert/strict';
import test from 'node:test';
import { tensor } from '../../src/core/tensor.ts';
import type { CudaKernel } from '../../src/engines/cuda/kernel.ts';
import { ceilingOf } from '../../src/engines/cuda/kernels/ceiling.ts';
import { forwardMma } from '../../src/engines/cuda/kernels/forward_mma.ts';
import { perHead } from '../../src/engines/cuda/kernels/scores.ts';
import * as x from '../../src/mods/build.ts';
import { CONTEXT, type Mod } from '../../src/mods/expr.ts';
import { alibi, biasTensor, causal, compose, modOf, softcap } from '../../src/mods/library.ts';
import type { Problem } from '../../src/problem/problem.ts';
import { CAPS } from './plans.ts';
import { problemOf } from './problems.ts';

const built = (mod: Mod) => mod.build(CONTEXT);
const slopes = tensor(Float32Array.of(0.5, 0.25), [2]);
const near = (got: number | null, wanted: number): void => assert.ok(got !== null && Math.abs(got - wanted) < 1e-6);

test('scores that keep to bounds have a ceiling in base 2, others have none', () => {
  near(ceilingOf(built(softcap(20))), 20 * Math.LOG2E);
  // 2 * 60 * log2(e) is too far apart. Twice 50 is not, but the least must stay above 2^-120.
  assert.equal(ceilingOf(built(softcap(60))), null);
  near(ceilingOf(built(softcap(50))), 120 - 50 * Math.LOG2E);
  assert.equal(ceilingOf(built(compose(softcap(20), alibi(slopes)))), null);
  assert.equal(ceilingOf(built(modOf(({ score }) => x.mul(score, 2)))), null);
  assert.equal(ceilingOf(null), null);
});

test('what a head fixes is found, what a position or the score is part of is not', () => {
  assert.deepEqual(
    perHead(built(alibi(slopes))).map((e) => e.kind),
    ['load'],
  );
  assert.deepEqual(perHead(built(biasTensor(tensor(new Float32Array(64), [64])))), []);
  assert.deepEqual(perHead(built(softcap(20))), []);
});

/** The text of the portable forward, first configuration. */
function textOf(problem: Problem): string {
  const kernel = forwardMma as CudaKernel;
  const [config] = kernel.configs(problem, CAPS);
  return kernel.kernels(problem, config).find(({ name }) => name.startsWith('forward'))?.text ?? '';
}
const count = (text: string, what: RegExp): number => text.match(what)?.length ?? 0;

test('positions become floats once a row and column, not once an element', () => {
  const shape = { dtype: 'bf16', D: 64, Sq: 512, Sk: 512, mask: causal(), mod: alibi(slopes) } as const;
  const text = textOf(problemOf(shape));
  assert.ok(count(text, /ex2\.approx/g) > 32);
  assert.ok(count(text, /cvt\.rn\.f32\.s32/g) <= 4);
  // Past 2^21 sums of positions may need more bits than f32 has.
  const far = textOf(problemOf({ ...shape, Sk: 2 ** 21 }));
  assert.ok(count(far, /cvt\.rn\.f32\.s32/g) > 16);
});
