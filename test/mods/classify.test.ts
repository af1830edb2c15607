import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { type HostTensor, tensor } from '../../src/core/tensor.ts';
import { boxBounds } from '../../src/mods/bounds.ts';
import { add, eq, ge, gt, idiv, le, lt, sub, toF32 } from '../../src/mods/build.ts';
import { type BlockClass, type Box, classifier, classify } from '../../src/mods/classify.ts';
import { compileEvaluator } from '../../src/mods/evaluate.ts';
import { type Bool, CONTEXT, type Mask } from '../../src/mods/expr.ts';
import {
  and,
  blockLayout,
  causal,
  documents,
  maskOf,
  maskTensor,
  not,
  or,
  prefix,
  slidingWindow,
} from '../../src/mods/library.ts';
import { BATCHES, expressions, HEADS, LENGTHS } from './support.ts';

function truth(mask: Bool, box: Box): BlockClass {
  const attends = compileEvaluator(mask);
  let [any, all] = [false, true];
  for (let q = box.q[0]; q <= box.q[1]; q++)
    for (let kv = box.kv[0]; kv <= box.kv[1]; kv++) {
      const yes = attends({ ...box, score: 0, q, kv }) === 1;
      any ||= yes;
      all &&= yes;
    }
  return all ? 'full' : any ? 'partial' : 'skip';
}

const spans = (length: number): fc.Arbitrary<readonly [number, number]> =>
  fc
    .tuple(fc.integer({ min: 0, max: length - 1 }), fc.integer({ min: 0, max: length - 1 }))
    .map(([x, y]) => [Math.min(x, y), Math.max(x, y)] as const);

test('random masks over random boxes are never classified wrongly', () => {
  const boxes: fc.Arbitrary<Box> = fc.record({
    b: fc.integer({ min: 0, max: BATCHES - 1 }),
    h: fc.integer({ min: 0, max: HEADS - 1 }),
    lenQ: fc.constant(LENGTHS.lenQ),
    lenK: fc.constant(LENGTHS.lenK),
    q: spans(LENGTHS.lenQ),
    kv: spans(LENGTHS.lenK),
  });
  let decided = 0;
  fc.assert(
    fc.property(expressions('bool', 4), boxes, (e, box) => {
      const got = classify(e as Bool, box);
      if (got === 'partial') return;
      decided++;
      assert.equal(got, truth(e as Bool, box));
    }),
    { numRuns: 3000 },
  );
  assert.ok(decided > 300);
});

/** Every block of every size of a small score matrix. */
function expectSharp(
  mask: Mask,
  lenQ: number,
  lenK: number,
  sizes: readonly (readonly [number, number])[],
  b = 0,
): void {
  const expr = mask.build(CONTEXT);
  const classOf = classifier(expr);
  for (const [blockQ, blockK] of sizes)
    for (let q0 = 0; q0 < lenQ; q0 += blockQ)
      for (let k0 = 0; k0 < lenK; k0 += blockK) {
        const box: Box = {
          b,
          h: 0,
          lenQ,
          lenK,
          q: [q0, Math.min(q0 + blockQ, lenQ) - 1],
          kv: [k0, Math.min(k0 + blockK, lenK) - 1],
        };
        assert.equal(classOf(box), truth(expr, box), `${mask.label} ${JSON.stringify(box)}`);
      }
}

const SIZES = [
  [1, 1],
  [4, 4],
  [3, 5],
  [8, 2],
  [7, 16],
] as const;

test('causal, window and prefix blocks are classified exactly, however they are written', () => {
  const forms: readonly Mask[] = [
    causal(),
    causal({ align: 'top-left' }),
    maskOf((at) => ge(sub(add(at.q, sub(at.lenK, at.lenQ)), at.kv), 0), 'difference'),
    maskOf((at) => ge(toF32(at.q), toF32(at.kv)), 'floats'),
    slidingWindow(5),
    and(causal(), slidingWindow(5)),
    slidingWindow(4, 0),
    slidingWindow(3, 2),
    maskOf((at) => and(ge(at.q, at.kv), lt(sub(at.q, at.kv), 6)), 'flex window'),
    prefix(9),
    not(causal()),
  ];
  for (const mask of forms)
    for (const [lenQ, lenK] of [
      [24, 24],
      [10, 24],
      [24, 10],
    ])
      expectSharp(mask, lenQ, lenK, SIZES);
});

test('document, block layout and dense masks are classified exactly', () => {
  const ids = tensor(
    new Int32Array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 7, 7, 7].concat(new Array(16).fill(4))),
    [2, 16],
  );
  for (const b of [0, 1]) {
    expectSharp(documents(ids), 16, 16, SIZES, b);
    expectSharp(
      and(documents(ids), causal()),
      16,
      16,
      [
        [1, 1],
        [4, 4],
      ],
      b,
    );
  }
  const layout = tensor(new Uint8Array([1, 0, 0, 1, 1, 0, 0, 1, 1]), [1, 1, 3, 3]);
  expectSharp(blockLayout(layout, 4), 12, 12, SIZES);
  expectSharp(blockLayout(layout, 8), 23, 22, SIZES);
  const dense = tensor(
    new Uint8Array(20 * 200).map((_, i) => (Math.floor(i / 200) < 8 || i % 200 > 150 ? 1 : 0)),
    [20, 200],
  );
  expectSharp(maskTensor(dense), 20, 200, [...SIZES, [4, 50], [20, 100]]);
  const keyPadding = tensor(
    new Uint8Array(200).map((_, i) => Number(i < 120)),
    [1, 1, 1, 200],
  );
  expectSharp(maskTensor(keyPadding), 20, 200, [[4, 40]]);
  const queryPadding = tensor(
    new Uint8Array(20).map((_, i) => Number(i < 12)),
    [20, 1],
  );
  expectSharp(maskTensor(queryPadding), 20, 20, SIZES);
  const lengths = tensor(new Int32Array([3, 12]), [2]);
  for (const b of [0, 1]) expectSharp(prefix(lengths), 16, 16, SIZES, b);
});

test('floats in masks: NaN is never promised to compare, infinities are', () => {
  const at = { b: 0, h: 0, lenQ: 1, lenK: 4, q: [0, 0], kv: [0, 3] } as const;
  const values = (...x: number[]): HostTensor => tensor(new Float32Array(x), [4]);
  const read = (t: HostTensor): Mask => maskOf((c) => gt(loadAt(t, c.kv), Number.NEGATIVE_INFINITY));
  const loadAt = (t: HostTensor, kv: typeof CONTEXT.kv) =>
    ({ kind: 'load', type: 'f32', tensor: t, indices: [kv] }) as const;
  assert.equal(classify(read(values(0, -1, 2, 3)).build(CONTEXT), at), 'full');
  assert.equal(classify(read(values(0, -1, Number.NEGATIVE_INFINITY, 3)).build(CONTEXT), at), 'partial');
  assert.equal(classify(read(values(0, -1, Number.NaN, 3)).build(CONTEXT), at), 'partial');
  const below = maskOf((c) => le(loadAt(values(0, Number.NaN, 1, 1), c.kv), Number.POSITIVE_INFINITY));
  assert.equal(classify(below.build(CONTEXT), at), 'partial');
});

test('tensors that are not on the host are undecided, never guessed', () => {
  const remote = { dtype: 'u8', shape: [8, 8] } as const;
  const box = { b: 0, h: 0, lenQ: 8, lenK: 8, q: [4, 7], kv: [0, 3] } as const;
  assert.equal(classify(maskTensor(remote).build(CONTEXT), box), 'partial');
  assert.equal(classify(and(maskTensor(remote), not(causal())).build(CONTEXT), box), 'skip');
  assert.equal(classify(or(maskTensor(remote), causal()).build(CONTEXT), box), 'full');
});

test('blocks of positions by integer division are classified exactly', () => {
  expectSharp(
    maskOf((at) => eq(idiv(at.q, 4), idiv(at.kv, 4))),
    24,
    24,
    SIZES.filter(([x]) => x !== 3),
  );
});

test('bounds of boxes equal the extremes of their elements', () => {
  const shapes = fc
    .array(fc.integer({ min: 1, max: 6 }), { minLength: 0, maxLength: 3 })
    .chain((outer) => fc.integer({ min: 1, max: 300 }).map((inner) => [...outer, inner]));
  const dtypes = fc.constantFrom('f32', 'f64', 'i32', 'u8', 'f16', 'bf16' as const);
  fc.assert(
    fc.property(shapes, dtypes, fc.integer(), fc.infiniteStream(fc.nat(1 << 20)), (shape, dtype, seed, picks) => {
      const n = shape.reduce((x, y) => x * y, 1);
      let state = seed | 1;
      const next = (): number => {
        state = Math.imul(state, 1664525) + 1013904223;
        return (state >>> 16) & 0x3fff;
      };
      // 14 random bits are finite numbers as f16 and bf16 too.
      const raw = Array.from({ length: n }, next);
      const data =
        dtype === 'f16' || dtype === 'bf16'
          ? new Uint16Array(raw)
          : dtype === 'u8'
            ? new Uint8Array(raw.map((x) => (x < 40 ? 1 : 0)))
            : dtype === 'i32'
              ? new Int32Array(raw)
              : dtype === 'f32'
                ? new Float32Array(raw)
                : new Float64Array(raw);
      const t = tensor(data, shape, dtype);
      const bounds = boxBounds(t);
      for (let k = 0; k < 4; k++) {
        const box = shape.map((d) => {
          const [x, y] = [picks.next().value % d, picks.next().value % d];
          return k === 0 ? { lo: 0, hi: d - 1 } : { lo: Math.min(x, y), hi: Math.max(x, y) };
        });
        const read = compileEvaluator({
          kind: 'load',
          type: 'f32',
          tensor: t,
          indices: [CONTEXT.b, CONTEXT.h, CONTEXT.q, CONTEXT.kv].slice(4 - shape.length),
        });
        let [lo, hi] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
        const visit = (at: number[]): void => {
          if (at.length < shape.length) {
            const { lo: from, hi: to } = box[at.length];
            for (let i = from; i <= to; i++) visit([...at, i]);
            return;
          }
          const [b, h, q, kv] = [...new Array(4 - at.length).fill(0), ...at] as number[];
          const x = read({ score: 0, b, h, q, kv, lenQ: 0, lenK: 0 });
          lo = Math.min(lo, x);
          hi = Math.max(hi, x);
        };
        visit([]);
        assert.deepEqual(bounds(box), { lo, hi });
      }
    }),
    { numRuns: 150 },
  );
});
