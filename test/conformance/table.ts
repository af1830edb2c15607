import assert from 'node:assert/strict';
import test, { type TestContext } from 'node:test';
import { doctor, type EngineWord, openEngine } from '../../src/api/registry.ts';
import { CASES, type Case } from '../../src/conformance/cases.ts';
import { instantiate } from '../../src/conformance/spec.ts';
import { type CaseResult, runCase } from '../../src/conformance/suite.ts';
import type { Engine, EngineName } from '../../src/engine/contract.ts';

export interface TableOptions {
  /** Ids of the cases that the engine's kernels may refuse; a refusal of any other case fails. */
  readonly mayRefuse: RegExp;
  /** The engine's own options. */
  readonly open?: object;
  /** Said in the tests' names when options differ from the engine's defaults. */
  readonly variant?: string;
  /** Why the engine that was opened is not what the variant means; the table is then skipped with that reason. */
  readonly unless?: (engine: Engine) => string | null;
  /** Only the quick subset. */
  readonly quick?: boolean;
}

/** What runs on a software GPU by default. */
const ON_SOFTWARE = ['gradients/none'];

/** Why most tests skip an engine: a processor that plays a GPU needs up to minutes to compile the shaders of one case. */
export const tooSlow = (engine: Engine): string | null =>
  'software' in engine.caps && engine.caps.software === true && process.env.TILEWISE_SOFTWARE_GPU !== '1'
    ? `${engine.caps.device} compiles shaders too slowly; TILEWISE_SOFTWARE_GPU=1 runs it all`
    : null;

/** Opens an engine for the tests of a file; where it cannot run, one skipped test says why, and the result is null. */
async function opened(name: EngineName, what: string, options: object): Promise<Engine | null> {
  const probe = (await doctor()).find((found) => found.engine === name);
  if (probe?.available !== true) {
    test(what, { skip: probe?.reason ?? 'this build does not load the engine' }, () => {});
    return null;
  }
  const engine = await openEngine(name as EngineWord, options);
  test.after(() => engine.close());
  return engine;
}

/** Runs the conformance table on an engine, a test a case. */
export async function runTable(
  name: EngineName,
  { mayRefuse, open = {}, variant, unless, quick }: TableOptions,
): Promise<void> {
  const title = variant === undefined ? name : `${name}, ${variant}`;
  const engine = await opened(name, `conformance: ${title}`, open);
  if (engine === null) return;
  const other = unless?.(engine) ?? null;
  if (other !== null) {
    test(`conformance: ${title}`, { skip: other }, () => {});
    return;
  }
  const slow = tooSlow(engine);
  if (slow !== null) test(`conformance: ${title}, the other cases`, { skip: slow }, () => {});
  const runs = ({ id, quick: inQuick }: Case): boolean =>
    slow === null ? quick !== true || inQuick : ON_SOFTWARE.some((name) => id.endsWith(`:${name}`));
  for (const one of CASES.filter(runs))
    test(`${title}: ${one.id}`, async (t) => {
      report(t, one, await runCase(one, engine), mayRefuse);
      assert.equal(engine.bytesInUse, 0, 'the engine holds nothing after a case');
    });
}

/** Runs the quick cases with every configuration of every kernel that serves them, not only the planner's choice. */
export async function runConfigurations(name: EngineName): Promise<void> {
  const engine = await opened(name, `configurations: ${name}`, {});
  if (engine === null) return;
  const slow = tooSlow(engine);
  if (slow !== null) {
    test(`configurations: ${name}`, { skip: slow }, () => {});
    return;
  }
  for (const one of CASES.filter((c) => c.quick))
    test(`${name}, every configuration: ${one.id}`, async (t) => {
      const { problem } = instantiate(one.id, one.spec);
      for (const kernel of engine.kernels) {
        if ((kernel.pass === 'backward' && problem.grads === null) || kernel.refuse(problem, engine.caps) !== null)
          continue;
        for (const config of kernel.configs(problem, engine.caps)) {
          const prefer = { [kernel.pass]: { kernel: kernel.name, config, exact: true } };
          const results = await runCase(one, engine, { prefer });
          report(t, one, results, /^/, `${kernel.name} ${JSON.stringify(config)} `);
        }
      }
    });
}

function report(t: TestContext, one: Case, results: readonly CaseResult[], mayRefuse: RegExp, what = ''): void {
  for (const { pass, ok, message, skipped } of results) {
    assert.ok(ok, `${what}${pass}: ${message}`);
    assert.ok(skipped === undefined || mayRefuse.test(one.id), `${what}${pass} was refused: ${skipped}`);
  }
  const skipped = results.flatMap((r) => (r.skipped === undefined ? [] : [`${r.pass}: ${r.skipped}`]));
  if (skipped.length > 0) t.skip(skipped.join('; '));
}
