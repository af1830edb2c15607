/**
 * One program of the Hopper backward: scores and dP of a step by warpgroup products straight from shared memory, the
 * gradient tile in registers, and from there, as left operands, the products that add to dQ, or to dK and dV. Those run on
 * while the next step's scores are queued. Every output is summed by one warpgroup in one order.
 */
import { LOG2E } from '../../../core/math.ts';
import type { Problem } from '../../../problem/problem.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import {
  arrive,
  BARRIER_BYTES,
  cursorOf,
  fenceAsync,
  makeBarriers,
  setRegisters,
  syncNamed,
  waitParity,
} from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import {
  advance,
  type Descriptor,
  descriptor,
  PANEL_BYTES,
  uniform,
  wgmma,
  wgmmaCommit,
  wgmmaFence,
  wgmmaWait,
} from '../ptx/wgmma.ts';
import { emitPartLoads } from './backward_wgmma_load.ts';
import { layoutOfPart, type Part, type PartTile, ROWS, STEP } from './backward_wgmma_shared.ts';
import { dropoutOf } from './dropout.ts';
import { panelSpec, REGISTERS } from './forward_wgmma.ts';
import { clearWild, emitScan, slot } from './forward_wgmma_load.ts';
import { FOUND_BYTES, SCANNERS } from './forward_wgmma_shared.ts';
import { storeWide } from './forward_wgmma_store.ts';
import { lanesOf, packPair, type Tile } from './fragments.ts';
import { gradientTiles } from './gradient.ts';
import { strided } from './loader.ts';
import { take, takeSides } from './parameters.ts';
import { baseOf, type Place } from './place.ts';
import { columnPositions, rowPositions, scorerOf } from './scores.ts';

/** Named barrier of all computing warpgroups. */
const COMPUTING = 1;

export function emitPart(problem: Problem, part: Part, tile: PartTile): KernelText {
  const spec = panelSpec(problem);
  const storage = spec.storage as 'f16' | 'bf16';
  const { groups, block, stages } = tile;
  const byQueries = part.rows === 'q';
  const registers = REGISTERS[groups];
  const asm = new Assembler({
    name: byQueries ? 'backward_dq' : `backward_d${part.first ? 'k' : ''}${part.second ? 'v' : ''}`,
    target: 'sm_90a',
    threads: 128 * (groups + 1),
    blocksPerSm: 1,
  });
  const shared = layoutOfPart(asm, spec, part, tile);
  const thread = asm.special('tid.x');
  const g = take(asm, 'scale', 'scaleLog2', 'Hq', 'Sq', 'Sk', 'lse2', 'delta', 'lseB', 'lseH', 'lseS');
  const lseStrides = { b: g.lseB, h: g.lseH, s: g.lseS };
  asm.stage('barriers');
  const ready = asm.label('ready');
  asm.branch(ready, asm.op('setp.ne.s32', thread, 0));
  makeBarriers(asm, shared.barriers);
  asm.place(ready);
  asm.barrier();

  const compute = asm.label('compute');
  const end = asm.label('end');
  asm.branch(compute, asm.op('setp.ge.s32', thread, 128));
  asm.stage('the warpgroup that moves data');
  setRegisters(asm, 'dec', registers.load);
  const scan = asm.label('scan');
  asm.branch(scan, asm.op('setp.ge.s32', thread, 32));
  emitPartLoads(asm, spec, part, tile, shared, { ...g, thread, lseStrides });
  asm.branch(end);
  asm.place(scan);
  if (shared.scans) {
    const ring = { data: shared.b1, stride: shared.bytes.b1, bytes: shared.bytes.b1, stages, noteBytes: STEP.bytes };
    emitScan(asm, storage, { ...shared, ...ring, ahead: 1, clears: false }, thread);
  }
  asm.branch(end);

  asm.place(compute);
  asm.stage('the warpgroups that compute');
  setRegisters(asm, 'inc', registers.compute);
  const sides = takeSides(asm, spec.sides.length);
  const o = byQueries ? take(asm, 'dq', 'qB', 'qH', 'qS') : take(asm, 'dk', 'kB', 'kH', 'kS', 'dv', 'vB', 'vH', 'vS');
  const group = uniform(asm, asm.op('sub.s32', asm.op('shr.u32', thread, 7), 1));
  const lanes = lanesOf(asm, thread);
  const warpRow = asm.op('shl.b32', asm.op('sub.s32', asm.op('shr.u32', thread, 5), 4), 4);
  const firstLane = asm.op('setp.eq.s32', lanes.lane, 0);
  const yes = asm.op('setp.eq.s32', asm.constant('b32', 0), 0);
  const no = asm.op('not.pred', yes);
  const release = (empty: Reg<'b32'>): void => asm.when(firstLane, () => arrive(asm, empty));

  const own = (base: Reg<'b32'>): Descriptor =>
    descriptor(asm, asm.op('mad.lo.s32', group, 64 * PANEL_BYTES, base), block * PANEL_BYTES);
  const [a1, a2] = [own(shared.a1), own(shared.a2)];
  const [b1, b2] = [shared.b1, shared.b2].map((base) => descriptor(asm, base, block * PANEL_BYTES));
  const s = asm.regs('f32', block / 2);
  const dP = part.first ? asm.regs('f32', block / 2) : [];
  const dS = part.first ? asm.regs('b32', block / 4) : [];
  const prob = part.second ? asm.regs('b32', block / 4) : [];
  const acc1 = part.first ? asm.regs('f32', spec.padD / 2) : [];
  const acc2 = part.second ? asm.regs('f32', spec.padDv / 2) : [];
  const tilesOf = (regs: readonly Reg<'f32'>[]): Tile[] =>
    Array.from({ length: regs.length / 4 }, (_, n) => regs.slice(4 * n, 4 * n + 4));
  const at = cursorOf(asm, stages, 0);
  const atRows = cursorOf(asm, 1, 0);

  const zero = asm.constant('b32', 0);
  const bh = asm.reg('b32');
  const dropout = spec.dropout ? dropoutOf(asm, bh) : null;
  const toLog2 = spec.folded ? g.scaleLog2 : asm.constant('f32', LOG2E);

  const nextTile = asm.label('tile');
  asm.place(nextTile);
  asm.stage('a tile of rows');
  waitParity(asm, shared.rowsFull, atRows.parity);
  const [row0, h, b] = [ROWS.row0, ROWS.h, ROWS.b].map((offset) => asm.load('shared', 'b32', shared.rowsNote, offset));
  asm.branch(end, asm.op('setp.lt.s32', row0, 0), { uniform: true });
  const place: Place = { b, lenQ: g.Sq, lenK: g.Sk, qStart: zero, kStart: zero, sides };
  const rows = rowPositions(asm, asm.op('add.s32', row0, warpRow), lanes.g, 1);
  const rowStats = byQueries
    ? [g.lse2, g.delta].map((tensor, which) =>
        rows.map((q) => {
          const value = asm.constant('f32', which === 0 ? Number.POSITIVE_INFINITY : 0);
          const address = baseOf(asm, tensor, lseStrides, { b, h, start: q }, 4);
          const inside = asm.op('setp.lt.s32', q, g.Sq);
          asm.when(inside, () => asm.emit('ld.global.nc.f32', value.name, asm.address('global', address)));
          return value;
        }),
      )
    : [];
  for (const x of [...acc1, ...acc2]) asm.set(x, 'mov.f32', 0);
  /** Barrier of the buffers that queued products still read, or 0. */
  const reading = asm.constant('b32', 0);

  const loop = asm.label('step');
  const done = asm.label('done');
  asm.place(loop);
  waitParity(asm, slot(asm, shared.full, at, BARRIER_BYTES), at.parity);
  const note = slot(asm, shared.note, at, STEP.bytes);
  const [column, edge, head, ends] = asm.loadVector('shared', 'b32', 4, note);
  asm.branch(done, asm.op('setp.ne.s32', ends, 0), { uniform: true });
  if (dropout !== null) asm.set(bh, 'mad.lo.s32', b, g.Hq, head);
  const stageOf = (desc: Descriptor, bytes: number): Descriptor =>
    asm.op('add.s64', desc, asm.op('mul.wide.u32', uniform(asm, at.stage), bytes >> 4));
  const [right1, right2] = [stageOf(b1, shared.bytes.b1), stageOf(b2, shared.bytes.b2)];
  const inner = (acc: readonly Reg<'f32'>[], left: Descriptor, right: Descriptor, columns: number): void => {
    wgmmaFence(asm);
    for (let i = 0; i < Math.ceil(columns / 16); i++) {
      const inside = (i % 4) * 32;
      const from = advance(asm, left, (i >> 2) * groups * 64 * PANEL_BYTES + inside);
      const by = advance(asm, right, (i >> 2) * block * PANEL_BYTES + inside);
      wgmma(asm, acc, from, by, { type: storage, accumulate: i === 0 ? no : yes });
    }
    wgmmaCommit(asm);
  };
  asm.stage('S = A1 B1^T');
  inner(s, a1, right1, spec.D);
  if (part.first) {
    asm.stage('dP = A2 B2^T');
    inner(dP, a2, right2, spec.Dv);
  }
  wgmmaWait(asm, part.first ? 1 : 0);
  const fresh = asm.label('fresh');
  asm.branch(fresh, asm.op('setp.eq.s32', reading, 0), { uniform: true });
  release(reading);
  asm.place(fresh);
  if (part.first) wgmmaWait(asm, 0);

  /** Rare: keys of an edge block that are NaN or infinite become zeros once every warpgroup has its scores. */
  const purge = (): void => {
    const clean = asm.label('clean');
    waitParity(asm, slot(asm, shared.scanned, at, BARRIER_BYTES), at.parity);
    const words = Array.from({ length: SCANNERS }, (_, i) =>
      asm.load('shared', 'b32', slot(asm, shared.found, at, FOUND_BYTES), 4 * i),
    );
    const any = words.reduce((x, y) => asm.op('or.b32', x, y));
    asm.branch(clean, asm.op('setp.eq.s32', any, 0), { uniform: true });
    syncNamed(asm, COMPUTING, groups * 128);
    const chunk = asm.op('sub.s32', thread, 128);
    const next = asm.label('chunk');
    const base = slot(asm, shared.b1, at, shared.bytes.b1);
    asm.place(next);
    const address = asm.op('mad.lo.s32', chunk, 16, base);
    clearWild(asm, storage, address, asm.loadVector('shared', 'b32', 4, address));
    asm.set(chunk, 'add.s32', chunk, groups * 128);
    asm.branch(next, asm.op('setp.lt.s32', chunk, shared.bytes.b1 / 16));
    fenceAsync(asm);
    syncNamed(asm, COMPUTING, groups * 128);
    asm.place(clean);
  };
  const pack = (tiles: readonly Tile[], into: readonly Reg<'b32'>[]): void =>
    tiles.forEach((t, n) => {
      for (const r of [0, 1]) asm.set(into[2 * n + r], 'mov.b32', packPair(asm, storage, t[2 * r], t[2 * r + 1]));
    });
  const gradient = (masked: boolean): void => {
    if (masked && shared.scans) purge();
    asm.stage('P and dS');
    const uses = masked || spec.mod !== null || dropout !== null;
    const columns = uses ? columnPositions(asm, column, lanes.t, block / 8) : [];
    const grid = { rowsAre: part.rows, rows, columns, head } as const;
    const stat = asm.op('mad.lo.s32', lanes.t, 8, slot(asm, shared.stats, at, shared.statBytes));
    const known = new Map<string, Reg<'f32'>[]>();
    const columnStat = (which: 0 | 1, c: number): Reg<'f32'> => {
      const key = `${which} ${c >> 1}`;
      let pair = known.get(key);
      if (pair === undefined) {
        pair = asm.loadVector('shared', 'f32', 2, stat, which * block * 4 + (c >> 1) * 32);
        known.set(key, pair);
      }
      return pair[c & 1];
    };
    const { p, dScore } = gradientTiles(asm, {
      spec,
      scorer: scorerOf(asm, spec, place),
      grid,
      scores: [tilesOf(s)],
      dP: part.first ? [tilesOf(dP)] : null,
      lse2: (r, c) => (byQueries ? rowStats[0][r] : columnStat(0, c)),
      delta: (r, c) => (byQueries ? rowStats[1][r] : columnStat(1, c)),
      edge: masked,
      scale: g.scale,
      toLog2,
      dropout,
    });
    if (part.second) pack(p[0], prob);
    if (part.first) pack(dScore[0], dS);
  };
  // Past the ends copies are zeros: without a mask or modifier they add nothing.
  if (spec.mask === null && spec.mod === null) gradient(false);
  else
    asm.if(
      asm.op('setp.ne.s32', edge, 0),
      () => gradient(true),
      () => gradient(false),
    );

  wgmmaFence(asm);
  const outer = (acc: readonly Reg<'f32'>[], left: readonly Reg<'b32'>[], right: Descriptor): void => {
    for (let i = 0; i < block / 16; i++)
      wgmma(asm, acc, left.slice(4 * i, 4 * i + 4), advance(asm, right, i * 16 * PANEL_BYTES), {
        type: storage,
        accumulate: yes,
        downRows: true,
      });
  };
  if (part.second) {
    asm.stage('dV += P dOut');
    outer(acc2, prob, right2);
  }
  if (part.first) {
    asm.stage(byQueries ? 'dQ += dS K' : 'dK += dS Q');
    outer(acc1, dS, right1);
  }
  wgmmaCommit(asm);
  asm.set(reading, 'mov.b32', slot(asm, shared.empty, at, BARRIER_BYTES));
  at.advance();
  asm.branch(loop);

  asm.place(done);
  asm.stage('end of the tile');
  release(shared.rowsEmpty);
  atRows.advance();
  release(slot(asm, shared.empty, at, BARRIER_BYTES));
  at.advance();
  wgmmaWait(asm, 0);
  const idle = asm.label('idle');
  asm.branch(idle, asm.op('setp.eq.s32', reading, 0), { uniform: true });
  release(reading);
  asm.place(idle);
  for (const x of acc1) asm.set(x, 'mul.f32', x, g.scale);
  const store = (
    tensor: Reg<'b64'>,
    acc: readonly Reg<'f32'>[],
    strides: { b: Reg<'b64'>; h: Reg<'b64'>; s: Reg<'b64'> },
    columns: number,
    grain: 2 | 4 | 8 | 16,
  ): void => {
    const base = baseOf(asm, tensor, strides, { b, h, start: zero }, spec.size);
    storeWide(asm, spec, {
      tiles: [tilesOf(acc)],
      rows,
      limit: byQueries ? g.Sq : g.Sk,
      target: strided(asm, base, asm.op('mul.lo.s64', strides.s, spec.size)),
      columns,
      grain,
      t: lanes.t,
    });
  };
  if ('dq' in o) store(o.dq, acc1, { b: o.qB, h: o.qH, s: o.qS }, spec.D, spec.grains.q);
  else {
    if (part.first) store(o.dk, acc1, { b: o.kB, h: o.kH, s: o.kS }, spec.D, spec.grains.k);
    if (part.second) store(o.dv, acc2, { b: o.vB, h: o.vH, s: o.vS }, spec.Dv, spec.grains.v);
  }
  asm.branch(nextTile);
  asm.place(end);
  return asm.finish();
}
