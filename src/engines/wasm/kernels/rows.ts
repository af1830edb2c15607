/** Moving rows between tensors and scratch: transposed into lanes, back out of lanes, or straightened into f32 rows. */
import { BYTES } from '../../../core/dtype.ts';
import type { Callable, FuncBuilder, Local } from '../asm/func.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { f32x4, type I32, i32, type V128, v128 } from '../asm/values.ts';
import { loadFour, type Stored, storeFour } from '../storage.ts';
import { type Shape, transpose4 } from '../tile.ts';
import { minimum } from './items.ts';

/**
 * Calls `body` for every four lanes that hold at least one of `rows` rows (for all lanes of a group that does, when
 * `wholeGroups`), with the addresses of those rows; lanes past the end get the last row's.
 */
function byFour(
  f: FuncBuilder,
  shape: Shape,
  at: Local<'i32'>,
  stride: I32,
  rows: Local<'i32'>,
  wholeGroups: boolean,
  body: (addresses: Local<'i32'>[], group: I32, lane: I32) => void,
): void {
  const last = f.let(i32.sub(rows, 1), 'last');
  const { lanes } = shape;
  const end = wholeGroups ? f.let(i32.and(i32.add(rows, lanes - 1), -lanes), 'end') : rows;
  f.for(
    0,
    end,
    4,
    (row) => {
      const addresses = [0, 1, 2, 3].map((i) =>
        f.let(i32.add(at, i32.mul(minimum(f, i32.add(row, i), last), stride)), 'row'),
      );
      body(addresses, i32.div_u(row, lanes), i32.and(row, lanes - 1));
    },
    'row',
  );
}

/**
 * (from, stride, rows, scale, to): `rows` rows of `size` elements become [group][size][lanes] f32 times `scale`, groups
 * `groupBytes` apart. Lanes past the last row repeat it.
 */
export function emitTransposeIn(
  m: ModuleBuilder,
  name: string,
  shape: Shape,
  dtype: Stored,
  size: number,
  groupBytes: number,
): Callable {
  const params = { from: 'i32', stride: 'i32', rows: 'i32', scale: 'f32', to: 'i32' } as const;
  return m.func(name, params, (f, p) => {
    const scale = f.let(f32x4.splat(p.scale), 'scale');
    const column = shape.lanes * 4;
    byFour(f, shape, p.from, p.stride, p.rows, true, (rows, group, lane) => {
      const to = f.let(i32.add(p.to, i32.add(i32.mul(group, groupBytes), i32.mul(lane, 4))), 'to');
      const piece = (count: number): void => {
        const four = rows.map((r) => f.let(f32x4.mul(loadFour(f, dtype, r), scale)));
        transpose4(f, four)
          .slice(0, count)
          .forEach((x, i) => {
            f.do(v128.store(to, x, i * column));
          });
      };
      f.for(0, size >> 2, 1, () => {
        piece(4);
        for (const r of rows) f.bump(r, 4 * BYTES[dtype]);
        f.bump(to, 4 * column);
      });
      if (size % 4 > 0) piece(size % 4);
    });
  });
}

/**
 * (from, factor, to, stride, rows): [group][size][lanes] f32 times a factor a lane become `rows` rows of `size` elements.
 * Factors are [group][lanes], groups `groupBytes` apart like the lanes themselves.
 */
export function emitTransposeOut(
  m: ModuleBuilder,
  name: string,
  shape: Shape,
  dtype: Stored,
  size: number,
  groupBytes: number,
): Callable {
  const params = { from: 'i32', factor: 'i32', to: 'i32', stride: 'i32', rows: 'i32' } as const;
  return m.func(name, params, (f, p) => {
    const column = shape.lanes * 4;
    byFour(f, shape, p.to, p.stride, p.rows, false, (rows, group, lane) => {
      const offset = f.let(i32.add(i32.mul(group, groupBytes), i32.mul(lane, 4)), 'offset');
      const from = f.let(i32.add(p.from, offset), 'from');
      const factor = f.let(v128.load(i32.add(p.factor, offset)), 'factor');
      const piece = (count: number): void => {
        const four = Array.from(
          { length: 4 },
          (_, i): V128 => (i < count ? f.let(f32x4.mul(v128.load(from, i * column), factor)) : factor),
        );
        const columns = transpose4(f, four);
        // Lanes past the end point at the last row, so rows are written last to first: its own values stay.
        for (let i = 3; i >= 0; i--) storeFour(f, dtype, rows[i], columns[i], count);
      };
      f.for(0, size >> 2, 1, () => {
        piece(4);
        for (const r of rows) f.bump(r, 4 * BYTES[dtype]);
        f.bump(from, 4 * column);
      });
      if (size % 4 > 0) piece(size % 4);
    });
  });
}

/** Vectors that are copied in one piece. */
const COPIES = 8;

/**
 * (from, stride, rows, to): `rows` rows of `size` elements become neighbouring f32 rows. Writes up to 12 bytes past the last.
 */
export function emitStraighten(m: ModuleBuilder, name: string, dtype: Stored, size: number): Callable {
  return m.func(name, { from: 'i32', stride: 'i32', rows: 'i32', to: 'i32' }, (f, p) => {
    const vectors = Math.ceil(size / 4);
    const copy = (from: I32, to: I32, count: number): void => {
      const loaded = Array.from({ length: count }, (_, i) => f.let(loadFour(f, dtype, from, 4 * i * BYTES[dtype])));
      for (const [i, x] of loaded.entries()) f.do(v128.store(to, x, 16 * i));
    };
    f.for(0, p.rows, 1, () => {
      const from = f.let(p.from, 'at');
      const to = f.let(p.to, 'row');
      f.for(0, Math.floor(vectors / COPIES), 1, () => {
        copy(from, to, COPIES);
        f.bump(from, COPIES * 4 * BYTES[dtype]);
        f.bump(to, COPIES * 16);
      });
      if (vectors % COPIES > 0) copy(from, to, vectors % COPIES);
      f.bump(p.from, p.stride);
      f.bump(p.to, 4 * size);
    });
  });
}
