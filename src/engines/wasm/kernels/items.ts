/** Work items of query rows: one record a (batch, head, block of rows), with all addresses worked out. */
import { BYTES } from '../../../core/dtype.ts';
import { ceilDiv } from '../../../core/math.ts';
import type { Problem, Strides } from '../../../problem/problem.ts';
import { type BlockRuns, blockRuns, lengthsOf } from '../../../problem/ranges.ts';
import type { FuncBuilder, Local } from '../asm/func.ts';
import { type I32, i32, select } from '../asm/values.ts';
import type { Addresses, Heap } from '../kernel.ts';
import { layout } from './layout.ts';

/**
 * `q`, `out`, `lse` are addresses of row q0; `k`, `v` of row 0 of the sequence (for paged storage: of head h in page 0).
 * `runs` is the address of `count` triples (first block, end block, partial). An item of decode looks only at blocks
 * `first` ... `last` - 1 of these and leaves its state at `part`.
 */
export const ITEM = layout([
  'q',
  'k',
  'v',
  'out',
  'lse',
  'b',
  'h',
  'q0',
  'rows',
  'lenQ',
  'lenK',
  'runs',
  'count',
  'first',
  'last',
  'part',
]);

/** Bytes from a tensor's start to row `row` of (b, h). */
export const rowBytes = (s: Strides, bytes: number, b: number, h: number, row: number): number =>
  (b * s.b + h * s.h + row * s.s) * bytes;

/** Copies the triples into the memory; run r is then at the result + 12 * r. */
export function writeRuns(heap: Heap, { runs }: BlockRuns): number {
  const at = heap.allocate(Math.max(runs.length, 1) * 4);
  heap.i32.set(runs, at >>> 2);
  return at;
}

/** Blocks a row of runs visits. */
function weightOf({ runs, rowStart }: BlockRuns, row: number): number {
  let blocks = 0;
  for (let r = rowStart[row]; r < rowStart[row + 1]; r++) blocks += runs[3 * r + 1] - runs[3 * r];
  return blocks;
}

interface Piece {
  readonly b: number;
  readonly h: number;
  /** Block of queries, its row of runs, and how many blocks of keys it visits. */
  readonly i: number;
  readonly row: number;
  readonly weight: number;
}

/**
 * Writes the items of a forward pass and returns their address and number. Items that read the same keys follow each
 * other, so that K and V stay in the cache; among them, and among key heads, the heaviest come first.
 */
export function writeQueryItems(
  problem: Problem,
  blockQ: number,
  blockK: number,
  at: Addresses,
  heap: Heap,
): { items: number; count: number } {
  const { B, Hq, Hkv, strides, dtype } = problem;
  const bytes = BYTES[dtype];
  const found = blockRuns(problem, 'q', blockQ, blockK);
  const runs = writeRuns(heap, found);
  const group = Hq / Hkv;
  const shares: { weight: number; pieces: Piece[] }[] = [];
  for (let b = 0; b < B; b++) {
    const blocks = ceilDiv(lengthsOf(problem, b).lenQ, blockQ);
    for (let kvHead = 0; kvHead < Hkv; kvHead++) {
      const pieces: Piece[] = [];
      for (let h = kvHead * group; h < (kvHead + 1) * group; h++)
        for (let i = 0; i < blocks; i++) {
          const row = found.rowOf(b, h, i);
          pieces.push({ b, h, i, row, weight: weightOf(found, row) });
        }
      pieces.sort((x, y) => y.weight - x.weight);
      shares.push({ weight: pieces.reduce((sum, p) => sum + p.weight, 0), pieces });
    }
  }
  shares.sort((x, y) => y.weight - x.weight);
  const pieces = shares.flatMap((share) => share.pieces);
  const items = heap.allocate(Math.max(pieces.length, 1) * ITEM.bytes);
  pieces.forEach(({ b, h, i, row }, n) => {
    const { lenQ, lenK } = lengthsOf(problem, b);
    const q0 = i * blockQ;
    const qStart = problem.sequences[4 * b];
    const kvHead = Math.floor(h / group);
    const [kb, kStart] = problem.kv.kind === 'paged' ? [0, 0] : [b, problem.sequences[4 * b + 2]];
    ITEM.write(heap, items + n * ITEM.bytes, {
      q: at.q + rowBytes(strides.q, bytes, b, h, qStart + q0),
      k: at.k + rowBytes(strides.k, bytes, kb, kvHead, kStart),
      v: at.v + rowBytes(strides.v, bytes, kb, kvHead, kStart),
      out: at.out + rowBytes(strides.out, bytes, b, h, qStart + q0),
      lse: at.lse + rowBytes(strides.lse, 4, b, h, qStart + q0),
      b,
      h,
      q0,
      rows: Math.min(blockQ, lenQ - q0),
      lenQ,
      lenK,
      runs: runs + 12 * found.rowStart[row],
      count: found.count(row),
      first: 0,
      last: 0,
      part: 0,
    });
  });
  return { items, count: pieces.length };
}

/** Emits a loop over the blocks of an item's runs. */
export function forBlocks(
  f: FuncBuilder,
  item: Local<'i32'>,
  body: (block: Local<'i32'>, partial: Local<'i32'>) => void,
): void {
  const run = f.let(ITEM.i32(item, 'runs'), 'run');
  f.for(
    0,
    f.let(ITEM.i32(item, 'count'), 'count'),
    1,
    () => {
      const end = f.let(i32.load(run, 4), 'end');
      const partial = f.let(i32.load(run, 8), 'partial');
      f.for(i32.load(run), end, 1, (block) => body(block, partial), 'block');
      f.bump(run, 12);
    },
    'n',
  );
}

/** The lesser of two values, signed. */
export const minimum = (f: FuncBuilder, a: I32, b: I32): I32 => {
  const [x, y] = [f.let(a), f.let(b)];
  return select(i32.lt_s(x, y), x, y);
};
