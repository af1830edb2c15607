/**
 * Visits the blocks of a row's runs (problem/ranges.ts) in order, one block ahead of the work, so that the next block can
 * be on its way while this one is worked on. Backward by keys walks one row for each query head of a group.
 */
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';

export interface BlockWalk {
  /** The block to fetch next, while `more` holds. */
  readonly block: Reg<'b32'>;
  /** Whether any position of it may be masked: 0 or 1. */
  readonly partial: Reg<'b32'>;
  /** Which of `rows` rows it belongs to. */
  readonly row: Reg<'b32'>;
  readonly more: Reg<'pred'>;
  /** Steps to the next block, or clears `more`. */
  advance(): void;
}

export interface WalkOptions {
  /** Address of rowStart[first row]. */
  readonly rowStart: Reg<'b64'>;
  /** Address of the triples. */
  readonly runs: Reg<'b64'>;
  /** How many rows to walk; 1 unless heads are grouped. */
  readonly rows: number;
  /** Distance of consecutive rows in rowStart, in elements. */
  readonly rowStride: Reg<'b32'>;
}

/** Every block of every row, where no mask leaves any out: nothing has to be read to know where to go. */
export function walkAll(asm: Assembler, rows: number, blocks: Reg<'b32'>): BlockWalk {
  const block = asm.constant('b32', 0);
  const row = asm.constant('b32', 0);
  const more = asm.op('setp.gt.s32', blocks, 0);
  return {
    block,
    partial: asm.constant('b32', 0),
    row,
    more,
    advance() {
      asm.set(block, 'add.s32', block, 1);
      asm.set(more, 'setp.lt.s32', block, blocks);
      if (rows === 1) return;
      const inside = asm.label('inside');
      asm.branch(inside, more, { uniform: true });
      asm.set(block, 'mov.b32', asm.constant('b32', 0));
      asm.set(row, 'add.s32', row, 1);
      asm.set(more, 'setp.lt.s32', row, rows);
      asm.place(inside);
    },
  };
}

/** Blocks of `size` in `length` positions. */
export const blocksIn = (asm: Assembler, length: Reg<'b32'>, size: number): Reg<'b32'> =>
  asm.op('div.u32', asm.op('add.s32', length, size - 1), size);

/** Emits the first step as well: afterwards `more` says whether there is any block. */
export function walkBlocks(asm: Assembler, { rowStart, runs, rows, rowStride }: WalkOptions): BlockWalk {
  const block = asm.constant('b32', 0);
  const partial = asm.constant('b32', 0);
  const several = rows > 1;
  const row = asm.constant('b32', several ? -1 : 0);
  const end = asm.constant('b32', 0);
  const run = asm.constant('b32', 0);
  const lastRun = asm.constant('b32', 0);
  const more = asm.reg('pred');
  const startAt = asm.op('mov.b64', rowStart);
  const strideBytes = asm.op('mul.wide.s32', rowStride, 4);
  const readRow = (): void => {
    for (const [to, offset] of [
      [run, 0],
      [lastRun, 4],
    ] as const)
      asm.emit('ld.global.nc.b32', to.name, asm.address('global', startAt, offset));
    asm.set(startAt, 'add.s64', startAt, strideBytes);
  };
  if (!several) readRow();

  /** Reads run number `run`, or goes on to the next row that has any. */
  const nextRun = (): void => {
    const search = asm.label('row');
    const read = asm.label('run');
    const done = asm.label('walked');
    asm.place(search);
    asm.set(more, 'setp.lt.s32', run, lastRun);
    if (several) {
      asm.branch(read, more, { uniform: true });
      asm.set(row, 'add.s32', row, 1);
      asm.set(more, 'setp.lt.s32', row, rows);
      asm.branch(done, more, { negate: true, uniform: true });
      readRow();
      asm.branch(search);
      asm.place(read);
    } else asm.branch(done, more, { negate: true, uniform: true });
    const at = asm.op('add.s64', runs, asm.op('mul.wide.s32', run, 12));
    for (const [to, offset] of [
      [block, 0],
      [end, 4],
      [partial, 8],
    ] as const)
      asm.emit('ld.global.nc.b32', to.name, asm.address('global', at, offset));
    asm.set(run, 'add.s32', run, 1);
    asm.set(more, 'setp.lt.s32', block, end);
    asm.place(done);
  };

  nextRun();
  return {
    block,
    partial,
    row,
    more,
    advance() {
      const inside = asm.label('inside');
      asm.set(block, 'add.s32', block, 1);
      asm.set(more, 'setp.lt.s32', block, end);
      asm.branch(inside, more, { uniform: true });
      nextRun();
      asm.place(inside);
    },
  };
}

/** Where the runs of a row of blocks are found: addresses, and strides over sequences and heads. */
export interface RunTables {
  readonly rowStart: Reg<'b64'>;
  readonly runs: Reg<'b64'>;
  readonly runB: Reg<'b32'>;
  readonly runH: Reg<'b32'>;
}

/**
 * Walks what block `block` of `heads` heads from `head` on attends to, or is attended to by: blocks of `size` positions of
 * `length`. Without a mask that is every block.
 */
export function walkOf(
  asm: Assembler,
  masked: boolean,
  tables: RunTables,
  at: { b: Reg<'b32'>; head: Reg<'b32'>; block: Reg<'b32'>; heads: number },
  length: Reg<'b32'>,
  size: number,
): BlockWalk {
  if (!masked) return walkAll(asm, at.heads, blocksIn(asm, length, size));
  const { rowStart, runs, runB, runH } = tables;
  const row = asm.op('mad.lo.s32', at.b, runB, asm.op('mad.lo.s32', at.head, runH, at.block));
  const start = asm.op('add.s64', rowStart, asm.op('mul.wide.s32', row, 4));
  const rowStride = at.heads === 1 ? asm.constant('b32', 0) : runH;
  return walkBlocks(asm, { rowStart: start, runs, rows: at.heads, rowStride });
}
