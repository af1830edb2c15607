/** Writes a warpgroup's output as 16-byte pieces: the four lanes that share a row exchange words first. */
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { shuffleXor } from '../ptx/tensor.ts';
import { packPair } from './fragments.ts';
import type { Spec } from './spec.ts';
import { type StoreOptions, storeRows } from './store.ts';

/** As `storeRows`, which serves rows that do not start at multiples of 16 bytes. */
export function storeWide(asm: Assembler, spec: Spec, options: StoreOptions): void {
  const { tiles, rows, limit, target, columns, grain, t } = options;
  if (grain !== 16 || columns % 32 !== 0 || spec.storage === 'f32') {
    storeRows(asm, spec, options);
    return;
  }
  const storage = spec.storage;
  const odd = asm.op('setp.ne.s32', asm.op('and.b32', t, 1), 0);
  const high = asm.op('setp.ne.s32', asm.op('and.b32', t, 2), 0);
  /** Two words of two lanes, transposed. */
  const exchange = (x: Reg<'b32'>, y: Reg<'b32'>, upper: Reg<'pred'>, mask: number): [Reg<'b32'>, Reg<'b32'>] => {
    const got = shuffleXor(asm, asm.op('selp.b32', x, y, upper), mask);
    return [asm.op('selp.b32', got, x, upper), asm.op('selp.b32', y, got, upper)];
  };
  const laneBytes = asm.op('mul.wide.u32', t, 16);
  rows.forEach((row, r) => {
    const words = tiles[r >> 1].map((tile) => packPair(asm, storage, tile[(r & 1) * 2], tile[(r & 1) * 2 + 1]));
    const inside = asm.op('setp.lt.s32', row, limit);
    const at = asm.op('add.s64', target.row(row), laneBytes);
    for (let n = 0; n < columns / 8; n += 4) {
      const [a0, a1] = exchange(words[n], words[n + 1], odd, 1);
      const [a2, a3] = exchange(words[n + 2], words[n + 3], odd, 1);
      const [b0, b2] = exchange(a0, a2, high, 2);
      const [b1, b3] = exchange(a1, a3, high, 2);
      asm.when(inside, () => asm.storeVector('global', 'b32', at, [b0, b1, b2, b3], n * 16));
    }
  });
}
