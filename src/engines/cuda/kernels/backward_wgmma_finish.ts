/** The last program of a five-product backward: scratch tiles of dQ in the output's type and order. */
import type { Problem } from '../../../problem/problem.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import { PANEL } from '../ptx/wgmma.ts';
import { PART_BYTES } from './backward_wgmma_fused_shared.ts';
import { panelSpec } from './forward_wgmma.ts';
import { storeWide } from './forward_wgmma_store.ts';
import { lanesOf } from './fragments.ts';
import { strided } from './loader.ts';
import { take } from './parameters.ts';
import { baseOf } from './place.ts';
import { rowPositions } from './scores.ts';

/** How dQ is summed: scratch tiles of so many queries; for each 64 of them a part of 64 x 64 floats a panel of columns. */
export interface Sums {
  readonly queries: number;
  /** A power of two. */
  readonly panels: number;
  /** Words of a tile that count its sums; 0 where nothing is counted. */
  readonly turns: number;
}

/** Blocks of 128 threads: x the parts of a head, y heads, z batches. */
export function emitFinish(problem: Problem, { queries, panels, turns: words }: Sums): KernelText {
  const spec = panelSpec(problem);
  const parts = (queries / 64) * panels;
  const asm = new Assembler({ name: 'backward_dq_finish', target: 'sm_90a', threads: 128 });
  const p = take(asm, 'dq', 'qB', 'qH', 'qS', 'Sq', 'Hq', 'scale');
  const [scratch, turns] = ['scratch', 'turns'].map((n) => asm.parameter(n, 'b64'));
  const queryTiles = asm.parameter('queryTiles', 'b32');
  const thread = asm.special('tid.x');
  const x = asm.special('ctaid.x');
  const h = asm.special('ctaid.y');
  const b = asm.special('ctaid.z');
  const lanes = lanesOf(asm, thread);
  const index = asm.op('shr.u32', x, Math.log2(parts));
  const part = asm.op('and.b32', x, parts - 1);
  const bh = asm.op('mad.lo.s32', b, p.Hq, h);
  const tile = asm.op('mad.lo.s32', bh, queryTiles, index);
  const sums = asm.regs('f32', 32);
  for (const r of sums) asm.set(r, 'mov.f32', 0);
  const none = asm.label('none');
  if (words > 0) {
    // Queries that no key block was walked for have no sums.
    const added = asm.load('global', 'b32', asm.op('add.s64', turns, asm.op('mul.wide.s32', tile, 4 * words)));
    asm.branch(none, asm.op('setp.eq.s32', added, 0), { uniform: true });
  }
  const from = asm.op('add.s64', scratch, asm.op('mul.wide.s32', tile, parts * PART_BYTES));
  const inPart = asm.op('mad.lo.s32', part, PART_BYTES, asm.op('shl.b32', thread, 4));
  const at = asm.op('add.s64', from, asm.op('cvt.u64.u32', inPart));
  for (let n = 0; n < 8; n++)
    asm.emit(
      'ld.global.v4.f32',
      `{${sums
        .slice(4 * n, 4 * n + 4)
        .map((r) => r.name)
        .join(', ')}}`,
      asm.address('global', at, n * 2048),
    );
  for (const r of sums) asm.set(r, 'mul.f32', r, p.scale);
  asm.place(none);
  const tiles = Array.from({ length: 8 }, (_, n) => sums.slice(4 * n, 4 * n + 4));
  const first = asm.op('mul.lo.s32', index, queries);
  const row0 = asm.op('mad.lo.s32', asm.op('shr.u32', part, Math.log2(panels)), 64, first);
  const warpRow = asm.op('shl.b32', asm.op('shr.u32', thread, 5), 4);
  const rows = rowPositions(asm, asm.op('add.s32', row0, warpRow), lanes.g, 1);
  const base = baseOf(asm, p.dq, { b: p.qB, h: p.qH, s: p.qS }, { b, h, start: asm.constant('b32', 0) }, spec.size);
  const rowBytes = asm.op('mul.lo.s64', p.qS, spec.size);
  const write = (from: number): void => {
    const columns = Math.min(PANEL, spec.D - from);
    const at = from === 0 ? base : asm.op('add.s64', base, from * spec.size);
    if (columns > 0)
      storeWide(asm, spec, {
        tiles: [tiles.slice(0, Math.ceil(columns / 8))],
        rows,
        limit: p.Sq,
        target: strided(asm, at, rowBytes),
        columns,
        grain: spec.grains.q,
        t: lanes.t,
      });
  };
  const panel = asm.op('and.b32', part, panels - 1);
  for (let i = 0; i < panels; i++) asm.if(asm.op('setp.eq.s32', panel, i), () => write(i * PANEL));
  return asm.finish();
}
