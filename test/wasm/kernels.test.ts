/** The WASM kernels beside the conformance table: golden text (`UPDATE_GOLDEN=1` rewrites it), identity of programs, bounds. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { instantiate, type Spec } from '../../src/conformance/spec.ts';
import { open } from '../../src/engines/wasm/index.ts';
import type { WasmCaps } from '../../src/engines/wasm/kernel.ts';
import { KERNELS } from '../../src/engines/wasm/kernels/all.ts';
import { causal, slidingWindow, softcap } from '../../src/mods/library.ts';

const FOLDER = join('test', 'golden', 'wasm');

/** No unrolling, so that people can read it. */
const CAPS: WasmCaps = {
  engine: 'wasm',
  device: 'test',
  features: {},
  memory: 2 ** 32,
  flops: 1e10,
  bandwidth: 1e10,
  relaxed: true,
  wide: false,
  unroll: false,
  shared: true,
  native: 0,
  threads: 2,
};

const GOLDEN: Readonly<Record<string, Spec>> = {
  plain: { Sq: 64, D: 8, noGrads: true },
  one: { Sq: 1, Sk: 300, Hq: 4, Hkv: 2, D: 8, noGrads: true },
  rich: {
    Sq: 64,
    D: 6,
    dtype: 'f16',
    mask: () => causal(),
    mod: () => softcap(20),
    sink: true,
  },
};

for (const [name, spec] of Object.entries(GOLDEN)) {
  const { problem } = instantiate(name, spec);
  for (const kernel of KERNELS)
    test(`golden WAT: ${name}, ${kernel.name}`, (t) => {
      const refusal = kernel.refuse(problem, CAPS);
      if (refusal !== null) return t.skip(refusal);
      if (kernel.pass === 'backward' && problem.grads === null) return t.skip('no gradients asked');
      if ((kernel.name === 'decode') !== (name === 'one')) return t.skip('covered by the other plan');
      mkdirSync(FOLDER, { recursive: true });
      const [config] = kernel.configs(problem, CAPS);
      for (const listing of kernel.emit(problem, config, CAPS)) {
        const file = join(FOLDER, `${name}.${listing.name}.wat`);
        if (process.env.UPDATE_GOLDEN === '1') writeFileSync(file, listing.text);
        assert.ok(existsSync(file), `${file} is missing: run with UPDATE_GOLDEN=1`);
        assert.equal(listing.text, readFileSync(file, 'utf8'), `${file} differs from what is emitted`);
      }
    });
}

test('every kernel and configuration emits a module that validates', async () => {
  const engine = await open();
  const { relaxed } = engine.caps;
  await engine.close();
  const hosts = [
    { ...CAPS, relaxed },
    { ...CAPS, relaxed, unroll: true },
    { ...CAPS, relaxed, unroll: true, wide: true },
  ];
  for (const D of [1, 6, 7, 64, 80, 256])
    for (const dtype of ['f32', 'f16', 'bf16'] as const)
      for (const Sq of [1, 64]) {
        const { problem } = instantiate('validate', { Sq, Sk: 64, D, dtype, mask: () => causal(), sink: true });
        for (const caps of hosts)
          for (const kernel of KERNELS.filter((k) => k.refuse(problem, caps) === null))
            for (const config of kernel.configs(problem, caps)) {
              const { module } = kernel.compile(problem, config, caps);
              assert.ok(WebAssembly.validate(module), `${kernel.name} ${dtype} D=${D} ${JSON.stringify(config)}`);
            }
      }
});

test('lengths, batches, strides, seeds and scale are run-time values: the key stays', () => {
  const make = (spec: Spec) => instantiate('key', spec).problem;
  const base: Spec = { Sq: 64, Sk: 64, D: 16, mask: () => causal(), dropout: { p: 0.1, seed: [1, 2], offset: 0 } };
  const others: Spec[] = [
    { ...base, B: 3 },
    { ...base, Sq: 40, Sk: 200 },
    { ...base, layout: 'bnhd' },
    { ...base, scale: 3 },
    { ...base, Hq: 6, Hkv: 3 },
    { ...base, dropout: { p: 0.3, seed: [7, 8], offset: 9 } },
  ];
  for (const kernel of KERNELS.filter((k) => k.name === 'forward')) {
    const [config] = kernel.configs(make(base), CAPS);
    const key = kernel.key(make(base), config, CAPS);
    for (const other of others) assert.equal(kernel.key(make(other), config, CAPS), key);
    for (const other of [
      { ...base, D: 24 },
      { ...base, mask: () => slidingWindow(3) },
      { ...base, dtype: 'f16' as const },
    ])
      assert.notEqual(kernel.key(make(other), config, CAPS), key);
  }
});
