/**
 * The five-product backward of Hopper for wide heads, as data. Two blocks of threads, a cluster, own 128 keys, 64 each, and
 * walk the queries that attend to them in steps of 64. A warpgroup for each purpose:
 *
 *     scores      S^T = K Q^T      P                        dV += P^T dOut
 *     gradients   dP^T = V dOut^T  dS = P (dP - delta)      dK += dS^T Q
 *     queries     dQ' = dS K, half of its columns in each block, for the keys of both
 *
 * P goes from the first to the second through shared memory, dS from the second to the third, and to the third of the other
 * block. dQ' goes from registers to a scratch tile in global memory, where clusters add one after the other.
 */
import type { Assembler } from '../ptx/assembler.ts';
import { BARRIER_BYTES, type Barriers } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { PANEL, PANEL_BYTES } from '../ptx/wgmma.ts';
import { PART_BYTES, SUM, TURN, WRITERS } from './backward_wgmma_sums.ts';

/** Columns of a head, zeros where it has fewer, their panels, and those of a half of dQ. */
export const COLUMNS = 256;
export const PANELS: number = COLUMNS / PANEL;
export const HALF: number = PANELS / 2;
/** Keys of a block of threads and queries of a step. */
export const ROWS = 64;
/** Keys of a cluster. */
export const PAIR_KEYS: number = 2 * ROWS;
/** Bytes of a panel of 64 rows, and of a whole operand. */
export const PANEL_SIZE: number = ROWS * PANEL_BYTES;
export const OPERAND_BYTES: number = PANELS * PANEL_SIZE;
/** P of a step in f16, as the threads hold it. */
export const P_BYTES: number = ROWS * ROWS * 2;
/** A scratch tile of dQ in f32: 64 x 64 floats for each panel of columns. */
export const TILE_BYTES: number = PANELS * PART_BYTES;
/** Words that count the sums of a scratch tile: one for each block, which has half of the columns. */
export const TURNS = 2;

export interface PairConfig extends Readonly<Record<string, number | string | boolean>> {
  /** Buffers for queries. Output gradients have one. */
  readonly qStages: number;
  /** Buffers for P and for dS. */
  readonly pStages: number;
  readonly dsStages: number;
  /** Whether sums of dQ go by an order. Without it they differ from run to run in their last bits. */
  readonly ordered: boolean;
  /** Whether the last block of keys is not full. */
  readonly ragged: boolean;
  /** Heads whose tiles are mixed; 0 leaves the choice to the launch. */
  readonly section: number;
}

/** Registers of a thread: the warpgroup that moves data, the two with accumulators of dV and dK, the one with dQ'. */
export const REGISTERS = { load: 32, keys: 208, queries: 64 } as const;

/**
 * Byte offsets in the note about a step: first query, whether positions may be masked, query head, end of the tile; scratch
 * tile, place in its order of sums.
 */
export const NOTE = { column: 0, edge: 4, head: 8, end: 12, tile: 16, rank: 20, bytes: 32 } as const;
/** Byte offsets in the note about a tile of keys: this block's first key, key head, batch. */
export const KEYS_NOTE = { row0: 0, h: 4, b: 8, bytes: 16 } as const;

export interface PairLayout {
  readonly k: Reg<'b32'>;
  /** The other block's keys, this block's half of the columns. */
  readonly kOther: Reg<'b32'>;
  readonly v: Reg<'b32'>;
  readonly q: Reg<'b32'>;
  readonly dOut: Reg<'b32'>;
  /** dS^T of a step: this block's 64 keys, then the other's, by 64 queries. */
  readonly dS: Reg<'b32'>;
  readonly p: Reg<'b32'>;
  /** lse2, then delta, of a step's queries, beside every buffer of Q. */
  readonly stats: Reg<'b32'>;
  readonly rowsFull: Reg<'b32'>;
  readonly rowsEmpty: Reg<'b32'>;
  readonly rowsNote: Reg<'b32'>;
  readonly qFull: Reg<'b32'>;
  readonly qEmpty: Reg<'b32'>;
  readonly note: Reg<'b32'>;
  readonly doFull: Reg<'b32'>;
  readonly doEmpty: Reg<'b32'>;
  readonly pFull: Reg<'b32'>;
  readonly pEmpty: Reg<'b32'>;
  readonly dsFull: Reg<'b32'>;
  readonly dsEmpty: Reg<'b32'>;
  readonly sumNote: Reg<'b32'>;
  /** Notes for the warps that see turns come, with barriers beside them. */
  readonly turnNote: Reg<'b32'>;
  /** The number of the tile that the first block of the cluster has drawn. */
  readonly number: Reg<'b32'>;
  readonly numberFull: Reg<'b32'>;
  readonly numberEmpty: Reg<'b32'>;
  /** A word a key: not zero where its row held NaN or infinity. */
  readonly wild: Reg<'b32'>;
  readonly barriers: readonly Barriers[];
}

/** Bytes of lse2 and delta of a step. */
export const STATS_BYTES: number = ROWS * 8;
export const DS_BYTES: number = 2 * PANEL_SIZE;

export function layoutOfPair(asm: Assembler, { qStages, pStages, dsStages }: PairConfig): PairLayout {
  const place = (name: string, bytes: number, align: number): Reg<'b32'> =>
    asm.sharedAddress(asm.shared(name, bytes, align));
  asm.stage('shared memory');
  const data = {
    k: place('k', OPERAND_BYTES, 1024),
    kOther: place('k of the other block', HALF * PANEL_SIZE, 1024),
    v: place('v', OPERAND_BYTES, 1024),
    q: place('q', OPERAND_BYTES * qStages, 1024),
    dOut: place('dOut', OPERAND_BYTES, 1024),
    dS: place('dS', DS_BYTES * dsStages, 1024),
    p: place('p', P_BYTES * pStages, 1024),
    stats: place('lse2, delta', STATS_BYTES * qStages, 16),
    wild: place('wild', ROWS * 4, 16),
    rowsNote: place('rows note', KEYS_NOTE.bytes, 16),
    note: place('note', NOTE.bytes * qStages, 16),
    sumNote: place('sum note', SUM.bytes * dsStages, 16),
    turnNote: place('turn note', TURN.bytes * WRITERS, 16),
    number: place('number', 16, 16),
    rowsFull: place('rows full', BARRIER_BYTES, 8),
    rowsEmpty: place('rows empty', BARRIER_BYTES, 8),
    qFull: place('q full', BARRIER_BYTES * qStages, 8),
    qEmpty: place('q empty', BARRIER_BYTES * qStages, 8),
    doFull: place('dOut full', BARRIER_BYTES, 8),
    doEmpty: place('dOut empty', BARRIER_BYTES, 8),
    pFull: place('p full', BARRIER_BYTES * pStages, 8),
    pEmpty: place('p empty', BARRIER_BYTES * pStages, 8),
    dsFull: place('dS full', BARRIER_BYTES * dsStages, 8),
    dsEmpty: place('dS empty', BARRIER_BYTES * dsStages, 8),
    numberFull: place('number full', BARRIER_BYTES, 8),
    numberEmpty: place('number empty', BARRIER_BYTES, 8),
  };
  const offsets = (count: number, stride: number = BARRIER_BYTES, first = 0): number[] =>
    Array.from({ length: count }, (_, i) => first + i * stride);
  // Arrivals are by warp: four a warpgroup.
  return {
    ...data,
    barriers: [
      { address: data.rowsFull, offsets: [0], count: 1 },
      { address: data.rowsEmpty, offsets: [0], count: 12 },
      { address: data.qFull, offsets: offsets(qStages), count: 1 },
      { address: data.qEmpty, offsets: offsets(qStages), count: 8 },
      { address: data.doFull, offsets: [0], count: 1 },
      { address: data.doEmpty, offsets: [0], count: 8 },
      { address: data.pFull, offsets: offsets(pStages), count: 4 },
      { address: data.pEmpty, offsets: offsets(pStages), count: 4 },
      { address: data.dsFull, offsets: offsets(dsStages), count: 1 },
      // Both blocks' third warpgroups: each reads what this block has written.
      { address: data.dsEmpty, offsets: offsets(dsStages), count: 8 },
      { address: data.turnNote, offsets: offsets(WRITERS, TURN.bytes, TURN.asked), count: 1 },
      { address: data.turnNote, offsets: offsets(WRITERS, TURN.bytes, TURN.come), count: 1 },
      { address: data.turnNote, offsets: offsets(WRITERS, TURN.bytes, TURN.added), count: 4 },
      { address: data.numberFull, offsets: [0], count: 1 },
      { address: data.numberEmpty, offsets: [0], count: 1 },
    ],
  };
}
