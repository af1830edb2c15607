/** Keys that are NaN or infinite, in the five-product backward. */
import type { Assembler } from '../ptx/assembler.ts';
import { fenceAsync } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { PANEL_BYTES } from '../ptx/wgmma.ts';
import { clearWild, flagsOf, WILD } from './forward_wgmma_load.ts';

export interface PurgeInput {
  readonly type: 'f16' | 'bf16';
  /** Keys in panels of so many rows. */
  readonly keys: Reg<'b32'>;
  readonly rows: number;
  readonly panels: number;
  /** Thread, of two for each row, and the named barrier of them all. */
  readonly index: Reg<'b32'>;
  readonly barrier: number;
  readonly threads: number;
  /** A word a row for what to add to its scores, or null. */
  readonly wild: Reg<'b32'> | null;
}

/**
 * Keys that are NaN or infinite become zeros, because dS K would spread them to queries that do not attend to them. What to
 * add to their scores instead is left in `wild`. Returns 1 when there was any, else 0.
 */
export function purge(
  asm: Assembler,
  { type, keys, rows, panels, index, barrier, threads, wild }: PurgeInput,
): Reg<'b32'> {
  asm.stage('keys that are NaN or infinite');
  const row = asm.op('shr.u32', index, 1);
  const half = asm.op('and.b32', index, 1);
  const line = asm.op('mad.lo.s32', row, PANEL_BYTES, asm.op('mad.lo.s32', half, PANEL_BYTES / 2, keys));
  const seen = asm.constant('b32', 0);
  const pieces = Array.from({ length: panels * 4 }, (_, i) => (i >> 2) * rows * PANEL_BYTES + (i & 3) * 16);
  for (const offset of pieces)
    for (const word of asm.loadVector('shared', 'b32', 4, line, offset))
      asm.set(seen, 'or.b32', seen, flagsOf(asm, WILD[type], word));
  const clean = asm.label('clean');
  const other = asm.reg('b32');
  asm.emit('shfl.sync.bfly.b32', other.name, seen.name, '1', '31', '-1');
  const found = asm.op('setp.ne.s32', asm.op('or.b32', seen, other), 0);
  if (wild !== null)
    asm.store('shared', 'b32', asm.op('mad.lo.s32', row, 4, wild), asm.op('selp.b32', 0x7fc00000, 0, found));
  asm.branch(clean, asm.op('setp.eq.s32', seen, 0));
  for (const offset of pieces) {
    const address = asm.op('add.s32', line, offset);
    clearWild(asm, type, address, asm.loadVector('shared', 'b32', 4, address));
  }
  asm.place(clean);
  fenceAsync(asm);
  const any = asm.reg('pred');
  asm.emit('bar.red.or.pred', any.name, String(barrier), String(threads), found.name);
  return asm.op('selp.b32', 1, 0, any);
}
