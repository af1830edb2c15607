/**
 * Hopper's matrix products of a warpgroup (four warps), which run by themselves until they are waited for.
 *
 * The right operand, and the left one unless it is in registers, lies in shared memory as the tensor copy engine writes it
 * with 128-byte swizzle: panels of 64 elements (128 bytes) by any number of rows, each panel at a multiple of 1024 bytes.
 * Accumulators of m64nN: warp w holds rows 16 w ...; inside a warp the 16x8 tiles are those of tensor.ts.
 */
import type { Assembler } from './assembler.ts';
import { AssemblerError, type Reg, type RegType, spell } from './registers.ts';

/** Elements of a panel's row. */
export const PANEL = 64;
/** Bytes of a panel's row. */
export const PANEL_BYTES = 128;
/** Eight rows of a panel: the unit in which the swizzle repeats. */
const GROUP_BYTES = 1024;
const SWIZZLE_128 = 1;

/** Says where an operand lies: a descriptor in shared memory. */
export type Descriptor = Reg<'b64'>;

/**
 * Descriptor of the operand that starts at `address`. `panelBytes` is the distance of its panels, which matters only where
 * one product spans several of them: when the inner dimension runs down the rows.
 */
export function descriptor(asm: Assembler, address: Reg<'b32'>, panelBytes = 16): Descriptor {
  const low = asm.op('and.b32', asm.op('shr.u32', address, 4), 0x3fff);
  const out = asm.reg('b64');
  const withPanels = asm.op('or.b32', low, (panelBytes >> 4) << 16);
  const high = asm.constant('b32', (GROUP_BYTES >> 4) | (SWIZZLE_128 << 30));
  asm.emit('mov.b64', out.name, `{${withPanels.name}, ${high.name}}`);
  return out;
}

/**
 * A number from 0 to 3 that all lanes of a warp have alike, voted on bit by bit, so that the compiler knows: what is made of it
 * stays in uniform registers, where products want their descriptors. A shuffle would say so too, but waits in the queue of
 * shared memory.
 */
export function uniform(asm: Assembler, value: Reg<'b32'>): Reg<'b32'> {
  const [low, high] = [1, 2].map((bit) => {
    const votes = asm.reg('b32');
    const set = asm.op('setp.ne.s32', asm.op('and.b32', value, bit), 0);
    asm.emit('vote.sync.ballot.b32', votes.name, set.name, '-1');
    return asm.op('and.b32', votes, bit);
  });
  return asm.op('or.b32', low, high);
}

/** The descriptor `bytes` further on, a multiple of 16 that stays inside the address's 18 bits. */
export const advance = (asm: Assembler, d: Descriptor, bytes: number): Descriptor =>
  bytes === 0 ? d : asm.op('add.s64', d, bytes >> 4);

const list = (instruction: string, type: RegType, regs: readonly Reg[]): string =>
  `{${regs.map((r, i) => spell(instruction, i, type, r)).join(', ')}}`;

export interface WgmmaOptions {
  readonly type: 'f16' | 'bf16';
  /** Whether the accumulators' old values are added to; false where they hold nothing yet. */
  readonly accumulate: Reg<'pred'>;
  /** The right operand's inner dimension runs down its rows (V in P V) instead of along them (K in Q K^T). */
  readonly downRows?: boolean;
  /** The left operand's inner dimension runs down its rows. Only for one in shared memory. */
  readonly leftDownRows?: boolean;
}

/**
 * acc[64, N] (+)= a[64, 16] . b[16, N] in f32, queued. `a` is 4 registers of pairs of halves or a descriptor; N is twice
 * the number of accumulators of a thread. Nothing but other products may touch `acc`, nor write `a`, until a wait.
 */
export function wgmma(
  asm: Assembler,
  acc: readonly Reg<'f32'>[],
  a: Descriptor | readonly Reg<'b32'>[],
  b: Descriptor,
  { type, accumulate, downRows = false, leftDownRows = false }: WgmmaOptions,
): void {
  const n = acc.length * 2;
  if (n % 8 !== 0 || n < 8 || n > 256) throw new AssemblerError(`wgmma: expected 4 to 128 accumulators, got ${n / 2}`);
  const name = `wgmma.mma_async.sync.aligned.m64n${n}k16.f32.${type}.${type}`;
  const operands = [list(name, 'f32', acc)];
  const fromRegisters = !('name' in a);
  if (fromRegisters) {
    if (a.length !== 4) throw new AssemblerError(`${name}: expected 4 registers of the left operand, got ${a.length}`);
    if (leftDownRows) throw new AssemblerError(`${name}: a left operand in registers cannot be transposed`);
    operands.push(list(name, 'b32', a));
  } else operands.push(spell(name, 1, 'b64', a));
  operands.push(spell(name, 2, 'b64', b), spell(name, 3, 'pred', accumulate), '1', '1');
  if (!fromRegisters) operands.push(leftDownRows ? '1' : '0');
  operands.push(downRows ? '1' : '0');
  asm.emit(name, ...operands);
}

/** Makes registers written by ordinary instructions visible to the products that follow. */
export const wgmmaFence = (asm: Assembler): void => asm.emit('wgmma.fence.sync.aligned');

/** Closes the group of products queued since the last one. */
export const wgmmaCommit = (asm: Assembler): void => asm.emit('wgmma.commit_group.sync.aligned');

/** Waits until at most `pending` groups are unfinished. */
export const wgmmaWait = (asm: Assembler, pending: number): void =>
  asm.emit('wgmma.wait_group.sync.aligned', String(pending));
