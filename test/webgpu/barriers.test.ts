/**
 * Every barrier of the emitted WGSL is needed: without it some case of the conformance table fails on SwiftShader, which runs the subgroups of a
 * workgroup one after the other from barrier to barrier. A share of them: see `TURN`.
 */
import assert from 'node:assert/strict';
import test from 'node:test';
import { openEngine } from '../../src/api/registry.ts';
import { CASES, type Case } from '../../src/conformance/cases.ts';
import { instantiate } from '../../src/conformance/spec.ts';
import { runCase } from '../../src/conformance/suite.ts';
import type { WebGpuKernel } from '../../src/engines/webgpu/kernels/kernel.ts';
import { useDriver } from '../conformance/software.ts';
import { turnOf } from '../conformance/table.ts';
import { missing } from '../missing.ts';

/** Cases whose shaders are taken, and which are to notice: several blocks, partial ones, ragged ends, groups, every kind of side gradient. */
const WITNESSES = [
  'masks/causal',
  'heads/grouped',
  'mods/composed',
  'mods/bias-keys',
  'mods/bias-queries',
  'mods/relative',
  'mods/bias-head-scalar',
  'sinks/sink',
  'masks/nan-keys',
  'paged/paged-decode',
  'packed/packed-causal',
].map((name) => CASES.find(({ id }) => id.endsWith(`:${name}`)) as Case);

/**
 * Barriers that no case can miss on this driver, each with why. By kernel, shader and the barrier's own comment.
 *
 * Compiled by Dawn, a workgroup whose loop had barriers in it meets once more behind the loop, on SwiftShader as on lavapipe (six lines of WGSL
 * show it); WGSL does not promise that.
 */
const BEHIND_LOOP = 'stands behind a loop with barriers, where Dawn lets the workgroup meet in any case';
const ONE_SUBGROUP = 'concerns a row, whose invocations are one subgroup in this kernel and run in step';
const EARLY_FIRST =
  'keeps early subgroups from being overtaken by later ones, which never happens here: they run in order';
const UNSEEN: Readonly<Record<string, string>> = {
  "forward-subgroup/forward: P's last readers are done with the place": ONE_SUBGROUP,
  'forward-subgroup/forward: partial sums are visible': ONE_SUBGROUP,
  "forward/forward: the products' last readers are done with the place": BEHIND_LOOP,
  "forward/forward: P's last readers are done with the place": BEHIND_LOOP,
  "backward/side-keys: the products' places are done with": BEHIND_LOOP,
  "backward/side-bins: the last tile's elements have been picked, and the flag is down before anyone raises it":
    EARLY_FIRST,
  "decode/decode-split: the place's last readers are done": BEHIND_LOOP,
  "decode/decode-split: every invocation's value is visible":
    'the first of two: a maximum that is too small shifts exponents of the same row only, and the sum divides that out again',
  'decode/decode-split: the place is free': EARLY_FIRST,
};

interface Mutant {
  readonly title: string;
  readonly one: Case;
  readonly kernel: WebGpuKernel;
  readonly shader: string;
  readonly barrier: number;
  readonly comment: string;
}

const lineOf = (code: string): string[] => code.split('\n').filter((line) => line.includes('workgroupBarrier();'));

/** The shader without its n-th barrier. */
function without(code: string, n: number): string {
  let seen = -1;
  return code
    .split('\n')
    .filter((line) => !line.includes('workgroupBarrier();') || ++seen !== n)
    .join('\n');
}

const reason = useDriver('SwiftShader');
if (reason !== null) missing('webgpu: barriers', reason);
else {
  const engine = await openEngine('webgpu', { adapter: 'SwiftShader' });
  test.after(() => engine.close());
  const original = engine.kernels;

  /** One mutant for every barrier of every shader, by the first witness that has it; the others are tried if that one is content. */
  const mutants = new Map<string, Mutant[]>();
  for (const one of WITNESSES) {
    const { problem } = instantiate(one.id, one.spec);
    for (const kernel of original) {
      if (kernel.refuse(problem, engine.caps) !== null || (kernel.pass === 'backward' && problem.grads === null))
        continue;
      const [config] = kernel.configs(problem, engine.caps);
      for (const { name, code } of kernel.shaders(problem, config, engine.caps))
        lineOf(code).forEach((line, barrier, all) => {
          const comment = line.split('//')[1]?.trim() ?? '';
          const title = `${kernel.name}/${name.replace(/^side\d+/, 'side')}: barrier ${barrier + 1} of ${all.length}, ${comment}`;
          mutants.set(title, [...(mutants.get(title) ?? []), { title, one, kernel, shader: name, barrier, comment }]);
        });
    }
  }

  const survives = async ({ one, kernel, shader, barrier }: Mutant): Promise<boolean> => {
    const name = `${kernel.name} without ${shader} ${barrier}`;
    const mutant: WebGpuKernel = {
      ...kernel,
      name,
      shaders: (problem, config, caps) =>
        kernel
          .shaders(problem, config, caps)
          .map((s) => (s.name === shader ? { ...s, code: without(s.code, barrier) } : s)),
    };
    Object.defineProperty(engine, 'kernels', { value: [...original, mutant], configurable: true });
    const results = await runCase(one, engine, { prefer: { [kernel.pass]: { kernel: name } } });
    const judged = results.find((r) => r.pass === kernel.pass);
    assert.equal(judged?.kernel, name, judged?.skipped);
    return judged.ok;
  };

  const chosen = turnOf('webgpu: barriers', [...mutants.values()], 8);
  for (const list of chosen)
    test(`webgpu: without it something fails: ${list[0].title}`, async () => {
      let alive = true;
      for (const mutant of list) alive &&= await survives(mutant);
      const [{ kernel, shader, comment }] = list;
      const why = UNSEEN[`${kernel.name}/${shader.replace(/^side\d+/, 'side')}: ${comment}`];
      if (why === undefined)
        assert.equal(alive, false, `no case of ${list.map(({ one }) => one.id)} missed the barrier`);
    });
}
