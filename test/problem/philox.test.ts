import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { dropThreshold, keepScale, keeps, philox4x32 } from '../../src/problem/philox.ts';

test('known answers of the Random123 suite, of seven and of ten rounds', () => {
  const ones = 0xffffffff;
  const pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0] as const;
  assert.deepEqual(philox4x32(0, 0, 0, 0, 0, 0), [0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48]);
  assert.deepEqual(philox4x32(ones, ones, ones, ones, ones, ones), [0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662]);
  assert.deepEqual(philox4x32(...pi), [0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a]);
  assert.deepEqual(philox4x32(0, 0, 0, 0, 0, 0, 10), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
  assert.deepEqual(philox4x32(...pi, 10), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
});

/** The definition, in integers of any size. */
function exactly(counter: number[], key: number[]): number[] {
  let [c0, c1, c2, c3] = counter.map(BigInt);
  let [k0, k1] = key.map(BigInt);
  const low = (x: bigint): bigint => x & 0xffffffffn;
  for (let i = 0; i < 7; i++) {
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

test('the threshold is p * 2^16 rounded, in the upper half of a word', () => {
  assert.equal(dropThreshold(0.5), 2 ** 31);
  assert.equal(dropThreshold(0.1), 6554 * 2 ** 16);
  assert.equal(dropThreshold(2 ** -18), 0);
  assert.equal(dropThreshold(1 - 2 ** -53), (2 ** 16 - 1) * 2 ** 16);
});

test('what is kept is scaled for the probability that is drawn: the mean stays', () => {
  assert.equal(keepScale(0.5), 2);
  assert.equal(keepScale(2 ** -18), 1);
  fc.assert(
    fc.property(fc.double({ min: 0, max: 1, minExcluded: true, maxExcluded: true, noNaN: true }), (p) => {
      const kept = 1 - dropThreshold(p) / 2 ** 32;
      assert.ok(Math.abs(kept * keepScale(p) - 1) < 1e-12);
      assert.ok(Math.abs(1 - kept - p) <= 2 ** -16);
    }),
  );
});

test('dropout keeps by position: word kv % 4 of counter (kv / 4, q without bit 3, bh, offset), the half bit 3 names', () => {
  const dropout = { p: 0.3, seed: [0xdeadbeef, 0x12345678], offset: 7 } as const;
  let kept = 0;
  for (let q = 0; q < 100; q++)
    for (let kv = 0; kv < 100; kv++) {
      const row = q - (Math.floor(q / 8) % 2) * 8;
      const word = exactly([Math.floor(kv / 4), row, 5, 7], [0xdeadbeef, 0x12345678])[kv % 4];
      const half = row === q ? word % 65536 : Math.floor(word / 65536);
      assert.equal(keeps(dropout, 5, q, kv), half >= Math.round(0.3 * 65536));
      kept += Number(keeps(dropout, 5, q, kv));
    }
  assert.ok(Math.abs(kept / 10000 - 0.7) < 0.02);
});

test('neighbours are kept independently: keys, queries and queries eight apart', () => {
  const dropout = { p: 0.5, seed: [1, 2], offset: 0 } as const;
  const at = (q: number, kv: number): number => (keeps(dropout, 0, q, kv) ? 1 : -1);
  for (const [dq, dk] of [
    [0, 1],
    [0, 4],
    [1, 0],
    [8, 0],
    [8, 1],
    [16, 0],
  ]) {
    let sum = 0;
    for (let q = 0; q < 200; q++) for (let kv = 0; kv < 200; kv++) sum += at(q, kv) * at(q + dq, kv + dk);
    assert.ok(Math.abs(sum) < 5 * 200, `${dq} queries and ${dk} keys apart: ${sum / 40000}`);
  }
});

test('16 bits that equal the threshold are kept', () => {
  const word = philox4x32(0, 3, 1, 0, 5, 6)[2];
  const dropout = { seed: [5, 6], offset: 0 } as const;
  for (const [q, half] of [
    [3, word & 0xffff],
    [11, word >>> 16],
  ]) {
    assert.equal(keeps({ ...dropout, p: half / 65536 }, 1, q, 2), true);
    assert.equal(keeps({ ...dropout, p: (half + 1) / 65536 }, 1, q, 2), false);
  }
});
