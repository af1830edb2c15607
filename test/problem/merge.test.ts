import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { emptyPart, mergeInto, mergeLse, mergeSink, type Part } from '../../src/problem/merge.ts';

/** One row of attention over some keys: scores s, values v [keys, 2]. */
function attend(
  scores: readonly number[],
  values: readonly (readonly [number, number])[],
  sink = Number.NEGATIVE_INFINITY,
): Part<Float64Array> {
  const part = emptyPart(1, 2);
  const m = Math.max(...scores, sink);
  if (!scores.some((s) => s > Number.NEGATIVE_INFINITY)) return part;
  const l = scores.reduce((sum, s) => sum + Math.exp(s - m), Math.exp(sink - m));
  scores.forEach((s, i) => {
    for (const c of [0, 1]) part.out[c] += (Math.exp(s - m) / l) * values[i][c];
  });
  part.lse[0] = m + Math.log(l);
  return part;
}

const near = (got: Part, want: Part): void => {
  for (let i = 0; i < 2; i++) assert.ok(Math.abs(got.out[i] - want.out[i]) < 1e-12, `${got.out} ${want.out}`);
  assert.ok(got.lse[0] === want.lse[0] || Math.abs(got.lse[0] - want.lse[0]) < 1e-12);
};

const scores = fc.oneof(
  { weight: 4, arbitrary: fc.double({ min: -800, max: 800, noNaN: true }) },
  fc.constant(Number.NEGATIVE_INFINITY),
);
const value = fc.double({ min: -3, max: 3, noNaN: true });
const keys = fc.array(fc.tuple(scores, fc.tuple(value, value)), { minLength: 1, maxLength: 12 });

test('parts in any split and order join to the whole', () => {
  fc.assert(
    fc.property(keys, fc.array(fc.nat(3), { minLength: 12, maxLength: 12 }), (all, owner) => {
      const whole = attend(
        all.map(([s]) => s),
        all.map(([, v]) => v),
      );
      for (const order of [
        [0, 1, 2, 3],
        [3, 1, 0, 2],
      ]) {
        const merged = emptyPart(1, 2);
        for (const p of order) {
          const own = all.filter((_, i) => owner[i] === p);
          mergeInto(
            merged,
            attend(
              own.map(([s]) => s),
              own.map(([, v]) => v),
            ),
          );
        }
        near(merged, whole);
      }
    }),
  );
});

test('an empty part changes nothing, whatever it holds', () => {
  const garbage = { out: new Float64Array([Number.NaN, 7]), lse: new Float64Array([Number.NEGATIVE_INFINITY]) };
  const part = attend(
    [1, 2],
    [
      [1, 2],
      [3, 4],
    ],
  );
  const left = { out: part.out.slice(), lse: part.lse.slice() };
  mergeInto(left, garbage);
  assert.deepEqual(left, part);
  const right = { out: garbage.out.slice(), lse: garbage.lse.slice() };
  mergeInto(right, part);
  assert.deepEqual(right, part);
  const both = { out: garbage.out.slice(), lse: garbage.lse.slice() };
  mergeInto(both, garbage);
  assert.deepEqual([...both.out, both.lse[0]], [0, 0, Number.NEGATIVE_INFINITY]);
});

test('lse is joined without overflow', () => {
  assert.equal(mergeLse(1e4, -1e4), 1e4);
  assert.ok(Math.abs(mergeLse(3, 3) - (3 + Math.LN2)) < 1e-15);
  assert.equal(mergeLse(Number.NEGATIVE_INFINITY, 5), 5);
  assert.equal(mergeLse(Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY), Number.NEGATIVE_INFINITY);
});

test('a sink joins the sum only', () => {
  fc.assert(
    fc.property(keys, fc.double({ min: -50, max: 50, noNaN: true }), (all, sink) => {
      const [s, v] = [all.map(([x]) => x), all.map(([, x]) => x)];
      const without = attend(s, v);
      const { lse, factor } = mergeSink(without.lse[0], sink);
      near({ out: without.out.map((x) => x * factor), lse: new Float64Array([lse]) }, attend(s, v, sink));
    }),
  );
});

test('parts of different sizes are refused', () => {
  assert.throws(() => mergeInto(emptyPart(2, 2), emptyPart(1, 2)), { name: 'ArgumentError' });
  assert.throws(() => mergeInto(emptyPart(2, 2), emptyPart(2, 3)), { name: 'ArgumentError' });
});
