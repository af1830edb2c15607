import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { TunedStore } from '../../src/api/tuned.ts';
import type { Engine } from '../../src/engine/contract.ts';
import { candidateSteps, choosePlan } from '../../src/plan/choose.ts';
import { type TunedRecord, tunedKey } from '../../src/plan/tuned.ts';
import { problemClass } from '../../src/problem/id.ts';
import { denseSequences, type Problem } from '../../src/problem/problem.ts';
import { engine, kernel, problem } from './support.ts';

const wasm = engine('wasm', [kernel('slow', 'forward', [4, 3]), kernel('fast', 'forward', [5, 1, 2])]);

/** Says that candidate `at` won. */
function recordOf(on: Engine, p: Problem, at: number): TunedRecord {
  const steps = candidateSteps(p, on, 'forward', undefined, []);
  const { kernel: name, config } = steps[at];
  return {
    format: 'tilewise-tuned-1',
    key: tunedKey(on, 'forward', p, steps),
    winner: { kernel: name, config },
    seconds: 0.25,
    measured: [],
    id: 'a problem',
    date: '2026-01-01',
  };
}

const table = (...records: TunedRecord[]) => ({
  size: records.length,
  find: (key: string) => records.find((r) => r.key === key) ?? null,
});

test('what was measured fastest is chosen over what is predicted fastest', () => {
  const p = problem();
  const tuned = table(recordOf(wasm, p, 0));
  const { forward } = choosePlan(p, [wasm], { tuned });
  assert.deepEqual([forward.kernel, forward.config.seconds, forward.measured], ['slow', 4, 0.25]);
  assert.equal(choosePlan(p, [wasm]).forward.kernel, 'fast');
  assert.equal('measured' in choosePlan(p, [wasm]).forward, false);
  // A preference is an order, and a record for it there is none.
  const prefer = { forward: { kernel: 'fast' } };
  assert.equal(choosePlan(p, [wasm], { tuned, prefer }).forward.config.seconds, 1);
});

test('a record holds for the class it was measured in, on that device, while the candidates are the same', () => {
  const p = problem({ Sq: 100, Sk: 100 });
  const tuned = table(recordOf(wasm, p, 0));
  const chosen = (on: Engine, q: Problem): string => choosePlan(q, [on], { tuned }).forward.kernel;
  assert.equal(chosen(wasm, problem({ Sq: 128, Sk: 65 })), 'slow');
  for (const other of [{ Sq: 64 }, { Sk: 129 }, { D: 33, Dv: 33 }, { Hq: 8 }, { dtype: 'bf16' }] as const)
    assert.equal(chosen(wasm, problem({ Sq: 100, Sk: 100, ...other })), 'fast', JSON.stringify(other));
  const elsewhere: Engine = { ...wasm, caps: { ...wasm.caps, device: 'another machine' } };
  assert.equal(chosen(elsewhere, p), 'fast');
  const newer = engine('wasm', [kernel('slow', 'forward', [4, 3]), kernel('fast', 'forward', [5, 1])]);
  assert.equal(chosen(newer, p), 'fast');
});

test('a choice that does not fit into memory any more is not taken', () => {
  const greedy = engine('wasm', [kernel('greedy', 'forward', [1], null, 2000), kernel('modest', 'forward', [5])], 1000);
  const p = problem();
  assert.equal(choosePlan(p, [greedy], { tuned: table(recordOf(greedy, p, 0)) }).forward.kernel, 'modest');
});

test('classes round lengths and heads up', () => {
  assert.equal(
    problemClass(problem({ B: 3, Sq: 100, Sk: 1000, sequences: denseSequences(3, 100, 1000) })),
    'f32:b1.hq16.hkv8.sq128.sk1024.d32:full',
  );
});

test('records come back from the disk; what is no record is passed over', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'tilewise-tuned-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const store = new TunedStore(join(folder, 'new', 'tuned'));
  assert.equal(store.size, 0);
  const [one, two] = [recordOf(wasm, problem(), 0), recordOf(wasm, problem({ Sq: 999 }), 1)];
  store.publish(one);
  store.publish(two);
  store.publish({ ...one, seconds: 0.125 });
  const names = readdirSync(join(folder, 'new', 'tuned'));
  assert.equal(names.length, 2);
  for (const name of names) assert.match(name, /^[0-9a-f]{40}\.json$/);
  for (const text of ['{', '{}', '[]', 'null', JSON.stringify({ ...one, winner: null })])
    writeFileSync(join(folder, 'new', 'tuned', `${'0'.repeat(39)}${text.length % 10}.json`), text);
  const again = new TunedStore(join(folder, 'new', 'tuned'));
  assert.equal(again.size, 2);
  assert.equal(again.find(one.key)?.seconds, 0.125);
  assert.equal(again.find('something else'), null);
  assert.equal(again.forget(), 2);
  assert.equal(new TunedStore(join(folder, 'new', 'tuned')).size, 0);
});
