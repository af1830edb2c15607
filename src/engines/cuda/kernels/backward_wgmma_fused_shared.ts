/**
 * The five-product backward of Hopper, as data. A block of threads owns 128 keys, two warpgroups with 64 each, and walks the
 * queries that attend to them:
 *
 *     S^T = K Q^T    dP^T = V dOut^T    dV += P^T dOut    dK += dS^T Q    dQ' = dS K
 *
 * dQ' of a step, for all 128 keys, is 64 x 64 floats a warpgroup. It goes through shared memory to a scratch tile in global
 * memory, where the blocks of threads add one after the other.
 */
import type { Assembler } from '../ptx/assembler.ts';
import { BARRIER_BYTES, type Barriers } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { PANEL_BYTES } from '../ptx/wgmma.ts';
import { panels } from './forward_wgmma_shared.ts';
import type { Spec } from './spec.ts';

/** Warpgroups that compute, and the keys of a block of threads. */
export const GROUPS = 2;
export const KEYS: number = GROUPS * 64;
/** Threads that compute. */
export const COMPUTERS: number = GROUPS * 128;
/** Bytes of a warpgroup's part of a scratch tile: 64 x 64 floats. */
export const PART_BYTES = 16384;
export const SCRATCH_BYTES: number = GROUPS * PART_BYTES;

export interface FusedConfig extends Readonly<Record<string, number | string | boolean>> {
  /** Queries of a step: 64 for wide heads, 128 for heads up to 64. */
  readonly queries: number;
  /** Buffers for queries, and for output gradients. */
  readonly qStages: number;
  readonly doStages: number;
  /** Warps that take turns bringing dQ to global memory. */
  readonly writers: number;
  /** Whether lse2 is read before the products that need it are queued. */
  readonly early: boolean;
  /** Whether the next step's note is read before dQ of this one is put down, or after it. */
  readonly ahead: boolean;
  /** Whether dV of a step is queued before its dS is worked out. */
  readonly overlap: boolean;
  /** Registers of a thread that computes: 232 or 240. */
  readonly registers: number;
  /** Whether blocks of threads add to dQ in a fixed order. Without it sums differ from run to run in their last bits. */
  readonly ordered: boolean;
  /** Whether the last block of keys is not full. */
  readonly ragged: boolean;
  /** Heads whose tiles are mixed; 0 leaves the choice to the launch. */
  readonly section: number;
}

/**
 * Byte offsets in the note about a step: first query, whether positions may be masked, query head, end of the tile; scratch
 * tile, place in its order of sums.
 */
export const NOTE = { column: 0, edge: 4, head: 8, end: 12, tile: 16, rank: 20, bytes: 32 } as const;
/** Byte offsets in the note about a tile of keys. */
export const ROWS = { row0: 0, h: 4, b: 8, bytes: 16 } as const;
/** Byte offsets in the note about dQ of a step; barriers lie beside it: that its turn is asked for, and that it is there. */
export const SUM = { tile: 0, rank: 4, asked: 8, full: 16, bytes: 32 } as const;

export interface FusedLayout {
  readonly k: Reg<'b32'>;
  readonly v: Reg<'b32'>;
  readonly q: Reg<'b32'>;
  readonly dOut: Reg<'b32'>;
  /** dS^T: 128 keys by `queries`, in panels of 64 queries; two buffers. */
  readonly dS: Reg<'b32'>;
  /** dQ' of a step, one part after the other; notes about it are by writer. */
  readonly dQ: Reg<'b32'>;
  /** lse2, then delta, of a step's queries, beside every buffer of Q. */
  readonly stats: Reg<'b32'>;
  readonly bytes: {
    readonly k: number;
    readonly v: number;
    readonly q: number;
    readonly dOut: number;
    readonly dS: number;
    readonly stats: number;
  };
  readonly rowsFull: Reg<'b32'>;
  readonly rowsEmpty: Reg<'b32'>;
  readonly rowsNote: Reg<'b32'>;
  readonly qFull: Reg<'b32'>;
  readonly qEmpty: Reg<'b32'>;
  readonly note: Reg<'b32'>;
  readonly doFull: Reg<'b32'>;
  readonly doEmpty: Reg<'b32'>;
  readonly dqEmpty: Reg<'b32'>;
  readonly sumNote: Reg<'b32'>;
  /** A word a key: not zero where its row held NaN or infinity. */
  readonly wild: Reg<'b32'>;
  readonly barriers: readonly Barriers[];
}

export function layoutOfFused(asm: Assembler, spec: Spec, config: FusedConfig): FusedLayout {
  const { queries, qStages, doStages, writers } = config;
  const place = (name: string, bytes: number, align: number): Reg<'b32'> =>
    asm.sharedAddress(asm.shared(name, bytes, align));
  const of = (rows: number, columns: number): number => rows * panels(columns) * PANEL_BYTES;
  const bytes = {
    k: of(KEYS, spec.padD),
    v: of(KEYS, spec.padDv),
    q: of(queries, spec.padD),
    dOut: of(queries, spec.padDv),
    dS: of(KEYS, queries),
    stats: queries * 8,
  };
  asm.stage('shared memory');
  const data = {
    k: place('k', bytes.k, 1024),
    v: place('v', bytes.v, 1024),
    q: place('q', bytes.q * qStages, 1024),
    dOut: place('dOut', bytes.dOut * doStages, 1024),
    dS: place('dS', bytes.dS * 2, 1024),
    dQ: place('dQ', SCRATCH_BYTES, 1024),
    stats: place('lse2, delta', bytes.stats * qStages, 16),
    wild: place('wild', KEYS * 4, 16),
    rowsNote: place('rows note', ROWS.bytes, 16),
    note: place('note', NOTE.bytes * qStages, 16),
    sumNote: place('sum note', SUM.bytes * writers, 16),
    rowsFull: place('rows full', BARRIER_BYTES, 8),
    rowsEmpty: place('rows empty', BARRIER_BYTES, 8),
    qFull: place('q full', BARRIER_BYTES * qStages, 8),
    qEmpty: place('q empty', BARRIER_BYTES * qStages, 8),
    doFull: place('dOut full', BARRIER_BYTES * doStages, 8),
    doEmpty: place('dOut empty', BARRIER_BYTES * doStages, 8),
    dqEmpty: place('dQ empty', BARRIER_BYTES, 8),
  };
  const offsets = (count: number, stride: number = BARRIER_BYTES, first = 0): number[] =>
    Array.from({ length: count }, (_, i) => first + i * stride);
  const warps = GROUPS * 4;
  return {
    ...data,
    bytes,
    barriers: [
      { address: data.rowsFull, offsets: [0], count: 1 },
      { address: data.rowsEmpty, offsets: [0], count: warps },
      { address: data.qFull, offsets: offsets(qStages), count: 1 },
      { address: data.qEmpty, offsets: offsets(qStages), count: warps },
      { address: data.doFull, offsets: offsets(doStages), count: 1 },
      { address: data.doEmpty, offsets: offsets(doStages), count: warps },
      { address: data.sumNote, offsets: offsets(writers, SUM.bytes, SUM.asked), count: 1 },
      { address: data.sumNote, offsets: offsets(writers, SUM.bytes, SUM.full), count: warps },
      { address: data.dqEmpty, offsets: [0], count: 1 },
    ],
  };
}
