import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { tensor } from '../../src/core/tensor.ts';
import { eq, mod } from '../../src/mods/build.ts';
import { compileEvaluator } from '../../src/mods/evaluate.ts';
import type { Bool } from '../../src/mods/expr.ts';
import { and, causal, documents, maskOf, slidingWindow } from '../../src/mods/library.ts';
import { cachedBytes, countPairs, flopsOf, standardCost, tiledBytes } from '../../src/problem/cost.ts';
import { planId, problemId } from '../../src/problem/id.ts';
import type { Problem } from '../../src/problem/problem.ts';
import { lengthsOf } from '../../src/problem/ranges.ts';
import { expressions } from '../mods/support.ts';
import { problemOf } from './support.ts';

function pairsOf(problem: Problem): number {
  const attends = problem.mask === null ? () => 1 : compileEvaluator(problem.mask.expr);
  let pairs = 0;
  for (let b = 0; b < problem.B; b++) {
    const { lenQ, lenK } = lengthsOf(problem, b);
    for (let h = 0; h < problem.Hq; h++)
      for (let q = 0; q < lenQ; q++)
        for (let kv = 0; kv < lenK; kv++) pairs += attends({ score: 0, b, h, q, kv, lenQ, lenK });
  }
  return pairs;
}

test('pairs are counted exactly', () => {
  const ids = tensor(
    new Int32Array(70).map((_, i) => (i < 33 ? 0 : i < 34 ? 1 : 2)),
    [70],
  );
  const odd = maskOf((at) => eq(mod(at.kv, 3), mod(at.q, 3)), 'odd');
  const byHead = maskOf((at) => eq(mod(at.kv, 2), at.h), 'heads');
  for (const mask of [null, causal(), and(causal(), slidingWindow(20)), documents(ids), odd, byHead]) {
    const problem = problemOf({ B: 2, H: 2, Sq: 70 }, mask);
    assert.deepEqual(countPairs(problem), { pairs: pairsOf(problem), exact: true });
  }
  const packed = problemOf({ Sq: 40, Sk: 60, H: 3 }, causal(), {}, [
    [40, 10],
    [0, 3],
    [7, 60],
  ]);
  assert.deepEqual(countPairs(packed), { pairs: pairsOf(packed), exact: true });
  assert.deepEqual(countPairs(problemOf({ B: 0, Sq: 4 })), { pairs: 0, exact: true });
  fc.assert(
    fc.property(expressions('bool', 3), (e) => {
      const problem = problemOf(
        { B: 2, H: 2, Sq: 8, Sk: 10 },
        maskOf(() => e as Bool),
      );
      assert.equal(countPairs(problem).pairs, pairsOf(problem));
    }),
    { numRuns: 100 },
  );
});

test('causal counts are closed forms at any length', () => {
  const problem = problemOf({ H: 8, Sq: 16384 }, causal());
  assert.deepEqual(countPairs(problem), { pairs: (8 * 16384 * 16385) / 2, exact: true });
});

test('a count that would take too long is an estimate and says so', () => {
  const odd = maskOf((at) => eq(mod(at.kv, 3), mod(at.q, 3)), 'odd');
  const { pairs, exact } = countPairs(problemOf({ Sq: 512 }, odd), 1000);
  assert.equal(exact, false);
  assert.ok(pairs > 0 && pairs < 512 * 512);
});

test('FLOPs follow LEGEND.md', () => {
  const problem = problemOf({ B: 2, H: 3, Sq: 8, Sk: 16, D: 32, Dv: 48 });
  assert.equal(flopsOf(problem, 'forward'), 2 * (2 * 3 * 8 * 16) * (32 + 48));
  assert.equal(flopsOf(problem, 'backward'), 2 * (2 * 3 * 8 * 16) * (3 * 32 + 2 * 48));
});

test('standard attention stores the scores, tiled attention does not', () => {
  const problem = problemOf({ H: 8, Sq: 4096 });
  const standard = standardCost(problem, { flops: 1e12, bandwidth: 1e11 });
  assert.equal(standard.workspace, 2 * 8 * 4096 * 4096 * 4);
  assert.equal(standard.flops, flopsOf(problem, 'forward'));
  assert.equal(standard.seconds, Math.max(standard.flops / 1e12, standard.bytes / 1e11));
  assert.ok(tiledBytes(problem, 'forward', 128, 128) < standard.bytes / 3);
});

test('tiled bytes count the visited blocks', () => {
  const problem = problemOf({ H: 2, Sq: 256 });
  const rows = 256 * 2 * 64 * 4;
  // Four query blocks each read all keys and values.
  assert.equal(tiledBytes(problem, 'forward', 64, 64), rows + rows + 256 * 2 * 4 + 4 * 2 * rows);
  const masked = problemOf({ H: 2, Sq: 256 }, causal());
  assert.equal(tiledBytes(masked, 'forward', 64, 64), rows + rows + 256 * 2 * 4 + (10 / 4) * 2 * rows);
  assert.ok(tiledBytes(masked, 'backward', 64, 64) > 2 * tiledBytes(masked, 'forward', 64, 64));
});

test('ids name what was asked', () => {
  const mod = { label: 'softcap30', expr: { kind: 'score', type: 'f32' } } as const;
  const full = problemOf({ B: 2, H: 16, Sq: 512, D: 128 });
  assert.equal(problemId(full), 'f32:b2.hq16.hkv16.sq512.sk512.d128:full');
  const dropout = { p: 0.1, seed: [1, 2], offset: 0 } as const;
  const rich = problemOf({ B: 2, H: 16, Sq: 512, D: 128 }, causal(), { Hkv: 4, mod, dropout, sink: true });
  assert.equal(problemId(rich), 'f32:b2.hq16.hkv4.sq512.sk512.d128:causal+softcap30+dropout+sink');
  assert.equal(planId('wasm', 'forward', rich), `wasm:forward:${problemId(rich)}`);
  const odd = problemOf(
    { Sq: 8, D: 64, Dv: 32 },
    maskOf((at) => eq(at.q, at.kv), 'my mask: 1'),
    {},
    [[8, 8]],
  );
  assert.equal(problemId(odd), 'f32:b1.hq1.hkv1.sq8.sk8.d64.dv32:my-mask-1+packed');
  const paged = problemOf({ Sq: 8 }, null, {
    kv: { kind: 'paged', pageSize: 16, maxPages: 1, table: new Int32Array(1) },
  });
  assert.equal(problemId(paged), 'f32:b1.hq1.hkv1.sq8.sk8.d64:paged');
});

test('a cache in front of slow memory: once when it fits, else once for each wave of tiles', () => {
  const problem = problemOf({ B: 2, H: 4, Sq: 1024, Sk: 1024, D: 64 }, null, { Hkv: 2 });
  const rows = 2 * 4 * 1024 * 64 * 4;
  const lse = 2 * 4 * 1024 * 4;
  const fixed = 2 * rows + lse;
  const fits = { bytes: 1024 * 2 * 64 * 4, tiles: 4 };
  assert.equal(cachedBytes(problem, 'forward', 128, 64, fits), fixed + rows);
  const small = { bytes: fits.bytes - 1, tiles: 4 };
  // Eight tiles a head are two waves, of each of the two heads that share keys.
  assert.equal(cachedBytes(problem, 'forward', 128, 64, small), fixed + rows * 2 * 2);
  assert.equal(cachedBytes(problem, 'forward', 128, 64, { ...small, tiles: 8 }), fixed + rows * 2);
  const most = tiledBytes(problem, 'backward', 128, 128);
  assert.ok(cachedBytes(problem, 'backward', 128, 128, small) < most);
  assert.ok(cachedBytes(problem, 'backward', 128, 128, fits) < cachedBytes(problem, 'backward', 128, 128, small));
});
