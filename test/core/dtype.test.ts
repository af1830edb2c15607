import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { fromBf16, fromF16, toBf16, toF16 } from '../../src/core/dtype.ts';

const TYPES = { bf16: [fromBf16, toBf16, 0x7f80], f16: [fromF16, toF16, 0x7c00] } as const;

for (const [name, [from, to, infinity]] of Object.entries(TYPES)) {
  test(`${name}: every bit pattern comes back`, () => {
    for (let h = 0; h < 2 ** 16; h++) if (!Number.isNaN(from(h))) assert.equal(to(from(h)), h);
    assert.ok(Number.isNaN(from(to(Number.NaN))));
  });

  test(`${name}: the nearest of two neighbours, ties to even, however close to the middle`, () => {
    const place = fc.record({
      low: fc.nat(infinity - 2),
      share: fc.constantFrom(0.3, 0.5, 0.7),
      off: fc.integer({ min: -2, max: 2 }),
    });
    fc.assert(
      fc.property(place, ({ low, share, off }) => {
        const [a, b] = [from(low), from(low + 1)];
        const x = a + (b - a) * (share + off * 2 ** -36);
        const even = low % 2 === 0 ? low : low + 1;
        const wanted = x - a < b - x ? low : x - a > b - x ? low + 1 : even;
        assert.equal(to(x), wanted, String(x));
        assert.equal(to(-x), wanted | 0x8000);
      }),
      { numRuns: 3000 },
    );
  });
}
