/**
 * Backward on Hopper with five products: scores once, dK, dV and dQ from them. A block of threads owns 128 keys; dQ is added
 * up in global memory by one block of threads after the other, in a fixed order, so that results repeat bit for bit.
 *
 *     delta     row sums of dOut * out, and lse in base 2 (rows.ts)
 *     fused     dK, dV, and sums of dQ in f32 (backward_wgmma_fused_{load,compute}.ts)
 *     finish    dQ in the output's type
 *     sink      one block of threads a head (rows.ts)
 */
import { alignTo, ceilDiv } from '../../../core/math.ts';
import type { Cost } from '../../../engine/contract.ts';
import { cachedBytes, flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { type BlockRuns, blockRuns } from '../../../problem/ranges.ts';
import type { Launch } from '../driver/launch.ts';
import { type CudaCaps, type CudaKernel, l2Of, type RunContext } from '../kernel.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import { makeBarriers, setRegisters } from '../ptx/async.ts';
import { PANEL } from '../ptx/wgmma.ts';
import { lseBytes } from './backward_mma.ts';
import { emitFinish } from './backward_wgmma_finish.ts';
import { emitFusedCompute } from './backward_wgmma_fused_compute.ts';
import { emitFusedLoads, emitFusedSums } from './backward_wgmma_fused_load.ts';
import { type FusedConfig, GROUPS, KEYS, layoutOfFused, SCRATCH_BYTES } from './backward_wgmma_fused_shared.ts';
import { panelMap, panelSpec, refuseHopper, sectionOf } from './forward_wgmma.ts';
import { fill, take } from './parameters.ts';
import { DELTA_ROWS, emitDelta, emitSink } from './rows.ts';

/**
 * Heads that are mixed at least, times the head size with masks: blocks of a head that start together wait for each other.
 * That costs less than scratch tiles that leave the L2 cache.
 */
export const MIXED = { full: 6, masked: 2048 } as const;

/** Most blocks of a head: their steps are kept as a table. */
export const LONGEST = 2 ** 22;

function candidates(problem: Problem): FusedConfig[] {
  const { padD } = panelSpec(problem);
  const ragged = problem.Sk % KEYS !== 0;
  // A modifier's slope and dropout need registers, and P is not known before them.
  const plain = problem.mod === null && problem.dropout === null && panelSpec(problem).folded;
  const rest = { writers: 3, ordered: true, ragged, section: 0 };
  if (padD <= 64)
    return [
      { queries: 128, qStages: 2, doStages: 2, early: false, ahead: true, overlap: false, registers: 232, ...rest },
    ];
  const registers = plain ? 240 : 232;
  return [{ queries: 64, qStages: 3, doStages: 2, early: plain, ahead: false, overlap: plain, registers, ...rest }];
}

const programs = (problem: Problem, c: FusedConfig): KernelText[] => [
  emitDelta(problem, c.queries),
  emitFused(problem, c),
  emitFinish(problem, {
    queries: c.queries,
    panels: c.queries === PANEL ? GROUPS : 1,
    turns: Number(c.ordered),
  }),
  ...(problem.grads?.sink === true ? [emitSink(problem)] : []),
];

/** What no backward of five products serves, whatever the head size; null for the rest. */
export function refuseFive(problem: Problem, caps: CudaCaps): string | null {
  const reason = refuseHopper(problem, caps, ['q', 'k', 'v', 'out']);
  if (reason !== null) return reason;
  const { grads } = problem;
  if (grads?.sides.includes(true) === true) return 'gradients of side tensors';
  if (grads?.q !== true || !grads.k || !grads.v) return 'gradients of q, k and v are made together';
  return panelSpec(problem).dense ? null : 'sequences of different lengths';
}

export const backwardWgmmaFused: CudaKernel<FusedConfig> = {
  name: 'backward_wgmma_fused',
  pass: 'backward',
  refuse(problem, caps) {
    const reason = refuseFive(problem, caps);
    if (reason !== null) return reason;
    const spec = panelSpec(problem);
    if (spec.padD !== spec.padDv || spec.padD > 128) return 'head sizes other than two alike of up to 128';
    if (ceilDiv(problem.Sq, 64) * ceilDiv(problem.Sk, KEYS) > LONGEST) return 'too long for a table of all its blocks';
    return null;
  },
  configs: candidates,
  cost: (problem, config, caps) => costOf(problem, config, caps),
  kernels: programs,
  emit: (problem, c) => programs(problem, c).map(({ name, text }) => ({ name, text })),
  launch: launchAll,
};

/** Scratch tiles of a head. */
const queryTilesOf = ({ Sq }: Problem, { queries }: FusedConfig): number => ceilDiv(Sq, queries);
const scratchBytes = (problem: Problem, c: FusedConfig): number =>
  problem.B * problem.Hq * queryTilesOf(problem, c) * SCRATCH_BYTES;

function costOf(problem: Problem, c: FusedConfig, caps: CudaCaps): Cost {
  const { B, Hq, Sq, Sk } = problem;
  const flops = flopsOf(problem, 'backward');
  // Sums of dQ are written and read back at least once.
  const bytes = cachedBytes(problem, 'backward', c.queries, KEYS, l2Of(caps)) + 2 * scratchBytes(problem, c);
  const padded = (alignTo(Sq, c.queries) * alignTo(Sk, KEYS)) / Math.max(Sq * Sk, 1);
  const once = tiledBytes(problem, 'backward', Math.max(Sq, 1), Math.max(Sk, 1));
  const seconds = Math.max((flops * padded) / (caps.flops * 1.5), once / caps.bandwidth);
  return { flops, bytes, workspace: scratchBytes(problem, c) + B * Hq * Sq * 8, seconds };
}

export function emitFused(problem: Problem, config: FusedConfig): KernelText {
  const spec = panelSpec(problem);
  const asm = new Assembler({
    name: 'backward_fused',
    target: 'sm_90a',
    threads: 128 * (GROUPS + 1),
    blocksPerSm: 1,
  });
  const shared = layoutOfFused(asm, spec, config);
  const thread = asm.special('tid.x');
  const g = take(asm, 'scale', 'scaleLog2', 'Hq', 'Sq', 'Sk');
  const queryTiles = asm.parameter('queryTiles', 'b32');
  asm.stage('barriers');
  const ready = asm.label('ready');
  asm.branch(ready, asm.op('setp.ne.s32', thread, 0));
  makeBarriers(asm, shared.barriers);
  asm.place(ready);
  asm.barrier();

  const compute = asm.label('compute');
  const sums = asm.label('sums');
  const end = asm.label('end');
  asm.branch(compute, asm.op('setp.ge.s32', thread, 128));
  asm.stage('the warpgroup that moves data');
  setRegisters(asm, 'dec', config.registers === 240 ? 24 : 40);
  asm.branch(sums, asm.op('setp.ge.s32', thread, 32));
  emitFusedLoads(asm, spec, config, shared, { ...g, thread, queryTiles });
  asm.branch(end);
  asm.place(sums);
  asm.branch(end, asm.op('setp.ne.s32', asm.op('and.b32', thread, 31), 0));
  asm.branch(end, asm.op('setp.gt.s32', thread, 32 * config.writers));
  emitFusedSums(asm, config, shared, thread);
  asm.branch(end);
  asm.place(compute);
  asm.stage('the warpgroups that compute');
  setRegisters(asm, 'inc', config.registers);
  emitFusedCompute(asm, spec, config, shared, { ...g, thread });
  asm.place(end);
  return asm.finish();
}

/** The steps of all blocks of keys, in the order in which they are walked. */
interface Walk {
  /** First step of every row of key blocks (BlockRuns.rowOf), and the end. */
  readonly start: Int32Array;
  /**
   * Two words a step: twice the block of queries, and 1 when positions may be masked; the number of key blocks that add to
   * these queries before.
   */
  readonly steps: Int32Array;
}

const walks = new WeakMap<BlockRuns, Walk>();

/**
 * The walk through `runs`, which are by key blocks. These are handed out by ascending number and walk their queries from last
 * to first, or both the other way (`reverse`, the same for every call with these runs).
 */
export function walkOf(problem: Problem, runs: BlockRuns, queryTiles: number, reverse: boolean): Walk {
  const known = walks.get(runs);
  if (known !== undefined) return known;
  const { rows, rowStart, runs: triples } = runs;
  const start = new Int32Array(rowStart.length);
  for (let row = 0; row + 1 < rowStart.length; row++) {
    let count = 0;
    for (let i = rowStart[row]; i < rowStart[row + 1]; i++) count += triples[3 * i + 1] - triples[3 * i];
    start[row + 1] = start[row] + count;
  }
  const steps = new Int32Array(2 * start[start.length - 1]);
  for (let b = 0; b < (runs.strideB === 0 ? 1 : problem.B); b++)
    for (let h = 0; h < (runs.strideH === 0 ? 1 : problem.Hq); h++) {
      const counts = new Int32Array(queryTiles);
      for (let j = 0; j < rows; j++) {
        const row = runs.rowOf(b, h, reverse ? rows - 1 - j : j);
        let at = reverse ? start[row] : start[row + 1] - 1;
        for (let i = rowStart[row]; i < rowStart[row + 1]; i++)
          for (let tile = triples[3 * i]; tile < triples[3 * i + 1]; tile++) {
            steps[2 * at] = 2 * tile + triples[3 * i + 2];
            steps[2 * at + 1] = counts[tile]++;
            at += reverse ? 1 : -1;
          }
      }
    }
  const walk = { start, steps };
  walks.set(runs, walk);
  return walk;
}

function launchAll(run: RunContext<FusedConfig>): void {
  const { problem, config: c, caps, launches, stream, tables, addresses } = run;
  const { B, Hq, Hkv, Sq, Sk, D, Dv, grads } = problem;
  const queue = [...launches];
  const next = (): Launch => queue.shift()!;
  const queryTiles = queryTilesOf(problem, c);
  const summed = scratchBytes(problem, c);
  const rows = grads?.sink === true ? lseBytes(problem) : 0;
  const common = {
    ...addresses,
    delta: run.scratch(rows),
    lse2: run.scratch(rows),
    stats: run.scratch(B * Hq * queryTiles * c.queries * 8),
    turns: run.scratch(B * Hq * queryTiles * 4),
    scratch: run.scratch(summed),
  };
  if (!c.ordered) run.clear(common.scratch, summed);

  const delta = next();
  fill(delta, { problem, addresses: common });
  delta.set('queryTiles', queryTiles);
  delta.run(stream, (queryTiles * c.queries) / DELTA_ROWS, Hq, B);

  const fused = next();
  const runs = blockRuns(problem, 'kv', c.queries, KEYS);
  const { reverse } = tables.runs(runs);
  const { start, steps } = walkOf(problem, runs, queryTiles, reverse);
  const [walkStart, walk, counter] = [tables.array(start), tables.array(steps), tables.counters(fused)];
  fill(fused, {
    problem,
    addresses: { ...common, walkStart, walk, counter },
    runs,
    numbers: { reverse: Number(reverse) },
  });
  const blocks = ceilDiv(Sk, KEYS);
  const heads = B * Hkv;
  // What a head streams by: queries, output gradients, and sums of dQ.
  const headBytes = ((Sq * Hq) / Math.max(Hkv, 1)) * (2 * (D + Dv) + 4 * D);
  fused.set('tiles', blocks * heads);
  fused.set('blocks', blocks);
  const section = Math.max(sectionOf(heads, headBytes), problem.mask === null ? MIXED.full : MIXED.masked / D);
  fused.set('section', Math.min(c.section > 0 ? c.section : Math.ceil(section), heads));
  fused.set('heads', heads);
  fused.set('queryTiles', queryTiles);
  const { driver } = stream.device;
  fused.setBytes('qMap', panelMap(driver, problem, 'q', addresses.q, c.queries));
  fused.setBytes('outMap', panelMap(driver, problem, 'out', addresses.dOut, c.queries));
  fused.setBytes('kMap', panelMap(driver, problem, 'k', addresses.k, KEYS));
  fused.setBytes('vMap', panelMap(driver, problem, 'v', addresses.v, KEYS));
  fused.run(stream, Math.min(blocks * heads, caps.multiprocessors));

  const finish = next();
  fill(finish, { problem, addresses: common });
  finish.set('queryTiles', queryTiles);
  finish.run(stream, 2 * queryTiles, Hq, B);
  if (grads?.sink === true) {
    const launch = next();
    fill(launch, { problem, addresses: common });
    launch.run(stream, Hq);
  }
}
