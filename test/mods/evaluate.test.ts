import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { toBf16, toF16 } from '../../src/core/dtype.ts';
import { type HostTensor, tensor } from '../../src/core/tensor.ts';
import { add, load, max, min, mul, sub } from '../../src/mods/build.ts';
import { compileEvaluator, evaluate } from '../../src/mods/evaluate.ts';
import { CONTEXT, type Expr } from '../../src/mods/expr.ts';
import { lowerAll, type Target } from '../../src/mods/lower.ts';
import { OPS, type OpName } from '../../src/mods/ops.ts';
import { printExpr } from '../../src/mods/print.ts';
import { verifyLoads } from '../../src/mods/verify.ts';
import { expressions, POINTS } from './support.ts';

const { q, kv, h, b, lenQ, lenK } = CONTEXT;
const AT = { score: 2, b: 0, h: 1, q: 1, kv: 2, lenQ: 4, lenK: 4 };

test('loads read every storage type', () => {
  const read = (t: HostTensor): number => evaluate(load(t, [kv]), AT);
  assert.equal(read(tensor(new Float32Array([0, 1, 2.5]), [3])), 2.5);
  assert.equal(read(tensor(new Float64Array([0, 1, 0.1]), [3])), 0.1);
  assert.equal(read(tensor(new Int32Array([0, 1, -7]), [3])), -7);
  assert.equal(read(tensor(new Uint8Array([0, 1, 200]), [3])), 1);
  assert.equal(read(tensor(new Uint16Array([0, 0, toF16(1.5)]), [3], 'f16')), 1.5);
  assert.equal(read(tensor(new Uint16Array([0, 0, toBf16(-3)]), [3], 'bf16')), -3);
  assert.equal(evaluate(load(tensor(new Float32Array([1, 2, 3, 4, 5, 6]), [2, 3]), [h, kv]), AT), 6);
  assert.equal(evaluate(load(tensor(new Float32Array([9]), []), []), AT), 9);
});

test('tensors elsewhere are read through the given host copies, and refused without', () => {
  const remote = { dtype: 'f32', shape: [3] } as const;
  assert.throws(() => evaluate(load(remote, [kv]), AT), { name: 'ExpressionError', message: /host tensor.*f32\[3\]/ });
  const f = compileEvaluator(load(remote, [kv]), new Map([[remote, tensor(new Float32Array([1, 2, 3]), [3])]]));
  assert.equal(f(AT), 3);
});

/** A target of plain numbers, op by op, as engines have theirs of instructions. */
const numbers = (at: typeof AT, emitted: string[]): Target<number> => ({
  ops: Object.fromEntries(
    (Object.keys(OPS) as OpName[]).map((op) => [
      op,
      (...args: number[]) => {
        emitted.push(op);
        return OPS[op].evaluate(...args);
      },
    ]),
  ) as Target<number>['ops'],
  constant: (_, value) => value,
  score: () => at.score,
  index: (name) => at[name],
  load: (t, type, indices) => {
    const offset = indices.reduce((sum, i, axis) => sum * t.shape[axis] + i, 0);
    const x = (t as HostTensor).data[offset];
    return type === 'bool' ? Number(x !== 0) : x;
  },
});

test('the compiled evaluator and a lowered target agree', () => {
  fc.assert(
    fc.property(expressions('f32', 4, { score: true }), POINTS, (e, at) => {
      assert.ok(Object.is(evaluate(e, at), lowerAll([e], numbers(at, []))[0]));
    }),
    { numRuns: 500 },
  );
});

test('expressions lowered together share what they share', () => {
  const common = mul(CONTEXT.score, CONTEXT.score);
  const emitted: string[] = [];
  assert.deepEqual(lowerAll([add(common, 1), sub(common, 1)], numbers(AT, emitted)), [5, 3]);
  assert.deepEqual(emitted.sort(), ['add', 'mul', 'sub']);
});

test('printed text is canonical and names sides by position', () => {
  const [s0, s1] = [tensor(new Float32Array(4), [4]), tensor(new Int32Array(6), [2, 3])];
  const e = load(s0, [load<'i32'>(s1, [h, kv])]);
  assert.equal(printExpr(e, [s0, s1]), 's0:f32[4](s1:i32[2,3](h,kv))');
  assert.equal(printExpr(e, [s1, s0]), 's1:f32[4](s0:i32[2,3](h,kv))');
  assert.throws(() => printExpr(e, [s0]), { name: 'ExpressionError' });
  const constants: Expr[] = [
    { kind: 'const', type: 'f32', value: -0 },
    { kind: 'const', type: 'i32', value: 3 },
    { kind: 'const', type: 'bool', value: 1 },
  ];
  assert.deepEqual(
    constants.map((c) => printExpr(c)),
    ['-0f', '3', 'true'],
  );
});

test('loads must provably stay inside their tensors', () => {
  const domain = {
    b: { lo: 0, hi: 1 },
    h: { lo: 0, hi: 3 },
    q: { lo: 0, hi: 9 },
    kv: { lo: 0, hi: 19 },
    lenQ: { lo: 5, hi: 10 },
    lenK: { lo: 5, hi: 20 },
  };
  const t = tensor(new Float32Array(80), [4, 20]);
  verifyLoads(load(t, [h, kv]), domain);
  verifyLoads(load(t, [h, q]), domain);
  verifyLoads(load(t, [h, max(min(sub(kv, q), 19), 0)]), domain);
  const outside = (e: Expr, message: RegExp): void =>
    assert.throws(
      () => verifyLoads(e, domain),
      (error: Error) => error.name === 'ExpressionError' && message.test(error.message),
    );
  outside(
    load(t, [h, sub(kv, q)]),
    /index in 0 \.\. 19 for axis 1 of f32\[4, 20\], got isub\(kv,q\), which may be -9 \.\. 19/,
  );
  outside(load(t, [kv, h]), /axis 0/);
  outside(load(t, [b, add(q, sub(lenK, lenQ))]), /axis 1/);
  const picks = tensor(new Int32Array([3, 0, 2, 1]), [4]);
  verifyLoads(load(t, [load<'i32'>(picks, [h]), kv]), domain);
  outside(load(t, [load<'i32'>(tensor(new Int32Array([3, 0, 4, 1]), [4]), [h]), kv]), /axis 0.*0 \.\. 4/);
  outside(load(t, [load<'i32'>({ dtype: 'i32', shape: [4] }, [h]), kv]), /axis 0/);
  verifyLoads(load(t, [kv, kv]), { ...domain, q: { lo: 0, hi: -1 } });
});
