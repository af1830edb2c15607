/**
 * Between the products of backward, for one block of queries against one group of keys, whose lanes are keys: weights from
 * scores and lse, dropout, and gradients of scores. Buffers are [queries][lanes] f32.
 */
import { LOG2E } from '../../../core/math.ts';
import type { F32 } from '../../../mods/expr.ts';
import type { Callable, Local } from '../asm/func.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { f32, f32x4, i32, i32Const, i32x4, type V128, v128, v128Const } from '../asm/values.ts';
import { exp2Constants, exp2Negative } from '../functions.ts';
import type { Value } from '../math.ts';
import { philox, splatWord, toTop } from '../philox.ts';
import { type ConstantTable, ints, iota, type Shape, transpose4, type Vec, Vectors } from '../tile.ts';
import { CHAIN, HEAD } from './chains.ts';
import { asVec, type Expressions, loopOver, masked, type Positions, storeSpan } from './expressions.ts';
import { PARAMS, sideReader } from './params.ts';
import { emitScatter, keepValid, type SideTerm, sameForQueries } from './side_grads.ts';

/** What the functions below are told of the block: constants, records, first key of the group, first query, queries. */
export const BLOCK = {
  constants: 'i32',
  params: 'i32',
  chain: 'i32',
  head: 'i32',
  kv0: 'i32',
  q0: 'i32',
  rows: 'i32',
} as const;

type Block = { readonly [K in keyof typeof BLOCK]: Local<'i32'> };

const positions = ({ f }: Vectors, a: Block): Positions => ({
  b: f.let(CHAIN.i32(a.chain, 'b'), 'b'),
  h: f.let(HEAD.i32(a.head, 'h'), 'h'),
  lenQ: f.let(CHAIN.i32(a.chain, 'lenQ'), 'lenQ'),
  lenK: f.let(CHAIN.i32(a.chain, 'lenK'), 'lenK'),
  q: f.let(a.q0, 'q'),
  kv: a.kv0,
});

/** (BLOCK, to): the span of a block's queries that the mask lets see any of the lanes' keys. */
export function emitQuerySpan(
  m: ModuleBuilder,
  shape: Shape,
  { mask, sides }: Expressions,
  table: ConstantTable,
): Callable {
  return m.func('span', { ...BLOCK, to: 'i32' }, (f, a) => {
    const v = new Vectors(f, shape, { table, at: a.constants });
    const at = positions(v, a);
    const emit = loopOver(v, mask ? [mask] : [], 'kv', at, at.lenK, sideReader(f, a.params, sides));
    storeSpan(v, () => emit([])[0], a.rows, at.q, a.to, 0);
  });
}

/**
 * (BLOCK, s, p): weights p = e^(score - lse) from raw scores s, 0 where the mask hides. Rows of s and p are `row` bytes
 * apart, here and below: a piece of the lanes is done at a time.
 */
export function emitWeights(
  m: ModuleBuilder,
  name: string,
  shape: Shape,
  row: number,
  { mod, mask, sides }: Expressions,
  table: ConstantTable,
): Callable {
  return m.func(name, { ...BLOCK, s: 'i32', p: 'i32' }, (f, a) => {
    const v = new Vectors(f, shape, { table, at: a.constants });
    const constants = exp2Constants(v);
    const log2e = v.constant(LOG2E);
    const toScore = v.splat(PARAMS.f32(a.params, 'toScore'));
    const lse = f.let(i32.add(HEAD.i32(a.head, 'rowLse'), i32.mul(a.q0, 4)), 'lse');
    const at = positions(v, a);
    const roots = [...(mod ? [mod] : []), ...(mask ? [mask] : [])];
    const emit = loopOver(v, roots, 'kv', at, at.lenK, sideReader(f, a.params, sides));
    f.for(0, a.rows, 1, () => {
      const raw = v.load(a.s);
      const values = emit(mod ? v.map((x, c) => f32x4.mul(x, c), raw, toScore) : raw);
      let score: Vec = mod ? asVec(v, values[0]) : raw;
      if (mask) score = masked(v, score, values[values.length - 1]);
      const shift = v.splat(f32.neg(f32.load(lse)));
      // Natural until the difference is taken: a large score and its lse must cancel before anything rounds.
      const distance = mod
        ? v.map((x, y) => f32x4.add(x, y), score, shift)
        : v.map((x, c, y) => v.madd(x, c, y), score, toScore, shift);
      v.store(
        a.p,
        exp2Negative(
          v,
          v.map((x, c) => f32x4.mul(x, c), distance, log2e),
          constants,
        ),
      );
      f.bump(a.s, row);
      f.bump(a.p, row);
      f.bump(lse, 4);
      f.bump(at.q, 1);
    });
  });
}

/** (BLOCK, p, kept): weights after dropout: 0 or p / (1 - probability). Four queries at a time, past the end too. */
export function emitDropWeights(m: ModuleBuilder, shape: Shape, row: number): Callable {
  return m.func('drop_weights', { ...BLOCK, p: 'i32', kept: 'i32' }, (f, a) => {
    const v = new Vectors(f, shape);
    const scale = v.splat(PARAMS.f32(a.params, 'keepScale'));
    const threshold = f.let(i32x4.splat(PARAMS.i32(a.params, 'threshold')), 'threshold');
    const head = i32.add(i32.mul(CHAIN.i32(a.chain, 'b'), PARAMS.i32(a.params, 'heads')), HEAD.i32(a.head, 'h'));
    const c2 = splatWord(v, head);
    const c3 = splatWord(v, PARAMS.i32(a.params, 'offset'));
    // Register i of a Vec covers keys kv0 + 4 i and on, which share a counter; its lanes are four queries until transposed.
    const fours = f.let(i32x4.splat(i32.shr_u(a.kv0, 2)), 'fours');
    const c0 = Array.from({ length: v.width }, (_, i) => f.let(i32x4.add(fours, ints(i))));
    const q0 = f.let(a.q0, 'q0');
    f.for(0, a.rows, 4, () => {
      const key = [PARAMS.i32(a.params, 'seed0'), PARAMS.i32(a.params, 'seed1')] as const;
      const q = f.let(i32x4.add(i32x4.splat(q0), v128Const([0, 1, 2, 3])), 'q');
      const words = philox(v, [c0, v.repeat(f.let(v128.and(q, ints(~8)), 'q')), c2, c3], key);
      const byQuery = c0.map((_, i) =>
        transpose4(
          f,
          words.map((w) => w[i]),
        ),
      );
      for (let r = 0; r < 4; r++) {
        const shift = f.let(toTop(i32.add(q0, r)), 'shift');
        const draws = byQuery.map((rows) => i32x4.shl(rows[r], shift));
        const kept = (x: V128, w: V128, s: V128): V128 => v128.and(f32x4.mul(x, s), i32x4.ge_u(w, threshold));
        v.store(a.kept, v.map(kept, v.load(a.p, r * row), draws, scale), r * row);
      }
      f.bump(a.p, 4 * row);
      f.bump(a.kept, 4 * row);
      f.bump(q0, 4);
    });
  });
}

export interface ScoreGradients extends Expressions {
  /** d modified / d score; null without a modifier. */
  readonly dScore: F32 | null;
  readonly terms: readonly SideTerm[];
  /** `kept` differs from p. */
  readonly dropped: boolean;
}

/**
 * (BLOCK, s, p, kept, dp, ds): ds = (kept * dp - p * delta) * scale * dScore, exactly 0 where p is, into rows of `dsRow`
 * bytes; and what the side tensors get of it. `kept` is p itself without dropout.
 */
export function emitScoreGradients(
  m: ModuleBuilder,
  shape: Shape,
  row: number,
  dsRow: number,
  e: ScoreGradients,
  table: ConstantTable,
): Callable {
  const { dScore, terms, sides, dropped } = e;
  const buffers = { s: 'i32', p: 'i32', kept: 'i32', dp: 'i32', ds: 'i32' } as const;
  return m.func('score_gradients', { ...BLOCK, ...buffers }, (f, a) => {
    const v = new Vectors(f, shape, { table, at: a.constants });
    const zero = v.repeat(f.let(ints(0), 'zero'));
    const scale = v.splat(PARAMS.f32(a.params, 'scale'));
    const toScore = v.splat(PARAMS.f32(a.params, 'toScore'));
    const delta = f.let(i32.add(HEAD.i32(a.head, 'delta'), i32.mul(a.q0, 4)), 'delta');
    const at = positions(v, a);
    const roots = [
      ...(dScore ? [dScore] : []),
      ...terms.flatMap(({ load, derivative }) => [derivative, ...load.indices]),
    ];
    const emit = loopOver(v, roots, 'kv', at, at.lenK, sideReader(f, a.params, sides));
    const valid = f.let(i32.sub(at.lenK, a.kv0), 'valid');
    const limit = f.let(i32x4.splat(valid), 'limit');
    const isValid = v.map((i) => i32x4.lt_s(i, limit), iota(v, i32Const(0)));
    const sums = terms.map(({ load }) => (sameForQueries(load) ? v.map((x) => x, v.repeat(ints(0))) : null));
    const bases = terms.map(({ plan }) => f.let(i32.load(CHAIN.i32(a.chain, 'sides'), 4 * plan), 'gradient'));
    let places: (readonly Value[])[] = [];
    f.for(0, a.rows, 1, () => {
      const p = v.load(a.p);
      const shift = v.splat(f32.load(delta));
      // Without dropout the difference comes first: where dP is delta, nothing is left.
      const raw = dropped
        ? v.map((k, d, w, t) => f32x4.sub(f32x4.mul(k, d), f32x4.mul(w, t)), v.load(a.kept), v.load(a.dp), p, shift)
        : v.map((d, w, t) => f32x4.mul(f32x4.sub(d, t), w), v.load(a.dp), p, shift);
      const natural = v.map((x, w, z) => v128.and(x, f32x4.ne(w, z)), raw, p, zero);
      let gradient: Vec = v.map((x, c) => f32x4.mul(x, c), natural, scale);
      if (dScore) {
        const values = emit(v.map((x, c) => f32x4.mul(x, c), v.load(a.s), toScore));
        const seen = v.map((w, z) => f32x4.ne(w, z), p, zero);
        gradient = v.map((x, d, n) => v128.and(f32x4.mul(x, d), n), gradient, asVec(v, values[0]), seen);
        let next = 1;
        places = terms.map(({ load }, i) => {
          const part = v.map((x, d, n) => v128.and(f32x4.mul(x, d), n), natural, asVec(v, values[next]), seen);
          const indices = values.slice(next + 1, next + 1 + load.indices.length);
          next += 1 + load.indices.length;
          const amount = keepValid(v, part, isValid);
          const sum = sums[i];
          if (sum)
            v.set(
              sum,
              v.map((x, y) => f32x4.add(x, y), sum, amount),
            );
          else emitScatter(v, bases[i], load.tensor, indices, amount, valid);
          return indices;
        });
        f.bump(a.s, row);
      }
      v.store(a.ds, gradient);
      for (const buffer of [a.p, a.kept, a.dp]) f.bump(buffer, row);
      f.bump(a.ds, dsRow);
      f.bump(delta, 4);
      f.bump(at.q, 1);
    });
    // Indices that do not change with the query were emitted before the loop.
    terms.forEach(({ load }, i) => {
      const sum = sums[i];
      if (sum) emitScatter(v, bases[i], load.tensor, places[i], sum, valid);
    });
  });
}
