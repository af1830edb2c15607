/**
 * Where the rows of a KV cache are. Storage is head-major, [slots or pages, Hkv, rows, D], so that the rows of a head are
 * next to each other for the kernel that reads them, and an append is one piece a head (and page).
 */
import { ArgumentError } from '../core/errors.ts';
import { ceilDiv } from '../core/math.ts';

/** Rows are counted over the whole storage tensor; multiply by D or Dv for elements. */
export interface Placement {
  /** First axis of the storage tensors, and rows a head has there. */
  readonly blocks: number;
  readonly rowsPerBlock: number;
  /** Rows that sequences of these lengths can still grow by: all together where they share a pool, else each of them. */
  freeRows(lengths: readonly number[]): number;
  /**
   * Makes rows [length, length + count) of every slot writable, all or none. Returns whole blocks to copy first (source,
   * target), because a sequence may not write into rows it shares.
   *
   * @throws ArgumentError when there is no room; nothing has changed then.
   */
  grow(slots: readonly number[], lengths: readonly number[], counts: readonly number[]): readonly [number, number][];
  /** Block of a slot's row. */
  blockOf(slot: number, row: number): number;
  /** Gives `to` the rows of `from`: true when they share them now, false when the caller has to copy them. */
  fork(from: number, to: number, length: number): boolean;
  /** Rows of a slot from `length` on are given back. */
  shrink(slot: number, length: number): void;
}

/** `slots` sequences of up to `capacity` rows each, in a block of their own. */
export function densePlacement(slots: number, capacity: number): Placement {
  return {
    blocks: slots,
    rowsPerBlock: capacity,
    freeRows: (lengths) => capacity - Math.max(0, ...lengths),
    grow(which, lengths, counts) {
      which.forEach((slot, i) => {
        if (lengths[i] + counts[i] > capacity)
          throw new ArgumentError('k', `at most ${capacity - lengths[i]} more rows in sequence ${slot}`, counts[i]);
      });
      return [];
    },
    blockOf: (slot) => slot,
    fork: () => false,
    shrink: () => undefined,
  };
}

/** A pool of pages that sequences take rows from as they grow; forks share pages until one of them writes. */
export class PagedPlacement implements Placement {
  readonly blocks: number;
  readonly rowsPerBlock: number;
  readonly #pages: number[][];
  readonly #users: Int32Array;
  readonly #free: number[];

  constructor(slots: number, pages: number, pageSize: number) {
    this.blocks = pages;
    this.rowsPerBlock = pageSize;
    this.#pages = Array.from({ length: slots }, () => []);
    this.#users = new Int32Array(pages);
    this.#free = Array.from({ length: pages }, (_, i) => pages - 1 - i);
  }

  freeRows(): number {
    return this.#free.length * this.rowsPerBlock;
  }

  /** Pages in use by nobody. */
  get freePages(): number {
    return this.#free.length;
  }

  grow(slots: readonly number[], lengths: readonly number[], counts: readonly number[]): [number, number][] {
    const size = this.rowsPerBlock;
    const last = (i: number): number => Math.floor(lengths[i] / size);
    // Several forks may share the page they all write to: all but the last of them need a copy.
    const users = new Map<number, number>();
    const splits = slots.map((slot, i) => {
      if (counts[i] === 0 || lengths[i] % size === 0) return false;
      const page = this.#pages[slot][last(i)];
      const left = users.get(page) ?? this.#users[page];
      if (left === 1) return false;
      users.set(page, left - 1);
      return true;
    });
    const fresh = slots.map((slot, i) => Math.max(ceilDiv(lengths[i] + counts[i], size) - this.#pages[slot].length, 0));
    const needed = fresh.reduce((sum, n, i) => sum + n + Number(splits[i]), 0);
    if (needed > this.#free.length)
      throw new ArgumentError(
        'k',
        `rows that fit in ${this.#free.length} free pages of ${size} rows`,
        `${needed} pages`,
      );
    const copies: [number, number][] = [];
    slots.forEach((slot, i) => {
      const pages = this.#pages[slot];
      if (splits[i]) {
        const shared = pages[last(i)];
        this.#users[shared]--;
        pages[last(i)] = this.#take();
        copies.push([shared, pages[last(i)]]);
      }
      for (let n = 0; n < fresh[i]; n++) pages.push(this.#take());
    });
    return copies;
  }

  blockOf(slot: number, row: number): number {
    return this.#pages[slot][Math.floor(row / this.rowsPerBlock)];
  }

  fork(from: number, to: number, length: number): boolean {
    this.#pages[to] = this.#pages[from].slice(0, ceilDiv(length, this.rowsPerBlock));
    for (const page of this.#pages[to]) this.#users[page]++;
    return true;
  }

  shrink(slot: number, length: number): void {
    const pages = this.#pages[slot].splice(ceilDiv(length, this.rowsPerBlock));
    for (const page of pages) if (--this.#users[page] === 0) this.#free.push(page);
  }

  /** Page table of some slots: a row of `maxPages` each, zero where there is no page. */
  table(slots: readonly number[]): { readonly maxPages: number; readonly table: Int32Array } {
    const longest = slots.reduce((n, slot) => Math.max(n, this.#pages[slot].length), 1);
    // Rounded up, so that growing sequences do not change it at every page.
    const maxPages = 2 ** Math.ceil(Math.log2(longest));
    const table = new Int32Array(slots.length * maxPages);
    slots.forEach((slot, i) => {
      table.set(this.#pages[slot], i * maxPages);
    });
    return { maxPages, table };
  }

  #take(): number {
    const page = this.#free.pop() as number;
    this.#users[page] = 1;
    return page;
  }
}
