/**
 * The forward step every kernel of this engine shares: one block of keys against one group of query lanes, with the state
 * of the online softmax (Milakov and Gimelshein 2018) in memory. Queries are lanes, so that maximum, sum and rescaling
 * never cross lanes and K and V are read as they lie:
 *
 *     S[kv][lanes] = K[kv][d] * Qt[d][lanes]          P = 2^(S - m)          Ot[dv][lanes] = alpha * Ot + V[kv][dv] * P
 */
import { LN2, LOG2E } from '../../../core/math.ts';
import type { Callable } from '../asm/func.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { f32, f32x4, type I32, i32, v128 } from '../asm/values.ts';
import { exp2Negative, log } from '../functions.ts';
import { accumulators, floats, ints, product, type Shape, type Vec, Vectors } from '../tile.ts';
import { arrays } from './layout.ts';

/** The maximum of a row that has seen no key: finite, so that differences with it are never NaN. */
export const NO_MAXIMUM = -3e38;

/** Byte offsets inside one group of lanes: transposed q, running output, maximum and sum; all f32. */
export type Group = ReturnType<typeof groupOf>;
export const groupOf = (shape: Shape, D: number, Dv: number) => {
  const row = shape.lanes * 4;
  return arrays({ q: D * row, out: Dv * row, max: row, sum: row });
};

export interface BlockShape {
  readonly shape: Shape;
  readonly D: number;
  readonly Dv: number;
  readonly blockK: number;
}

/** Scratch of one block: scores (then probabilities) [blockK][lanes], the new maximum, alpha. */
export type Work = ReturnType<typeof workOf>;
export const workOf = ({ shape, blockK }: BlockShape) => {
  const row = shape.lanes * 4;
  return arrays({ p: blockK * row, max: row, alpha: row });
};

/** (k, q, p, max): a register tile of scores; the maximum of its rows goes into `max`. */
export function emitScoreTile(m: ModuleBuilder, { shape, D }: BlockShape, rows: number): Callable {
  return m.func(`scores${rows}`, { k: 'i32', q: 'i32', p: 'i32', max: 'i32' }, (f, a) => {
    const v = new Vectors(f, shape);
    const acc = accumulators(v, rows);
    product(v, acc, { at: a.k, row: 4 * D, step: 4 }, { at: a.q, step: v.bytes }, D);
    for (const [r, row] of acc.entries()) v.store(a.p, row, r * v.bytes);
    let highest: readonly Vec[] = acc;
    while (highest.length > 1)
      highest = highest.flatMap((x, i) =>
        i % 2 === 1 ? [] : i + 1 < highest.length ? [v.map((y, z) => f32x4.pmax(y, z), x, highest[i + 1])] : [x],
      );
    const max = v.load(a.max);
    v.store(
      a.max,
      v.map((y, z) => f32x4.pmax(y, z), max, highest[0]),
    );
  });
}

/** (k, q, p, max, rows): all scores of a block. A ragged end is covered by a tile that overlaps the one before it. */
export function emitScores(m: ModuleBuilder, block: BlockShape): Callable {
  const { shape, D } = block;
  const tile = emitScoreTile(m, block, shape.rows);
  const single = emitScoreTile(m, block, 1);
  const row = shape.lanes * 4;
  return m.func('scores', { k: 'i32', q: 'i32', p: 'i32', max: 'i32', rows: 'i32' }, (f, a) => {
    const at = (r: I32, call: Callable): void =>
      f.call(call, i32.add(a.k, i32.mul(r, 4 * D)), a.q, i32.add(a.p, i32.mul(r, row)), a.max);
    const last = f.let(i32.sub(a.rows, shape.rows), 'last');
    f.if(
      i32.lt_s(last, 0),
      () => f.for(0, a.rows, 1, (r) => at(r, single)),
      () => {
        f.for(0, last, shape.rows, (r) => at(r, tile));
        at(last, tile);
      },
    );
  });
}

/** (group, work, rows): probabilities in place of scores; maximum, sum and alpha brought up to date. */
export function emitSoftmax(m: ModuleBuilder, { shape }: BlockShape, group: Group, work: Work): Callable {
  return m.func('softmax', { group: 'i32', work: 'i32', rows: 'i32' }, (f, a) => {
    const v = new Vectors(f, shape);
    const max = v.load(a.work, work.max);
    const before = v.load(a.group, group.max);
    const alpha = exp2Negative(
      v,
      v.map((x, y) => f32x4.sub(x, y), before, max),
    );
    v.store(a.work, alpha, work.alpha);
    v.store(a.group, max, group.max);
    const sum = v.map((x, y) => f32x4.mul(x, y), v.load(a.group, group.sum), alpha);
    const p = f.let(i32.add(a.work, work.p), 'p');
    f.for(0, a.rows, 1, () => {
      const weights = exp2Negative(
        v,
        v.map((x, y) => f32x4.sub(x, y), v.load(p), max),
      );
      v.store(p, weights);
      v.set(
        sum,
        v.map((x, y) => f32x4.add(x, y), sum, weights),
      );
      f.bump(p, v.bytes);
    });
    v.store(a.group, sum, group.sum);
  });
}

/** (v, p, out, alpha, rows): a register tile of out = alpha * out + v * p. */
function emitOutTile(m: ModuleBuilder, { shape, Dv }: BlockShape, columns: number): Callable {
  return m.func(`out${columns}`, { v: 'i32', p: 'i32', out: 'i32', alpha: 'i32', rows: 'i32' }, (f, a) => {
    const v = new Vectors(f, shape);
    const alpha = v.load(a.alpha);
    const acc = Array.from({ length: columns }, (_, r) =>
      v.map((x, y) => f32x4.mul(x, y), v.load(a.out, r * v.bytes), alpha),
    );
    product(v, acc, { at: a.v, row: 4, step: 4 * Dv }, { at: a.p, step: v.bytes }, a.rows);
    for (const [r, row] of acc.entries()) v.store(a.out, row, r * v.bytes);
  });
}

/** (v, p, out, alpha, rows): the block's values added to the running output. */
export function emitOut(m: ModuleBuilder, block: BlockShape): Callable {
  const { shape, Dv } = block;
  const whole = Math.floor(Dv / shape.rows) * shape.rows;
  const tile = emitOutTile(m, block, shape.rows);
  const rest = whole < Dv ? emitOutTile(m, block, Dv - whole) : null;
  return m.func('out', { v: 'i32', p: 'i32', out: 'i32', alpha: 'i32', rows: 'i32' }, (f, a) => {
    const row = shape.lanes * 4;
    f.for(0, whole, shape.rows, (d) => {
      f.call(tile, i32.add(a.v, i32.mul(d, 4)), a.p, i32.add(a.out, i32.mul(d, row)), a.alpha, a.rows);
    });
    if (rest) f.call(rest, i32.add(a.v, 4 * whole), a.p, i32.add(a.out, whole * row), a.alpha, a.rows);
  });
}

/** (v, p, out, alpha, rows): the same where V holds infinities or NaN, which a weight of zero must not touch. */
export function emitCarefulOut(m: ModuleBuilder, { shape, Dv }: BlockShape): Callable {
  return m.func('careful_out', { v: 'i32', p: 'i32', out: 'i32', alpha: 'i32', rows: 'i32' }, (f, a) => {
    const v = new Vectors(f, shape);
    f.for(0, Dv, 1, () => {
      const value = f.let(a.v, 'value');
      const p = f.let(a.p, 'p');
      const sum = v.map((x, y) => f32x4.mul(x, y), v.load(a.out), v.load(a.alpha));
      f.for(0, a.rows, 1, () => {
        const x = f.let(v128.load32_splat(value), 'x');
        const term = v.map((w) => v128.and(f32x4.mul(w, x), f32x4.ne(w, floats(0))), v.load(p));
        v.set(
          sum,
          v.map((s, t) => f32x4.add(s, t), sum, term),
        );
        f.bump(value, 4 * Dv);
        f.bump(p, v.bytes);
      });
      v.store(a.out, sum);
      f.bump(a.v, 4);
      f.bump(a.out, v.bytes);
    });
  });
}

/**
 * (group, sink): sets a group's maximum, sum and output to those of rows that have seen no key but, where `sink` is not 0,
 * the logit at that address.
 */
export function emitEmpty(m: ModuleBuilder, { shape }: BlockShape, group: Group): Callable {
  return m.func('empty', { group: 'i32', sink: 'i32' }, (f, a) => {
    const v = new Vectors(f, shape);
    v.store(a.group, v.repeat(floats(NO_MAXIMUM)), group.max);
    v.store(a.group, v.repeat(floats(0)), group.sum);
    f.if(a.sink, () => {
      const logit = v.splat(f32.mul(f32.load(a.sink), LOG2E));
      const max = v.map((x) => f32x4.pmax(x, floats(NO_MAXIMUM)), logit);
      v.store(a.group, max, group.max);
      v.store(
        a.group,
        exp2Negative(
          v,
          v.map((x, y) => f32x4.sub(x, y), logit, max),
        ),
        group.sum,
      );
    });
    const end = f.let(i32.add(a.group, group.max), 'end');
    f.sweep(i32.add(a.group, group.out), end, 16, (out) => f.do(v128.store(out, ints(0))));
  });
}

/** (group, scale): the natural log of the sum in place of the maximum, and scale / sum (0 where the sum is) in place of the sum. */
export function emitFinish(m: ModuleBuilder, { shape }: BlockShape, group: Group): Callable {
  return m.func('finish', { group: 'i32', scale: 'f32' }, (f, a) => {
    const v = new Vectors(f, shape);
    const sum = v.load(a.group, group.sum);
    const lse = v.map((x, y) => v.madd(x, floats(LN2), y), v.load(a.group, group.max), log(v, sum));
    const inverse = v.map((s, x) => v128.and(f32x4.div(s, x), f32x4.ne(x, floats(0))), v.splat(a.scale), sum);
    v.store(a.group, lse, group.max);
    v.store(a.group, inverse, group.sum);
  });
}
