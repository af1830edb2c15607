/**
 * The conformance table in Firefox, whose WebGPU is wgpu and whose WGSL compiler is naga. Run by hand, as CI has no Firefox:
 *
 *     npx tsc -p tsconfig.test.json && node .build/test/browser/firefox.js [every=8] [from=0] [minutes=30]
 *
 * runs each `every`-th case on the WebGPU engine of an isolated page, and WASM with one and two threads for the same bits.
 * Exit status 1 when anything fails. `FIREFOX=/path` names the browser, else it is firefox-esr.
 */
import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CASES } from '../../src/conformance/cases.ts';
import type { CaseResult } from '../../src/conformance/suite.ts';
import { serve } from '../../tools/serve.ts';

/** What the page posts, one at a time. */
type Report =
  | { readonly agent: string; readonly adapter: string; readonly sameBits: boolean }
  | { readonly id: string; readonly results: readonly CaseResult[]; readonly left: number }
  | { readonly error: string }
  | { readonly done: true };

const value = (name: string, otherwise: number): number =>
  Number(process.argv.find((w) => w.startsWith(`${name}=`))?.slice(name.length + 1) ?? otherwise);
const [every, from, minutes] = [value('every', 8), value('from', 0), value('minutes', 30)];
const ids = CASES.map(({ id }) => id).filter((_, i) => i % every === from);

const page = `<!doctype html><title>tilewise</title><script type="module">
const post = (report) => fetch('/report', { method: 'POST', body: JSON.stringify(report) });
const tell = (error) => post({ error: String(error) + '\\n' + (error.stack ?? '') });
try {
  await import('/test/browser/page.js');
  const [one, two, probes] = [await checks.bits(1), await checks.bits(2), await checks.doctor()];
  const { detail, reason } = probes.find(({ engine }) => engine === 'webgpu');
  await post({ agent: navigator.userAgent, adapter: detail ?? reason, sameBits: two.threads === 2 && one.hash === two.hash });
  for (const id of ${JSON.stringify(ids)}) await checks.conforms(id).then((r) => post({ id, ...r }), tell);
} catch (error) {
  await tell(error);
}
await post({ done: true });
</script>`;

/** Both are needed: Firefox has WebGPU off on Linux, and blocks drivers that compute on the processor. */
const PREFERENCES = ['dom.webgpu.enabled', 'gfx.webgpu.ignore-blocklist'];

let [passed, refused, failed] = [0, 0, 0];
function judge(report: Report): void {
  if ('agent' in report) {
    console.log(
      `${report.agent}\nWebGPU: ${report.adapter}\nWASM, two threads: ${report.sameBits ? 'same bits' : 'NOT the same bits'}`,
    );
    if (!report.sameBits) failed++;
  } else if ('error' in report) {
    failed++;
    console.log(report.error);
  } else if ('id' in report) {
    for (const { id, pass, ok, skipped, message } of report.results) {
      if (!ok) console.log(`FAILED ${id} ${pass}: ${message}`);
      if (!ok) failed++;
      else if (skipped !== undefined) refused++;
      else passed++;
    }
    if (report.left !== 0) {
      failed++;
      console.log(`FAILED ${report.id}: the engine still holds ${report.left} bytes`);
    }
  }
}

const root = fileURLToPath(new URL('../..', import.meta.url));
const profile = await mkdtemp(join(tmpdir(), 'tilewise-firefox-'));
await writeFile(join(profile, 'user.js'), PREFERENCES.map((name) => `user_pref("${name}", true);\n`).join(''));
let finish = (_why: string): void => {};
const finished = new Promise<string>((resolve) => {
  finish = resolve;
});
const server = await serve(root, {
  isolated: true,
  pages: { '/': page },
  onPost: (body) => {
    const report = JSON.parse(body) as Report;
    judge(report);
    if ('done' in report) finish('');
  },
});
const browser = spawn(
  process.env.FIREFOX ?? 'firefox-esr',
  ['--headless', '--no-remote', '--profile', profile, server.origin],
  { stdio: 'ignore' },
);
browser.on('error', (error) => finish(`Firefox did not start: ${error.message}`));
browser.on('exit', () => finish('Firefox ended'));
const timer = setTimeout(() => finish(`not done within ${minutes} minutes`), minutes * 60_000);
const end = await finished;
clearTimeout(timer);
if (end !== '') {
  failed++;
  console.log(end);
}
browser.kill();
await server.close();
await rm(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
console.log(`${ids.length} cases: ${passed} passes held, ${refused} refused (float64), ${failed} failures`);
process.exit(failed > 0 ? 1 : 0);
