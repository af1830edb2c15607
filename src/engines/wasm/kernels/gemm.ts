/** Matrix products as functions of a module: c = a * b or c += a * b, one group of lanes wide. */
import type { Callable, FuncBuilder } from '../asm/func.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { f32x4, type I32, i32, v128 } from '../asm/values.ts';
import { accumulators, ints, product, type Shape, Vectors } from '../tile.ts';
import type { Routines } from './calls.ts';

/** Distances in bytes: a(i, k) at i * aRow + k * aStep, b(k) a Vec at k * bRow, c(i) a Vec at i * cRow. */
export interface ProductSpec {
  readonly start: 'zero' | 'add';
  readonly aRow: number;
  readonly aStep: number;
  readonly bRow: number;
  readonly cRow: number;
}

const PRODUCT = { a: 'i32', b: 'i32', c: 'i32', rows: 'i32', count: 'i32', descriptor: 'i32' } as const;

/** (a, b, c, count): a register tile. */
function emitTile(m: ModuleBuilder, name: string, shape: Shape, spec: ProductSpec, rows: number): Callable {
  return m.func(`${name}${rows}`, { a: 'i32', b: 'i32', c: 'i32', count: 'i32' }, (f, p) => {
    const v = new Vectors(f, shape);
    const acc =
      spec.start === 'zero'
        ? accumulators(v, rows)
        : Array.from({ length: rows }, (_, r) => v.load(p.c, r * spec.cRow));
    product(v, acc, { at: p.a, row: spec.aRow, step: spec.aStep }, { at: p.b, step: spec.bRow }, p.count);
    for (const [r, row] of acc.entries()) v.store(p.c, row, r * spec.cRow);
  });
}

/**
 * (a, b, c, rows, count, descriptor): all rows of a product, in machine code where there are `routines`; `descriptor` is
 * then the address of DESCRIPTOR_BYTES of scratch, and otherwise ignored.
 *
 * @param rows when it is known while emitting; the argument is then ignored.
 */
export function emitProduct(
  m: ModuleBuilder,
  name: string,
  shape: Shape,
  spec: ProductSpec,
  rows: number | null,
  routines: Routines | null,
): Callable {
  if (routines === null) return emitTiledProduct(m, name, shape, spec, rows);
  return m.func(name, PRODUCT, (f, p) => {
    routines.product(f, spec.start, p.descriptor, {
      a: { at: p.a, row: spec.aRow, column: spec.aStep },
      b: { at: p.b, row: spec.bRow },
      c: { at: p.c, row: spec.cRow },
      M: rows ?? p.rows,
      K: p.count,
    });
  });
}

/**
 * A ragged end of a product that starts from zero is covered by a tile that
 * overlaps the one before it.
 */
function emitTiledProduct(
  m: ModuleBuilder,
  name: string,
  shape: Shape,
  spec: ProductSpec,
  rows: number | null,
): Callable {
  const tile = emitTile(m, name, shape, spec, shape.rows);
  const restRows = rows === null ? 1 : rows % shape.rows;
  const rest = restRows === 0 ? tile : emitTile(m, name, shape, spec, restRows);
  return m.func(name, PRODUCT, (f, p) => {
    const at = (r: I32 | number, call: Callable): void =>
      f.call(call, i32.add(p.a, i32.mul(r, spec.aRow)), p.b, i32.add(p.c, i32.mul(r, spec.cRow)), p.count);
    if (rows !== null) {
      f.for(0, rows - restRows, shape.rows, (r) => at(r, tile));
      if (restRows > 0) at(rows - restRows, rest);
      return;
    }
    if (spec.start === 'add') {
      const whole = f.let(i32.sub(p.rows, i32.rem_u(p.rows, shape.rows)), 'whole');
      f.for(0, whole, shape.rows, (r) => at(r, tile));
      f.for(whole, p.rows, 1, (r) => at(r, rest));
      return;
    }
    const last = f.let(i32.sub(p.rows, shape.rows), 'last');
    f.if(
      i32.lt_s(last, 0),
      () => f.for(0, p.rows, 1, (r) => at(r, rest)),
      () => {
        f.for(0, last, shape.rows, (r) => at(r, tile));
        at(last, tile);
      },
    );
  });
}

/** The same: c += a * b where b may hold infinities or NaN, which an a of zero must not touch. */
export function emitCarefulProduct(m: ModuleBuilder, name: string, shape: Shape, spec: ProductSpec): Callable {
  return m.func(name, PRODUCT, (f, p) => {
    const v = new Vectors(f, shape);
    f.for(0, p.rows, 1, () => {
      const sum = v.load(p.c);
      const [a, b] = [f.let(p.a, 'a'), f.let(p.b, 'b')];
      f.for(0, p.count, 1, () => {
        const x = f.let(v128.load32_splat(a), 'x');
        const used = f.let(f32x4.ne(x, ints(0)), 'used');
        const term = v.map((y) => v128.and(f32x4.mul(x, y), used), v.load(b));
        v.set(
          sum,
          v.map((s, t) => f32x4.add(s, t), sum, term),
        );
        f.bump(a, spec.aStep);
        f.bump(b, spec.bRow);
      });
      v.store(p.c, sum);
      f.bump(p.a, spec.aRow);
      f.bump(p.c, spec.cRow);
    });
  });
}

/** Clears `bytes`, a multiple of 16. */
export function emitClear(f: FuncBuilder, at: I32, bytes: I32 | number): void {
  const start = f.let(at, 'start');
  const end = f.let(i32.add(start, bytes), 'end');
  f.sweep(start, end, 16, (x) => f.do(v128.store(x, ints(0))));
}
