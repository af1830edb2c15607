import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { tensor } from '../../src/core/tensor.ts';
import { eq, lt, mod } from '../../src/mods/build.ts';
import { compileEvaluator } from '../../src/mods/evaluate.ts';
import type { Bool, Mask } from '../../src/mods/expr.ts';
import {
  and,
  blockLayout,
  causal,
  documents,
  maskOf,
  maskTensor,
  prefix,
  slidingWindow,
} from '../../src/mods/library.ts';
import type { Problem } from '../../src/problem/problem.ts';
import { blockRuns, domainOf, lengthsOf } from '../../src/problem/ranges.ts';
import { expressions } from '../mods/support.ts';
import { problemOf } from './support.ts';

/** 's', 'f' or 'p' of every block of a row, from its runs. */
function rowText(
  problem: Problem,
  by: 'q' | 'kv',
  blocks: readonly [number, number],
  b: number,
  h: number,
  i: number,
): string {
  const found = blockRuns(problem, by, ...blocks);
  const { lenQ, lenK } = lengthsOf(problem, b);
  const text = new Array(Math.ceil((by === 'q' ? lenK : lenQ) / blocks[by === 'q' ? 1 : 0])).fill('s');
  const row = found.rowOf(b, h, i);
  assert.equal(row, b * found.strideB + h * found.strideH + i);
  let before = -1;
  let kind = -1;
  for (let r = found.rowStart[row]; r < found.rowStart[row + 1]; r++) {
    const [first, end, partial] = found.runs.subarray(r * 3, r * 3 + 3);
    assert.ok(first < end && end <= text.length, 'a run lies inside the sequence');
    assert.ok(first > before || (first === before && partial !== kind), 'runs are in order and as long as can be');
    text.fill(partial ? 'p' : 'f', first, end);
    [before, kind] = [end, partial];
  }
  assert.equal(found.count(row), found.rowStart[row + 1] - found.rowStart[row]);
  return text.join('');
}

/** The same by looking at every position. */
function truthText(
  problem: Problem,
  by: 'q' | 'kv',
  [blockQ, blockK]: readonly [number, number],
  b: number,
  h: number,
  i: number,
): string {
  const attends = problem.mask === null ? () => 1 : compileEvaluator(problem.mask.expr as Bool);
  const { lenQ, lenK } = lengthsOf(problem, b);
  const [block, across, length, acrossLength] =
    by === 'q' ? [blockQ, blockK, lenQ, lenK] : [blockK, blockQ, lenK, lenQ];
  let text = '';
  for (let j = 0; j * across < acrossLength; j++) {
    let [any, all, some] = [false, true, false];
    for (let x = i * block; x < Math.min((i + 1) * block, length); x++)
      for (let y = j * across; y < Math.min((j + 1) * across, acrossLength); y++) {
        const [q, kv] = by === 'q' ? [x, y] : [y, x];
        const yes = attends({ score: 0, b, h, q, kv, lenQ, lenK }) === 1;
        some = true;
        any ||= yes;
        all &&= yes;
      }
    text += some && any ? (all ? 'f' : 'p') : 's';
  }
  return text;
}

function expectExact(problem: Problem, blocks: readonly [number, number], careful = false): void {
  for (const by of ['q', 'kv'] as const) {
    const { rows } = blockRuns(problem, by, ...blocks);
    assert.equal(rows, Math.ceil((by === 'q' ? problem.Sq : problem.Sk) / blocks[by === 'q' ? 0 : 1]));
    for (let b = 0; b < problem.B; b++)
      for (let h = 0; h < problem.Hq; h++)
        for (let i = 0; i < rows; i++) {
          const got = rowText(problem, by, blocks, b, h, i);
          const want = truthText(problem, by, blocks, b, h, i);
          // A block that could not be decided is partial, whatever it is in truth.
          const fits = careful ? [...got].every((c, j) => c === 'p' || c === want[j]) : got === want;
          assert.ok(fits, `${problem.mask?.label} ${by} ${b},${h},${i}: got ${got}, expected ${want}`);
        }
  }
}

const ids = tensor(
  new Int32Array(48).map((_, i) => (i < 10 ? 0 : i < 11 ? 1 : i < 30 ? 2 : 3)),
  [48],
);
const layout = tensor(
  new Uint8Array(2 * 9).map((_, i) => ((i * 7) % 3 === 0 ? 1 : 0)),
  [1, 2, 3, 3],
);
const dense = tensor(
  new Uint8Array(48 * 48).map((_, i) => Number((i % 48) % 20 < 9 || i < 48 * 16)),
  [48, 48],
);
const MASKS: readonly Mask[] = [
  causal(),
  causal({ align: 'top-left' }),
  and(causal(), slidingWindow(11)),
  slidingWindow(3, 5),
  prefix(13),
  documents(ids),
  and(documents(ids), causal()),
  blockLayout(layout, 16),
  maskTensor(dense),
  maskOf((at) => lt(at.kv, 0), 'nothing'),
];

test('runs equal what looking at every position finds', () => {
  for (const mask of [null, ...MASKS])
    for (const blocks of [
      [16, 16],
      [8, 16],
      [16, 8],
      [48, 7],
      [5, 9],
      [64, 64],
    ] as const)
      expectExact(problemOf({ B: 2, H: 2, Sq: 48 }, mask), blocks);
});

test('rectangular, packed and empty sequences', () => {
  for (const mask of [null, causal(), and(causal(), slidingWindow(4)), prefix(2)]) {
    expectExact(problemOf({ B: 1, H: 1, Sq: 20, Sk: 48 }, mask), [8, 8]);
    expectExact(problemOf({ B: 1, H: 1, Sq: 48, Sk: 20 }, mask), [8, 8]);
    const lengths = [
      [17, 17],
      [0, 5],
      [5, 0],
      [3, 40],
      [40, 3],
      [0, 0],
    ] as const;
    expectExact(problemOf({ Sq: 40, Sk: 40 }, mask, {}, lengths), [8, 16]);
    expectExact(problemOf({ B: 1, H: 1, Sq: 0, Sk: 16 }, mask), [8, 8]);
    expectExact(problemOf({ B: 1, H: 1, Sq: 16, Sk: 0 }, mask), [8, 8]);
    expectExact(problemOf({ B: 0, H: 2, Sq: 16, Sk: 16 }, mask), [8, 8]);
  }
});

test('sequences of other lengths, but the same longest ones, have blocks of their own', () => {
  for (const lengths of [
    [
      [40, 40],
      [9, 30],
    ],
    [
      [40, 40],
      [33, 2],
    ],
  ] as const)
    expectExact(problemOf({ Sq: 40, Sk: 40 }, causal(), {}, lengths), [8, 16]);
});

test('random masks: never wrong, at worst careful', () => {
  fc.assert(
    fc.property(expressions('bool', 3), fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 5 }), (e, x, y) => {
      const mask = maskOf(() => e as Bool, 'random');
      expectExact(problemOf({ B: 2, H: 2, Sq: 8, Sk: 10 }, mask), [x, y], true);
    }),
    { numRuns: 200 },
  );
});

test('rows are shared over batches and heads that the mask does not look at', () => {
  const sizes = { B: 3, H: 4, Sq: 32 };
  const rowsOf = (mask: Mask | null): number => blockRuns(problemOf(sizes, mask), 'q', 16, 16).rowStart.length - 1;
  assert.equal(rowsOf(null), 2);
  assert.equal(rowsOf(causal()), 2);
  assert.equal(rowsOf(maskOf((at) => lt(at.kv, at.h), 'h')), 8);
  assert.equal(rowsOf(maskOf((at) => lt(at.kv, at.b), 'b')), 6);
  assert.equal(rowsOf(maskOf((at) => eq(mod(at.kv, 2), mod(at.b, 2)), 'both')), 6);
});

test('equal sizes and masks share one result; masks that read tensors do not outlive their problem', () => {
  const runs = (mask: Mask, S = 32) => blockRuns(problemOf({ Sq: S }, mask), 'q', 16, 16);
  assert.equal(runs(causal()), runs(causal()));
  assert.equal(runs(maskOf((at) => lt(at.kv, at.q))), runs(maskOf((at) => lt(at.kv, at.q))));
  assert.notEqual(runs(causal()), runs(causal(), 33));
  const data = new Uint8Array(32 * 32);
  const mask = maskTensor(tensor(data, [32, 32]));
  const problem = problemOf({ Sq: 32 }, mask);
  assert.equal(blockRuns(problem, 'q', 16, 16).runs.length, 0);
  assert.equal(blockRuns(problem, 'q', 16, 16), blockRuns(problem, 'q', 16, 16));
  data.fill(1);
  assert.deepEqual([...runs(mask).runs], [0, 2, 0, 0, 2, 0]);
});

test('a long causal problem visits the lower triangle', () => {
  const { runs, rowStart } = blockRuns(problemOf({ H: 8, Sq: 65536 }, causal()), 'q', 96, 128);
  assert.equal(rowStart.length - 1, 683);
  for (let i = 0; i < 683; i++) {
    const last = Math.min((i + 1) * 96, 65536) - 1;
    const full = Math.floor((i * 96 + 1) / 128);
    const want = [
      ...(full > 0 ? [0, full, 0] : []),
      ...(Math.floor(last / 128) + 1 > full ? [full, Math.floor(last / 128) + 1, 1] : []),
    ];
    assert.deepEqual([...runs.subarray(rowStart[i] * 3, rowStart[i + 1] * 3)], want);
  }
});

test('the domain of a packed problem spans its lengths', () => {
  const domain = domainOf(
    problemOf({ Sq: 9, Sk: 7 }, null, {}, [
      [9, 2],
      [4, 7],
    ]),
  );
  assert.deepEqual(
    [domain.b, domain.q, domain.kv, domain.lenQ, domain.lenK].map(({ lo, hi }) => [lo, hi]),
    [
      [0, 1],
      [0, 8],
      [0, 6],
      [4, 9],
      [2, 7],
    ],
  );
});
