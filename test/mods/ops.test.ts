import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { type ExprType, type Interval, OPS, type OpName } from '../../src/mods/ops.ts';

const NAMES = Object.keys(OPS) as OpName[];

const VALUES: Readonly<Record<ExprType, fc.Arbitrary<number>>> = {
  bool: fc.constantFrom(0, 1),
  i32: fc.oneof(
    fc.integer({ min: -20, max: 20 }),
    fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
    fc.constantFrom(-(2 ** 31), 2 ** 31 - 1, -1, 0, 32),
  ),
  f32: fc.oneof(
    fc.integer({ min: -20, max: 20 }),
    fc.float({ noNaN: true }),
    fc.float({ min: -8, max: 8, noNaN: true }),
    fc.constantFrom(Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY),
  ),
};

/** An interval, and a few values inside it. */
const insides = (type: ExprType): fc.Arbitrary<{ interval: Interval; values: number[] }> =>
  fc.array(VALUES[type], { minLength: 1, maxLength: 5 }).map((values) => ({
    interval: { lo: Math.min(...values), hi: Math.max(...values) },
    values,
  }));

const allows = ({ lo, hi }: Interval, x: number): boolean =>
  Number.isNaN(lo) || Number.isNaN(hi) || (x >= lo && x <= hi);

for (const name of NAMES) {
  const op = OPS[name];
  test(`the range of ${name} holds every value it takes, in float64 and rounded to f32`, () => {
    fc.assert(
      fc.property(fc.tuple(...op.args.map(insides)), (args) => {
        const range = op.range(...args.map((a) => a.interval));
        const visit = (chosen: number[]): void => {
          if (chosen.length < args.length) {
            for (const v of args[chosen.length].values) visit([...chosen, v]);
            return;
          }
          const value = op.evaluate(...chosen);
          const seen = op.result === 'f32' ? [value, Math.fround(value)] : [value];
          for (const x of seen)
            assert.ok(allows(range, x), `${name}(${chosen}) = ${x}, outside ${range.lo} .. ${range.hi}`);
        };
        visit([]);
      }),
      { numRuns: 400 },
    );
  });
}

test('i32 results stay in i32 and booleans are 0 or 1', () => {
  for (const name of NAMES) {
    const op = OPS[name];
    if (op.result === 'f32') continue;
    fc.assert(
      fc.property(fc.tuple(...op.args.map((t) => VALUES[t])), (args) => {
        const value = op.evaluate(...args);
        assert.ok(
          op.result === 'bool' ? value === 0 || value === 1 : value === (value | 0),
          `${name}(${args}) = ${value}`,
        );
      }),
    );
  }
});

test('division rounds towards minus infinity, and the remainder has the sign of the divisor', () => {
  assert.deepEqual(
    [7, -7].flatMap((x) => [2, -2].map((y) => [OPS.idiv.evaluate(x, y), OPS.imod.evaluate(x, y)])),
    [
      [3, 1],
      [-4, -1],
      [-4, 1],
      [3, -1],
    ],
  );
  assert.deepEqual([OPS.idiv.evaluate(5, 0), OPS.imod.evaluate(5, 0)], [0, 0]);
});

test('round goes to even at halves', () => {
  for (const [x, want] of [
    [-2.5, -2],
    [-1.5, -2],
    [0.5, 0],
    [1.5, 2],
    [2.5, 2],
    [2.6, 3],
  ])
    assert.equal(OPS.round.evaluate(x), want);
});

test('the integer zero has no sign', () => {
  for (const x of [-0, -0.5]) assert.ok(Object.is(OPS.toI32.evaluate(x), 0), `toI32(${x})`);
});
