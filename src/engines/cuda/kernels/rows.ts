/** The small programs of backward that work row by row: delta and lse in base 2, and the gradient of the sinks. */
import { LOG2E } from '../../../core/math.ts';
import type { Problem } from '../../../problem/problem.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { shuffleXor } from '../ptx/tensor.ts';
import { take } from './parameters.ts';
import { baseOf, placeOf, queryRows } from './place.ts';
import { type Spec, specOf } from './spec.ts';

/** Threads that share a row. */
const LANES = 8;
const DELTA_THREADS = 128;
/** Rows of a block of threads. */
export const DELTA_ROWS: number = DELTA_THREADS / LANES;

/**
 * delta = rowsum(dOut * out) - dLse, and lse2 = log2(e) * lse with +inf for empty rows, so that 2^(s - lse2) is 0 there.
 *
 * With `tile`, for dense problems: `stats` also takes them tile by tile of that many queries, first lse2, then delta, with
 * +inf and 0 past the end, and `turns`, some words a tile, are set to 0. The grid then covers whole tiles.
 */
export function emitDelta(problem: Problem, tile: number | null = null, turns = 1): KernelText {
  const spec = specOf(problem);
  const asm = new Assembler({ name: 'backward_delta', target: 'sm_80', threads: DELTA_THREADS });
  const thread = asm.special('tid.x');
  const lane = asm.op('and.b32', thread, LANES - 1);
  const h = asm.special('ctaid.y');
  const place = placeOf(asm, spec, asm.special('ctaid.z'));
  const q = asm.op('mad.lo.s32', asm.special('ctaid.x'), DELTA_ROWS, asm.op('shr.u32', thread, Math.log2(LANES)));
  const p = take(asm, 'out', 'dOut', 'outB', 'outH', 'outS', 'lse', 'lse2', 'delta', 'lseB', 'lseH', 'lseS');
  // Lanes of one row stay together: rows past the end work on the last one and store nothing.
  const inside = asm.op('setp.lt.s32', q, place.lenQ);
  const end = asm.label('end');
  asm.branch(end, asm.op('setp.gt.s32', place.lenQ, 0), { negate: true });
  const row = asm.op('min.s32', q, asm.op('sub.s32', place.lenQ, 1));
  const strides = { b: p.outB, h: p.outH, s: p.outS };
  const out = queryRows(asm, spec, place, h, p.out, strides).row(row);
  const dOut = queryRows(asm, spec, place, h, p.dOut, strides).row(row);
  const sum = asm.constant('f32', 0);
  eachElement(asm, spec, lane, [out, dOut], ([x, y]) => asm.set(sum, 'fma.rn.f32', x, y, sum));
  for (const mask of [4, 2, 1]) asm.set(sum, 'add.f32', sum, shuffleXor(asm, sum, mask));

  const at = { b: place.b, h, start: asm.op('add.s32', place.qStart, row) };
  const address = (tensor: Reg<'b64'>): Reg<'b64'> => baseOf(asm, tensor, { b: p.lseB, h: p.lseH, s: p.lseS }, at, 4);
  const lse = asm.load('global', 'f32', address(p.lse));
  const empty = asm.op('setp.eq.f32', lse, Number.NEGATIVE_INFINITY);
  const lse2 = asm.op('selp.f32', Number.POSITIVE_INFINITY, asm.op('mul.f32', lse, LOG2E), empty);
  // Whether lse was differentiated through is known only at the launch.
  const { dLse } = take(asm, 'dLse');
  const given = asm.op('setp.ne.s64', dLse, 0);
  const extra = asm.constant('f32', 0);
  const dLseAt = address(dLse);
  asm.when(given, () => asm.emit('ld.global.f32', extra.name, asm.address('global', dLseAt)));
  asm.set(sum, 'sub.f32', sum, extra);
  const leads = asm.op('setp.eq.s32', lane, 0);
  if (tile === null || problem.grads?.sink === true) {
    const writes = asm.op('and.pred', inside, leads);
    const [lse2At, deltaAt] = [address(p.lse2), address(p.delta)];
    asm.when(writes, () => asm.store('global', 'f32', lse2At, lse2));
    asm.when(writes, () => asm.store('global', 'f32', deltaAt, sum));
  }
  if (tile !== null) writeTiles(asm, tile, turns, { q, h, b: place.b, inside, leads, lse2, delta: sum });
  asm.place(end);
  return asm.finish();
}

interface RowStatistics {
  readonly q: Reg<'b32'>;
  readonly h: Reg<'b32'>;
  readonly b: Reg<'b32'>;
  /** Whether the row exists. */
  readonly inside: Reg<'pred'>;
  /** Whether this lane writes. */
  readonly leads: Reg<'pred'>;
  readonly lse2: Reg<'f32'>;
  readonly delta: Reg<'f32'>;
}

function writeTiles(
  asm: Assembler,
  tile: number,
  words: number,
  { q, h, b, inside, leads, lse2, delta }: RowStatistics,
): void {
  const [stats, turns] = ['stats', 'turns'].map((n) => asm.parameter(n, 'b64'));
  const queryTiles = asm.parameter('queryTiles', 'b32');
  const { Hq } = take(asm, 'Hq');
  const inHead = asm.op('shr.u32', q, Math.log2(tile));
  const index = asm.op('mad.lo.s32', asm.op('mad.lo.s32', b, Hq, h), queryTiles, inHead);
  const row = asm.op('and.b32', q, tile - 1);
  const at = asm.op('add.s64', stats, asm.op('mul.wide.u32', index, tile * 8));
  const rowAt = asm.op('add.s64', at, asm.op('mul.wide.u32', row, 4));
  const values = [
    asm.op('selp.f32', lse2, Number.POSITIVE_INFINITY, inside),
    asm.op('selp.f32', delta, 0, inside),
  ] as const;
  const turn = asm.op('add.s64', turns, asm.op('mul.wide.u32', asm.op('mad.lo.s32', index, words, row), 4));
  const first = asm.op('and.pred', leads, asm.op('setp.lt.s32', row, words));
  asm.when(leads, () => {
    asm.store('global', 'f32', rowAt, values[0]);
    asm.store('global', 'f32', rowAt, values[1], tile * 4);
  });
  asm.when(first, () => asm.store('global', 'b32', turn, 0));
}

/** Calls `visit` with the elements of rows of Dv, this lane's share of them. */
function eachElement(
  asm: Assembler,
  spec: Spec,
  lane: Reg<'b32'>,
  rows: readonly Reg<'b64'>[],
  visit: (elements: Reg<'f32'>[]) => void,
): void {
  const chunk = 16 / spec.size;
  if (spec.grains.out === 16 && spec.Dv % chunk === 0) {
    for (let column = 0; column < spec.Dv; column += LANES * chunk) {
      const skip = asm.label('chunk');
      const mine = asm.op('mad.lo.s32', lane, chunk, column);
      const ragged = column + LANES * chunk > spec.Dv;
      if (ragged) asm.branch(skip, asm.op('setp.ge.s32', mine, spec.Dv));
      const offset = asm.op('mul.wide.s32', mine, spec.size);
      const words = rows.map((r) => asm.loadVector('global', 'b32', 4, asm.op('add.s64', r, offset)));
      for (let i = 0; i < 4; i++) {
        const parts = words.map((w) => unpack(asm, spec, w[i]));
        for (let j = 0; j < parts[0].length; j++) visit(parts.map((x) => x[j]));
      }
      if (ragged) asm.place(skip);
    }
    return;
  }
  for (let column = 0; column < spec.Dv; column += LANES) {
    const skip = asm.label('column');
    const mine = asm.op('add.s32', lane, column);
    if (column + LANES > spec.Dv) asm.branch(skip, asm.op('setp.ge.s32', mine, spec.Dv));
    const offset = asm.op('mul.wide.s32', mine, spec.size);
    visit(rows.map((r) => loadOne(asm, spec, asm.op('add.s64', r, offset))));
    if (column + LANES > spec.Dv) asm.place(skip);
  }
}

/** The floats in a word. */
export function unpack(asm: Assembler, spec: Spec, word: Reg<'b32'>): Reg<'f32'>[] {
  switch (spec.storage) {
    case 'f32':
      return [asm.op('mov.f32.b32', word)];
    case 'bf16':
      return [asm.op('shl.b32', word, 16), asm.op('and.b32', word, 0xffff0000)].map((x) => asm.op('mov.f32.b32', x));
    case 'f16': {
      const halves = asm.regs('b16', 2);
      asm.emit('mov.b32', `{${halves.map((x) => x.name).join(', ')}}`, word.name);
      return halves.map((x) => asm.op('cvt.f32.f16', x));
    }
    default:
      throw spec.storage satisfies never;
  }
}

function loadOne(asm: Assembler, spec: Spec, at: Reg<'b64'>): Reg<'f32'> {
  if (spec.storage === 'f32') return asm.load('global', 'f32', at);
  if (spec.storage === 'f16') return asm.op('cvt.f32.f16', asm.load('global', 'b16', at));
  return asm.op('mov.f32.b32', asm.op('shl.b32', asm.load('global', 'u16', at), 16));
}

const SINK_THREADS = 256;

/** dSink[h] = sum over the rows of head h of -exp(sink - lse) * delta: one block a head, always in the same order. */
export function emitSink(problem: Problem): KernelText {
  const spec = specOf(problem);
  const asm = new Assembler({ name: 'backward_dsink', target: 'sm_80', threads: SINK_THREADS });
  const thread = asm.special('tid.x');
  const h = asm.special('ctaid.x');
  const p = take(asm, 'sink', 'dSink', 'lse2', 'delta', 'lseB', 'lseH', 'lseS', 'B');
  const hBytes = asm.op('mul.wide.u32', h, 4);
  const logit = asm.op('mul.f32', asm.load('global', 'f32', asm.op('add.s64', p.sink, hBytes)), LOG2E);
  const sum = asm.constant('f32', 0);
  const b = asm.constant('b32', 0);
  const [batches, batchesDone] = [asm.label('batches'), asm.label('joined')];
  asm.place(batches);
  asm.branch(batchesDone, asm.op('setp.lt.s32', b, p.B), { negate: true });
  const place = placeOf(asm, spec, b);
  const q = asm.op('mov.b32', thread);
  const [rows, rowsDone] = [asm.label('rows'), asm.label('batch')];
  asm.place(rows);
  asm.branch(rowsDone, asm.op('setp.lt.s32', q, place.lenQ), { negate: true });
  const at = { b, h, start: asm.op('add.s32', place.qStart, q) };
  const read = (tensor: Reg<'b64'>): Reg<'f32'> =>
    asm.load('global', 'f32', baseOf(asm, tensor, { b: p.lseB, h: p.lseH, s: p.lseS }, at, 4));
  const weight = asm.op('ex2.approx.ftz.f32', asm.op('sub.f32', logit, read(p.lse2)));
  asm.set(sum, 'fma.rn.f32', asm.op('neg.f32', weight), read(p.delta), sum);
  asm.set(q, 'add.s32', q, SINK_THREADS);
  asm.branch(rows);
  asm.place(rowsDone);
  asm.set(b, 'add.s32', b, 1);
  asm.branch(batches);
  asm.place(batchesDone);

  asm.stage('join the threads: warps by shuffles, then the first thread the warps');
  const partials = asm.sharedAddress(asm.shared('partials', (SINK_THREADS / 32) * 4));
  for (const mask of [16, 8, 4, 2, 1]) asm.set(sum, 'add.f32', sum, shuffleXor(asm, sum, mask));
  const warp = asm.op('shr.u32', thread, 5);
  asm.store('shared', 'f32', asm.op('mad.lo.s32', warp, 4, partials), sum);
  asm.barrier();
  const end = asm.label('end');
  asm.branch(end, asm.op('setp.ne.s32', thread, 0));
  const total = asm.constant('f32', 0);
  for (let w = 0; w < SINK_THREADS / 32; w++)
    asm.set(total, 'add.f32', total, asm.load('shared', 'f32', partials, w * 4));
  asm.store('global', 'f32', asm.op('add.s64', p.dSink, hBytes), total);
  asm.place(end);
  return asm.finish();
}
