/** Dropout's random words in registers: the rounds of problem/philox.ts. */
import { PHILOX } from '../../../problem/philox.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { take } from './parameters.ts';

export interface Dropout {
  /** 1 / (1 - p). */
  readonly keepScale: Reg<'f32'>;
  /** Whether each of the keys 2 pair and 2 pair + 1 of query q is kept; `head` stands in for the usual b * Hq + h. */
  keepPair(q: Reg<'b32'>, pair: Reg<'b32'>, head?: Reg<'b32'>): readonly [Reg<'pred'>, Reg<'pred'>];
  /** Whether key kv of query q is kept. */
  keep(q: Reg<'b32'>, kv: Reg<'b32'>): Reg<'pred'>;
}

/** @param bh register of b * Hq + h. */
export function dropoutOf(asm: Assembler, bh: Reg<'b32'>): Dropout {
  const p = take(asm, 'seed0', 'seed1', 'offset', 'threshold', 'keepScale');
  // The keys of all rounds depend on the seed alone.
  const keys: [Reg<'b32'>, Reg<'b32'>][] = [];
  for (let round = 0; round < PHILOX.rounds; round++) {
    const last = keys.at(-1);
    keys.push(
      last === undefined
        ? [p.seed0, p.seed1]
        : [asm.op('add.s32', last[0], PHILOX.w0), asm.op('add.s32', last[1], PHILOX.w1)],
    );
  }
  const words = (group: Reg<'b32'>, q: Reg<'b32'>, head: Reg<'b32'>): Reg<'b32'>[] => {
    let c = [group, q, head, p.offset];
    for (const [k0, k1] of keys) {
      const high0 = asm.op('mul.hi.u32', c[0], PHILOX.m0);
      const high1 = asm.op('mul.hi.u32', c[2], PHILOX.m1);
      const low0 = asm.op('mul.lo.s32', c[0], PHILOX.m0);
      const low1 = asm.op('mul.lo.s32', c[2], PHILOX.m1);
      c = [
        asm.op('xor.b32', asm.op('xor.b32', high1, c[1]), k0),
        low1,
        asm.op('xor.b32', asm.op('xor.b32', high0, c[3]), k1),
        low0,
      ];
    }
    return c;
  };
  const kept = (word: Reg<'b32'>): Reg<'pred'> => asm.op('setp.ge.u32', word, p.threshold);
  return {
    keepScale: p.keepScale,
    keepPair(q, pair, head = bh) {
      const [x0, x1, x2, x3] = words(asm.op('shr.u32', pair, 1), q, head);
      const odd = asm.op('setp.ne.s32', asm.op('and.b32', pair, 1), 0);
      return [kept(asm.op('selp.b32', x2, x0, odd)), kept(asm.op('selp.b32', x3, x1, odd))];
    },
    keep(q, kv) {
      const [x0, x1, x2, x3] = words(asm.op('shr.u32', kv, 2), q, bh);
      const odd = asm.op('setp.ne.s32', asm.op('and.b32', kv, 1), 0);
      const high = asm.op('setp.ne.s32', asm.op('and.b32', kv, 2), 0);
      const low2 = asm.op('selp.b32', x1, x0, odd);
      const high2 = asm.op('selp.b32', x3, x2, odd);
      return kept(asm.op('selp.b32', high2, low2, high));
    },
  };
}
