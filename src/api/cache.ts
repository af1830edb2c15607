/** Keys and values of sequences that grow, kept in an engine between calls of `attentionDecode`. */
import type { FloatDType } from '../core/dtype.ts';
import { BYTES, isFloat } from '../core/dtype.ts';
import { ArgumentError, DisposedError } from '../core/errors.ts';
import type { Engine, EngineTensor } from '../engine/contract.ts';
import { type KvStorage, type Layout, MAX_HEAD, type Strides } from '../problem/problem.ts';
import { densePlacement, PagedPlacement, type Placement } from './pages.ts';
import { checkLayout } from './request.ts';
import { Arena } from './run.ts';
import { checkTensor, type Tensor } from './tensors.ts';

/** Sizes of a cache. Exactly one of `capacity` and `paged` is given. */
export interface KvCacheOptions {
  /** Sequences that are there from the start, each of length 0, numbered from 0. */
  readonly B: number;
  /** Most sequences at a time, for `add` and `fork`; B by default. */
  readonly maxSequences?: number;
  readonly Hkv: number;
  readonly D: number;
  /** D by default. */
  readonly Dv?: number;
  readonly dtype?: FloatDType;
  /** Axes of what is appended and of queries; [B, H, S, D] by default. Storage has a layout of its own. */
  readonly layout?: Layout;
  /** Dense: most rows of each sequence. */
  readonly capacity?: number;
  /** Paged: a pool of `pages` pages of `pageSize` rows that all sequences share. */
  readonly paged?: { readonly pageSize: number; readonly pages: number };
}

/** Which sequences grow, and by how much. */
export interface AppendOptions {
  /** Which sequence each row of the batch belongs to; by default all that are alive, in order. */
  readonly sequences?: readonly number[];
  /** How many of the new rows count, a sequence; by default all. */
  readonly lengths?: readonly number[];
}

/** Rows to copy: number of the first in the source, in the target, and how many. */
type Piece = readonly [source: number, target: number, rows: number];

/** Where decode finds the rows of some sequences. */
export interface CacheView {
  readonly k: EngineTensor;
  readonly v: EngineTensor;
  readonly strides: { readonly k: Strides; readonly v: Strides };
  /** Row number of each sequence's first key. */
  readonly starts: readonly number[];
  readonly lengths: readonly number[];
  readonly kv: KvStorage;
}

/**
 * A KV cache, dense (`capacity` rows a sequence) or paged (a shared pool; forks share pages and copy one when they write).
 * Await a call of `attentionDecode` before freeing or truncating the sequences it reads, whose rows may be used again at once.
 *
 * @example
 * const cache = KvCache.create(engine, { B: 2, Hkv: 8, D: 64, capacity: 4096 });
 * cache.append(k, v); // [2, 8, n, 64] each
 * const { out } = await attentionDecode(q, cache); // q [2, Hq, 1, 64]
 * cache.dispose();
 */
export class KvCache {
  readonly engine: Engine;
  readonly dtype: FloatDType;
  readonly layout: Layout;
  readonly Hkv: number;
  readonly D: number;
  readonly Dv: number;
  readonly #k: EngineTensor;
  readonly #v: EngineTensor;
  readonly #place: Placement;
  /** Length of each slot's sequence; null when there is none. */
  readonly #lengths: (number | null)[];
  #disposed = false;

  /** @throws ArgumentError for sizes that make no sense, MemoryError when the storage does not fit. */
  static create(engine: Engine, options: KvCacheOptions): KvCache {
    return new KvCache(engine, options);
  }

  private constructor(engine: Engine, options: KvCacheOptions) {
    const { B, Hkv, D, Dv = D, dtype = 'f32', maxSequences = B, capacity, paged } = options;
    const positive = (name: string, n: unknown, most = 2 ** 31 - 1): number => {
      if (typeof n !== 'number' || !Number.isInteger(n) || n < 1 || n > most)
        throw new ArgumentError(name, `an integer from 1 to ${most}`, n);
      return n;
    };
    for (const [name, n] of Object.entries({ B, Hkv })) positive(name, n);
    for (const [name, n] of Object.entries({ D, Dv })) positive(name, n, MAX_HEAD);
    if (!Object.hasOwn(BYTES, dtype) || !isFloat(dtype))
      throw new ArgumentError('dtype', 'f32, f16, bf16 or f64', dtype);
    if (positive('maxSequences', maxSequences) < B)
      throw new ArgumentError('maxSequences', `at least B = ${B}`, maxSequences);
    if ((capacity === undefined) === (paged === undefined))
      throw new ArgumentError('capacity', 'either capacity or paged', { capacity, paged });
    this.engine = engine;
    this.layout = checkLayout(options.layout);
    [this.dtype, this.Hkv, this.D, this.Dv] = [dtype, Hkv, D, Dv];
    this.#place =
      paged === undefined
        ? densePlacement(maxSequences, positive('capacity', capacity))
        : new PagedPlacement(
            maxSequences,
            positive('paged.pages', paged.pages),
            positive('paged.pageSize', paged.pageSize),
          );
    this.#lengths = Array.from({ length: maxSequences }, (_, i) => (i < B ? 0 : null));
    const { blocks, rowsPerBlock } = this.#place;
    const elements = blocks * Hkv * rowsPerBlock * Math.max(D, Dv);
    if (elements >= 2 ** 31) throw new ArgumentError('capacity', 'storage of fewer than 2^31 elements', elements);
    this.#k = engine.allocate(dtype, [blocks, Hkv, rowsPerBlock, D]);
    try {
      this.#v = engine.allocate(dtype, [blocks, Hkv, rowsPerBlock, Dv]);
    } catch (error) {
      this.#k.dispose();
      throw error;
    }
  }

  /** Numbers of the sequences that are alive, in order. */
  get sequences(): readonly number[] {
    return this.#lengths.flatMap((n, slot) => (n === null ? [] : [slot]));
  }

  /** Length of each sequence that is alive, in order. */
  get lengths(): readonly number[] {
    return this.#lengths.filter((n) => n !== null);
  }

  /** Rows that sequences can still grow by: each of them when dense, all together (in pages nobody uses) when paged. */
  get freeRows(): number {
    return this.#place.freeRows(this.lengths);
  }

  /**
   * Adds rows at the end of sequences: k [n, Hkv, S, D], v [n, Hkv, S, Dv] (or [n, S, Hkv, ..], by the cache's layout).
   * Host tensors are copied in; engine tensors are copied within the engine and stay the caller's.
   *
   * @throws ArgumentError when shapes disagree or there is no room; no sequence has grown then.
   */
  append(k: Tensor, v: Tensor, options: AppendOptions = {}): void {
    this.#mustLive();
    const slots = this.resolve(options.sequences);
    const [n, S] = this.#checkRows(k, v, slots.length);
    const counts = options.lengths ?? slots.map(() => S);
    if (counts.length !== n) throw new ArgumentError('lengths', `${n} lengths`, counts.length);
    for (const count of counts)
      if (!Number.isInteger(count) || count < 0 || count > S)
        throw new ArgumentError('lengths', `integers from 0 to ${S}`, [...counts]);
    const before = slots.map((slot) => this.#lengths[slot] as number);
    const arena = new Arena(this.engine);
    try {
      const [ek, ev] = [arena.resident('k', k), arena.resident('v', v)];
      const blocks = this.#place.grow(slots, before, counts);
      this.#copyBlocks(blocks);
      const pieces = slots.flatMap((slot, i) => this.#pieces(slot, before[i], counts[i], i, S));
      this.#copyRows(ek, this.#k, pieces, this.D);
      this.#copyRows(ev, this.#v, pieces, this.Dv);
    } finally {
      arena.release();
    }
    slots.forEach((slot, i) => {
      this.#lengths[slot] = before[i] + counts[i];
    });
  }

  /**
   * A new sequence without rows; its number.
   *
   * @throws ArgumentError when `maxSequences` are alive already.
   */
  add(): number {
    this.#mustLive();
    const slot = this.#vacant();
    this.#lengths[slot] = 0;
    return slot;
  }

  /**
   * A new sequence with the rows of another; its number. Paged caches share pages until one of the two grows, dense ones copy.
   *
   * @throws ArgumentError when `maxSequences` are alive already.
   */
  fork(sequence: number): number {
    this.#mustLive();
    const [from] = this.resolve([sequence]);
    const to = this.#vacant();
    const length = this.#lengths[from] as number;
    if (!this.#place.fork(from, to, length) && length > 0) {
      const { Hkv } = this;
      const rows = this.#place.rowsPerBlock;
      const pieces = Array.from(
        { length: Hkv },
        (_, h): Piece => [(from * Hkv + h) * rows, (to * Hkv + h) * rows, length],
      );
      this.#copyRows(this.#k, this.#k, pieces, this.D);
      this.#copyRows(this.#v, this.#v, pieces, this.Dv);
    }
    this.#lengths[to] = length;
    return to;
  }

  /**
   * Drops a sequence's rows from `length` on: tokens that were drafted and not accepted, or all of it for `length` 0.
   *
   * @throws ArgumentError when it is not that long.
   */
  truncate(sequence: number, length: number): void {
    this.#mustLive();
    const [slot] = this.resolve([sequence]);
    const now = this.#lengths[slot] as number;
    if (!Number.isInteger(length) || length < 0 || length > now)
      throw new ArgumentError('length', `an integer from 0 to ${now}`, length);
    this.#place.shrink(slot, length);
    this.#lengths[slot] = length;
  }

  /** Ends a sequence: its rows, and its number, may be used again. */
  free(sequence: number): void {
    this.truncate(sequence, 0);
    this.#lengths[sequence] = null;
  }

  /** Frees the storage. Await the calls on it first. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#k.dispose();
    this.#v.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** The living sequences asked for, all by default. @throws ArgumentError */
  resolve(sequences: readonly number[] | undefined): readonly number[] {
    if (sequences === undefined) return this.sequences;
    for (const s of sequences)
      if (this.#lengths[s] === undefined || this.#lengths[s] === null)
        throw new ArgumentError('sequences', `numbers among [${this.sequences.join(', ')}]`, [...sequences]);
    if (new Set(sequences).size !== sequences.length)
      throw new ArgumentError('sequences', 'different numbers', [...sequences]);
    return sequences;
  }

  /** Where the rows of these sequences are now. */
  view(slots: readonly number[]): CacheView {
    this.#mustLive();
    const { Hkv, D, Dv } = this;
    const place = this.#place;
    const rows = place.rowsPerBlock;
    const lengths = slots.map((slot) => this.#lengths[slot] as number);
    const strides = (width: number): Strides => ({ b: Hkv * rows * width, h: rows * width, s: width });
    const view = { k: this.#k, v: this.#v, lengths };
    if (place instanceof PagedPlacement) {
      const kv: KvStorage = { kind: 'paged', pageSize: rows, ...place.table(slots) };
      return { ...view, strides: { k: strides(D), v: strides(Dv) }, starts: slots.map(() => 0), kv };
    }
    const kv: KvStorage = { kind: 'strided' };
    if (slots.every((slot, i) => slot === i))
      return { ...view, strides: { k: strides(D), v: strides(Dv) }, starts: slots.map(() => 0), kv };
    // Any other choice of slots: no batch stride, and each sequence starts as many rows in as there are before its slot.
    const free = { k: { ...strides(D), b: 0 }, v: { ...strides(Dv), b: 0 } };
    return { ...view, strides: free, starts: slots.map((slot) => slot * Hkv * rows), kv };
  }

  /** A number that no living sequence has. */
  #vacant(): number {
    const most = this.#lengths.length;
    const slot = this.#lengths.indexOf(null);
    if (slot < 0) throw new ArgumentError('sequence', `fewer than ${most} living sequences (maxSequences)`, most);
    return slot;
  }

  /** @returns sequences and rows each. */
  #checkRows(k: Tensor, v: Tensor, n: number): [number, number] {
    const { Hkv, layout } = this;
    for (const [name, t, width] of [['k', k, this.D] as const, ['v', v, this.Dv] as const]) {
      checkTensor(name, t);
      const S = layout === 'bhnd' ? k.shape[2] : k.shape[1];
      const wanted = layout === 'bhnd' ? [n, Hkv, S, width] : [n, S, Hkv, width];
      if (t.dtype !== this.dtype || t.shape.length !== 4 || t.shape.some((d, i) => d !== wanted[i]))
        throw new ArgumentError(name, `${this.dtype}[${wanted.map((d) => d ?? 'S').join(', ')}]`, t);
    }
    return [n, layout === 'bhnd' ? k.shape[2] : k.shape[1]];
  }

  /** One piece a head and block, or one a row where heads are interleaved. */
  #pieces(slot: number, from: number, count: number, i: number, S: number): Piece[] {
    const { Hkv, layout } = this;
    const size = this.#place.rowsPerBlock;
    const pieces: Piece[] = [];
    for (let done = 0; done < count; ) {
      const row = from + done;
      const n = Math.min(count - done, layout === 'bhnd' ? size - (row % size) : 1);
      const block = this.#place.blockOf(slot, row);
      for (let h = 0; h < Hkv; h++) {
        const source = layout === 'bhnd' ? (i * Hkv + h) * S + done : (i * S + done) * Hkv + h;
        pieces.push([source, (block * Hkv + h) * size + (row % size), n]);
      }
      done += n;
    }
    return pieces;
  }

  /** One copy for each length of pieces: runs of one copy are equally long. */
  #copyRows(source: EngineTensor, target: EngineTensor, pieces: readonly Piece[], width: number): void {
    for (const rows of new Set(pieces.map(([, , n]) => n))) {
      const same = pieces.filter(([, , n]) => n === rows);
      const pairs = new Int32Array(same.length * 2);
      same.forEach(([from, to], i) => {
        pairs[2 * i] = from * width;
        pairs[2 * i + 1] = to * width;
      });
      this.engine.copy(source, target, { pairs, length: rows * width });
    }
  }

  #copyBlocks(blocks: readonly (readonly [number, number])[]): void {
    if (blocks.length === 0) return;
    const size = this.#place.rowsPerBlock * this.Hkv;
    for (const [t, width] of [[this.#k, this.D] as const, [this.#v, this.Dv] as const]) {
      const pairs = Int32Array.from(blocks.flatMap(([from, to]) => [from * size * width, to * size * width]));
      this.engine.copy(t, t, { pairs, length: size * width });
    }
  }

  #mustLive(): void {
    if (this.#disposed) throw new DisposedError('KvCache');
  }
}
