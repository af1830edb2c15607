/**
 * The engine's memory: one WebAssembly.Memory, grown on demand, and a best-fit allocator over it. Addresses are bytes;
 * address 0 is never handed out, and SLACK bytes past the last block are always readable.
 */

import { DeviceError, MemoryError } from '../../core/errors.ts';
import { alignTo, ceilDiv } from '../../core/math.ts';
import type { Heap } from './kernel.ts';

const PAGE = 65536;
const ALIGN = 64;
/** Kernels load whole vectors, which may reach past the last row of a block. */
const SLACK = 128;
/** Growth step in pages: growing is a system call, and on a non-shared memory it replaces every view. */
const STEP = 16;
/** What a guard holds: a NaN as float, so that a kernel that reads it shows. */
const GUARD = 0x7fc0dead;

/** The most a 32-bit memory can have, in bytes. */
export const MAX_MEMORY: number = 65536 * PAGE;

export interface HeapOptions {
  readonly shared: boolean;
  /** Most bytes the memory may have, rounded up to pages of 64 KiB. */
  readonly limit: number;
  /** Puts 64 known bytes on both sides of every block and checks them on `free`: for tests. */
  readonly guards: boolean;
}

interface Block {
  readonly start: number;
  readonly size: number;
}

export class WasmHeap implements Heap {
  readonly memory: WebAssembly.Memory;
  readonly limit: number;
  /** Bytes handed out and not freed, as they were asked for. */
  bytesInUse = 0;
  readonly #guards: boolean;
  /** Gaps by ascending address, never two adjacent. */
  readonly #gaps: Block[] = [];
  /** Live blocks by the address handed out. */
  readonly #live = new Map<number, Block & { readonly asked: number }>();
  /** End of what the allocator manages. */
  #end = ALIGN;
  #i32: Int32Array;
  #f32: Float32Array;

  /** @throws DeviceError when the host grants no memory at all. */
  constructor(options: HeapOptions) {
    const pages = Math.max(1, Math.min(65536, ceilDiv(options.limit, PAGE)));
    const reserved = reserve(options.shared, pages);
    this.memory = reserved.memory;
    this.limit = reserved.pages * PAGE;
    this.#guards = options.guards;
    this.#i32 = new Int32Array(this.memory.buffer);
    this.#f32 = new Float32Array(this.memory.buffer);
    this.#adopt();
  }

  get i32(): Int32Array {
    this.#refresh();
    return this.#i32;
  }

  get f32(): Float32Array {
    this.#refresh();
    return this.#f32;
  }

  allocate(bytes: number): number {
    const margin = this.#guards ? ALIGN : 0;
    const size = Math.max(ALIGN, alignTo(bytes, ALIGN)) + 2 * margin;
    let best = this.#bestGap(size);
    if (best < 0) {
      this.#grow(bytes, size);
      best = this.#bestGap(size);
    }
    const gap = this.#gaps[best];
    if (gap.size === size) this.#gaps.splice(best, 1);
    else this.#gaps[best] = { start: gap.start + size, size: gap.size - size };
    const address = gap.start + margin;
    this.#live.set(address, { start: gap.start, size, asked: bytes });
    this.bytesInUse += bytes;
    if (this.#guards) for (const word of guardWords(gap.start, size)) this.i32[word] = GUARD;
    return address;
  }

  /** @throws DeviceError when a guard of the block was overwritten (`guards` only), or nothing was allocated there. */
  free(address: number): void {
    const block = this.#live.get(address);
    if (block === undefined) throw new DeviceError('wasm', `address ${address} was freed without being allocated`);
    this.#live.delete(address);
    this.bytesInUse -= block.asked;
    this.#release(block);
    if (!this.#guards) return;
    for (const word of guardWords(block.start, block.size))
      if (this.i32[word] !== GUARD)
        throw new DeviceError('wasm', `a write at ${word * 4 - address} bytes from a block of ${block.asked} bytes`);
  }

  /** Bytes of the largest block that can still be allocated. */
  get available(): number {
    const last = this.#gaps.at(-1);
    const tail = last !== undefined && last.start + last.size === this.#end ? last.size : 0;
    const largest = this.#gaps.reduce((most, gap) => Math.max(most, gap.size), 0);
    return Math.max(largest, tail + this.limit - SLACK - this.#end);
  }

  #bestGap(size: number): number {
    let best = -1;
    for (let i = 0; i < this.#gaps.length; i++) {
      const found = this.#gaps[i].size;
      if (found >= size && (best < 0 || found < this.#gaps[best].size)) best = i;
      if (found === size) break;
    }
    return best;
  }

  /** Makes a gap of `size` bytes at the end. */
  #grow(asked: number, size: number): void {
    const last = this.#gaps.at(-1);
    const tail = last !== undefined && last.start + last.size === this.#end ? last.size : 0;
    const have = this.#end + SLACK;
    const need = ceilDiv(size - tail, PAGE);
    const room = (this.limit - have) / PAGE;
    if (need > room) throw new MemoryError('wasm', asked, this.available);
    // The host may refuse before the limit; then the exact need is tried before giving up.
    for (const pages of [Math.min(room, alignTo(need, STEP)), need]) {
      try {
        this.memory.grow(pages);
        this.#adopt();
        return;
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
      }
    }
    throw new MemoryError('wasm', asked, this.available);
  }

  /** Takes what the memory has beyond `#end`, less the readable margin, as a gap. */
  #adopt(): void {
    const end = this.memory.buffer.byteLength - SLACK;
    const fresh = { start: this.#end, size: end - this.#end };
    this.#end = end;
    if (fresh.size > 0) this.#release(fresh);
  }

  /** Puts a block among the gaps, joined with its neighbours. */
  #release(block: Block): void {
    let lo = 0;
    let hi = this.#gaps.length;
    while (lo < hi) {
      const mid = (lo + hi) >>> 1;
      if (this.#gaps[mid].start < block.start) lo = mid + 1;
      else hi = mid;
    }
    let { start, size } = block;
    let from = lo;
    let count = 0;
    const left = this.#gaps[lo - 1];
    const right = this.#gaps[lo];
    if (left !== undefined && left.start + left.size === start) {
      start = left.start;
      size += left.size;
      from--;
      count++;
    }
    if (right !== undefined && block.start + block.size === right.start) {
      size += right.size;
      count++;
    }
    this.#gaps.splice(from, count, { start, size });
  }

  #refresh(): void {
    const { buffer } = this.memory;
    if (this.#i32.buffer === buffer) return;
    this.#i32 = new Int32Array(buffer);
    this.#f32 = new Float32Array(buffer);
  }
}

/** What one run allocates, freed together when it ends. */
export class Workspace implements Heap {
  readonly #heap: WasmHeap;
  readonly #held: number[] = [];

  constructor(heap: WasmHeap) {
    this.#heap = heap;
  }

  allocate(bytes: number): number {
    const address = this.#heap.allocate(bytes);
    this.#held.push(address);
    return address;
  }

  get i32(): Int32Array {
    return this.#heap.i32;
  }

  get f32(): Float32Array {
    return this.#heap.f32;
  }

  release(): void {
    for (const address of this.#held.splice(0)) this.#heap.free(address);
  }
}

/** A memory that may grow to `pages`, or to as much as the host reserves for a shared one. */
function reserve(shared: boolean, pages: number): { memory: WebAssembly.Memory; pages: number } {
  const initial = Math.min(STEP, pages);
  for (let maximum = pages; ; maximum = Math.floor(maximum / 2)) {
    try {
      return { memory: new WebAssembly.Memory({ initial, maximum, shared }), pages: maximum };
    } catch (cause) {
      if (!(cause instanceof RangeError) || maximum / 2 < initial)
        throw new DeviceError('wasm', `the host gives no memory of ${initial} pages`, { cause });
    }
  }
}

/** Word indices of a block's two guards. */
function guardWords(start: number, size: number): number[] {
  const words: number[] = [];
  for (let i = 0; i < ALIGN / 4; i++) words.push(start / 4 + i, (start + size) / 4 - ALIGN / 4 + i);
  return words;
}
