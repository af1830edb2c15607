/**
 * The end of decode: the last block of threads of a key head to finish joins the splits,
 *
 *     out = sum of 2^(m_s - m) * out_s / sum of 2^(m_s - m) * l_s,
 *
 * split after split in an order that does not depend on which block was last. So a call is one launch.
 */
import { alignTo } from '../../../core/math.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { shuffleXor } from '../ptx/tensor.ts';
import { MOST_SPLITS, unpackRow } from './decode_rows.ts';
import type { Dropout } from './dropout.ts';
import { packPair } from './fragments.ts';
import { baseOf, type Place, type StrideRegs } from './place.ts';
import { finishRow, sinkLogit } from './softmax.ts';
import type { Spec } from './spec.ts';
import { writeElement } from './store.ts';

/** Parts a thread has under way at a time. */
const UNDER_WAY = 16;
/** Columns of a thread: 16 bytes. */
export const WIDTH = 4;

export interface Parts {
  /** Rows of a split. */
  readonly rows: number;
  readonly splits: Reg<'b32'>;
  /** Sequence and key head as one number. */
  readonly group: Reg<'b32'>;
  /** [group][split][row][padDv] f32, and [group][split][row] of (maximum, sum). */
  readonly partOut: Reg<'b64'>;
  readonly partState: Reg<'b64'>;
  /** For each group, how many of its splits are done; every launch leaves zeros. */
  readonly counters: Reg<'b64'>;
}

/** Bytes of the rows' (maximum, sum); what follows is read 16 bytes at a time. */
const stateBytes = (rows: number): number => alignTo(rows * 8, 16);

/** Bytes of shared memory for weights, row states and the sums of threads that share columns. */
export const combineBytes = (rows: number, padDv: number, threads: number): number =>
  rows * MOST_SPLITS * 4 + stateBytes(rows) + Math.max(threads, rows * (padDv / WIDTH)) * WIDTH * 4;

/** Says that this block's part is written; goes on in the last of them, and to `end` in the others. */
export function awaitLast(asm: Assembler, parts: Parts, thread: Reg<'b32'>, end: Label): void {
  // The barrier puts every thread's part before the first thread's release, which is cumulative.
  asm.barrier();
  const counter = asm.op('add.s64', parts.counters, asm.op('mul.wide.u32', parts.group, 4));
  const last = asm.op('sub.s32', parts.splits, 1);
  const before = asm.constant('b32', -1);
  const first = asm.op('setp.eq.s32', thread, 0);
  // Wraps to zero at the last one: ready for the next launch.
  asm.when(first, () =>
    asm.emit('atom.acq_rel.gpu.global.inc.u32', before.name, asm.address('global', counter), last.name),
  );
  const isLast = asm.op('setp.eq.s32', before, last);
  const all = asm.reg('pred');
  asm.emit('bar.red.or.pred', all.name, '0', isLast.name);
  asm.branch(end, all, { negate: true, uniform: true });
}

/** Where rows of output and lse go. */
export interface Target {
  readonly spec: Spec;
  readonly place: Place;
  readonly h0: Reg<'b32'>;
  readonly queries: number;
  readonly sink: Reg<'b64'> | null;
  readonly dropout: Dropout | null;
  readonly out: Reg<'b64'>;
  readonly outStrides: StrideRegs;
  readonly lse: Reg<'b64'>;
  readonly lseStrides: StrideRegs;
}

export interface CombineOptions extends Parts, Target {
  readonly thread: Reg<'b32'>;
  readonly threads: number;
  readonly shared: Reg<'b32'>;
}

type Label = ReturnType<Assembler['label']>;

/** Row and first column of an item: of `rows` times padDv / WIDTH. */
export function unpackItem(asm: Assembler, spec: Spec, item: Reg<'b32'>): { row: Reg<'b32'>; column: Reg<'b32'> } {
  const chunks = spec.padDv / WIDTH;
  const row = asm.op('div.u32', item, chunks);
  const chunk = asm.op('sub.s32', item, asm.op('mul.lo.s32', row, chunks));
  return { row, column: asm.op('mul.lo.s32', chunk, WIDTH) };
}

export function combineSplits(asm: Assembler, options: CombineOptions): void {
  const { spec, rows, thread, threads, shared } = options;
  // weights[split][row], then (maximum, sum) of each row, then sums of columns.
  const states = asm.op('add.s32', shared, rows * MOST_SPLITS * 4);
  const sums = asm.op('add.s32', states, stateBytes(rows));
  const items = rows * (spec.padDv / WIDTH);
  const share = Math.max(1, Math.floor(threads / items));

  asm.stage(`combine: the first parts of an item, 4 columns of a row, that ${share} threads share`);
  const part = share > 1 ? asm.op('div.u32', thread, items) : asm.constant('b32', 0);
  const item = share > 1 ? asm.op('sub.s32', thread, asm.op('mul.lo.s32', part, items)) : asm.op('mov.b32', thread);
  const reader = partsReader(asm, options, part, share);
  reader.start(item);
  weigh(asm, options, states);

  asm.stage('sum the splits');
  if (share > 1) {
    const values = reader.finish();
    const mine = asm.op('mad.lo.s32', thread, WIDTH * 4, sums);
    asm.storeVector('shared', 'f32', mine, values);
    asm.barrier();
    const done = asm.label('combined');
    asm.branch(done, asm.op('setp.ge.s32', thread, items));
    const total = asm.loadVector('shared', 'f32', WIDTH, mine);
    for (let i = 1; i < share; i++)
      asm.loadVector('shared', 'f32', WIDTH, mine, i * items * WIDTH * 4).forEach((x, j) => {
        asm.set(total[j], 'add.f32', total[j], x);
      });
    writeItem(asm, options, item, total, states);
    asm.place(done);
    return;
  }
  const [loop, done] = [asm.label('items'), asm.label('combined')];
  asm.place(loop);
  asm.branch(done, asm.op('setp.ge.s32', item, items));
  writeItem(asm, options, item, reader.finish(), states);
  if (items > threads) {
    asm.set(item, 'add.s32', item, threads);
    reader.start(item);
    asm.branch(loop);
  }
  asm.place(done);
}

/** The weight of every split, a warp a row; ends with a barrier. */
function weigh(
  asm: Assembler,
  { rows, splits, group, thread, threads, shared, partState }: CombineOptions,
  states: Reg<'b32'>,
): void {
  asm.stage('the weight of every split, a warp a row');
  const warps = threads / 32;
  const warp = asm.op('shr.u32', thread, 5);
  const lane = asm.op('and.b32', thread, 31);
  const firstPart = asm.op('mul.lo.s32', group, splits);
  for (let first = 0; first < rows; first += warps) {
    const row = asm.op('add.s32', warp, first);
    const skip = asm.label('row');
    if (first + warps > rows) asm.branch(skip, asm.op('setp.ge.s32', row, rows), { uniform: true });
    const start = asm.op('mad.lo.s32', asm.op('add.s32', firstPart, lane), rows, row);
    const at = asm.op('add.s64', partState, asm.op('mul.wide.s32', start, 8));
    const own = Array.from({ length: MOST_SPLITS / 32 }, (_, i) => {
      const [best, sum] = [asm.constant('f32', Number.NEGATIVE_INFINITY), asm.constant('f32', 0)];
      const exists = asm.op('setp.lt.s32', asm.op('add.s32', lane, i * 32), splits);
      asm.when(exists, () =>
        asm.emit('ld.global.v2.f32', `{${best.name}, ${sum.name}}`, asm.address('global', at, i * 32 * rows * 8)),
      );
      return { best, sum, exists };
    });
    let top = own.map((x) => x.best).reduce((x, y) => asm.op('max.f32', x, y));
    for (const mask of [16, 8, 4, 2, 1]) top = asm.op('max.f32', top, shuffleXor(asm, top, mask));
    const nothing = asm.op('setp.eq.f32', top, Number.NEGATIVE_INFINITY);
    const base = asm.op('selp.f32', 0, top, nothing);
    let total = asm.constant('f32', 0);
    const slot = asm.op('mad.lo.s32', asm.op('mad.lo.s32', lane, rows, row), 4, shared);
    own.forEach(({ best, sum, exists }, i) => {
      const weight = asm.op('ex2.approx.ftz.f32', asm.op('sub.f32', best, base));
      total = asm.op('fma.rn.f32', weight, sum, total);
      asm.when(exists, () => asm.store('shared', 'f32', slot, weight, i * 32 * rows * 4));
    });
    for (const mask of [16, 8, 4, 2, 1]) total = asm.op('add.f32', total, shuffleXor(asm, total, mask));
    const state = asm.op('mad.lo.s32', row, 8, states);
    const firstLane = asm.op('setp.eq.s32', lane, 0);
    asm.when(firstLane, () => asm.storeVector('shared', 'f32', state, [top, total]));
    asm.place(skip);
  }
  asm.barrier();
}

/** Adds up every `share`-th split from `part` on. */
interface PartsReader {
  /** Has the item's first parts read; what no weight is needed for. */
  start(item: Reg<'b32'>): void;
  /** The weighted sum, once the weights are there. */
  finish(): Reg<'f32'>[];
}

function partsReader(
  asm: Assembler,
  { spec, rows, splits, group, partOut, shared }: CombineOptions,
  part: Reg<'b32'>,
  share: number,
): PartsReader {
  const lineBytes = rows * spec.padDv * 4;
  const split = asm.reg('b32');
  const at = asm.reg('b64');
  const weightAt = asm.reg('b32');
  const lines = Array.from({ length: UNDER_WAY }, () => asm.regs('f32', WIDTH));
  const eachLine = (visit: (i: number) => void): void =>
    lines.forEach((_, i) => {
      const exists = asm.op('setp.lt.s32', asm.op('add.s32', split, i * share), splits);
      asm.when(exists, () => visit(i));
    });
  const read = (): void =>
    eachLine((i) => {
      const to = `{${lines[i].map((x) => x.name).join(', ')}}`;
      asm.emit('ld.global.v4.f32', to, asm.address('global', at, i * share * lineBytes));
    });
  return {
    start(item) {
      const { row, column } = unpackItem(asm, spec, item);
      const first = asm.op('mad.lo.s32', asm.op('mad.lo.s32', group, splits, part), rows, row);
      const line = asm.op('add.s64', partOut, asm.op('mul.lo.s64', asm.op('cvt.s64.s32', first), spec.padDv * 4));
      const known = asm.op('setp.lt.s32', row, rows);
      // Threads without an item have no splits either.
      asm.set(split, 'selp.b32', part, splits, known);
      asm.set(at, 'add.s64', line, asm.op('mul.wide.u32', column, 4));
      asm.set(weightAt, 'mad.lo.s32', asm.op('mad.lo.s32', part, rows, row), 4, shared);
      read();
    },
    finish() {
      const values = Array.from({ length: WIDTH }, () => asm.constant('f32', 0));
      const [loop, done] = [asm.label('splits'), asm.label('summed')];
      asm.place(loop);
      const weights = lines.map(() => asm.constant('f32', 0));
      eachLine((i) =>
        asm.emit('ld.shared.f32', weights[i].name, asm.address('shared', weightAt, i * share * rows * 4)),
      );
      eachLine((i) => {
        for (let j = 0; j < WIDTH; j++) asm.set(values[j], 'fma.rn.f32', weights[i], lines[i][j], values[j]);
      });
      asm.set(split, 'add.s32', split, UNDER_WAY * share);
      asm.set(at, 'add.s64', at, UNDER_WAY * share * lineBytes);
      asm.set(weightAt, 'add.s32', weightAt, UNDER_WAY * share * rows * 4);
      asm.branch(done, asm.op('setp.ge.s32', split, splits));
      read();
      asm.branch(loop);
      asm.place(done);
      return values;
    },
  };
}

function writeItem(
  asm: Assembler,
  options: CombineOptions,
  item: Reg<'b32'>,
  values: readonly Reg<'f32'>[],
  states: Reg<'b32'>,
): void {
  const { row, column } = unpackItem(asm, options.spec, item);
  const [top, total] = asm.loadVector('shared', 'f32', 2, asm.op('mad.lo.s32', row, 8, states));
  writeColumns(asm, options, row, column, values, top, total);
}

/** Normalises and writes columns column ... column + 3 of a packed row, and with the first of them its lse. */
export function writeColumns(
  asm: Assembler,
  target: Target,
  row: Reg<'b32'>,
  column: Reg<'b32'>,
  values: readonly Reg<'f32'>[],
  top: Reg<'f32'>,
  total: Reg<'f32'>,
): void {
  const { spec, place, h0, queries, sink, dropout } = target;
  const { h, q } = unpackRow(asm, row, h0, queries);
  const skip = asm.label('past');
  asm.branch(skip, asm.op('setp.lt.s32', q, place.lenQ), { negate: true });
  const { scale, value: lse } = finishRow(asm, top, total, sink === null ? null : sinkLogit(asm, h, sink));
  const factor = dropout === null ? scale : asm.op('mul.f32', scale, dropout.keepScale);
  const result = values.map((x) => asm.op('mul.f32', x, factor));
  const at = { b: place.b, h, start: asm.op('add.s32', place.qStart, q) };
  const lseAt = baseOf(asm, target.lse, target.lseStrides, at, 4);
  const isFirst = asm.op('setp.eq.s32', column, 0);
  asm.when(isFirst, () => asm.store('global', 'f32', lseAt, lse));
  const out = baseOf(asm, target.out, target.outStrides, at, spec.size);
  const outAt = asm.op('add.s64', out, asm.op('mul.wide.u32', column, spec.size));
  if (spec.Dv % WIDTH === 0 && spec.grains.out >= WIDTH * spec.size) {
    if (spec.padDv > spec.Dv) asm.branch(skip, asm.op('setp.ge.s32', column, spec.Dv));
    if (spec.storage === 'f32') asm.storeVector('global', 'f32', outAt, result);
    else {
      const { storage } = spec;
      const pairs = [0, 2].map((j) => packPair(asm, storage, result[j], result[j + 1]));
      asm.storeVector('global', 'b32', outAt, pairs);
    }
  } else
    result.forEach((x, j) => {
      const exists = asm.op('setp.lt.s32', column, spec.Dv - j);
      writeElement(asm, spec, j === 0 ? outAt : asm.op('add.s64', outAt, j * spec.size), x, exists);
    });
  asm.place(skip);
}
