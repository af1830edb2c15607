/** Where the rows of a sequence are: dense, packed and paged addresses, in elements. */
import type { Problem, Strides } from './problem.ts';

/** One sequence of the problem. Starts are row numbers along the tensor's sequence axis. */
export interface Sequence {
  readonly b: number;
  readonly qStart: number;
  readonly lenQ: number;
  readonly kStart: number;
  readonly lenK: number;
}

export const sequencesOf = (problem: Problem): Sequence[] =>
  Array.from({ length: problem.B }, (_, b) => {
    const [qStart, lenQ, kStart, lenK] = problem.sequences.subarray(b * 4, b * 4 + 4);
    return { b, qStart, lenQ, kStart, lenK };
  });

/** Address of the first element of a head's row i. */
export type RowAddress = (i: number) => number;

/** Rows of q, out, lse and their gradients, by the strides of the tensor. */
export function queryRows(at: Sequence, strides: Strides, h: number): RowAddress {
  const base = at.b * strides.b + h * strides.h + at.qStart * strides.s;
  return (i) => base + i * strides.s;
}

/** Rows of k, v and their gradients, through the page table when there is one. */
export function keyRows(problem: Problem, at: Sequence, strides: Strides, hkv: number): RowAddress {
  const { kv } = problem;
  const head = hkv * strides.h;
  if (kv.kind === 'strided') {
    const base = at.b * strides.b + head + at.kStart * strides.s;
    return (j) => base + j * strides.s;
  }
  const { pageSize, maxPages, table } = kv;
  return (j) => {
    const row = at.kStart + j;
    const page = table[at.b * maxPages + Math.floor(row / pageSize)];
    return page * strides.b + head + (row % pageSize) * strides.s;
  };
}
