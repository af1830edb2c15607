/** Copies blocks of rows from global memory into swizzled tiles, asynchronously, with zeros past the ends. */
import { ceilDiv } from '../../../core/math.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Operand, Reg } from '../ptx/registers.ts';
import { cpAsync } from '../ptx/tensor.ts';
import { chunkByte, pitchOf, type Storage } from './fragments.ts';

/** Buffers for what a kernel walks over: the next block arrives in one while the other is worked on. */
export const STAGES = 2;

/** Bytes a copy may move at once: what strides, head size and base address all are multiples of. */
export type Grain = 2 | 4 | 8 | 16;

export interface TileShape {
  readonly storage: Storage;
  /** Rows of the tile. */
  readonly rows: number;
  /** Elements of a row that exist. */
  readonly columns: number;
  /** Columns of the tile: `columns` rounded up to what products need. */
  readonly padded: number;
  readonly grain: Grain;
}

export const tileBytes = ({ storage, rows, padded }: TileShape): number => rows * pitchOf(storage, padded);

/** Address of a row's first element in global memory, and how to find the row `step` below it. */
export interface RowSource {
  /** Address of row `index`, counted inside the sequence. */
  row(index: Reg<'b32'>): Reg<'b64'>;
  /** The same rows from a byte on. */
  from(bytes: Reg<'b64'>): RowSource;
  /**
   * How later rows of a block are found: so many bytes after the one before; each `anew` by its number; or looked up, which
   * works for rows that exist alone.
   */
  readonly next: Reg<'b64'> | 'anew' | 'looked up';
}

/** Rows `base + index * stride`. */
export function strided(asm: Assembler, base: Reg<'b64'>, strideBytes: Reg<'b64'>): RowSource {
  return {
    from: (bytes) => strided(asm, asm.op('add.s64', base, bytes), strideBytes),
    row: (index) => asm.op('add.s64', base, asm.op('mul.lo.s64', asm.op('cvt.s64.s32', index), strideBytes)),
    next: strideBytes,
  };
}

/** The same with a stride of 32 bits: where that is a parameter, an address is one instruction and no register waits for it. */
export function narrowlyStrided(asm: Assembler, base: Reg<'b64'>, stride: Reg<'b32'>): RowSource {
  return {
    from: (bytes) => narrowlyStrided(asm, asm.op('add.s64', base, bytes), stride),
    row: (index) => asm.op('add.s64', base, asm.op('mul.wide.s32', index, stride)),
    next: 'anew',
  };
}

export interface Loader {
  /** Prepares to read rows of a tensor: what does not change from tile to tile. */
  reader(source: RowSource): TileReader;
}

export interface TileReader {
  /** Issues copies of rows first ... first + rows - 1 into the tile at `target`; rows from `limit` on become zeros. */
  load(target: Reg<'b32'>, first: Reg<'b32'>, limit: Reg<'b32'>): void;
}

/**
 * Divides a tile among the threads of a block: each thread owns one column of chunks and every `threads / chunks`-th row; every
 * `threads`-th column where rows have more chunks than there are threads.
 */
export function loaderOf(asm: Assembler, shape: TileShape, threads: number, thread: Reg<'b32'>): Loader {
  const { storage, rows, columns, padded, grain } = shape;
  const size = storage === 'f32' ? 4 : 2;
  const pitch = pitchOf(storage, padded);
  const chunks = ceilDiv(padded * size, 16);
  const lanes = Math.min(2 ** Math.ceil(Math.log2(chunks)), threads);
  const rowStep = threads / lanes;
  const strips = ceilDiv(chunks, lanes);
  const chunk = asm.op('and.b32', thread, lanes - 1);
  const row = asm.op('shr.u32', thread, Math.log2(lanes));
  const passes = ceilDiv(rows, rowStep);
  // Threads past the last chunk, or past the last row of a tile smaller than the block, copy nothing.
  const idle: Reg<'pred'>[] = [];
  const ragged = strips > 1 && strips * lanes > chunks;
  const pastLast = ragged ? asm.op('setp.ge.s32', chunk, chunks - (strips - 1) * lanes) : null;
  if (lanes > chunks) idle.push(asm.op('setp.ge.s32', chunk, chunks));
  if (rowStep > rows) idle.push(asm.op('setp.ge.s32', row, rows));
  const outside = idle.length === 2 ? asm.op('or.pred', idle[0], idle[1]) : idle[0];
  const place = asm.op('mad.lo.s32', row, pitch, chunkByte(asm, storage, row, chunk));
  const bytesIn = asm.op('shl.b32', chunk, 4);
  const stripBytes = lanes * 16;
  // Bytes of this chunk, by strip, that exist: 16 inside, fewer at the right edge, none beyond it.
  const exist = Array.from({ length: strips }, (_, i) =>
    asm.op('min.s32', asm.op('max.s32', asm.op('sub.s32', columns * size - i * stripBytes, bytesIn), 0), 16),
  );
  const edgeless = (columns * size) % 16 === 0 && chunks * 16 === columns * size;
  const column = asm.op('cvt.u64.u32', bytesIn);

  const load = (own: RowSource, target: Reg<'b32'>, first: Reg<'b32'>, limit: Reg<'b32'>): void => {
    const end = asm.label('loaded');
    if (outside !== undefined) asm.branch(end, outside);
    const at = asm.op('add.s32', target, place);
    // Rows a multiple of rowStep below the first differ from it in bits of `row % 8` that it has clear: one exclusive or.
    const moved = new Map<number, Reg<'b32'>>([[0, at]]);
    const slots = (i: number): Reg<'b32'> => {
      const bits = storage === 'f32' ? 0 : ((i * rowStep) % 8) * 16;
      const slot = moved.get(bits) ?? asm.op('xor.b32', at, bits);
      moved.set(bits, slot);
      return slot;
    };
    const index = asm.op('add.s32', first, row);
    const { next } = own;
    const step = typeof next === 'string' ? null : asm.op('mul.lo.s64', next, rowStep);
    // Looked-up rows must exist; evenly spaced ones may lie past the end, where nothing is read.
    const rowAt = (here: Reg<'b32'>): Reg<'b64'> =>
      own.row(next === 'looked up' ? asm.op('min.s32', here, asm.op('sub.s32', limit, 1)) : here);
    let address = rowAt(index);
    for (let i = 0; i < passes; i++) {
      const here = i === 0 ? index : asm.op('add.s32', index, i * rowStep);
      if (i > 0) address = step === null ? rowAt(here) : asm.op('add.s64', address, step);
      const inside = asm.op('setp.lt.s32', here, limit);
      for (let j = 0; j < strips; j++) {
        const skip = j === strips - 1 && pastLast !== null ? asm.label('strip') : null;
        if (skip !== null && pastLast !== null) asm.branch(skip, pastLast);
        const valid: Operand<'b32'> = asm.op('selp.b32', edgeless ? 16 : exist[j], 0, inside);
        const from = j === 0 ? address : asm.op('add.s64', address, j * stripBytes);
        copyChunk(asm, grain, slots(i), i * rowStep * pitch + j * stripBytes, from, valid);
        if (skip !== null) asm.place(skip);
      }
    }
    if (outside !== undefined) asm.place(end);
  };
  return {
    reader(source) {
      const own = source.from(column);
      return { load: (target, first, limit) => load(own, target, first, limit) };
    },
  };
}

/** 16 bytes of shared memory from `valid` bytes of global memory, in pieces of `grain`. */
function copyChunk(
  asm: Assembler,
  grain: Grain,
  slot: Reg<'b32'>,
  offset: number,
  address: Reg<'b64'>,
  valid: Reg<'b32'>,
): void {
  if (grain === 2) {
    // Too narrow for asynchronous copies: through registers.
    for (let byte = 0; byte < 16; byte += 2) {
      const value = asm.reg('b16');
      asm.emit('mov.b16', value.name, '0');
      const exists = asm.op('setp.lt.s32', asm.constant('b32', byte), valid);
      asm.when(exists, () => asm.emit('ld.global.b16', value.name, asm.address('global', address, byte)));
      asm.store('shared', 'b16', slot, value, offset + byte);
    }
    return;
  }
  for (let byte = 0; byte < 16; byte += grain) {
    if (grain === 16) {
      cpAsync(asm, 16, slot, offset, address, valid);
      continue;
    }
    const left = asm.op('min.s32', asm.op('max.s32', asm.op('sub.s32', valid, byte), 0), grain);
    const from = byte === 0 ? address : asm.op('add.s64', address, byte);
    cpAsync(asm, grain, slot, offset + byte, from, left);
  }
}
