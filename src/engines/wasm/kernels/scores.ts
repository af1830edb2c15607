/** Between the two products of a block: modifier, mask and dropout on scores whose lanes are queries. */
import type { Callable, Local } from '../asm/func.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { f32x4, type I32, i32, i32x4, type V128, v128 } from '../asm/values.ts';
import { philox, splatWord, toTop } from '../philox.ts';
import { type ConstantTable, ints, iota, type Vec, Vectors } from '../tile.ts';
import { asVec, type Expressions, loopOver, masked, type Positions, storeSpan } from './expressions.ts';
import { ITEM } from './items.ts';
import { PARAMS, sideReader } from './params.ts';
import type { BlockShape, Group, Work } from './softmax.ts';

/**
 * (params, item, lane0, kv0, group, work, rows): modified and masked scores in place of raw ones, and their maximum anew.
 * A modifier sees scale * q . k, and what it gives stays natural; without one scores stay as the product gave them.
 */
export function emitModify(
  m: ModuleBuilder,
  name: string,
  { shape }: BlockShape,
  group: Group,
  work: Work,
  { mod, mask, sides }: Expressions,
  table: ConstantTable,
  lanesAre: 'q' | 'h',
): Callable {
  const params = {
    params: 'i32',
    item: 'i32',
    lane0: 'i32',
    kv0: 'i32',
    group: 'i32',
    work: 'i32',
    rows: 'i32',
  } as const;
  return m.func(name, params, (f, a) => {
    const v = new Vectors(f, shape, { table, at: f.let(i32.add(a.work, work.constants), 'constants') });
    const kv = f.let(a.kv0, 'kv');
    const p = f.let(i32.add(a.work, work.p), 'p');
    const toScore = v.splat(PARAMS.f32(a.params, 'toScore'));
    const max = v.load(a.group, group.max);
    const { at, end } = positions(v, a, kv, lanesAre);
    const roots = [...(mod ? [mod] : []), ...(mask ? [mask] : [])];
    const emit = loopOver(v, roots, lanesAre, at, end, sideReader(f, a.params, sides));
    f.for(0, a.rows, 1, () => {
      const raw = v.load(p);
      const scaled = mod ? v.map((x, c) => f32x4.mul(x, c), raw, toScore) : raw;
      const values = emit(scaled);
      let score: Vec = mod ? asVec(v, values[0]) : raw;
      if (mask) score = masked(v, score, values[values.length - 1]);
      v.store(p, score);
      v.set(
        max,
        v.map((x, y) => f32x4.pmax(x, y), max, score),
      );
      f.bump(p, v.bytes);
      f.bump(kv, 1);
    });
    v.store(a.work, max, work.max);
  });
}

/** Positions of an item's lanes and of the key that a loop is at. */
function positions(
  { f }: Vectors,
  a: { readonly item: Local<'i32'>; readonly lane0: Local<'i32'> },
  kv: Local<'i32'>,
  lanesAre: 'q' | 'h',
): { at: Positions; end: I32 } {
  const field = (name: 'b' | 'h' | 'q0' | 'rows' | 'lenQ' | 'lenK') => f.let(ITEM.i32(a.item, name), name);
  const at = {
    b: field('b'),
    h: lanesAre === 'h' ? a.lane0 : field('h'),
    q: lanesAre === 'q' ? a.lane0 : field('q0'),
    kv,
    lenQ: field('lenQ'),
    lenK: field('lenK'),
  };
  return { at, end: lanesAre === 'q' ? at.lenQ : i32.add(field('h'), field('rows')) };
}

/**
 * (params, item, lane0, kv0, work, rows): the span of a block's keys that the mask leaves to any lane, at `work.span`.
 */
export function emitSpan(
  m: ModuleBuilder,
  { shape }: BlockShape,
  work: Work,
  { mask, sides }: Expressions,
  table: ConstantTable,
  lanesAre: 'q' | 'h',
): Callable {
  const params = { params: 'i32', item: 'i32', lane0: 'i32', kv0: 'i32', work: 'i32', rows: 'i32' } as const;
  return m.func('span', params, (f, a) => {
    const v = new Vectors(f, shape, { table, at: f.let(i32.add(a.work, work.constants), 'constants') });
    const kv = f.let(a.kv0, 'kv');
    const { at, end } = positions(v, a, kv, lanesAre);
    const emit = loopOver(v, mask ? [mask] : [], lanesAre, at, end, sideReader(f, a.params, sides));
    storeSpan(v, () => emit([])[0], a.rows, kv, a.work, work.span);
  });
}

/** (params, item, lane0, kv0, work, rows): zeroes the weights that dropout drops; the rest are scaled at the end. */
export function emitDrop(m: ModuleBuilder, { shape }: BlockShape, work: Work, lanesAre: 'q' | 'h'): Callable {
  const params = { params: 'i32', item: 'i32', lane0: 'i32', kv0: 'i32', work: 'i32', rows: 'i32' } as const;
  return m.func('drop', params, (f, a) => {
    const v = new Vectors(f, shape);
    const lanes = iota(v, a.lane0);
    const batch = f.let(i32.mul(ITEM.i32(a.item, 'b'), PARAMS.i32(a.params, 'heads')), 'batch');
    const q = lanesAre === 'q' ? lanes : splatWord(v, ITEM.i32(a.item, 'q0'));
    const c2 =
      lanesAre === 'q'
        ? splatWord(v, i32.add(batch, ITEM.i32(a.item, 'h')))
        : v.map((h, b) => i32x4.add(h, b), lanes, splatWord(v, batch));
    const c3 = splatWord(v, PARAMS.i32(a.params, 'offset'));
    const threshold = splatWord(v, PARAMS.i32(a.params, 'threshold'));
    const p = f.let(i32.add(a.work, work.p), 'p');
    const kv = f.let(a.kv0, 'kv');
    // Of sixteen queries as lanes the first eight are drawn, and the others take the upper halves of the same words.
    const shared = lanesAre === 'q' && shape.lanes % 16 === 0;
    const drawn = shared ? new Vectors(f, { ...shape, lanes: shape.lanes / 2 }) : v;
    const firsts = (vec: Vec): Vec => (shared ? vec.filter((_, i) => (i & 2) === 0) : vec);
    const shift = f.let(toTop(lanesAre === 'q' ? a.lane0 : ITEM.i32(a.item, 'q0')), 'shift');
    const counter = [firsts(q).map((x) => f.let(v128.and(x, ints(~8)), 'q')), firsts(c2), firsts(c3)] as const;
    const halves = (word: Vec): Vec =>
      shared
        ? Array.from({ length: v.width }, (_, i) => {
            const w = word[((i >> 2) << 1) | (i & 1)];
            return i & 2 ? w : f.let(i32x4.shl(w, 16), 'low');
          })
        : word.map((w) => f.let(i32x4.shl(w, shift), 'half'));
    f.for(0, a.rows, 4, () => {
      const c0 = splatWord(drawn, i32.shr_u(kv, 2));
      const key = [PARAMS.i32(a.params, 'seed0'), PARAMS.i32(a.params, 'seed1')] as const;
      philox(drawn, [c0, ...counter], key).forEach((word, i) => {
        const kept = (x: V128, w: V128, t: V128): V128 => v128.and(x, i32x4.ge_u(w, t));
        v.store(p, v.map(kept, v.load(p, i * v.bytes), halves(word), threshold), i * v.bytes);
      });
      f.bump(p, 4 * v.bytes);
      f.bump(kv, 4);
    });
  });
}
