/** Arithmetic and traffic of a problem, by formula: what plans are ranked by and benches report. LEGEND.md has the counting rules. */
import { BYTES } from '../core/dtype.ts';
import type { Box } from '../mods/classify.ts';
import { compileEvaluator, type Point } from '../mods/evaluate.ts';
import type { Problem } from './problem.ts';
import { blockRuns, lengthsOf, problemClassifier, remember, variesWith } from './ranges.ts';

export interface PairCount {
  /** (query, key) pairs that attend, over all batches and heads. */
  readonly pairs: number;
  /** False when the count took some undecided blocks for half full. */
  readonly exact: boolean;
}

/** Edge of the boxes whose positions are evaluated one by one. */
const LEAF = 16;
/** Evaluations that classifying one box takes about as long as. */
const CLASSIFY = 16;

/**
 * How many (query, key) pairs the mask keeps. Boxes that attend as a whole are counted as such and others are halved, all
 * of one size before any of the next, down to positions; `budget` is the number of evaluations after which the boxes
 * left count half. By default it is large for masks whose count is remembered across calls (they read no tensors), and a
 * few ms for others.
 */
export function countPairs(problem: Problem, budget?: number): PairCount {
  const reads = problem.mask !== null && problem.sides.length > 0;
  const limit = budget ?? (reads || !problem.uniform ? 2 ** 17 : 2 ** 22);
  return remember(problem, `pairs ${limit}`, () => count(problem, limit));
}

function count(problem: Problem, budget: number): PairCount {
  const { B, Hq, mask } = problem;
  if (B === 0 || Hq === 0) return { pairs: 0, exact: true };
  const varies = variesWith(problem);
  const [batches, heads] = [varies.b ? B : 1, varies.h ? Hq : 1];
  const classify = problemClassifier(problem);
  const attends = mask === null ? null : compileEvaluatorOrNull(problem);
  let total = 0;
  let left = budget;
  let undecided: Box[] = [];
  for (let b = 0; b < batches; b++)
    for (let h = 0; h < heads; h++) {
      const lengths = lengthsOf(problem, b);
      undecided.push({ b, h, ...lengths, q: [0, lengths.lenQ - 1], kv: [0, lengths.lenK - 1] });
    }
  undecided = undecided.filter((box) => areaOf(box) > 0);

  while (undecided.length > 0) {
    const next: Box[] = [];
    for (const box of undecided) {
      const found = classify(box);
      if (found === 'full') total += areaOf(box);
      else if (found === 'partial') next.push(box);
    }
    left -= undecided.length * CLASSIFY;
    undecided = next;
    const leaves = undecided.every((box) => edgeOf(box) <= LEAF);
    const cost = leaves ? sum(undecided, areaOf) : undecided.length * 4 * CLASSIFY;
    if (undecided.length > 0 && (cost > left || attends === null)) break;
    if (leaves && attends !== null) {
      total += sum(undecided, (box) => evaluated(box, attends));
      undecided = [];
    } else undecided = undecided.flatMap(halves);
  }
  const exact = undecided.length === 0;
  total += sum(undecided, areaOf) / 2;
  return { pairs: Math.round(total * (B / batches) * (Hq / heads)), exact };
}

const sum = <T>(items: readonly T[], of: (item: T) => number): number => items.reduce((n, item) => n + of(item), 0);
const lengthOf = ([first, last]: readonly [number, number]): number => last - first + 1;
const areaOf = (box: Box): number => lengthOf(box.q) * lengthOf(box.kv);
const edgeOf = (box: Box): number => Math.max(lengthOf(box.q), lengthOf(box.kv));

/** The box cut across both axes, at multiples of a leaf; axes of a leaf or less stay whole. */
const halves = (box: Box): Box[] => cut(box.q).flatMap((q) => cut(box.kv).map((kv) => ({ ...box, q, kv })));

function cut(span: readonly [number, number]): (readonly [number, number])[] {
  const length = lengthOf(span);
  if (length <= LEAF) return [span];
  const middle = span[0] + Math.ceil(length / 2 / LEAF) * LEAF;
  return [
    [span[0], middle - 1],
    [middle, span[1]],
  ];
}

function evaluated(box: Box, attends: (at: Point) => number): number {
  const at: Point = { ...box, score: 0, q: 0, kv: 0 };
  let n = 0;
  for (at.q = box.q[0]; at.q <= box.q[1]; at.q++) for (at.kv = box.kv[0]; at.kv <= box.kv[1]; at.kv++) n += attends(at);
  return n;
}

/** Null when the mask reads tensors that are not on the host. */
function compileEvaluatorOrNull(problem: Problem): ReturnType<typeof compileEvaluator> | null {
  try {
    return problem.mask === null ? null : compileEvaluator(problem.mask.expr);
  } catch {
    return null;
  }
}

/**
 * Floating-point operations that have to be done: 2 * pairs * (D + Dv) forward (two products), 2 * pairs * (3 D + 2 Dv)
 * backward (five products). Recomputation beyond that is not counted.
 */
export function flopsOf(problem: Problem, pass: 'forward' | 'backward'): number {
  const { D, Dv } = problem;
  return 2 * countPairs(problem).pairs * (pass === 'forward' ? D + Dv : 3 * D + 2 * Dv);
}

/** Bytes of each operand: rows of all sequences, every head. */
function operandBytes(problem: Problem): { q: number; k: number; v: number; out: number; lse: number } {
  const { B, Hq, Hkv, D, Dv, dtype } = problem;
  let [rowsQ, rowsK] = [0, 0];
  for (let b = 0; b < B; b++) {
    const { lenQ, lenK } = lengthsOf(problem, b);
    rowsQ += lenQ;
    rowsK += lenK;
  }
  const size = BYTES[dtype];
  return {
    q: rowsQ * Hq * D * size,
    k: rowsK * Hkv * D * size,
    v: rowsK * Hkv * Dv * size,
    out: rowsQ * Hq * Dv * size,
    lse: rowsQ * Hq * (dtype === 'f64' ? 8 : 4),
  };
}

/** Sustained rates of a device: FLOP/s and bytes/s. */
export interface Rates {
  readonly flops: number;
  readonly bandwidth: number;
}

/**
 * The same call by standard attention, which knows no blocks and stores matrices of all Sq x Sk scores in the problem's
 * dtype: forward writes and reads scores and probabilities (4 transfers); backward reads the probabilities for dV, writes
 * and reads dP, reads the probabilities again, writes dS and reads it for dQ and dK (7 transfers). Workspace: scores and
 * probabilities, and for backward dP (dS in place) beside the kept probabilities.
 *
 * `seconds` is the larger of arithmetic and traffic at the given rates; 0 without rates.
 */
export function standardCost(
  problem: Problem,
  rates: Rates = { flops: Number.POSITIVE_INFINITY, bandwidth: Number.POSITIVE_INFINITY },
): { flops: number; bytes: number; workspace: number; seconds: number } {
  const { B, Hq, D, Dv, dtype, grads } = problem;
  let scores = 0;
  for (let b = 0; b < B; b++) {
    const { lenQ, lenK } = lengthsOf(problem, b);
    scores += lenQ * lenK * Hq;
  }
  const matrix = scores * BYTES[dtype];
  const { q, k, v, out } = operandBytes(problem);
  let flops = 2 * scores * (D + Dv);
  let bytes = q + k + v + out + 4 * matrix;
  if (grads !== null) {
    flops += 2 * scores * (2 * D + 2 * Dv);
    bytes += 2 * (q + k + v) + 2 * out + 7 * matrix;
  }
  return { flops, bytes, workspace: 2 * matrix, seconds: Math.max(flops / rates.flops, bytes / rates.bandwidth) };
}

/**
 * Bytes between the kernels of tiled attention and what they load blocks from (slow memory, or a cache in front of it: see
 * `cachedBytes`), by the blocks the mask leaves. Forward: q, out and lse
 * once, and k and v once for every visited block of a query row. Backward: the same visits once by query rows (for dq)
 * and once by key rows (for dk and dv, reading q, dOut, lse and delta blocks), after delta from out and dOut.
 */
export function tiledBytes(problem: Problem, pass: 'forward' | 'backward', blockQ: number, blockK: number): number {
  const { D, Dv, dtype } = problem;
  const size = BYTES[dtype];
  const row = dtype === 'f64' ? 8 : 4;
  const { q, k, v, out, lse } = operandBytes(problem);
  const keyBlock = blockK * (D + Dv) * size;
  const byQuery = visits(problem, 'q', blockQ, blockK) * keyBlock;
  if (pass === 'forward') return q + out + lse + byQuery;
  const queryBlock = blockQ * ((D + Dv) * size + 2 * row);
  const byKey = visits(problem, 'kv', blockQ, blockK) * queryBlock;
  const delta = 2 * out + lse;
  return delta + (2 * q + out + 2 * lse + byQuery) + (2 * k + 2 * v + byKey);
}

/** A cache that all workers share, and how many tiles are worked on at a time. */
export interface SharedCache {
  readonly bytes: number;
  readonly tiles: number;
}

/**
 * Bytes between slow memory and such a cache, for the same kernels. Tiles of one head that are worked on together walk the same
 * blocks at about the same time, so what a head streams is read once for each wave of its tiles, and once in all when it
 * fits the cache; what the tiles themselves hold is read and written once.
 */
export function cachedBytes(
  problem: Problem,
  pass: 'forward' | 'backward',
  blockQ: number,
  blockK: number,
  cache: SharedCache,
): number {
  const { B, Hq, Hkv, Sq, Sk } = problem;
  const { q, k, v, out, lse } = operandBytes(problem);
  const times = (streamed: number, heads: number, tiles: number, sharers: number): number =>
    streamed / Math.max(B * heads, 1) <= cache.bytes ? 1 : sharers * Math.max(1, Math.ceil(tiles / cache.tiles));
  const group = Hkv === 0 ? 1 : Hq / Hkv;
  const keys = (k + v) * times(k + v, Hkv, Math.ceil(Sq / blockQ), group);
  if (pass === 'forward') return q + out + lse + keys;
  const rows = q + out + 2 * lse;
  const queries = rows * times(rows, Hkv, Math.ceil(Sk / blockK), 1);
  return 2 * out + lse + (2 * q + out + 2 * lse + keys) + (2 * k + 2 * v + queries);
}

/** Blocks of blockQ by blockK that a kernel visits whose rows are blocks of queries, or of keys, over all batches and heads. */
export function visits(problem: Problem, by: 'q' | 'kv', blockQ: number, blockK: number): number {
  return remember(problem, `visits ${by} ${blockQ} ${blockK}`, () => {
    const { runs, strideB, strideH } = blockRuns(problem, by, blockQ, blockK);
    let blocks = 0;
    for (let i = 0; i < runs.length; i += 3) blocks += runs[i + 1] - runs[i];
    return blocks * (strideB === 0 ? problem.B : 1) * (strideH === 0 ? problem.Hq : 1);
  });
}
