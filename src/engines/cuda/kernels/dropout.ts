/** Dropout's random words in registers: the rounds and positions of problem/philox.ts. */
import { PHILOX } from '../../../problem/philox.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { shuffleXor } from '../ptx/tensor.ts';
import { take } from './parameters.ts';

/** Decisions for keys 2 pair and 2 pair + 1 of one query. */
export type Pair = readonly [Reg<'pred'>, Reg<'pred'>];

export interface Dropout {
  /** See problem/philox.ts. */
  readonly keepScale: Reg<'f32'>;
  /** Whether each of the keys 2 pair and 2 pair + 1 of query q is kept; `head` stands in for the usual b * Hq + h. */
  keepPair(q: Reg<'b32'>, pair: Reg<'b32'>, head?: Reg<'b32'>): Pair;
  /**
   * The same for queries q and q + 8 (bit 3 of q is 0), keys kv and kv + 1, and those in the next octet of keys, as
   * [octet][query]. All lanes of a quad call it, each with its own keys of the octet: no word is computed twice.
   */
  keepOctets(q: Reg<'b32'>, kv: Reg<'b32'>): readonly [readonly [Pair, Pair], readonly [Pair, Pair]];
  /**
   * For a tile whose rows are keys: keys kv and kv + 8 and queries q0, q1 = q0 + 1 of two octets (bit 3 of q0 is 0), as
   * [octet][key] with a Pair of queries. The four lanes whose keys share a call draw one each and transpose their words.
   */
  keepQuads(kv: Reg<'b32'>, q0: Reg<'b32'>, q1: Reg<'b32'>): readonly [readonly [Pair, Pair], readonly [Pair, Pair]];
}

/** Both halves of a product of 32-bit numbers, the upper one first. */
function product(asm: Assembler, x: Reg<'b32'>, by: number): [Reg<'b32'>, Reg<'b32'>] {
  const wide = asm.op('mul.wide.u32', x, by);
  const [low, high] = asm.regs('b32', 2);
  asm.emit('mov.b64', `{${low.name}, ${high.name}}`, wide.name);
  return [high, low];
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
  const words = (four: Reg<'b32'>, q: Reg<'b32'>, head: Reg<'b32'>): Reg<'b32'>[] => {
    let c = [four, asm.op('and.b32', q, ~8), head, p.offset];
    for (const [k0, k1] of keys) {
      const [high0, low0] = product(asm, c[0], PHILOX.m0);
      const [high1, low1] = product(asm, c[2], PHILOX.m1);
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
  const isOdd = (x: Reg<'b32'>): Reg<'pred'> => asm.op('setp.ne.s32', asm.op('and.b32', x, 1), 0);
  const choose = (odd: Reg<'pred'>, whenOdd: Reg<'b32'>, whenEven: Reg<'b32'>): Reg<'b32'> =>
    asm.op('selp.b32', whenOdd, whenEven, odd);
  /** Shift that brings the half of query q to the top: 16 where its bit 3 is 0. */
  const toTop = (q: Reg<'b32'>): Reg<'b32'> => asm.op('shl.b32', asm.op('and.b32', asm.op('not.b32', q), 8), 1);
  return {
    keepScale: p.keepScale,
    keepPair(q, pair, head = bh) {
      const [x0, x1, x2, x3] = words(asm.op('shr.u32', pair, 1), q, head);
      const odd = isOdd(pair);
      const shift = toTop(q);
      return [kept(asm.op('shl.b32', choose(odd, x2, x0), shift)), kept(asm.op('shl.b32', choose(odd, x3, x1), shift))];
    },
    keepOctets(q, kv) {
      // Neighbouring lanes own two keys each of the same four: the even lane draws those of the first octet, the odd
      // lane those of the second, and each hands the other the two words that are not its own.
      const odd = asm.op('setp.ne.s32', asm.op('and.b32', kv, 2), 0);
      const four = asm.op('add.s32', asm.op('shr.u32', kv, 2), asm.op('selp.b32', 2, 0, odd));
      const x = words(four, q, bh);
      return transpose(
        [0, 1].map((j) => {
          const mine = choose(odd, x[2 + j], x[j]);
          const theirs = shuffleXor(asm, choose(odd, x[j], x[2 + j]), 1);
          return [choose(odd, theirs, mine), choose(odd, mine, theirs)].map(
            (word) => [kept(asm.op('shl.b32', word, 16)), kept(word)] as const,
          );
        }),
      );
    },
    keepQuads(kv, q0, q1) {
      // The lane of key 4 i + w draws what all four need of key half w >> 1 and query w & 1.
      const odd = isOdd(kv);
      const upper = asm.op('setp.ne.s32', asm.op('and.b32', kv, 2), 0);
      const four = asm.op('add.s32', asm.op('shr.u32', kv, 2), asm.op('selp.b32', 2, 0, upper));
      const x = words(four, choose(odd, q1, q0), bh);
      // Word w of draw j: twice, lanes swap what lies off the diagonal.
      for (const [i, j, bit, lane] of [
        [0, 1, odd, 4],
        [2, 3, odd, 4],
        [0, 2, upper, 8],
        [1, 3, upper, 8],
      ] as const) {
        const got = shuffleXor(asm, choose(bit, x[i], x[j]), lane);
        [x[i], x[j]] = [choose(bit, got, x[i]), choose(bit, x[j], got)];
      }
      const top = x.map((word) => kept(word));
      const low = x.map((word) => kept(asm.op('shl.b32', word, 16)));
      const pairs = (y: readonly Reg<'pred'>[]): [Pair, Pair] => [
        [y[0], y[1]],
        [y[2], y[3]],
      ];
      return [pairs(low), pairs(top)];
    },
  };
}

/** [key][octet][query] to [octet][query][key]. */
function transpose(
  byKey: readonly (readonly (readonly [Reg<'pred'>, Reg<'pred'>])[])[],
): [readonly [Pair, Pair], readonly [Pair, Pair]] {
  const at = (octet: number, query: 0 | 1): Pair => [byKey[0][octet][query], byKey[1][octet][query]];
  return [
    [at(0, 0), at(0, 1)],
    [at(1, 0), at(1, 1)],
  ];
}
