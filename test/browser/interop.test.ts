/**
 * The examples that share memory with other frameworks, as they are: what they load from a network of files comes from the same packages,
 * installed in test/browser/peers.
 */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { browserTest, ROOT, visit } from './chromium.ts';

const PEERS = join(dirname(fileURLToPath(import.meta.url)), '../../..', 'test/browser/peers/node_modules');
const CDN = 'https://cdn.jsdelivr.net/npm/';
const absent = existsSync(PEERS) ? null : 'no frameworks here: npm ci --prefix test/browser/peers';

/** What an example leaves in `globalThis.results`. */
async function resultsOf<T>(example: string): Promise<T> {
  const { page, problems } = await visit(join(ROOT, '..'), `/examples/browser/${example}.html`, {
    isolated: false,
    async route(url) {
      if (!url.startsWith(CDN)) return null;
      // `@scope/name@1.2.3/dist/file`: the version is what package.json of the peers says, or the example is out of date.
      const [, name, version, file] = /^(@?[^@]+)@([^/]+)\/(.+)$/.exec(url.slice(CDN.length)) ?? [];
      const folder = join(PEERS, name);
      const { default: found } = await import(join(folder, 'package.json'), { with: { type: 'json' } });
      assert.equal((found as { version: string }).version, version, name);
      return join(folder, file);
    },
  });
  await Promise.race([
    page.waitForFunction('"results" in globalThis', undefined, { timeout: 90_000 }),
    page.waitForEvent('pageerror', { timeout: 90_000 }),
  ]).catch((cause: unknown) => {
    throw new Error(`${example} did not finish: ${problems.join('; ')}`, { cause });
  });
  assert.deepEqual(problems, []);
  return page.evaluate('results') as Promise<T>;
}

browserTest(
  'onnxruntime-web: its buffers are tensors of the engine, and the result is one of its tensors, on one device',
  async () => {
    const { difference, left } = await resultsOf<{ difference: number; left: number }>('onnxruntime');
    assert.ok(difference < 1e-2, `${difference}`);
    assert.equal(left, 0);
  },
  absent,
);

browserTest(
  'TensorFlow.js: a training step through tf.customGrad ends where its own gradients do',
  async () => {
    type Results = { ours: number; theirs: number; steps: number[]; apart: number[]; doubled: number[]; left: number };
    const { ours, theirs, steps, apart, doubled, left } = await resultsOf<Results>('tensorflow');
    assert.ok(Math.abs(ours - theirs) < 1e-5 * theirs, `${ours} ${theirs}`);
    // As far as rounding goes, measured against how far the step went.
    for (const [i, step] of steps.entries()) assert.ok(apart[i] < 1e-3 * step, `${apart} of ${steps}`);
    assert.deepEqual(doubled, [2, 4, 6, 8]);
    assert.equal(left, 0);
  },
  absent,
);
