/** What the warpgroups of the Hopper forward share: buffers, barriers, and the notes that travel with each buffer. */
import type { Assembler } from '../ptx/assembler.ts';
import { BARRIER_BYTES } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { PANEL, PANEL_BYTES } from '../ptx/wgmma.ts';
import type { HopperForwardConfig } from './forward_wgmma.ts';
import type { Spec } from './spec.ts';

/** Warps that look through values for NaN and infinity. */
export const SCANNERS = 3;

/** Word offsets of the note about a tile of queries, written before its Q arrives. */
export const TILE = { q0: 0, h: 4, b: 8, keys: 12, lenQ: 16, lenK: 20, qStart: 24, kStart: 28, bytes: 32 } as const;
/** Word offsets of the note about a block of keys, written before its K (or V) arrives. */
export const BLOCK = { kv0: 0, edge: 4, last: 8, bytes: 16 } as const;
/** `q0`, or `kv0` of V, when there is no more work. */
export const STOP = -1;

/** Buffers with their barriers: `full` when copies have landed, `empty` when every reader is done. */
export interface Ring {
  readonly data: Reg<'b32'>;
  /** Bytes of one buffer. */
  readonly bytes: number;
  readonly full: Reg<'b32'>;
  readonly empty: Reg<'b32'>;
  readonly note: Reg<'b32'>;
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
  readonly barriers: readonly { address: Reg<'b32'>; offsets: readonly number[]; count: number }[];
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
  const data = {
    q: place('q', qBytes, 1024),
    k: place('k', kBytes * stages, 1024),
    v: place('v', vBytes * stages, 1024),
  };
  const around = (name: 'q' | 'k' | 'v', bytes: number, buffers: number, note: number): Ring => ({
    bytes,
    data: data[name],
    full: place(`${name} full`, BARRIER_BYTES * buffers, 8),
    empty: place(`${name} empty`, BARRIER_BYTES * buffers, 8),
    note: place(`${name} note`, note * buffers, 16),
  });
  const q = around('q', qBytes, 1, TILE.bytes);
  const k = around('k', kBytes, stages, BLOCK.bytes);
  const v = around('v', vBytes, stages, BLOCK.bytes);
  const scanned = place('v scanned', BARRIER_BYTES * stages, 8);
  const found = place('v found', FOUND_BYTES * stages, 16);
  const offsets = Array.from({ length: stages }, (_, i) => i * BARRIER_BYTES);
  return {
    q,
    k,
    v,
    scans,
    scanned,
    found,
    barriers: [
      { address: q.full, offsets: [0], count: 1 },
      { address: q.empty, offsets: [0], count: warps },
      { address: k.full, offsets, count: 1 },
      { address: k.empty, offsets, count: warps },
      { address: v.full, offsets, count: 1 },
      { address: v.empty, offsets, count: warps + (scans ? SCANNERS : 0) },
      { address: scanned, offsets, count: SCANNERS },
    ],
  };
}
