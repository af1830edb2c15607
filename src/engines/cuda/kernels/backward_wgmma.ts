/**
 * Backward on Hopper by warpgroup products, in programs that need no atomic additions of floats, as in backward_mma:
 *
 *     delta     row sums of dOut * out, and lse in base 2 (rows.ts)
 *     dq        a block of threads a tile of queries, walking keys
 *     dk, dv    a block of threads a tile of keys, walking queries: one program, or two where registers do not hold both
 *     sink      one block of threads a head (rows.ts)
 *
 * Seven products (eight for wide heads) instead of five are the price of a fixed order of sums.
 */
import { alignTo, ceilDiv } from '../../../core/math.ts';
import type { Cost } from '../../../engine/contract.ts';
import { cachedBytes, flopsOf } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { blockRuns } from '../../../problem/ranges.ts';
import type { Launch } from '../driver/launch.ts';
import { type CudaCaps, type CudaKernel, l2Of, type RunContext } from '../kernel.ts';
import type { KernelText } from '../ptx/assembler.ts';
import { lseBytes } from './backward_mma.ts';
import { emitPart } from './backward_wgmma_part.ts';
import type { Part, PartTile } from './backward_wgmma_shared.ts';
import { panelMap, panelSpec, refuseHopper, sectionOf } from './forward_wgmma.ts';
import { fill } from './parameters.ts';
import { DELTA_ROWS, emitDelta, emitSink } from './rows.ts';
import type { Spec } from './spec.ts';

export interface HopperBackwardConfig extends Readonly<Record<string, number | string | boolean>> {
  /** Warpgroups that compute, 64 rows each. */
  readonly groups: number;
  /** Keys of a step of dQ, and buffers. */
  readonly dqBlock: number;
  readonly dqStages: number;
  /** Queries of a step of dK (and dV, when `together`), and buffers. */
  readonly dkBlock: number;
  readonly dkStages: number;
  readonly together: boolean;
  /** Queries of a step of dV alone, and buffers. */
  readonly dvBlock: number;
  readonly dvStages: number;
}

function candidates(spec: Spec): HopperBackwardConfig[] {
  const widest = Math.max(spec.padD, spec.padDv);
  const tile = (
    dq: readonly [block: number, stages: number],
    dk: readonly [number, number],
    dv?: readonly [number, number],
  ) => ({
    groups: 2,
    dqBlock: dq[0],
    dqStages: dq[1],
    dkBlock: dk[0],
    dkStages: dk[1],
    together: dv === undefined,
    dvBlock: dv?.[0] ?? 0,
    dvStages: dv?.[1] ?? 0,
  });
  if (spec.dropout) {
    // The random words need registers.
    if (widest <= 64) return [tile([96, 4], [64, 4])];
    return [widest <= 128 ? tile([64, 3], [64, 3], [64, 3]) : tile([48, 2], [32, 2], [48, 2])];
  }
  if (widest <= 64) return [tile([128, 3], [64, 4]), tile([64, 4], [64, 4])];
  if (widest <= 128) return [tile([96, 2], [48, 3])];
  return [tile([48, 2], [48, 2], [64, 2])];
}

/** The middle programs of a call. */
export function partsOf({ grads }: Problem, c: HopperBackwardConfig): (readonly [Part, PartTile])[] {
  const k = grads?.k === true;
  const v = grads?.v === true;
  const { groups } = c;
  const dk = { groups, block: c.dkBlock, stages: c.dkStages };
  const dv = { groups, block: c.dvBlock, stages: c.dvStages };
  const parts: (readonly [Part, PartTile])[] = [];
  if (c.together && (k || v)) parts.push([{ rows: 'kv', first: k, second: v }, dk]);
  if (!c.together && k) parts.push([{ rows: 'kv', first: true, second: false }, dk]);
  if (!c.together && v) parts.push([{ rows: 'kv', first: false, second: true }, dv]);
  if (grads?.q === true)
    parts.push([
      { rows: 'q', first: true, second: false },
      { groups, block: c.dqBlock, stages: c.dqStages },
    ]);
  return parts;
}

const programs = (problem: Problem, c: HopperBackwardConfig): KernelText[] => [
  emitDelta(problem),
  ...partsOf(problem, c).map(([part, tile]) => emitPart(problem, part, tile)),
  ...(problem.grads?.sink === true ? [emitSink(problem)] : []),
];

export const backwardWgmma: CudaKernel<HopperBackwardConfig> = {
  name: 'backward_wgmma',
  pass: 'backward',
  refuse(problem, caps) {
    const reason = refuseHopper(problem, caps, ['q', 'k', 'v', 'out']);
    if (reason !== null) return reason;
    if (problem.grads?.sides.includes(true) === true) return 'gradients of side tensors';
    if (!panelSpec(problem).dense) return 'sequences of different lengths';
    return null;
  },
  configs: (problem) => candidates(panelSpec(problem)),
  cost: (problem, config, caps) => costOf(problem, config, caps),
  kernels: programs,
  emit: (problem, c) => programs(problem, c).map(({ name, text }) => ({ name, text })),
  launch: launchAll,
};

function costOf(problem: Problem, c: HopperBackwardConfig, caps: CudaCaps): Cost {
  const { Sq, Sk } = problem;
  const rows = c.groups * 64;
  const flops = flopsOf(problem, 'backward');
  const bytes = cachedBytes(problem, 'backward', rows, rows, l2Of(caps));
  const padded = (alignTo(Sq, rows) * alignTo(Sk, rows)) / Math.max(Sq * Sk, 1);
  const work = flops * padded * (c.together ? 7 / 5 : 8 / 5);
  // These instructions sustain about 1.6 times the rate of mma.sync, which `caps.flops` states.
  const seconds = Math.max(work / (caps.flops * 1.6), bytes / caps.bandwidth);
  return { flops, bytes, workspace: 2 * lseBytes(problem), seconds };
}

function launchAll(run: RunContext<HopperBackwardConfig>): void {
  const { problem, config: c, caps, launches, stream, tables, addresses } = run;
  const { B, Hq, Hkv, Sq, Sk, D, Dv, grads } = problem;
  const queue = [...launches];
  const next = (): Launch => queue.shift()!;
  const bytes = lseBytes(problem);
  const common = { ...addresses, delta: run.scratch(bytes), lse2: run.scratch(bytes) };

  const delta = next();
  fill(delta, { problem, addresses: common });
  delta.run(stream, ceilDiv(Sq, DELTA_ROWS), Hq, B);

  for (const [part, { groups, block }] of partsOf(problem, c)) {
    const launch = next();
    const byQueries = part.rows === 'q';
    const rows = groups * 64;
    const runs = byQueries ? blockRuns(problem, 'q', rows, block) : blockRuns(problem, 'kv', block, rows);
    const { rowStart, runs: triples, reverse } = tables.runs(runs);
    const counter = tables.counters(launch);
    fill(launch, {
      problem,
      addresses: { ...common, rowStart, runs: triples, counter },
      runs,
      numbers: { reverse: Number(reverse) },
    });
    const blocks = ceilDiv(byQueries ? Sq : Sk, rows);
    const heads = B * (byQueries ? Hq : Hkv);
    // What a head streams by.
    const columnBytes = (byQueries ? (Sk * Hkv) / Math.max(Hq, 1) : (Sq * Hq) / Math.max(Hkv, 1)) * (D + Dv) * 2;
    launch.set('tiles', blocks * heads);
    launch.set('blocks', blocks);
    launch.set('section', problem.mask === null ? 1 : sectionOf(heads, columnBytes));
    launch.set('heads', heads);
    const { driver } = stream.device;
    const [ofQ, ofK] = byQueries ? [rows, block] : [block, rows];
    launch.setBytes('qMap', panelMap(driver, problem, 'q', addresses.q, ofQ));
    launch.setBytes('outMap', panelMap(driver, problem, 'out', addresses.dOut, ofQ));
    launch.setBytes('kMap', panelMap(driver, problem, 'k', addresses.k, ofK));
    launch.setBytes('vMap', panelMap(driver, problem, 'v', addresses.v, ofK));
    launch.run(stream, Math.min(blocks * heads, caps.multiprocessors));
  }
  if (grads?.sink === true) {
    const launch = next();
    fill(launch, { problem, addresses: common });
    launch.run(stream, Hq);
  }
}
