/** Random expressions over small tensors, for property tests. */
import fc from 'fast-check';
import { type HostTensor, tensor } from '../../src/core/tensor.ts';
import { mod } from '../../src/mods/build.ts';
import { apply, CONTEXT, constant, type Expr, type I32, load } from '../../src/mods/expr.ts';
import { type ExprType, OPS, type OpName } from '../../src/mods/ops.ts';

export const LENGTHS = { lenQ: 8, lenK: 10 };
export const BATCHES = 2;
export const HEADS = 2;

/** One a type, rank 1 to 3, with values that make comparisons interesting. */
export const TABLES: Readonly<Record<ExprType, HostTensor>> = {
  i32: tensor(new Int32Array([0, 1, 1, 2, 2, 2, 5, -3]), [8]),
  f32: tensor(new Float32Array([0.5, -1, 2, 0.25, 3, -0.125]), [2, 3]),
  bool: tensor(new Uint8Array([1, 0, 1, 1, 0, 0, 0, 255, 0, 1, 1, 1]), [1, 3, 4]),
};

const NAMES = Object.keys(OPS) as OpName[];
const I32_VALUES = fc.oneof(
  fc.integer({ min: -6, max: 12 }),
  fc.constantFrom(0, 1, -1, 31, 2 ** 31 - 1, -(2 ** 31) + 1),
);
const F32_VALUES = fc.oneof(
  fc.integer({ min: -4, max: 4 }),
  fc.constantFrom(0, -0, 1, -1, 0.5, 1e-30, 3e38, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN),
);

function leaf(type: ExprType, score: boolean): fc.Arbitrary<Expr> {
  if (type === 'bool') return fc.constantFrom(0, 1).map((v) => constant('bool', v));
  if (type === 'f32')
    return fc.oneof(
      F32_VALUES.map((v) => constant('f32', v)),
      score ? fc.constant<Expr>(CONTEXT.score) : F32_VALUES.map((v) => constant('f32', v)),
    );
  return fc.oneof(
    I32_VALUES.map((v) => constant('i32', v)),
    fc.constantFrom<Expr>(CONTEXT.b, CONTEXT.h, CONTEXT.q, CONTEXT.kv, CONTEXT.lenQ, CONTEXT.lenK),
  );
}

/** Expressions of a type, at most `depth` ops deep; `ops` narrows which ops appear. */
export function expressions(
  type: ExprType,
  depth: number,
  { score = false, ops = () => true }: { score?: boolean; ops?: (op: OpName) => boolean } = {},
): fc.Arbitrary<Expr> {
  if (depth === 0) return leaf(type, score);
  const inner = (t: ExprType): fc.Arbitrary<Expr> => expressions(t, depth - 1, { score, ops });
  const names = NAMES.filter((op) => OPS[op].result === type && ops(op));
  const call = fc
    .constantFrom(...names)
    .chain((op) => fc.tuple(...OPS[op].args.map(inner)).map((args) => apply(op, ...args)));
  const table = TABLES[type];
  const read = fc.tuple(...table.shape.map(() => inner('i32'))).map((indices) =>
    load<ExprType>(
      table,
      indices.map((e, axis) => mod(e as I32, table.shape[axis])),
    ),
  );
  return fc.oneof(
    { weight: 1, arbitrary: leaf(type, score) },
    { weight: 5, arbitrary: call },
    { weight: 1, arbitrary: read },
  );
}

export const POINTS = fc.record({
  score: fc.double({ min: -4, max: 4, noNaN: true }),
  b: fc.integer({ min: 0, max: BATCHES - 1 }),
  h: fc.integer({ min: 0, max: HEADS - 1 }),
  q: fc.integer({ min: 0, max: LENGTHS.lenQ - 1 }),
  kv: fc.integer({ min: 0, max: LENGTHS.lenK - 1 }),
  lenQ: fc.constant(LENGTHS.lenQ),
  lenK: fc.constant(LENGTHS.lenK),
});
