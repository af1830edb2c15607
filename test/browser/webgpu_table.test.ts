/** The conformance table in a browser. */
import assert from 'node:assert/strict';
import type { Page } from 'playwright-core';
import { CASES } from '../../src/conformance/cases.ts';
import { turnOf } from '../conformance/table.ts';
import { browserTest, call, openPage, ROOT } from './chromium.ts';

/** One page for all, so that its engine keeps what it has compiled. */
let page: Promise<Page> | undefined;

const title = 'webgpu, Chromium';
for (const { id } of turnOf(title, CASES, 6))
  browserTest(`${title}: ${id}`, async () => {
    page ??= openPage(ROOT, '/test/browser/page.js', false);
    const { results, left } = await call(await page, 'conforms', id);
    for (const { pass, ok, message, skipped } of results) {
      assert.ok(ok, `${pass}: ${message}`);
      assert.ok(skipped === undefined || id.startsWith('f64:'), `${pass} was refused: ${skipped}`);
    }
    assert.equal(left, 0, 'the engine holds nothing after a case');
  });
