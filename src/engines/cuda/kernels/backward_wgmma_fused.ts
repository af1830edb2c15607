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
import { initBarrier, publishBarriers, setRegisters } from '../ptx/async.ts';
import { lseBytes } from './backward_mma.ts';
import { emitFusedCompute } from './backward_wgmma_fused_compute.ts';
import { emitFusedFinish } from './backward_wgmma_fused_finish.ts';
import { emitFusedFinisher, emitFusedLoads, emitFusedSums } from './backward_wgmma_fused_load.ts';
import { DONE, type FusedConfig, GROUPS, KEYS, layoutOfFused, SCRATCH_BYTES } from './backward_wgmma_fused_shared.ts';
import { panelMap, panelSpec, refuseHopper, sectionOf } from './forward_wgmma.ts';
import { fill, take } from './parameters.ts';
import { DELTA_ROWS, emitDelta, emitSink } from './rows.ts';

/**
 * Heads that are mixed at least, times the head size with masks: blocks of a head that start together wait for each other.
 * That costs less than scratch tiles that leave the L2 cache.
 */
const MIXED = { full: 6, masked: 2048 } as const;

/** Most blocks of a head: their order of sums is kept as a table. */
const LONGEST = 2 ** 24;

function candidates(problem: Problem): FusedConfig[] {
  const { padD } = panelSpec(problem);
  const ragged = problem.Sk % KEYS !== 0;
  // A modifier's slope and dropout need registers, and P is not known before them.
  const plain = problem.mod === null && problem.dropout === null && panelSpec(problem).folded;
  const rest = { sums: 1, writers: 3, finisher: false, sharedDs: true, ordered: true, ragged, section: 0 };
  if (padD <= 64) return [{ queries: 128, qStages: 2, doStages: 2, overlap: false, registers: 232, ...rest }];
  return [{ queries: 64, qStages: 3, doStages: 2, overlap: plain, registers: plain ? 240 : 232, ...rest }];
}

const programs = (problem: Problem, c: FusedConfig): KernelText[] => [
  emitDelta(problem, c.queries),
  emitFused(problem, c),
  emitFusedFinish(problem, c),
  ...(problem.grads?.sink === true ? [emitSink(problem)] : []),
];

export const backwardWgmmaFused: CudaKernel<FusedConfig> = {
  name: 'backward_wgmma_fused',
  pass: 'backward',
  refuse(problem, caps) {
    const reason = refuseHopper(problem, caps, ['q', 'k', 'v', 'out']);
    if (reason !== null) return reason;
    const { grads, mod, dropout } = problem;
    if (grads?.sides.includes(true) === true) return 'gradients of side tensors';
    if (grads?.q !== true || !grads.k || !grads.v) return 'gradients of q, k and v are made together';
    const spec = panelSpec(problem);
    if (!spec.dense) return 'sequences of different lengths';
    if (spec.padD !== spec.padDv || spec.padD > 128) return 'head sizes other than two alike of up to 128';
    if (dropout !== null) return 'dropout: not yet checked on a device';
    if (mod !== null && spec.padD <= 64) return 'score modifiers with heads up to 64: too few registers';
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
  const scratch = asm.parameter('scratch', 'b64');
  const queryTiles = asm.parameter('queryTiles', 'b32');
  asm.stage('barriers');
  const ready = asm.label('ready');
  asm.branch(ready, asm.op('setp.ne.s32', thread, 0));
  for (const { address, offsets, count } of shared.barriers)
    for (const offset of offsets) initBarrier(asm, address, offset, count);
  if (config.finisher)
    for (let i = 0; i < config.writers; i++)
      for (const offset of [DONE.put, DONE.taken])
        asm.store('shared', 'b32', shared.complete, 0, i * DONE.bytes + offset);
  publishBarriers(asm);
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
  const others = asm.label('others');
  asm.branch(others, asm.op('setp.ge.s32', thread, 32 * (config.writers + 1)));
  asm.branch(end, asm.op('setp.ne.s32', asm.op('and.b32', thread, 31), 0));
  emitFusedSums(asm, config, shared, { thread, scratch });
  asm.branch(end);
  asm.place(others);
  if (config.finisher) {
    asm.branch(end, asm.op('setp.ge.s32', thread, 32 * (config.writers + 2)));
    emitFusedFinisher(asm, spec, config, shared, { ...g, thread, queryTiles, scratch });
  }
  asm.branch(end);
  asm.place(compute);
  asm.stage('the warpgroups that compute');
  setRegisters(asm, 'inc', config.registers);
  emitFusedCompute(asm, spec, config, shared, { ...g, thread });
  asm.place(end);
  return asm.finish();
}

interface SumOrder {
  /** First step of every row of key blocks. */
  readonly start: Int32Array;
  /** By step, as they are walked: twice the number of blocks before this one that add to its queries, and 1 for the last. */
  readonly ranks: Int32Array;
  /** Whether some queries have no key block. */
  readonly empty: boolean;
}

const orders = new WeakMap<BlockRuns, SumOrder>();

/** Who adds to which queries when, for tiles of the walk `runs` by key blocks. */
export function orderOf(problem: Problem, runs: BlockRuns, queryTiles: number): SumOrder {
  const known = orders.get(runs);
  if (known !== undefined) return known;
  const rows = runs.rowStart.length - 1;
  const start = new Int32Array(rows + 1);
  for (let row = 0; row < rows; row++) {
    let count = 0;
    for (let i = runs.rowStart[row]; i < runs.rowStart[row + 1]; i++) count += runs.runs[3 * i + 1] - runs.runs[3 * i];
    start[row + 1] = start[row] + count;
  }
  const ranks = new Int32Array(start[rows]);
  let empty = false;
  const batches = runs.strideB === 0 ? 1 : problem.B;
  const heads = runs.strideH === 0 ? 1 : problem.Hq;
  for (let b = 0; b < batches; b++)
    for (let h = 0; h < heads; h++) {
      const counts = new Int32Array(queryTiles);
      const latest = new Int32Array(queryTiles);
      for (let j = 0; j < runs.rows; j++) {
        const row = runs.rowOf(b, h, j);
        let at = start[row];
        for (let i = runs.rowStart[row + 1] - 1; i >= runs.rowStart[row]; i--)
          for (let tile = runs.runs[3 * i + 1] - 1; tile >= runs.runs[3 * i]; tile--) {
            latest[tile] = at;
            ranks[at++] = 2 * counts[tile]++;
          }
      }
      counts.forEach((count, tile) => {
        if (count === 0) empty = true;
        else ranks[latest[tile]] |= 1;
      });
    }
  const order = { start, ranks, empty };
  orders.set(runs, order);
  return order;
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
  const { rowStart, runs: triples } = tables.runs(runs);
  const order = orderOf(problem, runs, queryTiles);
  const [stepStart, ranks] = [tables.array(order.start), tables.array(order.ranks)];
  const counter = tables.counters(fused);
  fill(fused, {
    problem,
    addresses: { ...common, rowStart, runs: triples, counter, stepStart, ranks },
    runs,
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
  if (!c.finisher || order.empty) finish.run(stream, 2 * queryTiles, Hq, B);
  if (grads?.sink === true) {
    const launch = next();
    fill(launch, { problem, addresses: common });
    launch.run(stream, Hq);
  }
}
