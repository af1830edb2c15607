/**
 * Backward by tiles (Dao, "FlashAttention-2", 2023, algorithm 2) on the tensor cores of Ampere and later, in programs that
 * need no atomic additions of floats, so that the same call always gives the same bits:
 *
 *     delta    row sums of dOut * out, and lse in base 2
 *     dk, dv   one block of threads a block of keys (backward_keys.ts)
 *     dq       one block of threads a block of queries (backward_queries.ts)
 *     sides    integer sums, by load of the modifier (sides.ts)
 *     sink     one block of threads a head (rows.ts)
 *
 * Scores are computed in both of the middle programs: seven products instead of five are the price of a fixed order.
 */
import { ceilDiv } from '../../../core/math.ts';
import { sizeOf, type TensorLike } from '../../../core/tensor.ts';
import { derive } from '../../../mods/derive.ts';
import { cachedBytes, flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { blockRuns } from '../../../problem/ranges.ts';
import type { Launch } from '../driver/launch.ts';
import { type CudaKernel, l2Of, type RunContext } from '../kernel.ts';
import type { KernelText } from '../ptx/assembler.ts';
import { emitKeys, type KeyOutputs, keysSharedBytes } from './backward_keys.ts';
import { emitQueries, queriesSharedBytes } from './backward_queries.ts';
import { type Arguments, fill } from './parameters.ts';
import { keysRefusal } from './place.ts';
import { DELTA_ROWS, emitDelta, emitSink } from './rows.ts';
import { emitSideFinish, SIDE_FINISH_THREADS, type SideGradient } from './sides.ts';
import { type Spec, specOf } from './spec.ts';

/** Tile of one program. */
export interface BackwardTile {
  readonly blockQ: number;
  readonly blockK: number;
  readonly warps: number;
  readonly perSm: number;
  /** Keep the fragments of the owned rows in registers (dQ only). */
  readonly hold?: boolean;
}

export interface BackwardConfig extends Readonly<Record<string, number | string | boolean>> {
  /** Tile of the program for dK and dV: queries walked at a time, keys owned, warps, blocks on a multiprocessor. */
  readonly keysQ: number;
  readonly keysK: number;
  readonly keysWarps: number;
  readonly keysPerSm: number;
  /** dK and dV in one program; else one after the other. */
  readonly together: boolean;
  /** Tile of the program for dQ. */
  readonly queriesQ: number;
  readonly queriesK: number;
  readonly queriesWarps: number;
  readonly queriesPerSm: number;
  /** The program for dQ keeps the fragments of Q and dOut in registers. */
  readonly queriesHold: boolean;
}

const keysTile = (c: BackwardConfig): BackwardTile => ({
  blockQ: c.keysQ,
  blockK: c.keysK,
  warps: c.keysWarps,
  perSm: c.keysPerSm,
});
const queriesTile = (c: BackwardConfig): BackwardTile => ({
  blockQ: c.queriesQ,
  blockK: c.queriesK,
  warps: c.queriesWarps,
  perSm: c.queriesPerSm,
  hold: c.queriesHold,
});

type Tile = readonly [q: number, k: number, warps: number, perSm: number];

const config = (keys: Tile, queries: Tile, together = true, hold = false): BackwardConfig => ({
  keysQ: keys[0],
  keysK: keys[1],
  keysWarps: keys[2],
  keysPerSm: keys[3],
  together,
  queriesQ: queries[0],
  queriesK: queries[1],
  queriesWarps: queries[2],
  queriesPerSm: queries[3],
  queriesHold: hold,
});

function candidates(spec: Spec): BackwardConfig[] {
  const widest = Math.max(spec.padD, spec.padDv);
  if (spec.storage === 'f32') {
    if (widest <= 64) return [config([16, 64, 4, 2], [64, 16, 4, 2])];
    if (widest <= 128)
      return [config([16, 64, 4, 1], [64, 16, 4, 1], false), config([16, 32, 2, 1], [32, 16, 2, 1], false)];
    return [config([16, 32, 2, 1], [32, 16, 2, 1], false)];
  }
  // Dropout's random words take the registers of half a tile.
  if (widest <= 64 && spec.dropout) return [config([32, 64, 4, 2], [128, 32, 4, 2])];
  if (widest <= 64)
    return [
      config([32, 128, 4, 2], [128, 32, 4, 2], true, true),
      config([32, 128, 4, 2], [128, 32, 4, 2]),
      config([64, 64, 4, 2], [64, 64, 4, 2]),
    ];
  if (widest <= 128)
    return [
      config([64, 64, 4, 2], [128, 32, 4, 2]),
      config([64, 128, 8, 1], [128, 32, 4, 2]),
      config([32, 64, 4, 1], [64, 32, 4, 1]),
    ];
  return [
    config([32, 128, 8, 1], [128, 32, 8, 1], false),
    config([32, 64, 4, 1], [128, 32, 8, 1], false),
    config([16, 64, 4, 1], [64, 16, 4, 1], false),
    config([16, 32, 2, 1], [32, 16, 2, 1], false),
  ];
}

const fits = (spec: Spec, c: BackwardConfig, bytes: number): boolean =>
  keysSharedBytes(spec, keysTile(c), { k: true, v: true }) <= bytes &&
  queriesSharedBytes(spec, queriesTile(c)) <= bytes;

/** The programs for dK and dV, by what each computes. */
function keyParts({ grads }: Problem, { together }: BackwardConfig): KeyOutputs[] {
  const k = grads?.k === true;
  const v = grads?.v === true;
  if (k && v && !together)
    return [
      { k, v: false },
      { k: false, v },
    ];
  return k || v ? [{ k, v }] : [];
}

/** The loads of the modifier whose gradients are asked for, by side. */
function sideGradients(problem: Problem): { side: number; gradient: SideGradient }[] {
  const { mod, grads, sides } = problem;
  if (mod === null || grads === null || !grads.sides.includes(true)) return [];
  const wanted = (t: TensorLike): boolean => grads.sides[sides.indexOf(t)] === true;
  const { dLoads } = derive(mod.expr, wanted);
  return [...dLoads].map(([load, slope]) => ({
    side: sides.indexOf(load.tensor),
    gradient: { tensor: load.tensor, indices: load.indices, slope },
  }));
}

const SIDE_TILE: Readonly<Record<'wide' | 'narrow', BackwardTile>> = {
  narrow: { blockQ: 64, blockK: 32, warps: 4, perSm: 1 },
  wide: { blockQ: 32, blockK: 16, warps: 2, perSm: 1 },
};
const sideTile = (spec: Spec): BackwardTile =>
  SIDE_TILE[Math.max(spec.padD, spec.padDv) * spec.size > 256 ? 'wide' : 'narrow'];

function programs(problem: Problem, c: BackwardConfig): KernelText[] {
  const { grads } = problem;
  return [
    emitDelta(problem),
    ...keyParts(problem, c).map((outputs) => emitKeys(problem, keysTile(c), outputs)),
    ...(grads?.q === true ? [emitQueries(problem, queriesTile(c))] : []),
    ...sideGradients(problem).map(({ gradient }) => emitQueries(problem, sideTile(specOf(problem)), gradient)),
    ...(grads?.sides.includes(true) === true ? [emitSideFinish()] : []),
    ...(grads?.sink === true ? [emitSink(problem)] : []),
  ];
}

export const backwardMma: CudaKernel<BackwardConfig> = {
  name: 'backward_mma',
  pass: 'backward',
  refuse(problem, caps) {
    if (problem.dtype === 'f64') return 'f64 has no tensor-core arithmetic; the reference engine serves it';
    if (problem.kv.kind === 'paged') return 'pages of a cache have no gradients';
    if (problem.B > 65535 || problem.Hq > 65535) return 'more than 65535 sequences or heads';
    const far = keysRefusal(problem);
    if (far !== null) return far;
    return backwardMma.configs(problem, caps).length === 0 ? 'no tile fits the shared memory of this device' : null;
  },
  configs(problem, caps) {
    const spec = specOf(problem);
    return candidates(spec).filter((c) => fits(spec, c, caps.sharedPerBlock));
  },
  cost(problem, c, caps) {
    const flops = flopsOf(problem, 'backward');
    const tiled = tiledBytes(problem, 'backward', c.queriesQ, c.keysK);
    const bytes = cachedBytes(problem, 'backward', c.queriesQ, c.keysK, l2Of(caps));
    const rate = (problem.dtype === 'f32' ? caps.flops / 8 : caps.flops) * (5 / (c.together ? 7 : 8));
    const workspace = 2 * lseBytes(problem);
    return { flops, bytes, workspace, seconds: Math.max(flops / rate, tiled / caps.bandwidth) };
  },
  kernels: programs,
  emit: (problem, c) => programs(problem, c).map(({ name, text }) => ({ name, text })),
  launch: launchAll,
};

/** Bytes of a tensor laid out like lse. */
export function lseBytes({ B, Hq, sequences, strides, Sq }: Problem): number {
  let last = 0;
  for (let b = 0; b < B; b++) {
    const rows = sequences[b * 4] + Math.max(sequences[b * 4 + 1], Sq === 0 ? 0 : 1);
    last = Math.max(last, b * strides.lse.b + Math.max(Hq - 1, 0) * strides.lse.h + rows * strides.lse.s);
  }
  return last * 4;
}

function launchAll(run: RunContext<BackwardConfig>): void {
  const { problem, config: c, launches, stream, tables, addresses } = run;
  const { B, Hq, Hkv, Sq, Sk, grads } = problem;
  const spec = specOf(problem);
  const queue = [...launches];
  const next = (): Launch => queue.shift()!;
  const bytes = lseBytes(problem);
  const common = { ...addresses, delta: run.scratch(bytes), lse2: run.scratch(bytes) };
  const walking = (by: 'q' | 'kv', { blockQ, blockK }: BackwardTile): Arguments => {
    const runs = blockRuns(problem, by, blockQ, blockK);
    const { rowStart, runs: triples, reverse } = tables.runs(runs);
    return { problem, addresses: { ...common, rowStart, runs: triples }, runs, numbers: { reverse: Number(reverse) } };
  };

  const delta = next();
  fill(delta, { problem, addresses: common });
  delta.run(stream, ceilDiv(Sq, DELTA_ROWS), Hq, B);

  for (const _ of keyParts(problem, c)) {
    const launch = next();
    fill(launch, walking('kv', keysTile(c)));
    launch.run(stream, ceilDiv(Sk, c.keysK), Hkv, B);
  }
  if (grads?.q === true) {
    const launch = next();
    fill(launch, walking('q', queriesTile(c)));
    launch.run(stream, ceilDiv(Sq, c.queriesQ), Hq, B);
  }
  const sides = sideGradients(problem);
  const sums = sides.map(() => next());
  const finish = grads?.sides.includes(true) === true ? next() : null;
  const tile = sideTile(spec);
  grads?.sides.forEach((wanted, side) => {
    if (!wanted || finish === null) return;
    const count = sizeOf(problem.sides[side].shape);
    const state = run.scratch(8 + count * 8);
    run.clear(state, 8 + count * 8);
    // No element gets more contributions than there are positions.
    const terms = Math.ceil(Math.log2(Math.max(B * Hq * Sq * Sk, 2) * Math.max(sides.length, 1)));
    const numbers = { splits: terms, count };
    for (const phase of [0, 1])
      sides.forEach((s, i) => {
        if (s.side !== side) return;
        const args = walking('q', tile);
        fill(sums[i], {
          ...args,
          addresses: { ...args.addresses, sideState: state },
          numbers: { ...args.numbers, ...numbers, phase },
        });
        sums[i].run(stream, ceilDiv(Sq, tile.blockQ), Hq, B);
      });
    fill(finish, { problem, addresses: { sideState: state, dSide: addresses[`dSide${side}`] }, numbers });
    finish.run(stream, ceilDiv(count, SIDE_FINISH_THREADS));
  });
  if (grads?.sink === true) {
    const launch = next();
    fill(launch, { problem, addresses: common });
    launch.run(stream, Hq);
  }
}
