import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { dropoutOf } from '../../src/engines/cuda/kernels/dropout.ts';
import { dropPacked } from '../../src/engines/cuda/kernels/forward_wgmma_draw.ts';
import { Assembler } from '../../src/engines/cuda/ptx/assembler.ts';
import type { Reg } from '../../src/engines/cuda/ptx/registers.ts';
import { dropThreshold } from '../../src/problem/philox.ts';

const assembler = (): Assembler => new Assembler({ name: 'probe', target: 'sm_90a', threads: 128, blocksPerSm: 1 });

/** What straight-line integer code leaves in registers that start as given. */
function run(text: string, given: Record<string, number>): Map<string, number> {
  const regs = new Map(Object.entries(given));
  const of = (operand: string): number => (operand.startsWith('%') ? (regs.get(operand) ?? 0) : Number(operand)) >>> 0;
  for (const [, op, list] of text.matchAll(/^\s+([a-z0-9.]+) (%r\d+, [^;[\]{}]+);/gm)) {
    const [to, ...from] = list.split(',').map((x) => x.trim());
    if (regs.has(to) && to in given) continue;
    const [a, b, c] = from.map(of);
    const value: Record<string, () => number> = {
      'mov.b32': () => a,
      'and.b32': () => a & b,
      'or.b32': () => a | b,
      'add.s32': () => a + b,
      'sub.s32': () => a - b,
      'mul.lo.s32': () => Math.imul(a, b),
      'shl.b32': () => (b > 31 ? 0 : a << b),
      'shr.u32': () => (b > 31 ? 0 : a >>> b),
      'prmt.b32': () => permute(a, b, c),
    };
    assert.ok(op in value, op);
    regs.set(to, value[op]() >>> 0);
  }
  return regs;
}

/** Bytes picked by the nibbles of `selector`; with its top bit a nibble asks for copies of the byte's sign. */
function permute(a: number, b: number, selector: number): number {
  let out = 0;
  for (let i = 0; i < 4; i++) {
    const nibble = (selector >>> (4 * i)) & 15;
    const byte = ((nibble & 7) < 4 ? a >>> (8 * (nibble & 3)) : b >>> (8 * (nibble & 3))) & 255;
    out |= (nibble & 8 ? (byte & 128 ? 255 : 0) : byte) << (8 * i);
  }
  return out;
}

const word = fc.integer({ min: 0, max: 0xffffffff });
const clear = (mask: number, packed: number): number => (packed & mask) >>> 0;

test('the sign bits of a decided word say which halves reach the threshold', () => {
  const a = assembler();
  const dropout = dropoutOf(a, a.constant('b32', 0));
  const x = a.reg('b32');
  const decided = dropout.decider()(x);
  const text = a.finish().text;
  const threshold = /ld\.param\.[a-z0-9]+ (%r\d+), \[[a-z_]*threshold\]/.exec(text)?.[1] ?? '';
  assert.notEqual(threshold, '');
  fc.assert(
    fc.property(word, fc.double({ min: 0, max: 0.999, noNaN: true }), fc.boolean(), (random, p, near) => {
      const least = dropThreshold(p) >>> 16;
      // Words about the threshold, where a comparison would go wrong first.
      const w = near ? ((least << 16) | ((least + (random & 1) - 1) & 0xffff)) >>> 0 : random;
      const got = run(text, { [threshold]: dropThreshold(p), [x.name]: w }).get(decided.name) ?? 0;
      assert.equal(got >>> 31, Number(w >>> 16 >= least));
      assert.equal((got >>> 15) & 1, Number((w & 0xffff) >= least));
    }),
    { numRuns: 500 },
  );
});

test('decisions clear the halves of probabilities they are about', () => {
  const tiles = 7;
  for (let index = 0; index < 4 * tiles; index++) {
    const a = assembler();
    const [packed, ...words]: Reg<'b32'>[] = a.regs('b32', 3);
    const out = dropPacked(a, packed, words, index, tiles);
    const text = a.finish().text;
    fc.assert(
      fc.property(word, word, word, (p, w0, w1) => {
        const [n, r] = [index >> 1, index & 1];
        const bits = (n < tiles ? w0 : w1) >>> (n % tiles);
        // Bytes 2 r and 2 r + 1 are about this query's keys.
        const mask = ((bits >>> (16 * r)) & 1 ? 0xffff : 0) | ((bits >>> (16 * r + 8)) & 1 ? 0xffff0000 : 0);
        const given = { [packed.name]: p, [words[0].name]: w0, [words[1].name]: w1 };
        assert.equal(run(text, given).get(out.name), clear(mask, p));
      }),
      { numRuns: 30 },
    );
  }
});
