/**
 * One program of the Hopper backward, as data. A block of threads owns `rows` queries (dQ) or keys (dK, dV) and walks the
 * other side in blocks of columns. With A1, A2 the resident operands and B1, B2 those that stream by:
 *
 *     rows     A1 A2      B1 B2      S = A1 B1^T, dP = A2 B2^T; then
 *     q        Q  dOut    K  V       dQ += dS B1
 *     kv       K  V       Q  dOut    dK += dS B1, dV += P B2
 */
import type { Assembler } from '../ptx/assembler.ts';
import { BARRIER_BYTES, type Barriers } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { PANEL_BYTES } from '../ptx/wgmma.ts';
import { FOUND_BYTES, panels, SCANNERS } from './forward_wgmma_shared.ts';
import type { Spec } from './spec.ts';

export interface Part {
  readonly rows: 'q' | 'kv';
  /** dQ, or dK. */
  readonly first: boolean;
  /** dV. */
  readonly second: boolean;
}

export interface PartTile {
  /** Warpgroups that compute, 64 rows each. */
  readonly groups: number;
  /** Columns of a step. */
  readonly block: number;
  readonly stages: number;
}

/** Byte offsets in the note about a step: first column, whether positions may be masked, query head, end of the tile. */
export const STEP = { column: 0, edge: 4, head: 8, end: 12, bytes: 16 } as const;
/** Byte offsets in the note about a tile of rows. */
export const ROWS = { row0: 0, h: 4, b: 8, bytes: 16 } as const;

export interface PartLayout {
  readonly a1: Reg<'b32'>;
  readonly a2: Reg<'b32'>;
  readonly b1: Reg<'b32'>;
  readonly b2: Reg<'b32'>;
  /** Bytes of one operand. */
  readonly bytes: { readonly a1: number; readonly a2: number; readonly b1: number; readonly b2: number };
  /** lse2, then delta, of a step's queries, when columns are queries. */
  readonly stats: Reg<'b32'>;
  readonly statBytes: number;
  readonly rowsFull: Reg<'b32'>;
  readonly rowsEmpty: Reg<'b32'>;
  readonly rowsNote: Reg<'b32'>;
  readonly full: Reg<'b32'>;
  readonly empty: Reg<'b32'>;
  readonly note: Reg<'b32'>;
  /** Masked keys may be NaN: then scanners look at edge blocks of B1. */
  readonly scans: boolean;
  readonly scanned: Reg<'b32'>;
  readonly found: Reg<'b32'>;
  readonly barriers: readonly Barriers[];
}

export function layoutOfPart(asm: Assembler, spec: Spec, part: Part, tile: PartTile): PartLayout {
  const { groups, block, stages } = tile;
  const place = (name: string, bytes: number, align: number): Reg<'b32'> =>
    asm.sharedAddress(asm.shared(name, bytes, align));
  const of = (rows: number, columns: number): number => rows * panels(columns) * PANEL_BYTES;
  const bytes = {
    a1: of(groups * 64, spec.padD),
    a2: part.first ? of(groups * 64, spec.padDv) : 0,
    b1: of(block, spec.padD),
    b2: of(block, spec.padDv),
  };
  const columnStats = part.rows === 'kv';
  const statBytes = columnStats ? block * 8 : 0;
  const scans = part.rows === 'q' && spec.mask !== null;
  const warps = groups * 4;
  asm.stage('shared memory');
  const data = {
    a1: place('a1', bytes.a1, 1024),
    a2: place('a2', bytes.a2, 1024),
    b1: place('b1', bytes.b1 * stages, 1024),
    b2: place('b2', bytes.b2 * stages, 1024),
    stats: place('lse2, delta', statBytes * stages, 16),
    rowsFull: place('rows full', BARRIER_BYTES, 8),
    rowsEmpty: place('rows empty', BARRIER_BYTES, 8),
    full: place('full', BARRIER_BYTES * stages, 8),
    empty: place('empty', BARRIER_BYTES * stages, 8),
    scanned: place('scanned', BARRIER_BYTES * stages, 8),
    rowsNote: place('rows note', ROWS.bytes, 16),
    note: place('note', STEP.bytes * stages, 16),
    found: place('found', FOUND_BYTES * stages, 16),
  };
  const offsets = Array.from({ length: stages }, (_, i) => i * BARRIER_BYTES);
  return {
    ...data,
    bytes,
    statBytes,
    scans,
    barriers: [
      { address: data.rowsFull, offsets: [0], count: 1 },
      { address: data.rowsEmpty, offsets: [0], count: warps },
      // One thread's copies, and the copies of every lane of its warp.
      { address: data.full, offsets, count: columnStats ? 33 : 1 },
      { address: data.empty, offsets, count: warps + (scans ? SCANNERS : 0) },
      { address: data.scanned, offsets, count: SCANNERS },
    ],
  };
}
