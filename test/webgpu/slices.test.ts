/** Operands larger than a binding: how problems are cut, that the pieces make the whole, and what is refused when planned. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { instantiate } from '../../src/conformance/spec.ts';
import { runCase } from '../../src/conformance/suite.ts';
import { tensor } from '../../src/core/tensor.ts';
import { open, probe } from '../../src/engines/webgpu/index.ts';
import { KERNELS } from '../../src/engines/webgpu/kernels/index.ts';
import { FAMILIES, slicesOf, wholeOf, windowOf } from '../../src/engines/webgpu/kernels/slices.ts';
import { add, bitAnd, detach, load, toI32 } from '../../src/mods/build.ts';
import { modOf } from '../../src/mods/library.ts';
import { FLOOR } from './devices.ts';

const { problem } = instantiate('slices', { B: 3, Hq: 4, Hkv: 2, Sq: 20, Sk: 24, D: 16 });

test('webgpu: slices are the whole, or batches, or heads, and never more than a binding', () => {
  const whole = windowOf(problem, 'q', wholeOf(problem)).size;
  assert.equal(whole, 3 * 4 * 20 * 16 * 4);
  for (const [binding, count] of [
    [whole, 1],
    [whole / 3, 3],
    [whole / 6, 6],
    [whole / 12, null],
  ] as const) {
    const slices = slicesOf(problem, binding);
    assert.equal(slices?.length ?? null, count, `binding ${binding}`);
    let pairs = 0;
    for (const slice of slices ?? []) {
      pairs += (slice.b1 - slice.b0) * (slice.g1 - slice.g0);
      for (const family of FAMILIES) {
        const { offset, size } = windowOf(problem, family, slice);
        assert.ok(size <= binding && offset % 256 === 0, `${family}: ${size} bytes from ${offset}`);
      }
    }
    if (count !== null) assert.equal(pairs, 6);
  }
});

test('webgpu: what no slice can hold is refused with the limit', () => {
  for (const kernel of KERNELS.filter((k) => k.name === 'forward' || k.name === 'backward'))
    assert.match(String(kernel.refuse(problem, { ...FLOOR, bindingSize: 1000 })), /the device binds 1000/);
});

test('webgpu: the gradient of a tensor read at an index that depends on the score is refused', () => {
  const table = tensor(new Float32Array(8), [8]);
  const mod = () => modOf(({ score }) => add(score, load(table, [bitAnd(toI32(detach(score)), 7)])));
  const made = instantiate('by score', { Sq: 20, Sk: 24, D: 16, mod });
  const backward = KERNELS.find((k) => k.name === 'backward');
  assert.match(String(backward?.refuse(made.problem, FLOOR)), /index that side 0 is read at depends on the score/);
});

const found = await probe();
const skip = found.available ? false : `no WebGPU here: ${found.reason}`;

for (const [id, spec, bindingSize] of [
  ['heads', { Hq: 4, Hkv: 2, Sq: 40, Sk: 48, D: 16 }, 5200],
  ['batches', { B: 3, Hq: 2, Sq: 40, Sk: 48, D: 16 }, 6400],
  ['one query', { B: 2, Hq: 4, Hkv: 2, Sq: 1, Sk: 48, D: 16 }, 3200],
] as const)
  test(`webgpu: a problem in slices has the results of the whole: ${id}`, { skip }, async () => {
    const engine = await open({ limits: { maxStorageBufferBindingSize: bindingSize } });
    try {
      const made = instantiate(id, spec).problem;
      assert.ok((slicesOf(made, bindingSize)?.length ?? 0) > 1);
      for (const result of await runCase({ id, quick: true, spec }, engine)) {
        assert.equal(result.skipped, undefined);
        assert.ok(result.ok, `${result.pass}: ${result.message}`);
      }
    } finally {
      await engine.close();
    }
  });
