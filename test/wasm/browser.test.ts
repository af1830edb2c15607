/** The engine in a real page: with worker threads when the page is cross-origin isolated, with one thread when not. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import * as modules from 'node:module';
import type { AddressInfo } from 'node:net';
import test, { after, before } from 'node:test';
import { fileURLToPath } from 'node:url';
import { type Browser, chromium } from 'playwright-core';

/** The folder above src, of sources or of their compiled form. */
const root = fileURLToPath(new URL('../../', import.meta.url));
const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
const executable = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync);
const skip = executable === undefined ? 'no Chromium in /usr/bin' : false;

let server: Server;
let browser: Browser;

/** A script of the tree; TypeScript is served without its types, under both extensions. */
function scriptAt(path: string): string | null {
  const file = `${root}${path}`;
  if (existsSync(file) && path.endsWith('.js')) return readFileSync(file, 'utf8');
  const source = file.replace(/\.js$/, '.ts');
  return existsSync(source) ? modules.stripTypeScriptTypes(readFileSync(source, 'utf8')) : null;
}

before(async () => {
  if (skip) return;
  server = createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://localhost');
    const isolated = searchParams.has('isolated') || request.headers.referer?.includes('isolated') === true;
    if (isolated || pathname !== '/') {
      response.setHeader('Cross-Origin-Opener-Policy', 'same-origin');
      response.setHeader('Cross-Origin-Embedder-Policy', 'require-corp');
    }
    if (pathname === '/') {
      response.setHeader('Content-Type', 'text/html');
      response.end('<!doctype html><title>page</title>');
      return;
    }
    const script = scriptAt(pathname.slice(1));
    response.setHeader('Content-Type', 'text/javascript');
    response.statusCode = script === null ? 404 : 200;
    response.end(script ?? '');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  browser = await chromium.launch({ executablePath: executable as string, args: ['--no-sandbox'] });
});

after(async () => {
  await browser?.close();
  server?.close();
});

interface Found {
  readonly threads: number;
  readonly note: string;
  readonly error: number;
  readonly ticks: number;
  readonly aborted: string;
}

/** Runs attention in a page and compares it with the reference engine there. */
async function inPage(query: string): Promise<Found> {
  const page = await browser.newPage();
  const { port } = server.address() as AddressInfo;
  await page.goto(`http://127.0.0.1:${port}/${query}`);
  // As text: compiled tests would otherwise carry the compiler's helpers into the page.
  const found = await page.evaluate(`(async () => {
    const { attention, openEngine, tensor } = await import('/src/index.${extension}');
    const engine = await openEngine('wasm', { threads: 2 });
    const [H, N, D] = [2, 300, 32];
    const input = (phase) => tensor(Float32Array.from({ length: H * N * D }, (_, i) => Math.sin(i * 0.7 + phase) * 2), [1, H, N, D]);
    const [q, k, v] = [0, 1, 2].map(input);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    const { out } = await attention(q, k, v, { causal: true, engine });
    const other = await attention(q, k, v, { causal: true, engine: 'math' });
    clearInterval(timer);
    const error = Math.max(...out.data.map((x, i) => Math.abs(x - other.out.data[i])));
    const long = tensor(new Float32Array(8192 * 64), [1, 1, 8192, 64]);
    const abort = new AbortController();
    setTimeout(() => abort.abort(new Error('enough')), 30);
    const aborted = await attention(long, long, long, { engine, signal: abort.signal }).then(() => 'ended', (e) => e.message);
    const { threads, note = '' } = engine.caps.features;
    await engine.close();
    return { threads, note, error, ticks, aborted };
  })()`);
  await page.close();
  return found as Found;
}

test('an isolated page computes on workers', { skip }, async () => {
  const found = await inPage('?isolated');
  assert.equal(found.threads, 2, found.note);
  assert.ok(found.error < 1e-5, `differs by ${found.error}`);
  assert.equal(found.aborted, 'enough');
});

test('any other page computes on one thread and says why', { skip }, async () => {
  const found = await inPage('');
  assert.equal(found.threads, 1);
  assert.match(found.note, /one thread: the page is not cross-origin isolated/);
  assert.ok(found.error < 1e-5, `differs by ${found.error}`);
  assert.equal(found.aborted, 'enough');
});
