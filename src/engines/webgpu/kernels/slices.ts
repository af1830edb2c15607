/**
 * Problems whose operands are larger than a binding run in slices of batches or of key heads: the same shaders over fewer
 * heads, with each operand bound from where its slice begins.
 */
import { BYTES } from '../../../core/dtype.ts';
import type { Problem } from '../../../problem/problem.ts';
import { type Family, widthOf } from './rows.ts';

/** Batches b0 .. b1 - 1 and key heads g0 .. g1 - 1. */
export interface Slice {
  readonly b0: number;
  readonly b1: number;
  readonly g0: number;
  readonly g1: number;
}

/** Bytes of an operand, from the start of its tensor. */
export interface Window {
  readonly offset: number;
  readonly size: number;
}

export type Windows = Readonly<Record<Family, Window>>;

export const FAMILIES = ['q', 'k', 'v', 'out'] as const;
/** Bindings begin at multiples of this many bytes on every device. */
const ALIGN = 256;
/** Bytes of the widest element that shaders see, which every binding has room for. */
const LEAST = 16;

/** Where operands of a family begin, in elements, when they are bound whole; and the first batch and heads. */
export const WHOLE = { firstB: 0, firstH: 0, firstHkv: 0, q_from: 0, k_from: 0, v_from: 0, out_from: 0 } as const;

export const wholeOf = ({ B, Hkv }: Problem): Slice => ({ b0: 0, b1: B, g0: 0, g1: Hkv });
export const oneHead: Slice = { b0: 0, b1: 1, g0: 0, g1: 1 };

/** From the first to the last row of a slice; pages are anywhere, up to the last page's first row. */
export function windowOf(problem: Problem, family: Family, { b0, b1, g0, g1 }: Slice): Window {
  const { Hq, Hkv, sequences, strides, dtype, kv } = problem;
  const { b, h, s } = strides[family];
  const query = family === 'q' || family === 'out';
  const group = query ? Hq / Hkv : 1;
  let [first, last] = [Number.POSITIVE_INFINITY, 0];
  for (let i = b0; i < b1; i++) {
    const [start, length] = sequences.subarray(4 * i + (query ? 0 : 2), 4 * i + (query ? 2 : 4));
    if (length === 0) continue;
    first = Math.min(first, i * b + start * s);
    last = Math.max(last, i * b + (start + length - 1) * s);
  }
  // Nothing is read or written, but something has to be bound.
  if (first > last || g0 >= g1) return { offset: 0, size: LEAST };
  if (!query && kv.kind === 'paged') {
    first = 0;
    last = kv.table.reduce((most, page) => Math.max(most, page), 0) * b;
  }
  const bytes = BYTES[dtype];
  const offset = Math.floor(((first + g0 * group * h) * bytes) / ALIGN) * ALIGN;
  const end = (last + (g1 * group - 1) * h + widthOf(problem, family)) * bytes;
  return { offset, size: Math.max(LEAST, Math.ceil((end - offset) / 4) * 4) };
}

/** The slices a problem runs in, one when a binding holds every operand; null when one head of one batch is too much. */
export function slicesOf(problem: Problem, bindingSize: number): Slice[] | null {
  const { B, Hkv } = problem;
  const fits = (slice: Slice): boolean =>
    FAMILIES.every((family) => windowOf(problem, family, slice).size <= bindingSize);
  const cut = (batches: number, heads: number): Slice[] => {
    const slices: Slice[] = [];
    for (let b0 = 0; b0 < B; b0 += batches)
      for (let g0 = 0; g0 < Hkv; g0 += heads)
        slices.push({ b0, b1: Math.min(b0 + batches, B), g0, g1: Math.min(g0 + heads, Hkv) });
    return slices;
  };
  if (fits(wholeOf(problem))) return [wholeOf(problem)];
  for (let batches = B >> 1; batches > 0; batches >>= 1) {
    const slices = cut(batches, Hkv);
    if (slices.every(fits)) return slices;
  }
  for (let heads = Hkv >> 1; heads > 0; heads >>= 1) {
    const slices = cut(1, heads);
    if (slices.every(fits)) return slices;
  }
  return null;
}

/** What a dispatch over a slice adds to the launch's parameters, and its extent. */
export interface Sliced {
  readonly params: Readonly<Record<string, number>>;
  readonly windows: Windows | undefined;
  readonly batches: number;
  readonly heads: { readonly q: number; readonly kv: number };
}

/** The slices of a problem that was not refused. */
export function sliced(problem: Problem, bindingSize: number, values: Readonly<Record<string, number>>): Sliced[] {
  const { Hq, Hkv, dtype } = problem;
  const group = Hkv === 0 ? 1 : Hq / Hkv;
  const slices = slicesOf(problem, bindingSize) ?? [];
  return slices.map((slice): Sliced => {
    const { b0, b1, g0, g1 } = slice;
    const extent = { batches: b1 - b0, heads: { q: (g1 - g0) * group, kv: g1 - g0 } };
    if (slices.length === 1) return { params: values, windows: undefined, ...extent };
    const windows = Object.fromEntries(FAMILIES.map((f) => [f, windowOf(problem, f, slice)])) as Record<Family, Window>;
    const from = Object.fromEntries(FAMILIES.map((f) => [`${f}_from`, windows[f].offset / BYTES[dtype]]));
    const params = { ...values, ...from, firstB: b0, firstH: g0 * group, firstHkv: g0 };
    return { params, windows, ...extent };
  });
}
