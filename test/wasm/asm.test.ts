import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { signed, unsigned } from '../../src/engines/wasm/asm/leb128.ts';
import { ModuleBuilder } from '../../src/engines/wasm/asm/module.ts';
import { OPCODES, type OpcodeName } from '../../src/engines/wasm/asm/opcodes.ts';
import * as values from '../../src/engines/wasm/asm/values.ts';
import { f32, f32x4, type I32, i32, i32Const, select, v128 } from '../../src/engines/wasm/asm/values.ts';

const instantiate = (m: ModuleBuilder, memory = new WebAssembly.Memory({ initial: 1 })) => ({
  memory,
  exports: new WebAssembly.Instance(new WebAssembly.Module(m.bytes()), { env: { memory } }).exports as Record<
    string,
    (...args: number[]) => void
  >,
});

/** Evaluates an i32 expression of two arguments. */
function evaluate(emit: (x: I32, y: I32) => I32): (x: number, y: number) => number {
  const m = new ModuleBuilder(false);
  m.func('run', { x: 'i32', y: 'i32' }, (f, { x, y }) => f.do(i32.store(i32Const(0), emit(x, y))), true);
  const { memory, exports } = instantiate(m);
  return (x, y) => {
    exports.run(x, y);
    return new Int32Array(memory.buffer)[0];
  };
}

test('LEB128 reads back, in as few bytes as there may be', () => {
  fc.assert(
    fc.property(fc.integer(), (n) => {
      const s: number[] = [];
      signed(n, s);
      let value = s.reduce((sum, byte, i) => sum + (byte & 0x7f) * 2 ** (7 * i), 0);
      if ((s.at(-1) ?? 0) & 0x40) value -= 2 ** (7 * s.length);
      assert.equal(value, n);
      const u: number[] = [];
      unsigned(n, u);
      assert.equal(
        u.reduce((sum, byte, i) => sum + (byte & 0x7f) * 2 ** (7 * i), 0),
        n >>> 0,
      );
      assert.equal(u.length, Math.max(1, Math.ceil(Math.log2((n >>> 0) + 1) / 7)));
    }),
  );
});

test('every instruction of the table validates with the operands it declares', () => {
  const families: Readonly<Record<string, Readonly<Record<string, (...args: never[]) => values.Node>>>> = {
    ...values,
  } as never;
  const relaxed = WebAssembly.validate(new Uint8Array(probe('f32x4.relaxed_madd')));
  for (const name of Object.keys(OPCODES) as OpcodeName[]) {
    if (name.includes('relaxed') && !relaxed) continue;
    assert.ok(WebAssembly.validate(probe(name)), name);
  }

  function probe(name: OpcodeName): Uint8Array<ArrayBuffer> {
    const [family, rest] = name.split('.');
    const op = OPCODES[name];
    const m = new ModuleBuilder(false);
    m.func(name, { i: 'i32', f: 'f32', v: 'v128' }, (f, p) => {
      const args: unknown[] = op.args.map((t) => ({ i32: p.i, f32: p.f, v128: p.v })[t]);
      if (op.imm === 'lane' || op.imm === 'memory-lane') args.push(0);
      if (op.imm === 'shuffle') args.push(Array.from({ length: 16 }, (_, i) => i));
      const node = (families[family][rest] as (...a: unknown[]) => values.Node)(...args);
      if (node.type === null) f.do(node as values.Effect);
      else f.let(node as values.Val);
    });
    return m.bytes();
  }
});

test('integer instructions agree with JavaScript', () => {
  const cases: readonly [(x: I32, y: I32) => I32, (x: number, y: number) => number][] = [
    [i32.add, (x, y) => (x + y) | 0],
    [i32.mul, Math.imul],
    [i32.shr_s, (x, y) => x >> y],
    [i32.lt_u, (x, y) => Number(x >>> 0 < y >>> 0)],
    [(x, y) => select(i32.lt_s(x, y), x, y), Math.min],
  ];
  for (const [emit, exact] of cases) {
    const f = evaluate(emit);
    fc.assert(fc.property(fc.integer(), fc.integer(), (x, y) => f(x, y) === exact(x, y)));
  }
});

test('constants of all sizes and both signs', () => {
  for (const n of [0, 1, -1, 63, 64, -64, -65, 8191, 8192, 2 ** 31 - 1, -(2 ** 31)])
    assert.equal(evaluate((x) => i32.add(x, n))(0, 0), n);
});

test('loops: for counts, sweep compares addresses unsigned', () => {
  const sum = new ModuleBuilder(false);
  sum.func(
    'run',
    { from: 'i32', to: 'i32' },
    (f, p) => {
      const total = f.local('i32', 'total');
      f.for(p.from, p.to, 3, (i) => f.bump(total, i));
      f.do(i32.store(i32Const(0), total));
      const rounds = f.local('i32', 'rounds');
      const end = f.let(i32.add(p.from, 0x80000010 | 0), 'end');
      f.sweep(i32.add(p.from, 0x7ffffff0), end, 16, () => f.bump(rounds, 1));
      f.do(i32.store(i32Const(4), rounds));
    },
    true,
  );
  const { memory, exports } = instantiate(sum);
  exports.run(0, 10);
  assert.deepEqual([...new Int32Array(memory.buffer, 0, 2)], [0 + 3 + 6 + 9, 2]);
  exports.run(5, 5);
  assert.equal(new Int32Array(memory.buffer)[0], 0);
});

test('blocks, branches, calls and returns', () => {
  const m = new ModuleBuilder(false);
  const store = m.func('store', { at: 'i32', x: 'i32' }, (f, p) => {
    f.if(i32.eqz(p.x), () => f.return());
    f.do(i32.store(p.at, p.x));
  });
  m.func(
    'run',
    { n: 'i32' },
    (f, { n }) => {
      f.block((done) =>
        f.loop((again) => {
          f.branch(done, i32.eqz(n));
          f.call(store, i32.mul(n, 4), n);
          f.bump(n, -1);
          f.branch(again);
        }),
      );
      f.call(store, 0, 0);
    },
    true,
  );
  const { memory, exports } = instantiate(m);
  exports.run(3);
  assert.deepEqual([...new Int32Array(memory.buffer, 0, 5)], [0, 1, 2, 3, 0]);
});

test('a wrong operand throws where it is passed', () => {
  const wrong = f32.add(1, 2) as unknown as I32;
  assert.throws(() => i32.add(wrong, 1), /i32\.add: expected operand 0 of type i32, got f32/);
  assert.throws(
    () => v128.load(f32x4.splat(1) as unknown as I32),
    /v128\.load: expected operand 0 of type i32, got v128/,
  );
  assert.throws(() => select(i32Const(1), i32Const(1), wrong), /operands of one type/);
  const m = new ModuleBuilder(false);
  const target = m.func('target', { x: 'f32' }, () => {});
  m.func('f', {}, (f) => {
    const local = f.local('f32', 'x');
    assert.throws(() => f.set(local, i32Const(1) as unknown as values.F32), /expected f32 for x/);
    assert.throws(() => f.call(target, i32Const(1)), /target expects f32 as argument 0, got i32/);
    assert.throws(() => f.call(target), /target expects f32 as argument 0, got undefined/);
    assert.throws(() => f.param('i32', 'late'), /parameters come before locals/);
    assert.throws(() => f.if(wrong, () => {}), /expected an i32 condition/);
  });
});

test('shared memory is imported as such', () => {
  const m = new ModuleBuilder(true);
  m.func('run', {}, () => {}, true);
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 2, shared: true });
  assert.doesNotThrow(() => instantiate(m, memory));
  assert.throws(() => instantiate(m), WebAssembly.LinkError);
});

test('the listing reads as WebAssembly text', () => {
  const m = new ModuleBuilder(false);
  m.func(
    'sum',
    { at: 'i32', n: 'i32' },
    (f, { at, n }) => {
      const total = f.let(f32.load(at, 4), 'total');
      f.for(1, n, 1, () => f.set(total, f32.add(total, 0.5)));
      f.if(
        n,
        () => f.do(f32.store(at, total)),
        () => f.return(),
      );
    },
    true,
  );
  assert.equal(
    m.text(),
    `(module
  (import "env" "memory" (memory 1))
  (func $sum (export "sum") (param $at.0 i32) (param $n.1 i32)
    (local $total.2 f32) (local $i.3 i32)
    (local.set $total.2 (f32.load offset=4 (local.get $at.0)))
    (local.set $i.3 (i32.const 1))
    (if (i32.lt_s (local.get $i.3) (local.get $n.1))
      (then
        (loop $loop.2
          (local.set $total.2 (f32.add (local.get $total.2) (f32.const 0.5)))
          (local.set $i.3 (i32.add (local.get $i.3) (i32.const 1)))
          (br_if $loop.2 (i32.lt_s (local.get $i.3) (local.get $n.1))))))
    (if (local.get $n.1)
      (then
        (f32.store (local.get $at.0) (local.get $total.2)))
      (else
        (return))))
)
`,
  );
});
