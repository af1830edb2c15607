/**
 * Subgroup matrices on a processor: Mesa 26's lavapipe, which `.ci/lavapipe26 FOLDER` unpacks and LAVAPIPE26=FOLDER names. It wants a C library
 * of its own, so this file runs again in that folder's Node.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { openEngine } from '../../src/api/registry.ts';
import { CASES, type Case } from '../../src/conformance/cases.ts';
import { instantiate } from '../../src/conformance/spec.ts';
import { runCase } from '../../src/conformance/suite.ts';
import { causal } from '../../src/mods/library.ts';
import { report, turnOf } from './table.ts';

const folder = process.env.LAVAPIPE26;
const inside = process.env.TILEWISE_INSIDE === 'lavapipe26';
const title = 'webgpu, lavapipe 26';

if (folder === undefined)
  test(title, { skip: 'subgroup matrices need Mesa 26: .ci/lavapipe26 FOLDER, then LAVAPIPE26=FOLDER' }, () => {});
else if (inside) await runMatrices();
else
  test(`${title}: the kernels that use subgroup matrices`, () => {
    const env: NodeJS.ProcessEnv = { ...process.env, TILEWISE_INSIDE: 'lavapipe26' };
    env.VK_ICD_FILENAMES = env.VK_DRIVER_FILES = join(folder, 'lvp.json');
    delete env.NODE_TEST_CONTEXT;
    const args = ['--test-reporter=spec', fileURLToPath(import.meta.url)];
    const { status, stdout, stderr } = spawnSync(join(folder, 'node'), args, { env, encoding: 'utf8' });
    console.log(stdout);
    assert.equal(status, 0, `${stdout}\n${stderr}`);
  });

/** Every case that such a kernel serves, by each of its configurations. */
async function runMatrices(): Promise<void> {
  const engine = await openEngine('webgpu', { adapter: 'llvmpipe' });
  test.after(() => engine.close());
  test(`${title}: the device has them`, () => {
    assert.ok(engine.caps.matrix !== null, JSON.stringify(engine.caps.features));
  });
  const kernels = engine.kernels.filter(({ name }) => name.includes('matrix'));
  const served = (problem: ReturnType<typeof instantiate>['problem']) =>
    kernels.filter((k) => (k.pass === 'forward' || problem.grads !== null) && k.refuse(problem, engine.caps) === null);
  const cases = CASES.filter(({ id, spec }) => served(instantiate(id, spec).problem).length > 0);
  assert.ok(cases.length > 0);
  // Values that products take for finite numbers have to come out all the same, where somebody attends them.
  const later: Case = {
    id: 'f16/nan-later',
    quick: true,
    spec: {
      dtype: 'f16',
      Sq: 97,
      Sk: 97,
      D: 64,
      mask: () => causal(),
      nanRow: (_b, kv) => kv === 75,
      noGrads: true,
      nanResults: true,
    },
  };
  for (const one of [later, ...turnOf(title, cases, 12)])
    test(`${title}: ${one.id}`, async (t) => {
      for (const kernel of served(instantiate(one.id, one.spec).problem)) {
        const [config] = kernel.configs(instantiate(one.id, one.spec).problem, engine.caps);
        const prefer = { [kernel.pass]: { kernel: kernel.name, config, exact: true } };
        report(t, one, await runCase(one, engine, { prefer }), /^$/, `${kernel.name} ${JSON.stringify(config)} `);
      }
    });
}
