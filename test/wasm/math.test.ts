import assert from 'node:assert/strict';
import test from 'node:test';
import { f32, f32x4, i32, i32Const, i32x4 } from '../../src/engines/wasm/asm/values.ts';
import { laneTarget, type Value, widenScalar } from '../../src/engines/wasm/math.ts';
import { ints, type Vectors } from '../../src/engines/wasm/tile.ts';
import { type ExprType, OPS, type OpName } from '../../src/mods/ops.ts';
import { BASE, run, SHAPE, ulps } from './emitted.ts';

const BITS = new Int32Array(1);
const FLOATS = new Float32Array(BITS.buffer);
const bitsOf = (x: number): number => {
  FLOATS[0] = x;
  return BITS[0];
};

const INTS = [0, 1, -1, 2, 3, -3, 7, 8, -8, 31, 33, 100, -100, 65537, 2 ** 31 - 1, -(2 ** 31)];
const REALS = [0, -0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 80, -80, 1e9, -1e9, 3e38].map(Math.fround);
const VALUES: Readonly<Record<ExprType, readonly number[]>> = { f32: REALS, i32: INTS, bool: [0, 1] };

/** Ops whose code approximates, by the error allowed in ulp. */
const APPROXIMATE: Partial<Record<OpName, number>> = { exp: 1.6, log: 1.6, tanh: 2 };

/** All combinations of values of the op's arguments, a row an argument. */
function combinations(op: OpName): number[][] {
  let rows: number[][] = [[]];
  for (const type of OPS[op].args) rows = rows.flatMap((row) => VALUES[type].map((x) => [...row, x]));
  return OPS[op].args.map((_, i) => rows.map((row) => row[i]));
}

const neutral = { score: [], indices: {}, sideOf: () => assert.fail(), mayOverrun: false } as never;

/** Runs an op on columns of arguments; `scalar` says which arguments are scalars, loaded for lane 0 alone. */
function apply(op: OpName, columns: readonly (readonly number[])[], scalar: readonly boolean[]): number[] {
  const { args, result } = OPS[op];
  const rows = Math.ceil(columns[0].length / SHAPE.lanes);
  const stride = rows * SHAPE.lanes * 4;
  const buffer = run(
    (f, v: Vectors, at, count) => {
      const { ops } = laneTarget(v, neutral);
      f.for(0, count, 1, () => {
        const values = args.map((type, i): Value => {
          const from = f.let(i32.add(at, i * stride), 'from');
          if (scalar[i])
            return { kind: 'scalar', type, value: f.let(type === 'f32' ? f32.load(from) : i32.load(from)) };
          const raw = v.load(from);
          return { kind: 'lanes', type, vec: type === 'bool' ? v.map((x) => i32x4.ne(x, ints(0)), raw) : raw };
        });
        const out = (ops[op] as (...a: Value[]) => Value)(...values);
        const vec = out.kind === 'lanes' ? out.vec : widenScalar(v, out);
        v.store(f.let(i32.add(at, args.length * stride)), vec);
        f.bump(at, v.bytes);
      });
    },
    (memory) => {
      const words = new Int32Array(memory, BASE);
      columns.forEach((column, i) => {
        words.set(
          column.map((x) => (args[i] === 'f32' ? bitsOf(x) : x)),
          (i * stride) / 4,
        );
      });
    },
    rows,
  );
  const words = new Int32Array(buffer, BASE + args.length * stride, columns[0].length);
  return [...words].map((w) => {
    if (result === 'bool') return w === 0 ? 0 : w === -1 ? 1 : assert.fail(`a mask lane of ${w}`);
    BITS[0] = w;
    return result === 'f32' ? FLOATS[0] : w;
  });
}

function check(op: OpName, columns: readonly (readonly number[])[], got: readonly number[]): void {
  got.forEach((x, i) => {
    const args = columns.map((c) => c[i]);
    const exact = OPS[op].evaluate(...args);
    const what = `${op}(${args.join(', ')}): ${x}, expected ${exact}`;
    if (OPS[op].result !== 'f32') assert.ok(x === exact, what);
    else
      assert.ok(
        x === Math.fround(exact) ||
          (Number.isNaN(x) && Number.isNaN(exact)) ||
          ulps(x, exact) <= (APPROXIMATE[op] ?? 0),
        what,
      );
  });
}

for (const op of Object.keys(OPS) as OpName[])
  test(`${op}: lanes, scalars and both mixed give what the op's record says`, () => {
    const columns = combinations(op);
    const lanes = columns.map(() => false);
    check(op, columns, apply(op, columns, lanes));
    // A scalar is the same in the lanes of a row, so repeat each combination over a row.
    const repeated = columns.map((c) => c.flatMap((x) => Array<number>(SHAPE.lanes).fill(x)));
    check(
      op,
      repeated,
      apply(
        op,
        repeated,
        lanes.map(() => true),
      ),
    );
    if (columns.length > 1)
      columns.forEach((_, i) => {
        check(
          op,
          repeated,
          apply(
            op,
            repeated,
            lanes.map((_l, j) => j === i),
          ),
        );
      });
  });

test('division and remainder by a constant power of two shift and mask', () => {
  for (const [op, exact] of [
    ['idiv', (x: number) => Math.floor(x / 8)],
    ['imod', (x: number) => x - Math.floor(x / 8) * 8],
  ] as const) {
    const buffer = run(
      (_f, v, at) => {
        const { ops } = laneTarget(v, neutral);
        const eight: Value = { kind: 'scalar', type: 'i32', value: i32Const(8), constant: 8 };
        const out = ops[op]({ kind: 'lanes', type: 'i32', vec: v.load(at) }, eight);
        if (out.kind === 'lanes') v.store(at, out.vec);
      },
      (memory) => new Int32Array(memory, BASE).set(INTS.slice(0, 8)),
      1,
    );
    assert.deepEqual(
      [...new Int32Array(buffer, BASE, 8)],
      INTS.slice(0, 8)
        .map(exact)
        .map((x) => x + 0),
    );
  }
});

test('lanes of f32x4 stay apart', () => {
  const out = run(
    (_f, v, at) =>
      v.store(
        at,
        v.map((x) => f32x4.add(x, x), v.load(at)),
      ),
    (memory) => new Float32Array(memory, BASE).set([1, 2, 3, 4, 5, 6, 7, 8]),
    1,
  );
  assert.deepEqual([...new Float32Array(out, BASE, 8)], [2, 4, 6, 8, 10, 12, 14, 16]);
});
