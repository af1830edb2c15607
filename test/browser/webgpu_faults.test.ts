import assert from 'node:assert/strict';
import { browserTest, call, crashGpu, openPage, ROOT } from './chromium.ts';

const PAGE = '/test/browser/page.js';
const open = () => openPage(ROOT, PAGE, false);

browserTest("the GPU's process dies in the middle: typed errors, no hang, and opening anew works", async () => {
  const page = await open();
  const outcome = call(page, 'untilLost');
  await page.waitForTimeout(2500);
  await crashGpu();
  const { running, reading, later, word, again, wordAgain } = await outcome;
  for (const fate of [running, reading, later, word]) assert.match(fate, /^DeviceError DEVICE: webgpu: .*lost/s);
  assert.deepEqual([again, wordAgain], ['fine', 'fine']);
});

browserTest('memory runs out: a typed error with sizes, and the engine goes on', async () => {
  const { fate, left, after } = await call(await open(), 'outOfMemory');
  assert.match(fate, /^MemoryError MEMORY: webgpu: asked for \d+ bytes/);
  assert.equal(left, 0);
  assert.equal(after, 'fine');
});

browserTest("a device of the page's own, without features and with the least limits", async () => {
  const ids = ['masks/causal', 'heads/grouped', 'mods/alibi-causal-grouped', 'paged/paged-decode', 'f16/full'];
  const { features, results, alive } = await call(await open(), 'foreign', ids);
  // Only what no device can be without.
  assert.ok(features <= 1, `${features} features`);
  assert.ok(results.length >= 9 && alive);
  for (const { id, pass, ok, skipped, message, kernel } of results) {
    assert.ok(ok && skipped === undefined, `${id} ${pass}: ${message ?? skipped}`);
    assert.doesNotMatch(kernel ?? '', /subgroup|matrix/);
  }
});

browserTest('two engines on one page', async () => {
  const { agree, refused, after } = await call(await open(), 'two');
  assert.equal(agree, true);
  assert.match(refused, /^ArgumentError/);
  assert.equal(after, 'fine');
});

browserTest('a thousand calls leave nothing behind', async () => {
  assert.equal(await call(await open(), 'thousand'), 0);
});
