import assert from 'node:assert/strict';
import { browserTest, call, openPage, ROOT } from './chromium.ts';

browserTest('WebGPU in a page: doctor names the adapter, and cases of the conformance table hold', async () => {
  const page = await openPage(ROOT, '/test/browser/page.js', false);
  const probe = (await call(page, 'doctor')).find(({ engine }) => engine === 'webgpu');
  assert.ok(probe?.available, probe?.available === false ? probe.reason : '');
  assert.match(probe.detail, /swiftshader/i);
  const results = await call(page, 'table', 'webgpu', [
    'gradients/none',
    'masks/causal',
    'heads/grouped',
    'mods/softcap',
  ]);
  assert.ok(results.length > 0);
  for (const { id, pass, ok, skipped, message } of results)
    assert.ok(ok && skipped === undefined, `${id} ${pass}: ${message}`);
});
