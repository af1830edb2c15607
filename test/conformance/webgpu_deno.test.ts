/** The conformance table through the other compiler of WGSL: naga, by Deno's WebGPU on lavapipe, without subgroups. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { CASES } from '../../src/conformance/cases.ts';
import type { CaseResult } from '../../src/conformance/suite.ts';
import { missing } from '../missing.ts';
import { useDriver } from './software.ts';
import { report, turnOf } from './table.ts';

const here = dirname(fileURLToPath(import.meta.url));
const compiled = import.meta.url.endsWith('.js');
const peers = join(here, compiled ? '../../..' : '../..', 'test/browser/peers/node_modules/.bin/deno');
const deno = process.env.DENO ?? (existsSync(peers) ? peers : undefined);
const title = 'webgpu, Deno';

interface Line {
  readonly id: string;
  readonly results: CaseResult[];
  readonly left: number;
}

const reason =
  deno === undefined ? 'no Deno here: npm ci --prefix test/browser/peers, or DENO=/path' : useDriver('lavapipe', 4);
if (deno === undefined || reason !== null) missing(`conformance: ${title}`, reason ?? '');
else {
  const cases = turnOf(
    title,
    CASES.filter(({ id }) => !id.startsWith('f64:')),
    32,
  );
  const script = join(here, `deno_table.${compiled ? 'js' : 'ts'}`);
  const child = spawn(deno, ['run', '-A', script, ...cases.map(({ id }) => id)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  test.after(() => child.kill());
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  test(`${title}: it has an adapter`, async () => {
    assert.match(String((await lines.next()).value), /llvmpipe/);
  });
  // The child answers in the order of the cases, and so do the tests.
  for (const one of cases)
    test(`${title}: ${one.id}`, async (t) => {
      const { value, done } = await lines.next();
      assert.ok(done !== true, 'Deno ended early');
      const { id, results, left } = JSON.parse(value) as Line;
      assert.equal(id, one.id);
      report(t, one, results, /^$/);
      assert.equal(left, 0);
    });
}
