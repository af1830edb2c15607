/**
 * Hopper's ways for warps to work apart: barriers in shared memory that count bytes, the tensor copy engine, barriers of
 * some of a block's warps, and registers handed from one warpgroup to another.
 */
import type { Assembler } from './assembler.ts';
import { AssemblerError, type Operand, type Reg, spell } from './registers.ts';

/** Bytes of a barrier in shared memory. */
export const BARRIER_BYTES = 8;
/** Bytes and alignment of a tensor map among a kernel's parameters. */
export const TENSOR_MAP = { bytes: 128, align: 64 } as const;

const at = (asm: Assembler, barrier: Reg<'b32'>, offset = 0): string => asm.address('shared', barrier, offset);

/** Sets a barrier to complete a phase after `count` arrivals. One thread does it; see `publishBarriers`. */
export const initBarrier = (asm: Assembler, barrier: Reg<'b32'>, offset: number, count: number): void =>
  asm.emit('mbarrier.init.shared::cta.b64', at(asm, barrier, offset), String(count));

/** Makes fresh barriers visible to the copy engine. The block synchronises afterwards. */
export function publishBarriers(asm: Assembler): void {
  asm.emit('fence.mbarrier_init.release.cluster');
  fenceAsync(asm);
}

/** Barriers alike, at offsets from one address. */
export interface Barriers {
  readonly address: Reg<'b32'>;
  readonly offsets: readonly number[];
  /** Arrivals that complete a phase. */
  readonly count: number;
}

/** All barriers of a block, made and visible to the copy engine. One thread does it; the block synchronises afterwards. */
export function makeBarriers(asm: Assembler, barriers: readonly Barriers[]): void {
  for (const { address, offsets, count } of barriers)
    for (const offset of offsets) initBarrier(asm, address, offset, count);
  publishBarriers(asm);
}

/** Orders this thread's ordinary accesses to shared memory before those of products and copies that follow. */
export const fenceAsync = (asm: Assembler): void => asm.emit('fence.proxy.async.shared::cta');

/** One arrival. */
export const arrive = (asm: Assembler, barrier: Reg<'b32'>, offset = 0): void =>
  asm.emit('mbarrier.arrive.shared::cta.b64', '_', at(asm, barrier, offset));

/** One arrival that also lets the phase wait for `bytes` bytes of copies. */
export const arriveExpecting = (asm: Assembler, barrier: Reg<'b32'>, bytes: Operand<'b32'>, offset = 0): void =>
  asm.emit(
    'mbarrier.arrive.expect_tx.shared::cta.b64',
    '_',
    at(asm, barrier, offset),
    spell('expect_tx', 2, 'b32', bytes),
  );

/** Sets `over` where the phase of the given parity is over, without waiting. */
export const testParity = (asm: Assembler, over: Reg<'pred'>, barrier: Reg<'b32'>, parity: Reg<'b32'>): void =>
  asm.emit('mbarrier.test_wait.parity.shared::cta.b64', over.name, at(asm, barrier), parity.name);

/** Waits for the phase of the given parity to be over. A fresh barrier counts as having finished one of parity 1. */
export function waitParity(asm: Assembler, barrier: Reg<'b32'>, parity: Reg<'b32'>, offset = 0): void {
  const again = asm.label('wait');
  const done = asm.reg('pred');
  asm.place(again);
  asm.emit('mbarrier.try_wait.parity.shared::cta.b64', done.name, at(asm, barrier, offset), parity.name);
  asm.branch(again, done, { negate: true });
}

// clusters: blocks of threads that reach each other's shared memory

/** Where `address` of this block's shared memory lies in that of block `rank` of the cluster. */
export function peerAddress(asm: Assembler, address: Reg<'b32'>, rank: Reg<'b32'>): Reg<'b32'> {
  const out = asm.reg('b32');
  asm.emit('mapa.shared::cluster.u32', out.name, address.name, rank.name);
  return out;
}

/**
 * One arrival at a barrier of another block of the cluster (see `peerAddress`). `publishes` makes what this thread has
 * written before visible there, which takes long; it is not needed to say that something has been read.
 */
export const arrivePeer = (asm: Assembler, barrier: Reg<'b32'>, publishes = false): void =>
  asm.emit(`mbarrier.arrive${publishes ? '.release.cluster' : ''}.shared::cluster.b64`, '_', at(asm, barrier));

/** As `waitParity`, for what another block of the cluster has published. */
export function waitCluster(asm: Assembler, barrier: Reg<'b32'>, parity: Reg<'b32'>): void {
  const again = asm.label('wait');
  const done = asm.reg('pred');
  asm.place(again);
  asm.emit('mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64', done.name, at(asm, barrier), parity.name);
  asm.branch(again, done, { negate: true });
}

/** Queues a copy from this block's shared memory to that of another, whose barrier counts the bytes. One thread does it. */
export const copyToPeer = (
  asm: Assembler,
  target: Reg<'b32'>,
  source: Reg<'b32'>,
  bytes: number,
  barrier: Reg<'b32'>,
): void =>
  asm.emit(
    'cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes',
    at(asm, target),
    at(asm, source),
    String(bytes),
    at(asm, barrier),
  );

/** Waits for all threads of the cluster. */
export function syncCluster(asm: Assembler): void {
  asm.emit('barrier.cluster.arrive.release');
  asm.emit('barrier.cluster.wait.acquire');
}

/** A place in a ring of buffers: which one is next, and the parity its barriers are waited for with. */
export interface Cursor {
  readonly stage: Reg<'b32'>;
  readonly parity: Reg<'b32'>;
  advance(): void;
}

/** @param parity 0 for readers, who wait for buffers to be full; 1 for writers, whose first waits find them empty. */
export function cursorOf(asm: Assembler, stages: number, parity: 0 | 1): Cursor {
  const stage = asm.constant('b32', 0);
  const side = asm.constant('b32', parity);
  return {
    stage,
    parity: side,
    advance() {
      asm.set(stage, 'add.s32', stage, 1);
      const wrapped = asm.op('setp.ge.s32', stage, stages);
      asm.set(stage, 'selp.b32', 0, stage, wrapped);
      asm.set(side, 'xor.b32', side, asm.op('selp.b32', 1, 0, wrapped));
    },
  };
}

/** The address, in parameter space, that copies name a tensor map by. */
export function tensorMap(asm: Assembler, symbol: string): Reg<'b64'> {
  const own = asm.reg('b64');
  asm.emit('mov.b64', own.name, symbol);
  const out = asm.reg('b64');
  asm.emit('cvta.param.u64', out.name, own.name);
  return out;
}

/** Fetches a tensor map ahead of its first use. */
export const prefetchMap = (asm: Assembler, map: Reg<'b64'>): void => asm.emit('prefetch.tensormap', `[${map.name}]`);

/**
 * Queues the copy of one box of a tensor into shared memory; its bytes, zeros outside the tensor included, are counted by
 * the barrier. Coordinates run from the innermost axis, in elements. One thread does it.
 */
export function copyBox(
  asm: Assembler,
  target: Reg<'b32'>,
  targetOffset: number,
  map: Reg<'b64'>,
  coordinates: readonly Operand<'b32'>[],
  barrier: Reg<'b32'>,
): void {
  const rank = coordinates.length;
  if (rank < 2 || rank > 5) throw new AssemblerError(`copyBox: expected 2 to 5 coordinates, got ${rank}`);
  asm.emit(
    `cp.async.bulk.tensor.${rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes`,
    asm.address('shared', target, targetOffset),
    `[${map.name}, {${coordinates.map((c, i) => spell('copyBox', i, 'b32', c)).join(', ')}}]`,
    at(asm, barrier),
  );
}

/** Asks for one box of a tensor to be brought into the L2 cache. One thread does it. */
export const prefetchBox = (asm: Assembler, map: Reg<'b64'>, coordinates: readonly Operand<'b32'>[]): void =>
  asm.emit(
    `cp.async.bulk.prefetch.tensor.${coordinates.length}d.L2.global.tile`,
    `[${map.name}, {${coordinates.map((c, i) => spell('prefetchBox', i, 'b32', c)).join(', ')}}]`,
  );

/** Queues the copy of `bytes` bytes that lie together, a multiple of 16 at such addresses; the barrier counts them. */
export const copyBytes = (
  asm: Assembler,
  target: Reg<'b32'>,
  source: Reg<'b64'>,
  bytes: Operand<'b32'>,
  barrier: Reg<'b32'>,
): void =>
  asm.emit(
    'cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes',
    asm.address('shared', target),
    asm.address('global', source),
    spell('cp.async.bulk', 2, 'b32', bytes),
    at(asm, barrier),
  );

/** Waits at named barrier `id` (1 to 15) until `threads` threads have come to it or arrived. */
export const syncNamed = (asm: Assembler, id: Operand<'b32'>, threads: number): void =>
  asm.emit('bar.sync', spell('bar.sync', 0, 'b32', id), String(threads));

/** Arrives at a named barrier without waiting. */
export const arriveNamed = (asm: Assembler, id: Operand<'b32'>, threads: number): void =>
  asm.emit('bar.arrive', spell('bar.arrive', 0, 'b32', id), String(threads));

/** Gives up or takes on registers: from here on a thread of this warpgroup has `count`, a multiple of 8 from 24 to 256. */
export function setRegisters(asm: Assembler, way: 'inc' | 'dec', count: number): void {
  if (count % 8 !== 0 || count < 24 || count > 256)
    throw new AssemblerError(`setmaxnreg: expected a multiple of 8 from 24 to 256, got ${count}`);
  asm.emit(`setmaxnreg.${way}.sync.aligned.u32`, String(count));
}

/** An arrival of this thread once the `cp.async` copies it has issued so far have landed; counted among the expected ones. */
export const arriveCopies = (asm: Assembler, barrier: Reg<'b32'>, offset = 0): void =>
  asm.emit('cp.async.mbarrier.arrive.noinc.shared::cta.b64', at(asm, barrier, offset));
