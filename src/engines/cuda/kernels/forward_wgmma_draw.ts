/**
 * Dropout of the Hopper forward: the three warps that move nothing draw the random words ahead of the warpgroups that
 * compute, and leave them two words of decisions a thread and block.
 *
 * In a word, bit i of the four bytes is about tile i of eight keys: bytes 0 and 1 are the thread's two keys of its first
 * query, bytes 2 and 3 those of its second.
 */
import type { Assembler, Label } from '../ptx/assembler.ts';
import { arrive, BARRIER_BYTES, cursorOf, waitParity } from '../ptx/async.ts';
import type { Reg } from '../ptx/registers.ts';
import { type DropoutParameters, dropoutOf } from './dropout.ts';
import { slot } from './forward_wgmma_load.ts';
import { DRAW, type DrawRing } from './forward_wgmma_shared.ts';

/** Tiles of eight keys that a word speaks of: half of a block's. */
const tilesOfWord = (blockK: number): number => blockK / 16;

export interface DrawOptions {
  readonly ring: DrawRing;
  /** Warps that compute. */
  readonly warps: number;
  readonly blockK: number;
  readonly thread: Reg<'b32'>;
  readonly parameters: DropoutParameters;
  /** The first of the warps that draw, and how many they are. */
  readonly from: number;
  readonly drawers: number;
}

/** What draws this warp's share of a block, units of 16 queries in turn. It goes to `stopped` when there are no more blocks. */
export function drawerOf(
  asm: Assembler,
  { ring, warps, blockK, thread, parameters, from, drawers }: DrawOptions,
): (stopped: Label) => void {
  const tiles = tilesOfWord(blockK);
  const lane = asm.op('and.b32', thread, 31);
  const firstLane = asm.op('setp.eq.s32', lane, 0);
  const g = asm.op('shr.u32', lane, 2);
  const [half, word] = [asm.op('and.b32', lane, 1), asm.op('and.b32', asm.op('shr.u32', lane, 1), 1)];
  const ownFour = asm.op('mad.lo.s32', word, 2 * tiles, half);
  // Lane 4 g + 2 half of word `word`, and the lane after it.
  const target = asm.op('mad.lo.s32', word, 128, asm.op('mad.lo.s32', g, 16, asm.op('shl.b32', half, 3)));
  const bh = asm.reg('b32');
  const dropout = dropoutOf(asm, bh, parameters);
  const decide = dropout.decider();
  /** The next unit, over all blocks. */
  const unit = asm.op('sub.s32', asm.op('shr.u32', thread, 5), from);
  const at = cursorOf(asm, DRAW.stages, 0);
  return (stopped) => {
    waitParity(asm, slot(asm, ring.noted, at, BARRIER_BYTES), at.parity);
    const [kv0, q0, head] = asm.loadVector('shared', 'b32', 4, slot(asm, ring.note, at, DRAW.bytes));
    asm.set(bh, 'mov.b32', head);
    asm.branch(stopped, asm.op('setp.lt.s32', kv0, 0), { uniform: true });
    const first = asm.op('add.s32', asm.op('shr.u32', kv0, 2), ownFour);
    const data = asm.op('add.s32', slot(asm, ring.data, at, ring.bytes), target);
    const full = slot(asm, ring.full, at, BARRIER_BYTES);
    const again = asm.label('unit');
    const done = asm.label('drawn');
    asm.place(again);
    asm.branch(done, asm.op('setp.ge.s32', unit, warps), { uniform: true });
    const q = asm.op('add.s32', asm.op('mad.lo.s32', unit, 16, q0), g);
    const out: Reg<'b32'>[] = [];
    for (let i = 0; i < tiles; i++) {
      const x = dropout.draw(asm.op('add.s32', first, 2 * i), q).map(decide);
      for (const e of [0, 1]) {
        const bytes = asm.op('prmt.b32', x[2 * e], x[2 * e + 1], 0xfbd9);
        const bits = asm.op('and.b32', bytes, 0x01010101 << i);
        out[e] = out[e] === undefined ? bits : asm.op('or.b32', out[e], bits);
      }
    }
    asm.storeVector('shared', 'b32', asm.op('mad.lo.s32', unit, DRAW.warpBytes, data), out);
    asm.emit('bar.warp.sync', '-1');
    asm.when(firstLane, () => arrive(asm, full));
    asm.set(unit, 'add.s32', unit, drawers);
    asm.branch(again);
    asm.place(done);
    asm.set(unit, 'sub.s32', unit, warps);
    at.advance();
  };
}

/** Clears what is dropped of packed probabilities: `packed[2 n + r]` are two keys of query r in tile n. */
export function dropPacked(
  asm: Assembler,
  packed: Reg<'b32'>,
  words: readonly Reg<'b32'>[],
  index: number,
  tiles: number,
): Reg<'b32'> {
  const n = index >> 1;
  const [word, i] = [words[Math.floor(n / tiles)], n % tiles];
  const signs = i === 7 ? word : asm.op('shl.b32', word, 7 - i);
  const mask = asm.op('prmt.b32', signs, signs, index & 1 ? 0xbbaa : 0x9988);
  return asm.op('and.b32', packed, mask);
}
