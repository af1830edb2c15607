import assert from 'node:assert/strict';
import test from 'node:test';
import { fromBf16, fromF16, toBf16, toF16 } from '../../src/core/dtype.ts';
import { i32, i32Const, v128 } from '../../src/engines/wasm/asm/values.ts';
import { exp, exp2Negative, log, tanh } from '../../src/engines/wasm/functions.ts';
import { philox, splatWord } from '../../src/engines/wasm/philox.ts';
import { loadFour, storeFour } from '../../src/engines/wasm/storage.ts';
import type { Vec, Vectors } from '../../src/engines/wasm/tile.ts';
import { philox4x32 } from '../../src/problem/philox.ts';
import { BASE, mapFloats, run, ulps } from './emitted.ts';

const grid = (lo: number, hi: number, n: number): Float32Array =>
  Float32Array.from({ length: n }, (_, i) => lo + ((hi - lo) * i) / (n - 1));

function largestError(
  apply: (v: Vectors, x: Vec) => Vec,
  exact: (x: number) => number,
  xs: Float32Array,
): { ulp: number; at: number } {
  const got = mapFloats(apply, xs);
  let worst = { ulp: 0, at: 0 };
  xs.forEach((x, i) => {
    const ulp = ulps(got[i], exact(x));
    if (!(ulp <= worst.ulp)) worst = { ulp, at: x };
  });
  return worst;
}

/** [function, float64 truth, intervals, most ulp] */
const CASES: readonly [
  name: string,
  apply: (v: Vectors, x: Vec) => Vec,
  exact: (x: number) => number,
  intervals: readonly (readonly [number, number])[],
  most: number,
][] = [
  [
    'exp2Negative',
    (v, x) => exp2Negative(v, x),
    (x) => 2 ** x,
    [
      [-99, 0],
      [-2, 0],
    ],
    2.3,
  ],
  [
    'exp',
    exp,
    Math.exp,
    [
      [-87, 88.7],
      [-1, 1],
      [-1e-3, 1e-3],
    ],
    1.6,
  ],
  [
    'log',
    log,
    Math.log,
    [
      [2 ** -126, 1e-30],
      [1e-3, 2],
      [0.7, 1.42],
      [1, 1e6],
      [1e6, 3e38],
    ],
    1.6,
  ],
  [
    'tanh',
    tanh,
    Math.tanh,
    [
      [-12, 12],
      [-0.7, 0.7],
      [-1e-3, 1e-3],
    ],
    2,
  ],
];

for (const [name, apply, exact, intervals, most] of CASES)
  test(`${name} is within ${most} ulp of float64 on dense grids`, () => {
    for (const [lo, hi] of intervals) {
      const { ulp, at } = largestError(apply, exact, grid(lo, hi, 200_000));
      assert.ok(ulp <= most, `[${lo}, ${hi}]: ${ulp.toFixed(2)} ulp at ${at}`);
    }
  });

test('special values', () => {
  const at = (apply: (v: Vectors, x: Vec) => Vec, ...xs: number[]) => [...mapFloats(apply, Float32Array.from(xs))];
  const { POSITIVE_INFINITY: inf, NEGATIVE_INFINITY: low, NaN: nan } = Number;
  assert.deepEqual(
    at((v, x) => exp2Negative(v, x), 0, -127, -1e30, low, nan),
    [1, 0, 0, 0, nan],
  );
  assert.deepEqual(at(exp, 0, low, -200, inf, 100, nan), [1, 0, 0, inf, inf, nan]);
  assert.deepEqual(at(log, 1, 0, -0, inf, -1, nan), [0, low, low, inf, nan, nan]);
  assert.deepEqual(at(tanh, 0, -0, inf, low, 50, nan), [0, -0, 1, -1, 1, nan]);
});

test('subnormals: exp underflows gradually, log takes them', () => {
  const small = Float32Array.from([-88, -95, -100, -103]);
  mapFloats(exp, small).forEach((x, i) => {
    assert.ok(Math.abs(x - Math.exp(small[i])) <= 2 ** -149, `e^${small[i]}`);
  });
  const tiny = Float32Array.from([2 ** -127, 2 ** -140, 2 ** -149]);
  mapFloats(log, tiny).forEach((x, i) => {
    assert.ok(ulps(x, Math.log(tiny[i])) <= 1.6);
  });
});

for (const [dtype, from, to] of [
  ['f16', fromF16, toF16],
  ['bf16', fromBf16, toBf16],
] as const) {
  test(`${dtype}: every bit pattern loads as the number it stands for`, () => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const out = BASE + 2 * bits.length;
    const buffer = run(
      (f, _v, at, count) => {
        const target = f.let(i32.add(at, 2 * bits.length), 'target');
        f.for(0, count, 1, () => {
          f.do(v128.store(target, loadFour(f, dtype, at)));
          f.bump(at, 8);
          f.bump(target, 16);
        });
      },
      (memory) => new Uint16Array(memory).set(bits, BASE / 2),
      bits.length / 4,
    );
    const got = new Float32Array(buffer, out, bits.length);
    bits.forEach((b, i) => {
      assert.ok(Object.is(got[i], from(b)) || (Number.isNaN(got[i]) && Number.isNaN(from(b))), `0x${b.toString(16)}`);
    });
  });

  test(`${dtype}: floats are stored rounded to nearest even`, () => {
    const xs = new Float32Array(200_000);
    const u = new Uint32Array(xs.buffer);
    for (let i = 0; i < u.length; i++) u[i] = (i * 21_474.8) >>> 0;
    for (let i = 0; i < 65536; i++) {
      // Halfway between neighbours, and a little to both sides.
      const x = from(i);
      const y = from(i + 1);
      if (Number.isFinite(x) && Number.isFinite(y)) xs[i] = (x + y) / 2;
    }
    const buffer = run(
      (f, _v, at, count) => {
        const target = f.let(at, 'target');
        f.for(0, count, 1, () => {
          storeFour(f, dtype, target, f.let(v128.load(at)), 4);
          f.bump(at, 16);
          f.bump(target, 8);
        });
      },
      (memory) => new Float32Array(memory).set(xs, BASE / 4),
      xs.length / 4,
    );
    const got = new Uint16Array(buffer, BASE, xs.length);
    xs.forEach((x, i) => {
      if (Number.isNaN(x)) assert.ok(Number.isNaN(from(got[i])));
      else assert.equal(got[i], to(x), `${x}`);
    });
  });
}

test('a partial store of four touches nothing behind it', () => {
  for (const dtype of ['f32', 'f16', 'bf16'] as const)
    for (let count = 1; count <= 4; count++) {
      const buffer = run(
        (f, _v, at) => storeFour(f, dtype, at, f.let(v128.load(at, 64)), count),
        (memory) => {
          new Uint8Array(memory).fill(0xab, BASE, BASE + 64);
          new Float32Array(memory).set([1, 2, 3, 4], BASE / 4 + 16);
        },
        1,
      );
      const size = (dtype === 'f32' ? 4 : 2) * count;
      const after = new Uint8Array(buffer, BASE + size, 64 - size);
      assert.ok(
        after.every((b) => b === 0xab),
        `${dtype} x ${count}`,
      );
    }
});

test('Philox in SIMD gives the words of the scalar one', () => {
  const lanes = 8;
  const key = [0x9e3779b9, 0x01234567] as const;
  const buffer = run(
    (_f, v, at) => {
      const c0 = splatWord(v, i32Const(5));
      const c2 = splatWord(v, i32Const(11));
      const c3 = splatWord(v, i32Const(0xfffffff0 | 0));
      const words = philox(v, [c0, v.load(at), c2, c3], [i32Const(key[0] | 0), i32Const(key[1])]);
      for (const [i, w] of words.entries()) v.store(at, w, 64 + i * v.bytes);
    },
    (memory) => new Uint32Array(memory).set([0, 1, 2, 3, 1000, 65536, 0x7fffffff, 0xffffffff], BASE / 4),
    1,
  );
  const counters = new Uint32Array(buffer, BASE, lanes);
  for (let lane = 0; lane < lanes; lane++) {
    const expected = philox4x32(5, counters[lane], 11, 0xfffffff0, key[0], key[1]);
    const got = [0, 1, 2, 3].map((i) => new Uint32Array(buffer, BASE + 64 + i * 32, lanes)[lane]);
    assert.deepEqual(got, expected);
  }
});
