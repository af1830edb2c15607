/**
 * Standard attention, forward: S = scale * Q K^T, P = softmax(mask(mod(S))), O = P V, one head at a time, with the whole N x N
 * matrix in memory. It is the meaning of a call in the plainest words, the oracle of every test and the last engine to fall back on.
 */
import { sizeOf } from '../../core/tensor.ts';
import type { Config, Kernel, Operands } from '../../engine/contract.ts';
import { flopsOf } from '../../problem/cost.ts';
import type { Problem } from '../../problem/problem.ts';
import { queryRows, sequencesOf } from '../../problem/rows.ts';
import { type ReferenceCaps, refuseWorkspace } from './caps.ts';
import { compileExpressions } from './expressions.ts';
import { store } from './memory.ts';
import { type HostRunOptions, Pace } from './pace.ts';
import { combine } from './products.ts';
import { dropoutRow, type Head, headsOf, modifyRow, type Precision, scoreRow, softmaxRow } from './scores.ts';

/** Float64 matrices of Sq x Sk held at once. */
const MATRICES = 1;

export const forward: Kernel<Config, ReferenceCaps> = {
  name: 'forward',
  pass: 'forward',
  refuse: (problem, caps) => refuseWorkspace(problem, MATRICES, caps),
  configs: () => [{}],
  cost(problem, _config, caps) {
    const flops = flopsOf(problem, 'forward');
    const scores = problem.Sq * problem.Sk * 8;
    const bytes = problem.B * problem.Hq * scores * 4;
    return { flops, bytes, workspace: scores * MATRICES, seconds: flops / caps.flops + bytes / caps.bandwidth };
  },
  emit: () => [],
};

export async function runForward(
  problem: Problem,
  precision: Precision,
  operands: Operands,
  options: HostRunOptions,
): Promise<void> {
  const { Dv, strides } = problem;
  const expressions = compileExpressions(problem, operands, false);
  const scores = new Float64Array(problem.Sq * problem.Sk);
  const factors = new Float64Array(problem.Sk).fill(1);
  // Rows that belong to no sequence are results too: 0, and -inf for lse.
  const out = new Float64Array(sizeOf(operands.out.shape));
  const lse = new Float64Array(sizeOf(operands.lse.shape)).fill(Number.NEGATIVE_INFINITY);
  const sequences = sequencesOf(problem);
  const pace = new Pace(sequences.reduce((n, s) => n + 3 * s.lenQ, 0) * problem.Hq, options);

  for (const at of sequences)
    for (const head of headsOf(problem, at, operands)) {
      const outRow = queryRows(at, strides.out, head.h);
      const lseRow = queryRows(at, strides.lse, head.h);
      for (let i = 0; i < at.lenQ; i++) {
        scoreRow(problem, precision, head, i, scores);
        await pace.row();
      }
      for (let i = 0; i < at.lenQ; i++) {
        modifyRow(expressions, precision, head, i, scores);
        lse[lseRow(i)] = softmaxRow(precision, head, i, scores);
        await pace.row();
      }
      for (let i = 0; i < at.lenQ; i++) {
        dropRow(problem, precision, head, i, scores, factors);
        combine(scores, i * at.lenK, head.v, at.lenK, Dv, out, outRow(i), precision.single);
        await pace.row();
      }
    }
  store(out, operands.out);
  store(lse, operands.lse);
  pace.finish();
}

/** Multiplies row i of the probabilities by dropout's factors, in place. */
function dropRow(problem: Problem, p: Precision, head: Head, i: number, scores: Float64Array, factors: Float64Array) {
  if (problem.dropout === null) return;
  dropoutRow(problem, head, i, factors);
  for (let j = 0, a = i * head.at.lenK; j < head.at.lenK; j++, a++) scores[a] = p.store(scores[a] * factors[j]);
}
