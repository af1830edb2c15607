/** The first warpgroup of the five-product backward for wide heads: scores, P, and dV. */
import type { Assembler } from '../ptx/assembler.ts';
import { BARRIER_BYTES, cursorOf, waitParity } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { descriptor, wgmmaWait } from '../ptx/wgmma.ts';
import {
  BARRIER,
  type PairInputs,
  stageOf,
  statsOf,
  storeRowsOf,
  tilesOf,
  warpgroup,
} from './backward_wgmma_pair_group.ts';
import {
  KEYS_NOTE,
  NOTE,
  OPERAND_BYTES,
  P_BYTES,
  PANEL_SIZE,
  PANELS,
  type PairConfig,
  type PairLayout,
  ROWS,
} from './backward_wgmma_pair_shared.ts';
import { purge } from './backward_wgmma_purge.ts';
import { slot } from './forward_wgmma_load.ts';
import { packPair } from './fragments.ts';
import { take, takeSides } from './parameters.ts';
import type { Place } from './place.ts';
import { columnPositions, rowPositions, scorerOf } from './scores.ts';
import type { Spec } from './spec.ts';

/** Scores, P, and dV. */
export function emitPairScores(
  asm: Assembler,
  spec: Spec,
  config: PairConfig,
  shared: PairLayout,
  g: PairInputs,
): void {
  const { qStages, pStages } = config;
  const sides = takeSides(asm, spec.sides.length);
  const o = take(asm, 'dv', 'vB', 'vH', 'vS');
  const wg = warpgroup(asm, spec, shared, g.thread);
  const { lanes, release, say, type } = wg;
  const descK = descriptor(asm, shared.k);
  const descQ = descriptor(asm, shared.q);
  const descOut = descriptor(asm, shared.dOut, PANEL_SIZE);
  const pAt = asm.op('add.s32', shared.p, asm.op('shl.b32', wg.index, 4));
  const s = asm.regs('f32', ROWS / 2);
  const prob = asm.regs('b32', ROWS / 4);
  const dV = asm.regs('f32', spec.padDv / 2);
  const at = cursorOf(asm, qStages, 0);
  const atP = cursorOf(asm, pStages, 1);
  const outParity = asm.constant('b32', 0);
  const note = asm.regs('b32', 4);
  const [column, edge, head, ends] = note;
  const edges = spec.mask !== null || config.ragged;
  const zero = asm.constant('b32', 0);

  const nextTile = asm.label('tile');
  const stop = asm.label('stop');
  asm.place(nextTile);
  asm.stage('scores: a tile of keys');
  wg.waitRows();
  asm.branch(stop, asm.op('setp.lt.s32', say(KEYS_NOTE.row0), 0), { uniform: true });
  const anyWild =
    spec.mask === null
      ? null
      : purge(asm, {
          ...{ type, keys: shared.k, rows: ROWS, panels: PANELS },
          ...{ index: wg.index, barrier: BARRIER.scores, threads: 128, wild: shared.wild },
        });
  for (const x of dV) asm.set(x, 'mov.f32', 0);
  const rowsHere = (): Reg<'b32'>[] =>
    rowPositions(asm, asm.op('add.s32', say(KEYS_NOTE.row0), wg.warpRow), lanes.g, 1);
  const readNote = (): void => {
    waitParity(asm, slot(asm, shared.qFull, at, BARRIER_BYTES), at.parity);
    const from = slot(asm, shared.note, at, NOTE.bytes);
    asm.emit('ld.shared.v4.b32', `{${note.map((r) => r.name).join(', ')}}`, asm.address('shared', from));
    if (anyWild !== null) asm.set(edge, 'or.b32', edge, anyWild);
  };
  const scores = (): void => {
    asm.stage('S = K Q^T');
    wg.inner(s, descK, stageOf(asm, descQ, at, OPERAND_BYTES), spec.D);
  };
  const p = tilesOf(s);
  /** What was masked, or is past the end, becomes 0; what was NaN or infinite in a key makes NaN of its scores. */
  const onEdge = (): void => {
    const place: Place = { b: say(KEYS_NOTE.b), lenQ: g.Sq, lenK: g.Sk, qStart: zero, kStart: zero, sides };
    const scorer = scorerOf(asm, spec, place);
    const rows = rowsHere();
    const grid = { rowsAre: 'kv', rows, columns: columnPositions(asm, column, lanes.t, ROWS / 8), head } as const;
    const inside = rows.map((r) => asm.op('setp.lt.s32', r, g.Sk));
    const wildAt = asm.op('mad.lo.s32', asm.op('add.s32', wg.warpRow, lanes.g), 4, shared.wild);
    const wild =
      anyWild === null
        ? [0, 0].map((x) => asm.constant('f32', x))
        : [0, 8].map((below) => asm.load('shared', 'f32', wildAt, below * 4));
    p.forEach((t, n) => {
      const attends = scorer.attends(grid, 0, n);
      t.forEach((x, e) => {
        const counts = asm.op('and.pred', attends[e], inside[e >> 1]);
        asm.set(x, 'selp.f32', asm.op('add.f32', x, wild[e >> 1]), 0, counts);
      });
    });
  };

  const [loop, done, fresh] = [asm.label('step'), asm.label('done'), asm.label('fresh')];
  /** Whether dV of the step before is still being added to. */
  const adding = asm.constant('b32', 0);
  readNote();
  asm.branch(done, asm.op('setp.ne.s32', ends, 0), { uniform: true });
  scores();
  asm.place(loop);
  wgmmaWait(asm, 1);
  asm.branch(fresh, asm.op('setp.eq.s32', adding, 0), { uniform: true });
  release(shared.doEmpty);
  asm.place(fresh);
  wgmmaWait(asm, 0);
  asm.stage('P');
  const lse2 = statsOf(asm, shared, at, lanes, 0);
  p.forEach((t, n) => {
    t.forEach((x, e) => {
      const exponent = asm.op('fma.rn.f32', x, g.scaleLog2, asm.op('neg.f32', lse2(2 * n + (e & 1))));
      asm.set(x, 'ex2.approx.ftz.f32', exponent);
    });
  });
  if (edges) asm.if(asm.op('setp.ne.s32', edge, 0), onEdge);
  asm.stage('P for the second warpgroup');
  release(slot(asm, shared.qEmpty, at, BARRIER_BYTES));
  waitParity(asm, slot(asm, shared.pEmpty, atP, BARRIER_BYTES), atP.parity);
  const target = asm.op('mad.lo.s32', atP.stage, P_BYTES, pAt);
  for (let i = 0; i < 4; i++) {
    const words = [0, 1].flatMap((j) =>
      [0, 1].map((r) => packPair(asm, 'f16', p[2 * i + j][2 * r], p[2 * i + j][2 * r + 1])),
    );
    asm.storeVector('shared', 'b32', target, words, i * 2048);
  }
  release(slot(asm, shared.pFull, atP, BARRIER_BYTES));
  atP.advance();
  p.forEach((t, n) => {
    for (const r of [0, 1]) asm.set(prob[2 * n + r], 'mov.b32', packPair(asm, type, t[2 * r], t[2 * r + 1]));
  });
  asm.stage('dV += P dOut');
  waitParity(asm, shared.doFull, outParity);
  asm.set(outParity, 'xor.b32', outParity, 1);
  wg.outer(dV, prob, descOut);
  asm.set(adding, 'mov.b32', 1);
  at.advance();
  readNote();
  asm.branch(done, asm.op('setp.ne.s32', ends, 0), { uniform: true });
  scores();
  asm.branch(loop);

  asm.place(done);
  asm.stage('end of the tile');
  release(slot(asm, shared.qEmpty, at, BARRIER_BYTES));
  at.advance();
  const [rows, h, b] = [rowsHere(), say(KEYS_NOTE.h), say(KEYS_NOTE.b)];
  // Only dV is still being multiplied, which needs no keys.
  release(shared.rowsEmpty);
  wgmmaWait(asm, 0);
  const none = asm.label('none');
  asm.branch(none, asm.op('setp.eq.s32', adding, 0), { uniform: true });
  release(shared.doEmpty);
  asm.place(none);
  storeRowsOf(
    asm,
    spec,
    { tensor: o.dv, b: o.vB, h: o.vH, s: o.vS },
    { rows, h, b },
    dV,
    g.Sk,
    spec.grains.v,
    lanes,
    spec.Dv,
  );
  asm.branch(nextTile);
  asm.place(stop);
}
