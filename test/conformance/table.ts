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
  /** One case in so many: see `TURN`. 1, the default, is all of them. */
  readonly every?: number | undefined;
  /** Only cases without gradients, unless everything runs: for devices that take a minute to compile backward. */
  readonly light?: boolean | undefined;
  /** What the size of the device's subgroups must be, 0 for none. */
  readonly lanes?: number;
}

/**
 * Where a table takes minutes a run does one case in n: the same ones every time, so that what fails is the change's. Other numbers in
 * TILEWISE_TURN=<number> do the others (n of them see all), TILEWISE_SOFTWARE_GPU=1 runs everything.
 */
const TURN = Number(process.env.TILEWISE_TURN ?? 43);
const WHOLE = process.env.TILEWISE_SOFTWARE_GPU === '1';

/** The cases of this turn; the title of what is left out is a skipped test's. */
export function turnOf<T>(title: string, cases: readonly T[], every: number): readonly T[] {
  if (every <= 1 || WHOLE) return cases;
  const chosen = cases.filter((_, i) => (i + TURN) % every === 0);
  const skip = `one in ${every}: this is TILEWISE_TURN=${TURN}, and TILEWISE_SOFTWARE_GPU=1 runs all`;
  test(`${title}: the other ${cases.length - chosen.length} of ${cases.length} cases`, { skip }, () => {});
  return chosen;
}

/** Why tests that have not chosen a software device of their own pass one by. */
export const tooSlow = (engine: Engine): string | null =>
  'software' in engine.caps && engine.caps.software === true && !WHOLE
    ? `${engine.caps.device} is no hardware, and compiles slowly; TILEWISE_SOFTWARE_GPU=1 runs it all the same`
    : null;

/** Opens an engine for the tests of a file; where it cannot run, one skipped test says why, and the result is null. */
async function opened(name: EngineName, what: string, options: object): Promise<Engine | null> {
  if (!('adapter' in options)) {
    const probe = (await doctor()).find((found) => found.engine === name);
    if (probe?.available !== true) {
      test(what, { skip: probe?.reason ?? 'this build does not load the engine' }, () => {});
      return null;
    }
  }
  const engine = await openEngine(name as EngineWord, options);
  test.after(() => engine.close());
  return engine;
}

/** Runs the conformance table on an engine, a test a case. */
export async function runTable(
  name: EngineName,
  { mayRefuse, open = {}, variant, unless, quick, light, every = 0, lanes }: TableOptions,
): Promise<void> {
  const title = variant === undefined ? name : `${name}, ${variant}`;
  const engine = await opened(name, `conformance: ${title}`, open);
  if (engine === null) return;
  const other = unless?.(engine) ?? (every === 0 ? tooSlow(engine) : null);
  if (other !== null) {
    test(`conformance: ${title}`, { skip: other }, () => {});
    return;
  }
  if (lanes !== undefined)
    test(`${title}: the device is the one that is meant`, () => {
      assert.equal(engine.caps.features.subgroups, lanes || 'no', engine.caps.device);
    });
  for (const one of turnOf(
    title,
    CASES.filter((c) => (quick !== true || c.quick) && (light !== true || WHOLE || c.spec.noGrads === true)),
    every,
  ))
    test(`${title}: ${one.id}`, async (t) => {
      report(t, one, await runCase(one, engine), mayRefuse);
      assert.equal(engine.bytesInUse, 0, 'the engine holds nothing after a case');
    });
}

/** Runs the quick cases with every configuration of every kernel that serves them, not only the planner's choice. */
export async function runConfigurations(
  name: EngineName,
  { open = {}, every = 0 }: Pick<TableOptions, 'open' | 'every'> = {},
): Promise<void> {
  const engine = await opened(name, `configurations: ${name}`, open);
  if (engine === null) return;
  const slow = every === 0 ? tooSlow(engine) : null;
  if (slow !== null) {
    test(`configurations: ${name}`, { skip: slow }, () => {});
    return;
  }
  for (const one of turnOf(
    `${name}, every configuration`,
    CASES.filter((c) => c.quick),
    every,
  ))
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

export function report(t: TestContext, one: Case, results: readonly CaseResult[], mayRefuse: RegExp, what = ''): void {
  for (const { pass, ok, message, skipped } of results) {
    assert.ok(ok, `${what}${pass}: ${message}`);
    assert.ok(skipped === undefined || mayRefuse.test(one.id), `${what}${pass} was refused: ${skipped}`);
  }
  const skipped = results.flatMap((r) => (r.skipped === undefined ? [] : [`${r.pass}: ${r.skipped}`]));
  if (skipped.length > 0) t.skip(skipped.join('; '));
}
