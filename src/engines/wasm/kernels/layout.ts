/** Records in memory that launch code writes and emitted code reads: field names to offsets, in one place. */
import type { Local } from '../asm/func.ts';
import { type F32, f32, type I32, i32 } from '../asm/values.ts';
import type { Heap } from '../kernel.ts';

/** Fields of 32 bits each, in order. */
export interface Layout<N extends string> {
  readonly bytes: number;
  readonly i32: (at: Local<'i32'>, field: N) => I32;
  readonly f32: (at: Local<'i32'>, field: N) => F32;
  /** Writes a record; integers as they are (addresses may use all 32 bits), `f32` fields as floats. */
  readonly write: (heap: Heap, address: number, values: Readonly<Record<N, number>>) => void;
}

/** @param floats fields that hold an f32; the rest hold an i32. */
export function layout<const N extends string, const F extends string = never>(
  ints: readonly N[],
  floats: readonly F[] = [],
): Layout<N | F> {
  const names: readonly string[] = [...ints, ...floats];
  const offset = (field: N | F): number => 4 * names.indexOf(field);
  return {
    bytes: 4 * names.length,
    i32: (at, field) => i32.load(at, offset(field)),
    f32: (at, field) => f32.load(at, offset(field)),
    write: (heap, address, values) => {
      const word = address >>> 2;
      ints.forEach((name, i) => {
        heap.i32[word + i] = values[name];
      });
      floats.forEach((name, i) => {
        heap.f32[word + ints.length + i] = values[name];
      });
    },
  };
}

/** Consecutive arrays at constant distances from a base address: bytes of each in, offsets and total out. */
export function arrays<const N extends string>(
  sizes: Readonly<Record<N, number>>,
): Readonly<Record<N | 'total', number>> {
  let total = 0;
  const offsets: Record<string, number> = {};
  for (const [name, bytes] of Object.entries<number>(sizes)) {
    offsets[name] = total;
    total += Math.ceil(bytes / 64) * 64;
  }
  return { ...offsets, total } as Record<N | 'total', number>;
}
