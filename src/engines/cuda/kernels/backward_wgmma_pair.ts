/**
 * Backward on Hopper with five products for heads of more than 128 columns. Two blocks of threads, a cluster, own 128 keys; dQ
 * is added up in global memory by one cluster after the other, in a fixed order, so that results repeat bit for bit.
 *
 *     delta     row sums of dOut * out, and lse in base 2 (rows.ts)
 *     pair      dK, dV, and sums of dQ in f32 (backward_wgmma_pair_{load,scores,gradients}.ts, backward_wgmma_sums.ts)
 *     finish    dQ in the output's type (backward_wgmma_finish.ts)
 *     sink      one block of threads a head (rows.ts)
 */
import { alignTo, ceilDiv } from '../../../core/math.ts';
import type { Cost } from '../../../engine/contract.ts';
import { cachedBytes, flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { blockRuns } from '../../../problem/ranges.ts';
import type { Launch } from '../driver/launch.ts';
import { type CudaCaps, type CudaKernel, l2Of, type RunContext } from '../kernel.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import { makeBarriers, setRegisters, syncCluster } from '../ptx/async.ts';
import { lseBytes } from './backward_mma.ts';
import { emitFinish } from './backward_wgmma_finish.ts';
import { LONGEST, MIXED, refuseFive, walkOf } from './backward_wgmma_fused.ts';
import { emitPairGradients, emitPairQueries } from './backward_wgmma_pair_gradients.ts';
import { emitPairLoads } from './backward_wgmma_pair_load.ts';
import { emitPairScores } from './backward_wgmma_pair_scores.ts';
import {
  COLUMNS,
  layoutOfPair,
  PAIR_KEYS,
  PANELS,
  type PairConfig,
  REGISTERS,
  ROWS,
  STATS_BYTES,
  TILE_BYTES,
  TURNS,
} from './backward_wgmma_pair_shared.ts';
import { emitTurns } from './backward_wgmma_sums.ts';
import { panelMap, panelSpec, sectionOf } from './forward_wgmma.ts';
import { fill, take } from './parameters.ts';
import { DELTA_ROWS, emitDelta, emitSink } from './rows.ts';

const programs = (problem: Problem, c: PairConfig): KernelText[] => [
  emitDelta(problem, ROWS, TURNS),
  emitPair(problem, c),
  emitFinish(problem, { queries: ROWS, panels: PANELS, turns: c.ordered ? TURNS : 0 }),
  ...(problem.grads?.sink === true ? [emitSink(problem)] : []),
];

export const backwardWgmmaPair: CudaKernel<PairConfig> = {
  name: 'backward_wgmma_pair',
  pass: 'backward',
  refuse(problem, caps) {
    const reason = refuseFive(problem, caps);
    if (reason !== null) return reason;
    const spec = panelSpec(problem);
    const widest = Math.max(spec.padD, spec.padDv);
    if (widest <= COLUMNS / 2 || widest > COLUMNS) return 'head sizes other than 129 to 256';
    if (problem.mod !== null || problem.dropout !== null) return 'modifiers and dropout';
    if (ceilDiv(problem.Sq, ROWS) * ceilDiv(problem.Sk, PAIR_KEYS) > LONGEST)
      return 'too long for a table of all its blocks';
    return null;
  },
  configs: ({ Sk }) => [
    { qStages: 2, pStages: 2, dsStages: 2, ordered: true, ragged: Sk % PAIR_KEYS !== 0, section: 0 },
  ],
  cost: (problem, config, caps) => costOf(problem, config, caps),
  kernels: programs,
  emit: (problem, c) => programs(problem, c).map(({ name, text }) => ({ name, text })),
  launch: launchAll,
};

const scratchBytes = ({ B, Hq, Sq }: Problem): number => B * Hq * ceilDiv(Sq, ROWS) * TILE_BYTES;

function costOf(problem: Problem, _: PairConfig, caps: CudaCaps): Cost {
  const { B, Hq, Sq, Sk, D, Dv } = problem;
  const { padD, padDv } = panelSpec(problem);
  const flops = flopsOf(problem, 'backward');
  // Sums of dQ are written and read back at least once.
  const bytes = cachedBytes(problem, 'backward', ROWS, PAIR_KEYS, l2Of(caps)) + 2 * scratchBytes(problem);
  const rows = (alignTo(Sq, ROWS) * alignTo(Sk, PAIR_KEYS)) / Math.max(Sq * Sk, 1);
  // dQ has as many columns as there is room for.
  const columns = (D + Dv + padD + padDv + COLUMNS) / (3 * D + 2 * Dv);
  const once = tiledBytes(problem, 'backward', Math.max(Sq, 1), Math.max(Sk, 1));
  const seconds = Math.max((flops * rows * columns) / (caps.flops * 1.25), once / caps.bandwidth);
  return { flops, bytes, workspace: scratchBytes(problem) + B * Hq * Sq * 8, seconds };
}

export function emitPair(problem: Problem, config: PairConfig): KernelText {
  const spec = panelSpec(problem);
  const asm = new Assembler({
    name: 'backward_pair',
    target: 'sm_90a',
    threads: 512,
    blocksPerSm: 1,
    cluster: 2,
  });
  const shared = layoutOfPair(asm, config);
  const thread = asm.special('tid.x');
  const rank = asm.special('cluster_ctarank');
  const other = asm.op('xor.b32', rank, 1);
  const g = { ...take(asm, 'scale', 'scaleLog2', 'Hq', 'Sq', 'Sk'), thread, rank, other };
  const queryTiles = asm.parameter('queryTiles', 'b32');
  asm.stage('barriers');
  const ready = asm.label('ready');
  asm.branch(ready, asm.op('setp.ne.s32', thread, 0));
  makeBarriers(asm, shared.barriers);
  asm.place(ready);
  syncCluster(asm);

  const end = asm.label('end');
  const roles = [128, 256, 384].map((first) => asm.op('setp.lt.s32', thread, first));
  const [scores, gradients, queries] = ['scores', 'gradients', 'queries'].map((name) => asm.label(name));
  asm.branch(queries, roles[2], { negate: true });
  asm.branch(gradients, roles[1], { negate: true });
  asm.branch(scores, roles[0], { negate: true });
  asm.stage('the warpgroup that moves data');
  setRegisters(asm, 'dec', REGISTERS.load);
  const writes = asm.label('writes');
  asm.branch(writes, asm.op('setp.ge.s32', thread, 32));
  emitPairLoads(asm, spec, config, shared, { ...g, queryTiles });
  asm.branch(end);
  asm.place(writes);
  asm.branch(end, asm.op('setp.ne.s32', asm.op('and.b32', thread, 31), 0));
  const turns = asm.op('add.s64', asm.parameter('turns', 'b64'), asm.op('mul.wide.u32', rank, 4));
  const writer = asm.op('sub.s32', asm.op('shr.u32', thread, 5), 1);
  emitTurns(asm, { writer, turnNote: shared.turnNote, turns, words: TURNS, ordered: config.ordered });
  asm.branch(end);
  asm.place(scores);
  setRegisters(asm, 'inc', REGISTERS.keys);
  emitPairScores(asm, spec, config, shared, g);
  asm.branch(end);
  asm.place(gradients);
  setRegisters(asm, 'inc', REGISTERS.keys);
  emitPairGradients(asm, spec, config, shared, g);
  asm.branch(end);
  asm.place(queries);
  setRegisters(asm, 'dec', REGISTERS.queries);
  emitPairQueries(asm, spec, config, shared, g);
  asm.place(end);
  // A block whose shared memory the other still writes to must not be gone.
  syncCluster(asm);
  return asm.finish();
}

function launchAll(run: RunContext<PairConfig>): void {
  const { problem, config: c, caps, launches, stream, tables, addresses } = run;
  const { B, Hq, Hkv, Sq, Sk, D, Dv, grads } = problem;
  const queue = [...launches];
  const next = (): Launch => queue.shift()!;
  const queryTiles = ceilDiv(Sq, ROWS);
  const rows = grads?.sink === true ? lseBytes(problem) : 0;
  const common = {
    ...addresses,
    delta: run.scratch(rows),
    lse2: run.scratch(rows),
    stats: run.scratch(B * Hq * queryTiles * STATS_BYTES),
    turns: run.scratch(B * Hq * queryTiles * TURNS * 4),
    scratch: run.scratch(scratchBytes(problem)),
  };

  if (!c.ordered) run.clear(common.scratch, scratchBytes(problem));
  const delta = next();
  fill(delta, { problem, addresses: common });
  delta.set('queryTiles', queryTiles);
  delta.run(stream, (queryTiles * ROWS) / DELTA_ROWS, Hq, B);

  const pair = next();
  const runs = blockRuns(problem, 'kv', ROWS, PAIR_KEYS);
  const { reverse } = tables.runs(runs);
  const { start, steps } = walkOf(problem, runs, queryTiles, reverse);
  const [walkStart, walk, counter] = [tables.array(start), tables.array(steps), tables.counters(pair)];
  fill(pair, {
    problem,
    addresses: { ...common, walkStart, walk, counter },
    runs,
    numbers: { reverse: Number(reverse) },
  });
  const blocks = ceilDiv(Sk, PAIR_KEYS);
  const heads = B * Hkv;
  const clusters = Math.floor(caps.multiprocessors / 2);
  // What a head streams by: queries, output gradients, and sums of dQ.
  const headBytes = ((Sq * Hq) / Math.max(Hkv, 1)) * (2 * (D + Dv) + 4 * D);
  // Heads that fit the clusters whole are read once; of longer ones several are mixed, see MIXED.
  const whole = Math.floor(clusters / Math.max(blocks, 1));
  const least = problem.mask === null ? MIXED.full : MIXED.masked / D;
  const mixed = problem.mask === null && whole > 1 ? whole : Math.max(sectionOf(heads, headBytes), least);
  pair.set('tiles', blocks * heads);
  pair.set('blocks', blocks);
  pair.set('section', Math.min(c.section > 0 ? c.section : Math.ceil(mixed), heads));
  pair.set('heads', heads);
  pair.set('queryTiles', queryTiles);
  const { driver } = stream.device;
  for (const name of ['q', 'out', 'k', 'v'] as const)
    pair.setBytes(`${name}Map`, panelMap(driver, problem, name, addresses[name === 'out' ? 'dOut' : name], ROWS));
  pair.run(stream, 2 * Math.min(blocks * heads, clusters));

  const finish = next();
  fill(finish, { problem, addresses: common });
  finish.set('queryTiles', queryTiles);
  finish.run(stream, PANELS * queryTiles, Hq, B);
  if (grads?.sink === true) {
    const launch = next();
    fill(launch, { problem, addresses: common });
    launch.run(stream, Hq);
  }
}
