import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { dropThreshold, keeps, philox4x32 } from '../../src/problem/philox.ts';

test('known answers of the Random123 suite', () => {
  const ones = 0xffffffff;
  assert.deepEqual(philox4x32(0, 0, 0, 0, 0, 0), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
  assert.deepEqual(philox4x32(ones, ones, ones, ones, ones, ones), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
  assert.deepEqual(
    philox4x32(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0),
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  );
});

/** The definition, in integers of any size. */
function exactly(counter: number[], key: number[]): number[] {
  let [c0, c1, c2, c3] = counter.map(BigInt);
  let [k0, k1] = key.map(BigInt);
  const low = (x: bigint): bigint => x & 0xffffffffn;
  for (let i = 0; i < 10; i++) {
    const [p0, p1] = [c0 * 0xd2511f53n, c2 * 0xcd9e8d57n];
    [c0, c1, c2, c3] = [(p1 >> 32n) ^ c1 ^ k0, low(p1), (p0 >> 32n) ^ c3 ^ k1, low(p0)];
    [k0, k1] = [low(k0 + 0x9e3779b9n), low(k1 + 0xbb67ae85n)];
  }
  return [c0, c1, c2, c3].map(Number);
}

test('equals the definition in big integers', () => {
  const word = fc.integer({ min: 0, max: 2 ** 32 - 1 });
  fc.assert(
    fc.property(fc.tuple(word, word, word, word), fc.tuple(word, word), (counter, key) => {
      assert.deepEqual(philox4x32(...counter, ...key), exactly(counter, key));
    }),
    { numRuns: 500 },
  );
});

test('the threshold is p * 2^32 rounded, and stays in 32 bits', () => {
  assert.equal(dropThreshold(0.5), 2 ** 31);
  assert.equal(dropThreshold(0.1), 429496730);
  assert.equal(dropThreshold(1 - 2 ** -53), 2 ** 32 - 1);
});

test('dropout keeps by position: lane kv % 4 of counter (kv / 4, q, bh, offset)', () => {
  const dropout = { p: 0.3, seed: [0xdeadbeef, 0x12345678], offset: 7 } as const;
  let kept = 0;
  for (let q = 0; q < 100; q++)
    for (let kv = 0; kv < 100; kv++) {
      const word = exactly([Math.floor(kv / 4), q, 5, 7], [0xdeadbeef, 0x12345678])[kv % 4];
      assert.equal(keeps(dropout, 5, q, kv), word >= Math.round(0.3 * 2 ** 32));
      kept += Number(keeps(dropout, 5, q, kv));
    }
  assert.ok(Math.abs(kept / 10000 - 0.7) < 0.02);
});

test('a word that equals the threshold is kept', () => {
  const word = philox4x32(0, 3, 1, 0, 5, 6)[2];
  const dropout = { seed: [5, 6], offset: 0 } as const;
  assert.equal(keeps({ ...dropout, p: word / 2 ** 32 }, 1, 3, 2), true);
  assert.equal(keeps({ ...dropout, p: (word + 1) / 2 ** 32 }, 1, 3, 2), false);
});
