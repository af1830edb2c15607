import assert from 'node:assert/strict';
import test from 'node:test';
import { doctor, type EngineWord, openEngine } from '../../src/api/registry.ts';
import { CASES } from '../../src/conformance/cases.ts';
import { runCase } from '../../src/conformance/suite.ts';
import type { EngineName } from '../../src/engine/contract.ts';

/**
 * Runs the conformance table on an engine, a test a case; one skipped test with the reason where the engine cannot run.
 *
 * @param mayRefuse ids of the cases that its kernels may refuse. A refusal of any other case fails.
 */
export async function runTable(name: EngineName, mayRefuse: RegExp): Promise<void> {
  const probe = (await doctor()).find((found) => found.engine === name);
  if (probe?.available !== true) {
    test(`conformance: ${name}`, { skip: probe?.reason ?? 'this build does not load the engine' }, () => {});
    return;
  }
  const engine = await openEngine(name as EngineWord);
  test.after(() => engine.close());
  for (const one of CASES)
    test(`${name}: ${one.id}`, async (t) => {
      const results = await runCase(one, engine);
      for (const { pass, ok, message } of results) assert.ok(ok, `${pass}: ${message}`);
      for (const { pass, skipped } of results)
        assert.ok(skipped === undefined || mayRefuse.test(one.id), `${pass} was refused: ${skipped}`);
      const skipped = results.flatMap((r) => (r.skipped === undefined ? [] : [`${r.pass}: ${r.skipped}`]));
      if (skipped.length > 0) t.skip(skipped.join('; '));
      assert.equal(engine.bytesInUse, 0, 'the engine holds nothing after a case');
    });
}
