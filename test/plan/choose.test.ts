import assert from 'node:assert/strict';
import test from 'node:test';
import { UnsupportedError } from '../../src/core/errors.ts';
import { choosePlan } from '../../src/plan/choose.ts';
import { engine, kernel, problem } from './support.ts';

const training = problem({ grads: { q: true, k: true, v: true, sides: [], sink: false } });

test('the cheapest configuration of the cheapest kernel', () => {
  const wasm = engine('wasm', [kernel('slow', 'forward', [4, 3]), kernel('fast', 'forward', [5, 1, 2])]);
  const plan = choosePlan(problem(), [wasm]);
  assert.deepEqual(
    [plan.engine, plan.forward.kernel, plan.forward.config],
    ['wasm', 'fast', { seconds: 1, blockQ: 32 }],
  );
  assert.equal(plan.backward, null);
  assert.equal(plan.id, 'wasm:forward:f32:b1.hq4.hkv2.sq128.sk128.d32:full');
  assert.deepEqual(plan.refusals, []);
  assert.equal(plan.standard.workspace, 2 * 4 * 128 * 128 * 4);
});

test('the first engine in order that serves every pass, however fast the others are', () => {
  const first = engine('cuda', [
    kernel('forward', 'forward', [9]),
    kernel('backward', 'backward', [9], 'no gradients yet'),
  ]);
  const second = engine('wasm', [kernel('forward', 'forward', [5]), kernel('backward', 'backward', [5])]);
  assert.equal(choosePlan(problem(), [first, second]).engine, 'cuda');
  const plan = choosePlan(training, [first, second]);
  assert.deepEqual([plan.engine, plan.forward.pass, plan.backward?.pass], ['wasm', 'forward', 'backward']);
  assert.deepEqual(plan.refusals, [{ engine: 'cuda', kernel: 'backward', reason: 'no gradients yet' }]);
});

test('refusals of every engine travel with the error', () => {
  const engines = [
    engine('cuda', [kernel('a', 'forward', [1], 'too old'), kernel('b', 'forward', [1], 'too odd')]),
    engine('wasm', []),
  ];
  assert.throws(
    () => choosePlan(problem(), engines),
    (error) => {
      assert.ok(error instanceof UnsupportedError);
      assert.deepEqual(error.refusals, [
        { engine: 'cuda', kernel: 'a', reason: 'too old' },
        { engine: 'cuda', kernel: 'b', reason: 'too odd' },
        { engine: 'wasm', reason: 'has no forward kernel' },
      ]);
      return true;
    },
  );
});

test('a preference narrows, and does not overrule', () => {
  const wasm = engine('wasm', [
    kernel('slow', 'forward', [4, 3]),
    kernel('fast', 'forward', [1]),
    kernel('never', 'forward', [0], 'cannot'),
  ]);
  const chosen = (forward: NonNullable<Parameters<typeof choosePlan>[2]>['prefer']) =>
    choosePlan(problem(), [wasm], { prefer: forward ?? {} }).forward;
  assert.equal(chosen({ forward: { kernel: 'slow' } }).config.seconds, 3);
  assert.equal(chosen({ forward: { kernel: 'slow', config: { blockQ: 16 } } }).config.seconds, 4);
  assert.deepEqual(chosen({ forward: { kernel: 'slow', config: { seconds: 8 }, exact: true } }).config, { seconds: 8 });
  assert.throws(() => chosen({ forward: { kernel: 'never' } }), /cannot/);
  assert.throws(() => chosen({ forward: { kernel: 'none' } }), /has no forward kernel 'none'/);
  assert.throws(() => chosen({ forward: { config: { blockQ: 7 } } }), /has no such configuration/);
});

test('scratch that cannot fit is the last choice', () => {
  const wasm = engine('wasm', [kernel('greedy', 'forward', [1], null, 2000), kernel('modest', 'forward', [5])], 1000);
  assert.equal(choosePlan(problem(), [wasm]).forward.kernel, 'modest');
  const only = engine('wasm', [kernel('greedy', 'forward', [1], null, 2000)], 1000);
  assert.equal(choosePlan(problem(), [only]).forward.kernel, 'greedy');
});
