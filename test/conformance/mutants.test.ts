/** The suite's own test: engines that are wrong in one way each, and the case that must catch them. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { CASES, type Case } from '../../src/conformance/cases.ts';
import { type CaseResult, runCase } from '../../src/conformance/suite.ts';
import { fromFloat64, toFloat64 } from '../../src/core/dtype.ts';
import { tensor } from '../../src/core/tensor.ts';
import type { Engine, EngineTensor, Operands, Pass } from '../../src/engine/contract.ts';
import { open } from '../../src/engines/reference/index.ts';
import { dataOf } from '../../src/engines/reference/memory.ts';
import * as x from '../../src/mods/build.ts';
import { CONTEXT } from '../../src/mods/expr.ts';
import { createProblem, type Problem } from '../../src/problem/problem.ts';

const reference = await open();
test.after(() => reference.close());

function caseOf(ending: string): Case {
  const found = CASES.find(({ id }) => id.endsWith(`:${ending}`));
  assert.ok(found, `no case ${ending}`);
  return found;
}

interface Mutation {
  /** What the engine takes the problem for. */
  readonly problem?: (problem: Problem) => Problem;
  /** What it takes the operands for. */
  readonly operands?: (operands: Operands) => Operands;
  /** What it does to the results of a pass. */
  readonly after?: (pass: Pass, operands: Operands, problem: Problem) => void;
}

/** The reference engine with a fault. */
function mutant({ problem: change = (p) => p, operands: take = (o) => o, after = () => {} }: Mutation): Engine {
  return {
    name: 'reference',
    caps: reference.caps,
    kernels: reference.kernels,
    get bytesInUse() {
      return reference.bytesInUse;
    },
    allocate: (dtype, shape) => reference.allocate(dtype, shape),
    upload: (t) => reference.upload(t),
    write: (target, t) => reference.write(target, t),
    copy: (source, target, runs) => reference.copy(source, target, runs),
    synchronize: () => reference.synchronize(),
    close: async () => {},
    [Symbol.asyncDispose]: async () => {},
    async prepare(problem, step) {
      const program = await reference.prepare(problem, step);
      return {
        key: program.key,
        async run(given, operands, options) {
          await program.run(change(given), take(operands), options);
          after(step.pass, operands, given);
        },
      };
    },
  };
}

/** Rewrites the elements of an operand. */
function edit(t: EngineTensor | null | undefined, change: (value: number, at: number) => number): void {
  if (!t) return;
  const { dtype } = t;
  if (dtype === 'i32' || dtype === 'u8') return;
  const data = dataOf(t);
  data.set(fromFloat64(dtype, toFloat64(dtype, data).map(change)));
}

const reversed = (t: EngineTensor): EngineTensor =>
  reference.upload(tensor(dataOf(t).slice().reverse(), t.shape, t.dtype));

const failing = (results: readonly CaseResult[]): string[] => results.filter((r) => !r.ok).map((r) => r.pass);

function caught(title: string, ending: string, passes: readonly Pass[], mutation: Mutation): void {
  test(`the suite catches ${title}`, async () => {
    const one = caseOf(ending);
    assert.deepEqual(failing(await runCase(one, reference)), [], 'the engine itself passes');
    assert.deepEqual(failing(await runCase(one, mutant(mutation))), passes);
  });
}

const { q, kv, lenQ, lenK } = CONTEXT;
const both: readonly Pass[] = ['forward', 'backward'];

caught('an off-by-one mask', 'masks/causal', both, {
  problem: (p) =>
    createProblem({ ...p, mask: { label: 'wide', expr: x.le(kv, x.add(x.add(q, x.sub(lenK, lenQ)), 1)) } }),
});
caught('a mask one too narrow at the end of a window', 'masks/window-back', both, {
  problem: (p) => createProblem({ ...p, mask: { label: 'narrow', expr: x.and(p.mask!.expr, x.lt(x.sub(q, kv), 32)) } }),
});
caught('a dropped block', 'masks/causal', both, {
  problem: (p) => {
    const dropped = x.and(x.eq(x.idiv(q, 32), 3), x.eq(x.idiv(kv, 32), 1));
    return createProblem({ ...p, mask: { label: 'dropped', expr: x.and(p.mask!.expr, x.not(dropped)) } });
  },
});
caught('a dropped last key', 'sizes/above', both, {
  problem: (p) => createProblem({ ...p, mask: { label: 'short', expr: x.lt(kv, x.sub(lenK, 1)) } }),
});
caught('the wrong causal alignment', 'masks/causal-wide', both, {
  problem: (p) => createProblem({ ...p, mask: { label: 'other', expr: x.le(kv, q) } }),
});
caught('another dropout counter', 'drops/dropout', both, {
  problem: (p) => createProblem({ ...p, dropout: { ...p.dropout!, offset: 1 } }),
});
caught('a modifier that backward forgets', 'mods/softcap', ['backward'], {
  after: (pass, o, p) => pass === 'backward' && edit(o.dq, (g) => g / (p.scale * 3)),
});
caught('a missing scale', 'heads/grouped', ['backward'], {
  after: (pass, o, p) => pass === 'backward' && edit(o.dk, (g) => g / p.scale),
});
caught('a sink gradient of the wrong sign', 'sinks/sink', ['backward'], {
  after: (pass, o) => pass === 'backward' && edit(o.dSink, (g) => -g),
});
caught('gradients that ignore dLse', 'dlse/dlse', ['backward'], { operands: (o) => ({ ...o, dLse: null }) });
caught('a sink that is read as another head', 'sinks/sink', both, {
  operands: (o) => ({ ...o, sink: o.sink && reversed(o.sink) }),
});
caught('results rounded too early', 'masks/causal', ['forward'], {
  after: (pass, o) => pass === 'forward' && edit(o.out, (y) => y * (1 + 2 ** -18)),
});
caught('a guard that was overwritten', 'heads/guards', ['forward'], {
  after: (pass, o) => pass === 'forward' && edit(o.out, (y, i) => (i === 41 ? 1 : y)),
});
caught('a row that was never written', 'sizes/above', ['forward'], {
  after: (pass, o, p) => pass === 'forward' && edit(o.out, (y, i) => (i < p.Dv ? Number.NaN : y)),
});
caught('a write to a row of no sequence', 'packed/packed', ['forward'], {
  after: (pass, o, p) => pass === 'forward' && edit(o.out, (y, i) => (i === o.out.shape[2] * p.Dv - 1 ? 3 : y)),
});
caught('NaN where lse is -inf', 'masks/causal-tall', ['forward'], {
  after: (pass, o) => pass === 'forward' && edit(o.lse, (y) => (y === Number.NEGATIVE_INFINITY ? Number.NaN : y)),
});
caught('a finite lse where it is -inf', 'masks/causal-tall', ['forward'], {
  after: (pass, o) => pass === 'forward' && edit(o.lse, (y) => (y === Number.NEGATIVE_INFINITY ? -1e30 : y)),
});

let runs = 0;
caught('bits that change from run to run', 'sizes/above', ['forward'], {
  after: (pass, o) => pass === 'forward' && edit(o.out, (y, i) => (i === 7 ? y * (1 + 2 ** -23 * (++runs % 2)) : y)),
});

/** Online softmax over tiles of 16 keys, in place of what the reference engine made of a dense problem without mask and modifier. */
function online(o: Operands, p: Problem, rescale: boolean): void {
  const [queries, keys, values] = [dataOf(o.q), dataOf(o.k), dataOf(o.v)];
  const out = dataOf(o.out);
  for (let h = 0; h < p.Hq; h++)
    for (let i = 0; i < p.Sq; i++) {
      let m = Number.NEGATIVE_INFINITY;
      let l = 0;
      const acc = new Float64Array(p.Dv);
      for (let tile = 0; tile < p.Sk; tile += 16) {
        const end = Math.min(tile + 16, p.Sk);
        const scores = Array.from({ length: end - tile }, (_, j) => {
          const [a, b] = [h * p.strides.q.h + i * p.D, h * p.strides.k.h + (tile + j) * p.D];
          let dot = 0;
          for (let d = 0; d < p.D; d++) dot += queries[a + d] * keys[b + d];
          return dot * p.scale;
        });
        const grown = Math.max(m, ...scores);
        const alpha = Math.exp(m - grown);
        l *= alpha;
        if (rescale) for (let d = 0; d < p.Dv; d++) acc[d] *= alpha;
        scores.forEach((s, j) => {
          const weight = Math.exp(s - grown);
          l += weight;
          for (let d = 0; d < p.Dv; d++) acc[d] += weight * values[h * p.strides.v.h + (tile + j) * p.Dv + d];
        });
        m = grown;
      }
      for (let d = 0; d < p.Dv; d++) out[h * p.strides.out.h + i * p.Dv + d] = acc[d] / l;
    }
}
test('online softmax passes', async () => {
  const right = mutant({ after: (pass, o, p) => pass === 'forward' && online(o, p, true) });
  assert.deepEqual(failing(await runCase(caseOf('sizes/above'), right)), []);
});
caught('an accumulator that is not rescaled', 'sizes/above', ['forward'], {
  after: (pass, o, p) => pass === 'forward' && online(o, p, false),
});

test('a case on the skip list is skipped while it fails, and fails once it passes', async () => {
  const one = caseOf('sizes/above');
  const skips = [{ engine: 'reference', id: one.id, reason: 'known' }] as const;
  const broken = mutant({ after: (_pass, o) => edit(o.out, (y) => y + 1) });
  const skipped = await runCase(one, broken, { skips });
  assert.deepEqual(
    skipped.map((r) => [r.ok, r.skipped]),
    [
      [true, 'known'],
      [true, 'known'],
    ],
  );
  const stale = await runCase(one, reference, { skips });
  assert.deepEqual(failing(stale), both);
  assert.match(stale[0].message ?? '', /skip list/);
});

test('a refused case is skipped with the reason, and forward runs where only backward is refused', async () => {
  const one = caseOf('sizes/above');
  const { Sq = 0, Sk = 0 } = one.spec;
  const small = await open({ workspace: Sq * Sk * 8 });
  const [forward, backward] = await runCase(one, small);
  assert.equal(forward.skipped, undefined);
  assert.ok(forward.ok && forward.maxError <= forward.allowed);
  assert.match(backward.skipped ?? '', /backward: standard attention would hold/);
  await small.close();
  const none = await open({ workspace: 0 });
  for (const { skipped } of await runCase(one, none)) assert.match(skipped ?? '', /would hold/);
  await none.close();
});

test('ids are unique and the quick subset touches every topic but the storage types of one engine', () => {
  assert.equal(new Set(CASES.map((c) => c.id)).size, CASES.length);
  const topics = (cases: readonly Case[]): Set<string> => new Set(cases.map((c) => c.id.split(':')[2].split('/')[0]));
  assert.deepEqual(topics(CASES.filter((c) => c.quick)), topics(CASES));
});
