/**
 * The tiles of real devices, each first choice forced on problems far too small to choose it: small ones, which is what tests can afford, are
 * planned on small tiles. Masks on both sides of a block's size, heads in groups, ragged ends.
 */
import assert from 'node:assert/strict';
import test from 'node:test';
import { instantiate, type Spec } from '../../src/conformance/spec.ts';
import { runCase } from '../../src/conformance/suite.ts';
import { capsOf } from '../../src/engines/webgpu/caps.ts';
import { findDevice } from '../../src/engines/webgpu/device.ts';
import { WebGpuEngine } from '../../src/engines/webgpu/engine.ts';
import { probe } from '../../src/engines/webgpu/index.ts';
import type { WebGpuKernel } from '../../src/engines/webgpu/kernels/kernel.ts';
import { causal, slidingWindow } from '../../src/mods/library.ts';

const found = await probe();
const reason = !found.available
  ? `no WebGPU here: ${found.reason}`
  : /llvmpipe|lavapipe/i.test(found.detail)
    ? 'Mesa needs minutes to compile tiles of this size'
    : false;

for (const [name, spec] of Object.entries<Spec>({
  'D=64, causal': { Hq: 2, Hkv: 1, Sq: 333, Sk: 333, D: 64, mask: () => causal() },
  'D=128, a window': { Hq: 1, Sq: 200, Sk: 290, D: 128, mask: () => slidingWindow(70, 20) },
  'D=256, causal': { Hq: 1, Sq: 100, Sk: 100, D: 256, mask: () => causal() },
}))
  test(`webgpu: tiles of real devices: ${name}`, { skip: reason }, async () => {
    const device = await findDevice({});
    const engine = new WebGpuEngine(device, { ...capsOf(device, {}), software: false });
    try {
      const { problem } = instantiate(name, spec);
      const first = (kernel: string) => {
        const { configs } = engine.kernels.find((k) => k.name === kernel) as WebGpuKernel;
        return { kernel, config: configs(problem, engine.caps)[0], exact: true };
      };
      const prefer = { forward: first('forward'), backward: first('backward') };
      for (const result of await runCase({ id: name, quick: true, spec }, engine, { prefer })) {
        assert.equal(result.skipped, undefined);
        assert.ok(result.ok, `${result.pass}: ${result.message}`);
      }
    } finally {
      await engine.close();
    }
  });
