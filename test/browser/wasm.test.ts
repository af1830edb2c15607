import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';
import type { Page } from 'playwright-core';
import { browserTest, call, openPage, ROOT } from './chromium.ts';

const PAGE = '/test/browser/page.js';

async function holdsTable(page: Page): Promise<void> {
  const results = await call(page, 'table', 'wasm', 'quick');
  assert.deepEqual(
    results.filter((r) => !r.ok).map((r) => `${r.id} ${r.pass}: ${r.message}`),
    [],
  );
  const judged = results.filter((r) => r.skipped === undefined);
  assert.ok(judged.some((r) => r.pass === 'backward') && judged.length > 60, `${judged.length} results`);
  for (const { id, skipped } of results) if (skipped !== undefined) assert.match(id, /^f64:/, skipped);
}

browserTest(
  'a page that is not isolated: one thread, which doctor explains, and the conformance table holds',
  async () => {
    const page = await openPage(ROOT, PAGE, false);
    assert.equal(await call(page, 'isolated'), false);
    const [cuda, , wasm, reference] = await call(page, 'doctor');
    assert.deepEqual([wasm.available, reference.available, cuda.available], [true, true, false]);
    assert.match(wasm.available ? wasm.detail : '', /one thread: the page is not cross-origin isolated/);
    assert.match(cuda.available ? '' : cuda.reason, /browsers have no CUDA/);
    const { threads, note } = await call(page, 'bits', 2);
    assert.equal(threads, 1);
    assert.equal(note, 'one thread: the page is not cross-origin isolated');
    await holdsTable(page);
  },
);

browserTest('an isolated page: two threads, the same bits as one, and the conformance table holds', async () => {
  const page = await openPage(ROOT, PAGE, true);
  assert.equal(await call(page, 'isolated'), true);
  const one = await call(page, 'bits', 1);
  const two = await call(page, 'bits', 2);
  assert.deepEqual([one.threads, two.threads, two.note], [1, 2, null]);
  assert.equal(two.hash, one.hash);
  await holdsTable(page);
});

for (const threads of [1, 2])
  browserTest(`abort and progress in a page, ${threads} threads`, async () => {
    const page = await openPage(ROOT, PAGE, true);
    const { name, shares, left, after } = await call(page, 'abort', threads);
    assert.equal(name, 'AbortError');
    assert.ok(shares.length > 0 && shares.every((share) => share < 1), `${shares}`);
    assert.equal(left, 0);
    assert.equal(after, 0);
    const all = await call(page, 'progress', threads);
    assert.ok(all.length >= 2, `${all}`);
    assert.deepEqual(
      all,
      all.toSorted((a, b) => a - b),
    );
    assert.equal(all.at(-1), 1);
  });

/** Bundled by esbuild without options about packages. `worker`: with the worker as an entry of its own, beside the chunks. */
async function bundled(worker: boolean): Promise<Page> {
  const folder = join(ROOT, worker ? 'browser' : 'browser-alone');
  rmSync(folder, { recursive: true, force: true });
  const { warnings } = await build({
    entryPoints: {
      page: join(ROOT, PAGE),
      ...(worker && { worker: join(ROOT, 'src/engines/wasm/worker.js') }),
    },
    bundle: true,
    splitting: true,
    minify: true,
    format: 'esm',
    platform: 'browser',
    outdir: folder,
    logLevel: 'silent',
  });
  assert.deepEqual(warnings, []);
  return openPage(folder, '/page.js', true);
}

browserTest('bundled by esbuild: the workers start, and give the same bits', async () => {
  const page = await bundled(true);
  const one = await call(page, 'bits', 1);
  const two = await call(page, 'bits', 2);
  assert.deepEqual([one.threads, two.threads, two.note], [1, 2, null]);
  assert.equal(two.hash, one.hash);
});

browserTest('bundled without the worker: one thread, and the engine says why', async () => {
  const { threads, note } = await call(await bundled(false), 'bits', 2);
  assert.equal(threads, 1);
  assert.match(String(note), /^one thread: .*the worker script did not load/);
});
