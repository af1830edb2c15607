/**
 * The forward step every kernel of this engine shares: one block of keys against one group of query lanes, with the state
 * of the online softmax (Milakov and Gimelshein 2018) in memory. Queries are lanes, so that maximum, sum and rescaling
 * never cross lanes and K and V are read as they lie:
 *
 *     S[kv][lanes] = K[kv][d] * Qt[d][lanes]          P = 2^(S - m)          Ot[dv][lanes] = alpha * Ot + V[kv][dv] * P
 */
import { LOG2E } from '../../../core/math.ts';
import type { Callable } from '../asm/func.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { f32, f32x4, type I32, i32, v128 } from '../asm/values.ts';
import { exp2Constants, exp2Negative, log } from '../functions.ts';
import { accumulators, ConstantTable, floats, ints, product, type Shape, type Vec, Vectors } from '../tile.ts';
import { DESCRIPTOR_BYTES, type Routines } from './calls.ts';
import { arrays } from './layout.ts';

/**
 * The maximum of a row that has seen no key: below every score, and finite after it was multiplied by `slope`, so that
 * differences with it are never NaN.
 */
const NO_MAXIMUM = -1e30;

/**
 * Scores are kept as the product gives them and scaled on the way into the exponential, which costs nothing where
 * multiply-adds are fused and rounds once: P = 2^(slope * S - slope * m). `factor` multiplies q beforehand: the sign of the
 * scale, so that the largest score has the largest weight; `toScore` takes S and m to natural scores.
 */
export interface Scaling {
  readonly factor: number;
  readonly slope: number;
  readonly toScore: number;
}

/** @param modified the scores are replaced by modified ones, which are natural already. */
export function scalingOf(scale: number, modified: boolean): Scaling {
  const size = Math.abs(scale);
  // Extreme scales go into q altogether: a slope of 0 or infinity would turn masked scores into NaN.
  const [factor, toScore] = size > 1e-6 && size < 1e6 ? [Math.sign(scale), size] : [scale, 1];
  return { factor, slope: LOG2E * (modified ? 1 : toScore), toScore };
}

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
  /** Machine code, where the shape has it. */
  readonly routines: Routines | null;
}

/** Scratch of one block: scores (then probabilities) [blockK][lanes], the new maximum, alpha; constants; a span of keys. */
export type Work = ReturnType<typeof workOf>;
export const workOf = ({ shape, blockK }: BlockShape) => {
  const row = shape.lanes * 4;
  return arrays({
    p: blockK * row,
    max: row,
    alpha: row,
    descriptor: DESCRIPTOR_BYTES,
    constants: ConstantTable.bytes,
    span: 8,
  });
};

/** (k, q, p, max): a register tile of scores; the maximum of its rows goes into `max`. */
function emitScoreTile(m: ModuleBuilder, { shape, D }: BlockShape, rows: number): Callable {
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

/** (k, q, p, max, rows): all scores of a block, and their maximum over `max`. */
export const emitScores = (m: ModuleBuilder, block: BlockShape): Callable =>
  block.routines === null ? emitTiledScores(m, block) : emitCalledScores(m, block, block.routines);

function emitCalledScores(m: ModuleBuilder, block: BlockShape, routines: Routines): Callable {
  const { shape, D } = block;
  const work = workOf(block);
  const row = shape.lanes * 4;
  return m.func('scores', { k: 'i32', q: 'i32', p: 'i32', max: 'i32', rows: 'i32' }, (f, a) => {
    const descriptor = i32.add(a.p, work.descriptor - work.p);
    routines.product(f, 'zero', descriptor, {
      a: { at: a.k, row: 4 * D, column: 4 },
      b: { at: a.q, row },
      c: { at: a.p, row },
      M: a.rows,
      K: D,
    });
    routines.maximum(f, descriptor, a);
  });
}

/** A ragged end is covered by a tile that overlaps the one before it. */
function emitTiledScores(m: ModuleBuilder, block: BlockShape): Callable {
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

/** (group, work, rows, slope): probabilities in place of scores; maximum, sum and alpha brought up to date. */
export function emitSoftmax(
  m: ModuleBuilder,
  block: BlockShape,
  group: Group,
  work: Work,
  table: ConstantTable,
): Callable {
  const { shape, routines } = block;
  return m.func('softmax', { group: 'i32', work: 'i32', rows: 'i32', slope: 'f32' }, (f, a) => {
    if (routines !== null) {
      routines.softmax(f, i32.add(a.work, work.descriptor), {
        p: i32.add(a.work, work.p),
        rows: a.rows,
        max: i32.add(a.work, work.max),
        before: i32.add(a.group, group.max),
        sum: i32.add(a.group, group.sum),
        alpha: i32.add(a.work, work.alpha),
        slope: a.slope,
      });
      return;
    }
    const v = new Vectors(f, shape, { table, at: f.let(i32.add(a.work, work.constants), 'constants') });
    const constants = exp2Constants(v);
    const slope = v.splat(a.slope);
    const max = v.load(a.work, work.max);
    const shift = v.map((x, c) => f32x4.neg(f32x4.mul(x, c)), max, slope);
    const before = v.load(a.group, group.max);
    const alpha = exp2Negative(
      v,
      v.map((x, y, c) => f32x4.mul(f32x4.sub(x, y), c), before, max, slope),
      constants,
    );
    v.store(a.work, alpha, work.alpha);
    v.store(a.group, max, group.max);
    const sum = v.map((x, y) => f32x4.mul(x, y), v.load(a.group, group.sum), alpha);
    const p = f.let(i32.add(a.work, work.p), 'p');
    f.for(0, a.rows, 1, () => {
      const exponents = v.map((x, c, b) => v.madd(x, c, b), v.load(p), slope, shift);
      const weights = exp2Negative(v, exponents, constants);
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
export const emitOut = (m: ModuleBuilder, block: BlockShape): Callable =>
  block.routines === null ? emitTiledOut(m, block) : emitCalledOut(m, block, block.routines);

function emitCalledOut(m: ModuleBuilder, block: BlockShape, routines: Routines): Callable {
  const { shape, Dv } = block;
  const work = workOf(block);
  const row = shape.lanes * 4;
  return m.func('out', { v: 'i32', p: 'i32', out: 'i32', alpha: 'i32', rows: 'i32' }, (f, a) => {
    routines.product(f, 'rescale', i32.add(a.p, work.descriptor - work.p), {
      a: { at: a.v, row: 4, column: 4 * Dv },
      b: { at: a.p, row },
      c: { at: a.out, row },
      factor: a.alpha,
      M: Dv,
      K: a.rows,
    });
  });
}

function emitTiledOut(m: ModuleBuilder, block: BlockShape): Callable {
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

/** (group): sets a group's maximum, sum and output to those of rows that have seen no key. */
export function emitEmpty(m: ModuleBuilder, { shape }: BlockShape, group: Group): Callable {
  return m.func('empty', { group: 'i32' }, (f, a) => {
    const v = new Vectors(f, shape);
    v.store(a.group, v.repeat(floats(NO_MAXIMUM)), group.max);
    v.store(a.group, v.repeat(floats(0)), group.sum);
    const end = f.let(i32.add(a.group, group.max), 'end');
    f.sweep(i32.add(a.group, group.out), end, 16, (out) => f.do(v128.store(out, ints(0))));
  });
}

/**
 * (group, toScore, keepScale, sink): puts lse in place of the maximum, and in place of the sum what the output has to be
 * multiplied by: keepScale / sum, 0 for rows that attend to nothing. `sink` is the address of one more logit (one
 * for all lanes, or one each), or 0.
 */
export function emitFinish(m: ModuleBuilder, { shape }: BlockShape, group: Group, sinks: 'one' | 'each'): Callable {
  const params = { group: 'i32', toScore: 'f32', keepScale: 'f32', sink: 'i32' } as const;
  return m.func('finish', params, (f, a) => {
    const v = new Vectors(f, shape);
    const sum = v.load(a.group, group.sum);
    const seen = v.map((x) => f32x4.ne(x, floats(0)), sum);
    const toScore = v.map((x) => x, v.splat(a.toScore));
    const max = v.load(a.group, group.max);
    const factor = v.splat(a.keepScale);
    const numerator = v.map((x) => x, factor);
    f.if(a.sink, () => {
      const logit = sinks === 'one' ? v.splat(f32.load(a.sink)) : v.load(a.sink);
      v.set(
        max,
        v.map((x, c) => f32x4.mul(x, c), max, toScore),
      );
      v.set(toScore, v.repeat(floats(1)));
      const top = v.map((x, y) => f32x4.pmax(x, y), max, logit);
      const weight = (x: Vec): Vec =>
        exp2Negative(
          v,
          v.map((y, t) => f32x4.mul(f32x4.sub(y, t), floats(LOG2E)), x, top),
        );
      const kept = weight(max);
      v.set(
        sum,
        v.map((x, w, l) => v.madd(x, w, l), sum, kept, weight(logit)),
      );
      v.set(
        numerator,
        v.map((x, w) => f32x4.mul(x, w), factor, kept),
      );
      v.set(max, top);
    });
    const lse = v.map((x, c, y) => v.madd(x, c, y), max, toScore, log(v, sum));
    const nothing = floats(Number.NEGATIVE_INFINITY);
    v.store(
      a.group,
      v.map((x, s) => v128.bitselect(x, nothing, s), lse, seen),
      group.max,
    );
    v.store(
      a.group,
      v.map((n, x, s) => v128.and(f32x4.div(n, x), s), numerator, sum, seen),
      group.sum,
    );
  });
}
