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
import { flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem, Strides } from '../../../problem/problem.ts';
import { blockRuns } from '../../../problem/ranges.ts';
import type { Driver } from '../driver/api.ts';
import type { Launch } from '../driver/launch.ts';
import { encodeTensorMap } from '../driver/tensormap.ts';
import type { CudaCaps, CudaKernel, RunContext } from '../kernel.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import { initBarrier, publishBarriers, setRegisters } from '../ptx/async.ts';
import { PANEL } from '../ptx/wgmma.ts';
import { emitCompute } from './forward_wgmma_compute.ts';
import { emitLoads, emitScan } from './forward_wgmma_load.ts';
import { layoutOf } from './forward_wgmma_shared.ts';
import { fill, take } from './parameters.ts';
import { type Spec, specOf } from './spec.ts';

export interface HopperForwardConfig extends Readonly<Record<string, number | string | boolean>> {
  /** Warpgroups that compute, 64 queries each. */
  readonly groups: number;
  readonly blockK: number;
  /** Buffers for keys, and as many for values. */
  readonly stages: number;
}

/** Registers of a thread after the warpgroups have shared out the multiprocessor's 65536, by number of computing ones. */
const REGISTERS: Readonly<Record<number, { load: number; compute: number }>> = {
  1: { load: 56, compute: 256 },
  2: { load: 40, compute: 232 },
  3: { load: 32, compute: 160 },
};

/** Bytes of K and V that a section of heads may have, so that they stay in the L2 cache while the section is worked on. */
const SECTION_BYTES = 32 * 2 ** 20;

/** Tiles by head size; of those that fit the registers, the fastest on an H200 first. */
function candidates(spec: Spec): HopperForwardConfig[] {
  const widest = Math.max(spec.padD, spec.padDv);
  const tiles = (...all: readonly (readonly [groups: number, blockK: number])[]): HopperForwardConfig[] =>
    all.map(([groups, blockK]) => ({ groups, blockK, stages: 2 }));
  const edges = spec.mask !== null || spec.mod !== null || !spec.dense;
  if (spec.dropout) return widest <= 64 ? tiles([2, 160]) : widest <= 128 ? tiles([2, 128]) : tiles([2, 64]);
  if (widest <= 64) return edges ? tiles([2, 128], [3, 112], [2, 192]) : tiles([3, 128], [2, 192], [2, 128]);
  if (widest <= 128) return edges ? tiles([2, 128], [2, 176]) : tiles([2, 176], [2, 128]);
  return widest <= 192 ? tiles([2, 96]) : tiles([2, 80], [2, 64]);
}

/** The spec with head sizes rounded up to whole panels, which is what the copy engine fills. */
function panelSpec(problem: Problem): Spec {
  const spec = specOf(problem);
  return { ...spec, padD: alignTo(spec.D, PANEL), padDv: alignTo(spec.Dv, PANEL) };
}

export const forwardWgmma: CudaKernel<HopperForwardConfig> = {
  name: 'forward_wgmma',
  pass: 'forward',
  refuse(problem, caps) {
    if (caps.capability !== 90) return 'these instructions exist on compute capability 9.0 alone';
    if (problem.dtype !== 'f16' && problem.dtype !== 'bf16') return 'only f16 and bf16';
    if (problem.kv.kind === 'paged') return 'paged keys and values';
    if (problem.B * problem.Hq * ceilDiv(problem.Sq, 64) >= 2 ** 31) return 'too many tiles';
    for (const name of ['q', 'k', 'v'] as const) {
      const { b, h, s } = problem.strides[name];
      if ([b, h, s].some((x) => x % 8 !== 0)) return `rows of ${name} do not start at multiples of 16 bytes`;
    }
    return null;
  },
  configs: (problem) => candidates(panelSpec(problem)),
  cost: (problem, config, caps) => costOf(problem, config, caps),
  kernels: (problem, config) => [emitForwardWgmma(problem, config)],
  emit: (problem, config) => [emitForwardWgmma(problem, config)].map(({ name, text }) => ({ name, text })),
  launch: (run) => launch(run),
};

/** What these instructions sustain, by what mma.sync does (`caps.flops`). */
const RATE = 1.8;

function costOf(problem: Problem, { groups, blockK }: HopperForwardConfig, caps: CudaCaps): Cost {
  const { B, Hq, Sq } = problem;
  const blockQ = groups * 64;
  const flops = flopsOf(problem, 'forward');
  const bytes = tiledBytes(problem, 'forward', blockQ, blockK);
  const blocks = ceilDiv(Sq, blockQ);
  // Rows of padding are worked on too, and multiprocessors without a tile do nothing.
  const padded = (blocks * blockQ) / Math.max(Sq, 1);
  const busy = Math.min(1, (B * Hq * blocks) / caps.multiprocessors);
  const seconds = Math.max((flops * padded) / (caps.flops * RATE * busy), bytes / caps.bandwidth);
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
  for (const { address, offsets, count } of shared.barriers)
    for (const offset of offsets) initBarrier(asm, address, offset, count);
  publishBarriers(asm);
  asm.place(ready);
  asm.barrier();

  const compute = asm.label('compute');
  const end = asm.label('end');
  asm.branch(compute, asm.op('setp.ge.s32', thread, 128));
  asm.stage('the warpgroup that moves data');
  setRegisters(asm, 'dec', registers.load);
  const scan = asm.label('scan');
  asm.branch(scan, asm.op('setp.ge.s32', thread, 32));
  asm.branch(end, first, { negate: true });
  emitLoads(asm, spec, config, shared, Hq);
  asm.branch(end);
  asm.place(scan);
  if (shared.scans) emitScan(asm, spec, config, shared, thread);
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
    addresses: { ...addresses, rowStart, runs: triples },
    runs,
    numbers: { reverse: Number(reverse) },
  });
  const blocks = ceilDiv(problem.Sq, blockQ);
  const heads = problem.B * problem.Hq;
  const tiles = blocks * heads;
  const keyBytes = (problem.Sk * (problem.D + problem.Dv) * 2 * problem.Hkv) / Math.max(problem.Hq, 1);
  const section = reverse ? Math.max(1, Math.min(heads, Math.floor(SECTION_BYTES / Math.max(keyBytes, 1)))) : 1;
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
  const { B, Hq, Hkv, Sq, Sk, D, Dv, strides, sequences } = problem;
  const packed = (start: 0 | 2): number => {
    let end = 0;
    for (let b = 0; b < B; b++) end = Math.max(end, sequences[b * 4 + start] + sequences[b * 4 + start + 1]);
    return end;
  };
  const map = (
    name: 'q' | 'k' | 'v',
    address: number,
    heads: number,
    rows: number,
    columns: number,
    box: number,
  ): void => {
    const s: Strides = strides[name];
    const bytes = encodeTensorMap(driver, {
      type: problem.dtype as 'f16' | 'bf16',
      address,
      dims: [columns, Math.max(rows, 1), heads, s.b === 0 ? 1 : B],
      strides: [s.s, s.h, s.b],
      box: [PANEL, box, 1, 1],
      swizzle: '128B',
    });
    forward.setBytes(`${name}Map`, bytes);
  };
  const rowsQ = strides.q.b === 0 ? packed(0) : Sq;
  const rowsK = strides.k.b === 0 ? packed(2) : Sk;
  map('q', q, Hq, rowsQ, D, blockQ);
  map('k', k, Hkv, rowsK, D, blockK);
  map('v', v, Hkv, rowsK, Dv, blockK);
  mapped.set(forward, { problem, q, k, v });
}
