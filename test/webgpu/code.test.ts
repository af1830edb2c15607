/** The emitted WGSL without a device: golden text of a few plans (`UPDATE_GOLDEN=1` rewrites it) and what tiles ask of a device. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { instantiate, type Spec } from '../../src/conformance/spec.ts';
import { tensor } from '../../src/core/tensor.ts';
import { KERNELS } from '../../src/engines/webgpu/kernels/index.ts';
import { alibi, and, biasTensor, causal, compose, documents, slidingWindow, softcap } from '../../src/mods/library.ts';
import { FLOOR, H200, SOFTWARE } from './devices.ts';

const FOLDER = join('test', 'golden', 'webgpu');

const slopes = tensor(Float32Array.of(0.5, 0.25), [2]);
const GOLDEN: Readonly<Record<string, Spec>> = {
  plain: { Sq: 64, D: 16, noGrads: true },
  rich: {
    Sq: 64,
    Hkv: 1,
    D: 16,
    dtype: 'f16',
    mask: () => and(causal(), slidingWindow(20)),
    mod: () => compose(softcap(20), alibi(slopes)),
    dropout: { p: 0.1, seed: [1, 2], offset: 3 },
    sink: true,
  },
  matrix: { Sq: 64, D: 16, dtype: 'f16', mask: () => causal() },
  one: { Sq: 1, Sk: 300, Hq: 4, Hkv: 2, D: 16, noGrads: true },
};

for (const [name, spec] of Object.entries(GOLDEN)) {
  const { problem } = instantiate(name, spec);
  // Small tiles, so that people can read them; subgroup matrices exist on hardware alone.
  const caps = name === 'matrix' ? H200 : SOFTWARE;
  for (const kernel of KERNELS.filter((k) => (name === 'matrix') === k.name.endsWith('-matrix')))
    test(`golden WGSL: ${name}, ${kernel.name}`, (t) => {
      const refusal = kernel.refuse(problem, caps);
      if (refusal !== null) return t.skip(refusal);
      if (kernel.pass === 'backward' && problem.grads === null) return t.skip('no gradients asked');
      mkdirSync(FOLDER, { recursive: true });
      const [config] = kernel.configs(problem, caps);
      for (const listing of kernel.emit(problem, config, caps)) {
        const file = join(FOLDER, `${name}.${kernel.name}.${listing.name}.wgsl`);
        if (process.env.UPDATE_GOLDEN === '1') writeFileSync(file, listing.text);
        assert.ok(existsSync(file), `${file} is missing: run with UPDATE_GOLDEN=1`);
        assert.equal(listing.text, readFileSync(file, 'utf8'), `${file} differs from what is emitted`);
      }
    });
}

/** Bytes of every `var<workgroup>` in a shader's text. */
function workgroupMemory(code: string): number {
  const sizes: Readonly<Record<string, number>> = {
    'vec4<f32>': 16,
    'vec4<i32>': 16,
    f32: 4,
    u32: 4,
    'atomic<u32>': 4,
    f16: 2,
  };
  let bytes = 0;
  const members = /struct Memory {([^}]*)}/.exec(code)?.[1].matchAll(/@align\(16\) \w+: (.+),/g) ?? [];
  const types = [...members, ...code.matchAll(/var<workgroup> \w+: (?!Memory)(.+);/g)];
  for (const [, type] of types) {
    const array = /^array<(.+), (\d+)>$/.exec(type);
    const size = sizes[array === null ? type : array[1]];
    assert.ok(size !== undefined, `size of ${type}`);
    bytes += Math.ceil((size * Number(array?.[2] ?? 1)) / 16) * 16;
  }
  return bytes;
}

test('every head size has a kernel on the smallest device, inside its limits', () => {
  for (const caps of [FLOOR, H200])
    for (const D of [1, 7, 40, 64, 96, 128, 160, 256])
      for (const [Sq, dtype] of [
        [1, 'f32'],
        [64, 'f32'],
        [64, 'f16'],
      ] as const) {
        const { problem } = instantiate('limits', { Sq, Sk: 64, D, dtype });
        for (const pass of ['forward', 'backward'] as const) {
          const able = KERNELS.filter((k) => k.pass === pass && k.refuse(problem, caps) === null);
          assert.ok(able.length > 0, `${pass} D=${D}`);
          for (const kernel of able)
            for (const config of kernel.configs(problem, caps))
              for (const { name, code, bindings } of kernel.shaders(problem, config, caps)) {
                const used = workgroupMemory(code);
                const what = `${name} D=${D} ${JSON.stringify(config)}`;
                assert.ok(used <= caps.workgroupMemory, `${what}: ${used} bytes of workgroup memory`);
                assert.ok(bindings.length <= caps.storageBuffers, `${what}: ${bindings.length} storage buffers`);
                const threads = Number(/@workgroup_size\((\d+)\)/.exec(code)?.[1]);
                assert.ok(threads <= caps.invocations, `${what}: ${threads} invocations`);
              }
        }
      }
});

test('where a device binds few buffers, sides share one', () => {
  const { problem } = instantiate('gathered', {
    Sq: 64,
    Hq: 2,
    sink: true,
    mask: () => documents(tensor(new Int32Array(64), [1, 64])),
    mod: () => compose(alibi(slopes), biasTensor(tensor(new Uint16Array(64 * 64), [64, 64], 'f16'))),
  });
  assert.equal(problem.sides.length, 3);
  for (const [pass, kernel] of [
    ['forward', 'forward'],
    ['backward', 'backward'],
  ] as const) {
    const { refuse, configs, shaders } = KERNELS.find(
      (k) => k.name === kernel && k.pass === pass,
    ) as (typeof KERNELS)[number];
    assert.equal(refuse(problem, FLOOR), null);
    for (const config of configs(problem, FLOOR))
      for (const { name, bindings } of shaders(problem, config, FLOOR))
        assert.ok(bindings.length <= FLOOR.storageBuffers, `${name} binds ${bindings.map((b) => b.name)}`);
    const [roomy] = configs(problem, H200);
    assert.equal(roomy.gathered, undefined);
    assert.match(refuse(problem, { ...FLOOR, storageBuffers: 7 }) ?? '', /8 storage buffers, the device binds 7/);
    assert.match(refuse(problem, { ...FLOOR, bindingSize: 8300 }) ?? '', /sides of 8456 bytes in one storage buffer/);
  }
});

test('a subgroup kernel is refused where subgroups are too small or missing', () => {
  const { problem } = instantiate('subgroups', { Sq: 64 });
  const kernel = KERNELS.find((k) => k.name === 'forward-subgroup');
  assert.match(kernel?.refuse(problem, FLOOR) ?? '', /no subgroups/);
  assert.match(kernel?.refuse(problem, { ...H200, subgroups: { min: 2, max: 128 } }) ?? '', /subgroups of 2/);
  assert.equal(kernel?.refuse(problem, H200), null);
});

test('matrices serve f16 alone, and say why not the rest', () => {
  const matrices = KERNELS.filter((k) => k.name.endsWith('-matrix'));
  const refusals = (over: Spec, caps = H200): (string | null)[] =>
    matrices.map((k) => k.refuse(instantiate('matrices', { Sq: 64, dtype: 'f16', ...over }).problem, caps));
  assert.deepEqual(refusals({}), [null, null]);
  assert.deepEqual(refusals({ D: 5, Dv: 3 }), [null, null]);
  assert.deepEqual(refusals({ D: 256 }), [null, null]);
  for (const dtype of ['bf16', 'f32'] as const)
    for (const reason of refusals({ dtype })) assert.match(reason ?? '', new RegExp(`${dtype} storage`));
  for (const reason of refusals({}, { ...H200, matrix: null })) assert.match(reason ?? '', /no subgroup matrices/);
  for (const reason of refusals({}, { ...H200, workgroupMemory: 1024 })) assert.match(reason ?? '', /1024 bytes/);
});

test('on a device with matrices the plan uses them for f16', () => {
  for (const D of [64, 128])
    for (const pass of ['forward', 'backward'] as const) {
      const { problem } = instantiate('chosen', { Sq: 256, Hq: 8, D, dtype: 'f16' });
      const seconds = KERNELS.filter((k) => k.pass === pass && k.refuse(problem, H200) === null).map((k) => ({
        name: k.name,
        seconds: Math.min(...k.configs(problem, H200).map((c) => k.cost(problem, c, H200).seconds)),
      }));
      const best = seconds.reduce((a, b) => (b.seconds < a.seconds ? b : a));
      assert.equal(best.name, `${pass}-matrix`, JSON.stringify(seconds));
    }
});
