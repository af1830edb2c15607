/** What the warpgroups of the Hopper forward share: buffers, barriers, and the notes that travel with each buffer. */
import type { Assembler } from '../ptx/assembler.ts';
import { BARRIER_BYTES, type Barriers } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { PANEL, PANEL_BYTES } from '../ptx/wgmma.ts';
import type { HopperForwardConfig } from './forward_wgmma.ts';
import type { Spec } from './spec.ts';

/** Warps that look through values for NaN and infinity. */
export const SCANNERS = 3;

/**
 * Byte offsets in the note about a tile of queries, written before its Q arrives. Four notes are kept: while one tile is
 * stored the next is worked on, and at most two more are on their way.
 */
export const TILE = { q0: 0, h: 4, b: 8, lenQ: 12, lenK: 16, qStart: 20, kStart: 24, bytes: 32, kept: 4 } as const;
/** Byte offsets in the note about a block of keys, written before its K (or V) arrives. `tile` is a tile note's address. */
export const BLOCK = { kv0: 0, edge: 4, ends: 8, tile: 12, bytes: 16 } as const;
/** Bits of `ends`: the block is the first, or the last, of its tile. */
export const FIRST = 1;
export const LAST = 2;
/** `kv0` when there is no more work. */
export const STOP = -1;
/** Shared memory of a block on compute capability 9.0. */
const SHARED_BYTES = 227 * 1024;

/** Buffers with their barriers: `full` when copies have landed, `empty` when every reader is done. */
export interface Ring {
  readonly data: Reg<'b32'>;
  /** Bytes of one buffer. */
  readonly bytes: number;
  readonly full: Reg<'b32'>;
  readonly empty: Reg<'b32'>;
  readonly note: Reg<'b32'>;
  readonly buffers: number;
}

export interface SharedLayout {
  readonly q: Ring;
  readonly k: Ring;
  readonly v: Ring;
  /** Whether masked values could reach products: then the scanners look at edge blocks first. */
  readonly scans: boolean;
  /** Completed by the scanners, like `v.full`. */
  readonly scanned: Reg<'b32'>;
  /** By buffer, a word for each scanner: not zero when it found and cleared something. */
  readonly found: Reg<'b32'>;
  readonly barriers: readonly Barriers[];
}

export const FOUND_BYTES = 16;

export const panels = (columns: number): number => columns / PANEL;

export function layoutOf(asm: Assembler, spec: Spec, { groups, blockK, stages }: HopperForwardConfig): SharedLayout {
  const warps = groups * 4;
  // Copies put zeros past the end of a tensor. Rows of another sequence, or masked ones, may hold anything.
  const scans = spec.mask !== null || !spec.dense;
  const place = (name: string, bytes: number, align: number): Reg<'b32'> =>
    asm.sharedAddress(asm.shared(name, bytes, align));
  asm.stage('shared memory');
  const bytesOf = (rows: number, columns: number): number => rows * panels(columns) * PANEL_BYTES;
  const [qBytes, kBytes, vBytes] = [
    bytesOf(groups * 64, spec.padD),
    bytesOf(blockK, spec.padD),
    bytesOf(blockK, spec.padDv),
  ];
  // The next tile's queries arrive during this one where there is room.
  const rest = stages * (kBytes + vBytes) + 1024;
  const buffersQ = rest + 2 * qBytes <= SHARED_BYTES ? 2 : 1;
  const data = {
    q: place('q', qBytes * buffersQ, 1024),
    k: place('k', kBytes * stages, 1024),
    v: place('v', vBytes * stages, 1024),
  };
  const around = (name: 'q' | 'k' | 'v', bytes: number, buffers: number, notes: number): Ring => ({
    bytes,
    buffers,
    data: data[name],
    full: place(`${name} full`, BARRIER_BYTES * buffers, 8),
    empty: place(`${name} empty`, BARRIER_BYTES * buffers, 8),
    note: place(`${name} note`, notes, 16),
  });
  const q = around('q', qBytes, buffersQ, TILE.bytes * TILE.kept);
  const k = around('k', kBytes, stages, BLOCK.bytes * stages);
  const v = around('v', vBytes, stages, BLOCK.bytes * stages);
  const scanned = place('v scanned', BARRIER_BYTES * stages, 8);
  const found = place('v found', FOUND_BYTES * stages, 16);
  const offsets = Array.from({ length: Math.max(stages, 2) }, (_, i) => i * BARRIER_BYTES);
  const ofStages = offsets.slice(0, stages);
  return {
    q,
    k,
    v,
    scans,
    scanned,
    found,
    barriers: [
      { address: q.full, offsets: offsets.slice(0, buffersQ), count: 1 },
      { address: q.empty, offsets: offsets.slice(0, buffersQ), count: warps },
      { address: k.full, offsets: ofStages, count: 1 },
      { address: k.empty, offsets: ofStages, count: warps },
      { address: v.full, offsets: ofStages, count: 1 },
      { address: v.empty, offsets: ofStages, count: warps + (scans ? SCANNERS : 0) },
      { address: scanned, offsets: ofStages, count: SCANNERS },
    ],
  };
}
