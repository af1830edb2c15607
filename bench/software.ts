/**
 * Attention on processors that play a GPU, for the record: they say nothing about a GPU. Calls on f32 tensors that stay in the engine.
 *
 *     node .build/bench/software.js [file.json]
 */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { endBrowser, visit } from '../test/browser/chromium.ts';
import { driverFile } from '../test/conformance/software.ts';
import { measure } from './software_page.ts';

/** The same in Chromium, whose WebGPU is SwiftShader then. */
async function inBrowser(): Promise<unknown> {
  const root = fileURLToPath(new URL('..', import.meta.url));
  const html =
    '<script type="module">import * as bench from "/bench/software_page.js"; Object.assign(window, bench);</script>';
  const { page } = await visit(root, '/', { isolated: false, pages: { '/': html } });
  await page.waitForFunction('"measure" in window');
  const result = await page.evaluate('measure()');
  await endBrowser();
  return result;
}

/** The same in a process of its own, which loads one driver. */
function inNode(driver: 'lavapipe' | 'SwiftShader'): unknown {
  const file = driverFile(driver);
  if (file === undefined) throw new Error(`no ${driver} here`);
  const env = {
    ...process.env,
    VK_ICD_FILENAMES: file,
    VK_DRIVER_FILES: file,
    MESA_SHADER_CACHE_DIR: `/tmp/empty-${process.pid}`,
  };
  const { status, stdout, stderr } = spawnSync(process.execPath, [fileURLToPath(import.meta.url), '--inside'], {
    env,
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout.split('\n').find((line) => line.startsWith('{')) ?? 'null');
}

if (process.argv.includes('--inside')) console.log(JSON.stringify(await measure()));
else {
  const result = {
    machine: { cpu: cpus()[0].model, cores: cpus().length, node: process.versions.node },
    unit: 'ms; first compiles (no shader cache), median is of the five calls after it',
    hosts: {
      'Node, Dawn, lavapipe': inNode('lavapipe'),
      'Node, Dawn, SwiftShader': inNode('SwiftShader'),
      'Chromium, SwiftShader': await inBrowser(),
    },
  };
  const text = `${JSON.stringify(result, null, 2)}\n`;
  if (process.argv[2] === undefined) console.log(text);
  else writeFileSync(process.argv[2], text);
}
