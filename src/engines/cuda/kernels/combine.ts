/**
 * Joins the splits of decode: out = sum of 2^(m_s - m) * out_s over sum of 2^(m_s - m) * l_s, split after split. One block of
 * threads a row; each warp takes every `warps`-th split, and the warps are added in order.
 */
import type { Problem } from '../../../problem/problem.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { unpackRow } from './decode_rows.ts';
import { take } from './parameters.ts';
import { baseOf, placeOf } from './place.ts';
import { finishRow, sinkLogit } from './softmax.ts';
import { specOf } from './spec.ts';
import { writeElement } from './store.ts';

const WARPS = 8;

export function emitCombine(problem: Problem, queriesOrZero: number): KernelText {
  const spec = specOf(problem);
  const queries = Math.max(queriesOrZero, 1);
  const threads = WARPS * 32;
  const asm = new Assembler({ name: 'combine', target: 'sm_80', threads });
  const thread = asm.special('tid.x');
  const warp = asm.op('shr.u32', thread, 5);
  const lane = asm.op('and.b32', thread, 31);
  const row = asm.special('ctaid.x');
  const rows = asm.special('nctaid.x');
  const hkv = asm.special('ctaid.y');
  const place = placeOf(asm, spec, asm.special('ctaid.z'));
  const p = take(asm, 'partOut', 'partState', 'splits', 'out', 'outB', 'outH', 'outS', 'lse', 'lseB', 'lseH', 'lseS');
  const { h, q } = unpackRow(asm, row, asm.op('mul.lo.s32', hkv, spec.group), queries);
  const end = asm.label('end');
  asm.branch(end, asm.op('setp.lt.s32', q, place.lenQ), { negate: true });

  const group = asm.op('mad.lo.s32', place.b, asm.special('nctaid.y'), hkv);
  const first = asm.op('mad.lo.s32', asm.op('mul.lo.s32', group, p.splits), rows, row);
  const stateOf = (split: Reg<'b32'>): Reg<'b64'> =>
    asm.op('add.s64', p.partState, asm.op('mul.wide.s32', asm.op('mad.lo.s32', split, rows, first), 8));

  asm.stage('the highest maximum of all splits');
  const top = asm.constant('f32', Number.NEGATIVE_INFINITY);
  forEach(asm, lane, 32, p.splits, (split) => {
    asm.set(top, 'max.f32', top, asm.load('global', 'f32', stateOf(split)));
  });
  for (const mask of [16, 8, 4, 2, 1]) {
    const other = asm.reg('f32');
    asm.emit('shfl.sync.bfly.b32', other.name, top.name, String(mask), '31', '-1');
    asm.set(top, 'max.f32', top, other);
  }
  const nothing = asm.op('setp.eq.f32', top, Number.NEGATIVE_INFINITY);
  const base = asm.op('selp.f32', 0, top, nothing);

  asm.stage('sum the splits of this warp: a lane every 32nd column');
  const columns = Math.ceil(spec.Dv / 32);
  const sums = Array.from({ length: columns }, () => asm.constant('f32', 0));
  const total = asm.constant('f32', 0);
  const inRow = Array.from({ length: columns }, (_, i) => asm.op('setp.lt.s32', lane, spec.Dv - i * 32));
  forEach(asm, warp, WARPS, p.splits, (split) => {
    const [best, sum] = asm.loadVector('global', 'f32', 2, stateOf(split));
    const weight = asm.op('ex2.approx.ftz.f32', asm.op('sub.f32', best, base));
    asm.set(total, 'fma.rn.f32', weight, sum, total);
    const part = asm.op('cvt.s64.s32', asm.op('mad.lo.s32', split, rows, first));
    const line = asm.op('add.s64', p.partOut, asm.op('mul.lo.s64', part, spec.Dv * 4));
    const at = asm.op('add.s64', line, asm.op('mul.wide.s32', lane, 4));
    sums.forEach((s, i) => {
      const x = asm.constant('f32', 0);
      asm.when(inRow[i], () => asm.emit('ld.global.f32', x.name, asm.address('global', at, i * 128)));
      asm.set(s, 'fma.rn.f32', weight, x, s);
    });
  });

  asm.stage('add the warps in order, normalise, write');
  const width = columns * 32 * 4;
  const sums_ = asm.sharedAddress(asm.shared('sums', WARPS * (width + 4)));
  const mine = asm.op('mad.lo.s32', lane, 4, asm.op('mad.lo.s32', warp, width, sums_));
  sums.forEach((s, i) => {
    asm.store('shared', 'f32', mine, s, i * 128);
  });
  const totals = asm.op('add.s32', sums_, WARPS * width);
  const isFirst = asm.op('setp.eq.s32', lane, 0);
  const slot = asm.op('mad.lo.s32', warp, 4, totals);
  asm.when(isFirst, () => asm.store('shared', 'f32', slot, total));
  asm.barrier();
  asm.branch(end, asm.op('setp.ge.s32', thread, spec.Dv));
  const whole = asm.constant('f32', 0);
  const value = asm.constant('f32', 0);
  const at = asm.op('mad.lo.s32', thread, 4, sums_);
  for (let w = 0; w < WARPS; w++) {
    asm.set(whole, 'add.f32', whole, asm.load('shared', 'f32', totals, w * 4));
    asm.set(value, 'add.f32', value, asm.load('shared', 'f32', at, w * width));
  }
  const logit = spec.sink ? sinkLogit(asm, h, take(asm, 'sink').sink) : null;
  const { scale, value: lse } = finishRow(asm, top, whole, logit);
  const factor = spec.dropout ? asm.op('mul.f32', scale, take(asm, 'keepScale').keepScale) : scale;
  const start = asm.op('add.s32', place.qStart, q);
  const out = baseOf(asm, p.out, { b: p.outB, h: p.outH, s: p.outS }, { b: place.b, h, start }, spec.size);
  const outAt = asm.op('add.s64', out, asm.op('mul.wide.s32', thread, spec.size));
  writeElement(asm, spec, outAt, asm.op('mul.f32', value, factor), null);
  const lseAt = baseOf(asm, p.lse, { b: p.lseB, h: p.lseH, s: p.lseS }, { b: place.b, h, start }, 4);
  const only = asm.op('setp.eq.s32', thread, 0);
  asm.when(only, () => asm.store('global', 'f32', lseAt, lse));
  asm.place(end);
  return asm.finish();
}

/** Runs the body for first, first + step ... below `count`. */
function forEach(
  asm: Assembler,
  first: Reg<'b32'>,
  step: number,
  count: Reg<'b32'>,
  body: (index: Reg<'b32'>) => void,
): void {
  const index = asm.op('mov.b32', first);
  const [loop, done] = [asm.label('each'), asm.label('each_done')];
  asm.place(loop);
  asm.branch(done, asm.op('setp.lt.s32', index, count), { negate: true });
  body(index);
  asm.set(index, 'add.s32', index, step);
  asm.branch(loop);
  asm.place(done);
}
