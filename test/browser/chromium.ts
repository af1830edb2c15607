/**
 * A real browser for tests: the Chromium that the machine has, driven by playwright-core, on pages of our own server. Where there is none the
 * tests are skipped and say so, except in CI, where that is a failure.
 */
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Browser, Page } from 'playwright-core';
import { type Served, type ServeOptions, serve } from '../../tools/serve.ts';
import { inCi } from '../missing.ts';
import type { Checks } from './page.ts';

const NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'];
/** The last two: WebGPU on the processor, and without SwiftShader's unrolled clearing of workgroup memory, which takes seconds a shader. */
const FLAGS = [
  '--no-sandbox',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--enable-unsafe-webgpu',
  '--use-webgpu-adapter=swiftshader',
  '--disable-dawn-features=use_vulkan_zero_initialize_workgroup_memory_extension',
];

/** The browser's program, or a script that starts it. */
export const executable: string | undefined =
  process.env.CHROMIUM ||
  (process.env.PATH ?? '')
    .split(delimiter)
    .flatMap((folder) => NAMES.map((name) => join(folder, name)))
    .find((file) => existsSync(file));
const compiled = import.meta.url.endsWith('.js');

/** Why there is no browser to test in; null when there is one. */
const noBrowser: string | null = !compiled
  ? 'browsers run compiled code: npm test -- browser'
  : executable === undefined
    ? 'no Chromium here: apt-get install chromium, or CHROMIUM=/path'
    : null;

/** The folder of compiled code, which holds src and test. */
export const ROOT: string = fileURLToPath(new URL('../..', import.meta.url));

/** What was started, to be ended in any case: an open server keeps the process alive. */
let browser: Promise<Browser> | null = null;
const servers: Served[] = [];

/**
 * A page of files below `folder`, or of `pages` that are no files. `problems` collects what goes wrong in it; `route` names the local file
 * that answers for an address elsewhere.
 */
export async function visit(
  folder: string,
  path: string,
  { route, ...options }: ServeOptions & { readonly route?: (url: string) => Promise<string | null> },
): Promise<{ page: Page; problems: string[] }> {
  if (executable === undefined) throw new Error(noBrowser ?? '');
  const { chromium } = await import('playwright-core');
  browser ??= chromium.launch({ executablePath: executable, args: FLAGS });
  const server = await serve(folder, options);
  servers.push(server);
  const page = await (await browser).newPage();
  const problems: string[] = [];
  page.on('pageerror', (error) => problems.push(error.message));
  page.on('requestfailed', (request) => problems.push(`${request.url()} did not load`));
  if (route !== undefined)
    await page.route(
      (url) => url.origin !== server.origin,
      async (request) => {
        const file = await route(request.request().url());
        const headers = { 'Access-Control-Allow-Origin': '*' };
        await (file === null ? request.abort() : request.fulfill({ path: file, headers }));
      },
    );
  await page.goto(server.origin + path);
  return { page, problems };
}

/** A page that loads `script`, a path below `folder`, and has `checks` of page.ts then. */
export async function openPage(folder: string, script: string, isolated: boolean): Promise<Page> {
  const html = `<!doctype html><title>tilewise</title><script type="module" src="${script}"></script>`;
  const { page, problems } = await visit(folder, '/', { isolated, pages: { '/': html } });
  await page.waitForFunction('"checks" in globalThis', undefined, { timeout: 20_000 }).catch((cause: unknown) => {
    throw new Error(`the page did not start: ${problems.join('; ')}`, { cause });
  });
  return page;
}

/** Ends the browser's GPU process, as a fault of its driver would. */
export async function crashGpu(): Promise<void> {
  const session = await (await browser)?.newBrowserCDPSession();
  // The name is no part of the typed protocol.
  await (session as unknown as { send(name: string): Promise<unknown> }).send('Browser.crashGpuProcess');
}

/** Calls a function of page.ts in the page. */
export const call = <N extends keyof Checks>(
  page: Page,
  name: N,
  ...args: Parameters<Checks[N]>
): Promise<Awaited<ReturnType<Checks[N]>>> => page.evaluate(`checks.${name}(...${JSON.stringify(args)})`);

/** A test in the browser: skipped with the reason where there is none, or where something else is `absent`; failed in CI. */
export const browserTest = (name: string, body: () => Promise<void>, absent: string | null = null): void => {
  const reason = noBrowser ?? absent;
  test(name, { skip: reason !== null && !inCi && reason, timeout: 120_000 }, async () => {
    if (reason !== null) throw new Error(reason);
    await body();
  });
};

/** Ends the browser and the servers of its pages, which would keep the process alive. */
export async function endBrowser(): Promise<void> {
  await Promise.allSettled([browser?.then((b) => b.close()), ...servers.map((server) => server.close())]);
}

if (noBrowser === null) test.after(endBrowser);
