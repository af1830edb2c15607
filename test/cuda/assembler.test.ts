import assert from 'node:assert/strict';
import test from 'node:test';
import { Assembler } from '../../src/engines/cuda/ptx/assembler.ts';
import type { Operand } from '../../src/engines/cuda/ptx/registers.ts';
import { cpAsync, cpAsyncCommit, cpAsyncWait, ldmatrix, mma16, shuffleXor } from '../../src/engines/cuda/ptx/tensor.ts';
import { assemble, ptxasMissing } from './ptxas.ts';

const assembler = (): Assembler => new Assembler({ name: 'probe', target: 'sm_80', threads: 128 });

test('a wrong operand type throws where it is given', () => {
  const a = assembler();
  const f = a.constant('f32', 1);
  assert.throws(
    () => a.op('add.s32', f as unknown as Operand<'b32'>, 1),
    /add.s32: expected operand 1 of type b32, got f32/,
  );
  assert.throws(() => a.op('add.s32', 1.5, 1), /integer of 32 bits/);
  assert.throws(() => a.op('selp.f32', f, 0, 1 as unknown as Operand<'pred'>), /predicate register/);
  assert.throws(() => a.load('global', 'f32', a.reg('b32')), /type b64/);
  assert.throws(() => mma16(a, 'bf16', a.regs('f32', 3), a.regs('b32', 4), a.regs('b32', 2)), /expected 4 registers/);
});

test('guards do not nest and end with their body', () => {
  const a = assembler();
  const p = a.op('setp.lt.s32', a.special('tid.x'), 4);
  assert.throws(() => a.when(p, () => a.when(p, () => {})), /nest/);
  a.when(p, () => a.barrier());
  a.barrier();
  assert.match(a.finish().text, /@%p0 bar.sync 0;\n {4}bar.sync 0;/);
});

test('shared memory adds up, aligned, and pieces may lie over each other', () => {
  const a = assembler();
  const q = a.shared('q', 100);
  assert.equal(a.shared('k', 256).offset, 128);
  assert.equal(a.sharedOver(q, 'out', 64).offset, 0);
  assert.throws(() => a.sharedOver(q, 'big', 200), /over q of 100 bytes/);
  assert.equal(a.finish().sharedBytes, 384);
});

test('parameters are laid out by their own alignment', () => {
  const a = assembler();
  a.parameter('n', 'b32');
  a.parameter('q', 'b64');
  a.parameterBytes('map', 128, 64);
  const { parameters, parameterBytes } = a.finish();
  assert.deepEqual(
    parameters.map((p) => p.offset),
    [0, 8, 64],
  );
  assert.equal(parameterBytes, 192);
  assert.throws(() => a.parameter('n', 'b32'), /twice/);
});

test('floats are written as their exact bits', () => {
  const a = assembler();
  a.constant('f32', 0.1);
  assert.match(a.finish().text, /mov.f32 %f0, 0f3DCCCCCD;/);
});

test('every kind of instruction assembles', { skip: ptxasMissing }, () => {
  const a = assembler();
  const tile = a.shared('tile', 4096);
  const source = a.op('cvta.to.global.u64', a.parameter('source', 'b64'));
  const target = a.sharedAddress(tile);
  const own = a.op('mad.lo.s32', a.special('tid.x'), 16, target);
  cpAsync(a, 16, own, 0, source, a.constant('b32', 8));
  cpAsyncCommit(a);
  cpAsyncWait(a, 0);
  a.barrier();
  const fragment = ldmatrix(a, 4, own, 0, { transpose: true });
  const acc = a.regs('f32', 4);
  for (const r of acc) a.set(r, 'mov.f32', 0);
  mma16(a, 'bf16', acc, fragment, fragment.slice(0, 2));
  const best = a.op('max.f32', acc[0], shuffleXor(a, acc[0], 1));
  a.if(
    a.op('setp.gt.f32', best, 0),
    () => a.store('global', 'f32', source, best),
    () => a.storeVector('global', 'f32', source, acc),
  );
  const { registers, spilled } = assemble(a.finish());
  assert.ok(registers > 0);
  assert.equal(spilled, 0);
});
