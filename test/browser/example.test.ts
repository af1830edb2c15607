import assert from 'node:assert/strict';
import { join } from 'node:path';
import { browserTest, ROOT, visit } from './chromium.ts';

browserTest('examples/browser times every engine of the browser, and all agree with the loop', async () => {
  const { page, problems } = await visit(join(ROOT, '..'), '/examples/browser/index.html', { isolated: true });
  for (const gradients of [false, true]) {
    // The page has run once by itself when the button can be pressed.
    const button = page.getByRole('button', { name: 'Run' });
    await button.and(page.locator(':enabled')).waitFor({ timeout: 90_000 });
    await page.getByLabel('Sequence length').selectOption('256');
    await page.getByLabel('with gradients').setChecked(gradients);
    await button.click();
    await page.waitForFunction('document.body.dataset.state === "done"', undefined, { timeout: 90_000 });
    const rows = await page.locator('tbody tr').allInnerTexts();
    const [loop, wasm] = rows.map((row) => row.split('\t').map((cell) => cell.trim()));
    assert.ok(rows.length >= 2, rows.join('; '));
    assert.deepEqual([loop[0], wasm[0]], ['N x N loop', 'WASM']);
    for (const row of rows.slice(1)) {
      const [name, ms, , difference] = row.split('\t').map((cell) => cell.trim());
      assert.ok(Number(ms) > 0 && difference !== '' && Number(difference) < 1e-4, `${name}: ${row}`);
    }
  }
  assert.deepEqual(problems, []);
});
