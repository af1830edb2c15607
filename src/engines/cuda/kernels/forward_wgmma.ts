/**
 * Forward on Hopper (Shah et al., "FlashAttention-3", 2024): one warpgroup moves data, the others compute.
 *
 * The block of threads stays on its multiprocessor and takes tile after tile of queries. One thread of the first warpgroup
 * queues tensor copies of Q, K and V into rings of buffers (forward_wgmma_load.ts); each other warpgroup owns 64 queries,
 * multiplies straight from those buffers, and keeps scores, probabilities and output in registers
 * (forward_wgmma_compute.ts). Keys are walked from last to first, so that masking happens at the start of a tile.
 */
import { alignTo, ceilDiv } from '../../../core/math.ts';
import type { Cost } from '../../../engine/contract.ts';
import { type F32, nodesOf } from '../../../mods/expr.ts';
import { cachedBytes, flopsOf, visits } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { blockRuns } from '../../../problem/ranges.ts';
import type { Driver } from '../driver/api.ts';
import type { Launch } from '../driver/launch.ts';
import { encodeTensorMap } from '../driver/tensormap.ts';
import { type CudaCaps, type CudaKernel, l2Of, type RunContext } from '../kernel.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import { makeBarriers, setRegisters } from '../ptx/async.ts';
import { PANEL } from '../ptx/wgmma.ts';
import { emitCompute } from './forward_wgmma_compute.ts';
import { emitLoads, emitScan } from './forward_wgmma_load.ts';
import { BLOCK, layoutOf } from './forward_wgmma_shared.ts';
import { fill, take } from './parameters.ts';
import { perHead } from './scores.ts';
import { type Spec, specOf } from './spec.ts';

export interface HopperForwardConfig extends Readonly<Record<string, number | string | boolean>> {
  /** Warpgroups that compute, 64 queries each. */
  readonly groups: number;
  readonly blockK: number;
  /** Buffers for keys, and as many for values. */
  readonly stages: number;
  /** Whether the computing warpgroups take turns at queueing products. */
  readonly turns: boolean;
}

/** Registers of a thread after the warpgroups have shared out the multiprocessor's 65536, by number of computing ones. */
export const REGISTERS: Readonly<Record<number, { load: number; compute: number }>> = {
  1: { load: 56, compute: 256 },
  2: { load: 40, compute: 232 },
  3: { load: 32, compute: 160 },
};

/** Bytes of K and V that a section of heads may have, so that they stay in the L2 cache while the section is worked on. */
const SECTION_BYTES = 32 * 2 ** 20;

/** A configuration with its rate, relative to the others of its head size, on long sequences of an H200. */
type Rated = readonly [config: HopperForwardConfig, rate: number];

/** Unmasked rows of so many keys are long: warpgroups fall out of step by themselves. */
const LONG = 2048;

/** Tiles by head size, the fastest of those tried that fit the registers; the first where nothing is known. */
function candidates(spec: Spec, keys: number): Rated[] {
  const widest = Math.max(spec.padD, spec.padDv);
  const masked = spec.mask !== null || !spec.dense;
  const tile = (groups: number, blockK: number, rate: number, stages = 2, turns = true): Rated => [
    { groups, blockK, stages, turns },
    rate,
  ];
  if (spec.dropout) return [widest <= 64 ? tile(3, 96, 1, 3) : widest <= 128 ? tile(2, 112, 1) : tile(2, 64, 1)];
  // Three warpgroups hide more of the softmax where its registers fit; wide rows are lost at the ends of short sequences.
  const simple = spec.mod === null || isLight(spec.mod);
  if (widest <= 64)
    return [...(simple && spec.dense ? [tile(3, 128, 1, 3)] : []), tile(2, 128, masked ? 0.87 : 0.86, 4, false)];
  if (widest <= 128) {
    const turns = masked || keys < LONG;
    return [
      tile(2, 128, 1, 2, turns),
      ...(spec.mod !== null && spec.line === null && simple && !masked ? [tile(3, 80, 1.07)] : []),
    ];
  }
  return [widest <= 192 ? tile(2, 96, 1) : tile(2, 64, 1)];
}

/** Whether a modifier needs few registers: it reads nothing that changes with the position, and is short. */
function isLight(mod: F32): boolean {
  const nodes = nodesOf(mod);
  const heads = new Set(nodesOf(...perHead(mod)));
  return nodes.length <= 16 && nodes.every((e) => e.kind !== 'load' || heads.has(e));
}

/** The spec with head sizes rounded up to whole panels, which is what the copy engine fills. */
export function panelSpec(problem: Problem): Spec {
  const spec = specOf(problem);
  return { ...spec, padD: alignTo(spec.D, PANEL), padDv: alignTo(spec.Dv, PANEL) };
}

/** What no Hopper kernel here serves; `tensors` are those that copies read. */
export function refuseHopper(
  problem: Problem,
  caps: CudaCaps,
  tensors: readonly ('q' | 'k' | 'v' | 'out')[],
): string | null {
  if (caps.capability !== 90) return 'these instructions exist on compute capability 9.0 alone';
  if (problem.dtype !== 'f16' && problem.dtype !== 'bf16') return 'only f16 and bf16';
  if (problem.kv.kind === 'paged') return 'paged keys and values';
  const rows = ceilDiv(Math.max(problem.Sq, problem.Sk), 64);
  if (problem.B * problem.Hq * rows >= 2 ** 31) return 'too many tiles';
  for (const name of tensors) {
    const { b, h, s } = problem.strides[name];
    if ([b, h, s].some((x) => x % 8 !== 0)) return `rows of ${name} do not start at multiples of 16 bytes`;
  }
  return null;
}

/** How many heads to mix, each of which streams `bytes` bytes. */
export const sectionOf = (heads: number, bytes: number): number =>
  Math.max(1, Math.min(heads, Math.floor(SECTION_BYTES / Math.max(bytes, 1))));

export const forwardWgmma: CudaKernel<HopperForwardConfig> = {
  name: 'forward_wgmma',
  pass: 'forward',
  refuse: (problem, caps) => refuseHopper(problem, caps, ['q', 'k', 'v']),
  configs: (problem) => candidates(panelSpec(problem), problem.Sk).map(([config]) => config),
  cost: (problem, config, caps) => costOf(problem, config, caps),
  kernels: (problem, config) => [emitForwardWgmma(problem, config)],
  emit: (problem, config) => [emitForwardWgmma(problem, config)].map(({ name, text }) => ({ name, text })),
  launch: (run) => launch(run),
};

/** What these instructions sustain, by what mma.sync does (`caps.flops`). */
const RATE = 1.8;

function costOf(problem: Problem, config: HopperForwardConfig, caps: CudaCaps): Cost {
  const { groups, blockK } = config;
  const blockQ = groups * 64;
  const flops = flopsOf(problem, 'forward');
  // What tiles read again comes from the L2 cache.
  const bytes = cachedBytes(problem, 'forward', blockQ, blockK, l2Of(caps));
  const rate =
    candidates(panelSpec(problem), problem.Sk).find(([c]) => c.groups === groups && c.blockK === blockK)?.[1] ?? 1;
  // Whole blocks are worked on: past the ends of sequences, and where masks end inside of them.
  const pairs = visits(problem, 'q', blockQ, blockK) * blockQ * blockK;
  const work = (pairs * 2 * (problem.D + problem.Dv)) / rate;
  const seconds = Math.max(work / (caps.flops * RATE), bytes / caps.bandwidth);
  return { flops, bytes, workspace: 0, seconds };
}

export function emitForwardWgmma(problem: Problem, config: HopperForwardConfig): KernelText {
  const spec = panelSpec(problem);
  const { groups } = config;
  const registers = REGISTERS[groups];
  const asm = new Assembler({
    name: 'forward_wgmma',
    target: 'sm_90a',
    threads: 128 * (groups + 1),
    blocksPerSm: 1,
  });
  const shared = layoutOf(asm, spec, config);
  const thread = asm.special('tid.x');
  const { scale, scaleLog2, Hq } = take(asm, 'scale', 'scaleLog2', 'Hq');
  asm.stage('barriers');
  const first = asm.op('setp.eq.s32', thread, 0);
  const ready = asm.label('ready');
  asm.branch(ready, first, { negate: true });
  makeBarriers(asm, shared.barriers);
  asm.place(ready);
  asm.barrier();

  const [compute, scan, end] = ['compute', 'scan', 'end'].map((hint) => asm.label(hint));
  asm.branch(compute, asm.op('setp.ge.s32', thread, 128));
  asm.stage('the warpgroup that moves data');
  setRegisters(asm, 'dec', registers.load);
  asm.branch(scan, asm.op('setp.ge.s32', thread, 32));
  asm.branch(end, first, { negate: true });
  emitLoads(asm, spec, config, shared, Hq);
  asm.branch(end);
  asm.place(scan);
  if (shared.scans) {
    const { v, scanned, found } = shared;
    const buffers = { ...v, stride: v.bytes, stages: config.stages, noteBytes: BLOCK.bytes };
    const ring = { ...buffers, scanned, found, ahead: groups === 3 ? 2 : 4, clears: true };
    emitScan(asm, spec.storage as 'f16' | 'bf16', ring, thread);
  }
  asm.branch(end);
  asm.place(compute);
  asm.stage('the warpgroups that compute');
  setRegisters(asm, 'inc', registers.compute);
  emitCompute(asm, spec, config, shared, { thread, scale, scaleLog2, Hq });
  asm.place(end);
  return asm.finish();
}

function launch({
  problem,
  config,
  caps,
  launches: [forward],
  stream,
  tables,
  addresses,
}: RunContext<HopperForwardConfig>): void {
  const blockQ = config.groups * 64;
  const runs = blockRuns(problem, 'q', blockQ, config.blockK);
  const { rowStart, runs: triples, reverse } = tables.runs(runs);
  fill(forward, {
    problem,
    addresses: { ...addresses, rowStart, runs: triples, counter: tables.counters(forward) },
    runs,
    numbers: { reverse: Number(reverse) },
  });
  const blocks = ceilDiv(problem.Sq, blockQ);
  const heads = problem.B * problem.Hq;
  const tiles = blocks * heads;
  const keyBytes = (problem.Sk * (problem.D + problem.Dv) * 2 * problem.Hkv) / Math.max(problem.Hq, 1);
  const section = reverse ? sectionOf(heads, keyBytes) : 1;
  forward.set('tiles', tiles);
  forward.set('blocks', blocks);
  forward.set('section', section);
  forward.set('heads', heads);
  forward.set('bStepQ', Number(problem.strides.q.b !== 0));
  forward.set('bStepK', Number(problem.strides.k.b !== 0));
  setMaps(stream.device.driver, forward, problem, addresses, blockQ, config.blockK);
  forward.run(stream, Math.min(tiles, caps.multiprocessors));
}

/** The tensors a launch's maps were last made for. */
const mapped = new WeakMap<Launch, { problem: Problem; q: number; k: number; v: number }>();

function setMaps(
  driver: Driver,
  forward: Launch,
  problem: Problem,
  { q, k, v }: Readonly<Record<string, number>>,
  blockQ: number,
  blockK: number,
): void {
  const known = mapped.get(forward);
  if (known !== undefined && known.problem === problem && known.q === q && known.k === k && known.v === v) return;
  forward.setBytes('qMap', panelMap(driver, problem, 'q', q, blockQ));
  forward.setBytes('kMap', panelMap(driver, problem, 'k', k, blockK));
  forward.setBytes('vMap', panelMap(driver, problem, 'v', v, blockK));
  mapped.set(forward, { problem, q, k, v });
}

/** The map of a tensor laid out as the problem says (`out` also for its gradient), copied a panel of `rows` rows at a time. */
export function panelMap(
  driver: Driver,
  { B, Hq, Hkv, Sq, Sk, D, Dv, dtype, strides, sequences }: Problem,
  name: 'q' | 'k' | 'v' | 'out',
  address: number,
  rows: number,
): Uint8Array {
  const queries = name === 'q' || name === 'out';
  const s = strides[name];
  let length = queries ? Sq : Sk;
  if (s.b === 0) {
    const at = queries ? 0 : 2;
    for (let b = 0; b < B; b++) length = Math.max(length, sequences[b * 4 + at] + sequences[b * 4 + at + 1]);
  }
  return encodeTensorMap(driver, {
    type: dtype as 'f16' | 'bf16',
    address,
    dims: [name === 'q' || name === 'k' ? D : Dv, Math.max(length, 1), queries ? Hq : Hkv, s.b === 0 ? 1 : B],
    strides: [s.s, s.h, s.b],
    box: [PANEL, rows, 1, 1],
    swizzle: '128B',
  });
}
