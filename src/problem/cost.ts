/** Arithmetic and traffic of a problem, by formula: what plans are ranked by and benches report. LEGEND.md has the counting rules. */
import { BYTES } from '../core/dtype.ts';
import { compileEvaluator } from '../mods/evaluate.ts';
import type { Problem } from './problem.ts';
import { blockRuns, lengthsOf, problemClassifier, remember, variesWith } from './ranges.ts';

export interface PairCount {
  /** (query, key) pairs that attend, over all batches and heads. */
  readonly pairs: number;
  /** False when the count took some undecided blocks for half full. */
  readonly exact: boolean;
}

/** Block edge from which undecided blocks are counted position by position. */
const LEAF = 16;

/**
 * How many (query, key) pairs the mask keeps. Whole blocks are counted as such; the positions of undecided ones are
 * evaluated, up to `budget` of them (by default many for masks that read no tensors, whose count is remembered across
 * calls), after which they count half.
 */
export function countPairs(problem: Problem, budget?: number): PairCount {
  const reads = problem.mask !== null && problem.sides.length > 0;
  const limit = budget ?? (reads || !problem.uniform ? 2 ** 16 : 2 ** 22);
  return remember(problem, `pairs ${limit}`, () => count(problem, limit));
}

function count(problem: Problem, budget: number): PairCount {
  const { B, Hq, mask } = problem;
  if (B === 0 || Hq === 0) return { pairs: 0, exact: true };
  const varies = variesWith(problem);
  const classify = problemClassifier(problem);
  const attends = mask === null ? null : compileEvaluatorOrNull(problem);
  let exact = true;
  let left = budget;
  let total = 0;
  const batches = varies.b ? B : 1;
  const heads = varies.h ? Hq : 1;
  const at = { score: 0, b: 0, h: 0, q: 0, kv: 0, lenQ: 0, lenK: 0 };

  const countBox = (q0: number, q1: number, k0: number, k1: number): number => {
    if (q0 > q1 || k0 > k1) return 0;
    const area = (q1 - q0 + 1) * (k1 - k0 + 1);
    const { b, h, lenQ, lenK } = at;
    const found = classify({ b, h, lenQ, lenK, q: [q0, q1], kv: [k0, k1] });
    if (found !== 'partial') return found === 'full' ? area : 0;
    const [height, width] = [q1 - q0 + 1, k1 - k0 + 1];
    if (left < LEAF * LEAF || attends === null) {
      exact = false;
      return area / 2;
    }
    if (height <= LEAF && width <= LEAF) {
      left -= area;
      let n = 0;
      for (at.q = q0; at.q <= q1; at.q++) for (at.kv = k0; at.kv <= k1; at.kv++) n += attends(at);
      return n;
    }
    left--;
    // Split the longer side at a multiple of the leaf.
    if (height >= width) {
      const middle = q0 + Math.ceil(height / 2 / LEAF) * LEAF;
      return countBox(q0, middle - 1, k0, k1) + countBox(middle, q1, k0, k1);
    }
    const middle = k0 + Math.ceil(width / 2 / LEAF) * LEAF;
    return countBox(q0, q1, k0, middle - 1) + countBox(q0, q1, middle, k1);
  };

  for (let b = 0; b < batches; b++) {
    const { lenQ, lenK } = lengthsOf(problem, b);
    for (let h = 0; h < heads; h++) {
      Object.assign(at, { b, h, lenQ, lenK });
      total += countBox(0, lenQ - 1, 0, lenK - 1);
    }
  }
  return { pairs: Math.round(total * (B / batches) * (Hq / heads)), exact };
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
 * Bytes between slow memory and the kernels of tiled attention, by the blocks the mask leaves. Forward: q, out and lse
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

/** Blocks visited over all batches and heads. */
function visits(problem: Problem, by: 'q' | 'kv', blockQ: number, blockK: number): number {
  return remember(problem, `visits ${by} ${blockQ} ${blockK}`, () => {
    const { runs, strideB, strideH } = blockRuns(problem, by, blockQ, blockK);
    let blocks = 0;
    for (let i = 0; i < runs.length; i += 3) blocks += runs[i + 1] - runs[i];
    return blocks * (strideB === 0 ? problem.B : 1) * (strideH === 0 ? problem.Hq : 1);
  });
}
