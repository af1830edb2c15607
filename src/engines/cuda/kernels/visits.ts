/** How many blocks a kernel works on: what its time is proportional to. */
import type { Problem } from '../../../problem/problem.ts';
import { blockRuns } from '../../../problem/ranges.ts';

/** Blocks visited over all batches and query heads. */
export function visitedBlocks(problem: Problem, by: 'q' | 'kv', blockQ: number, blockK: number): number {
  const { runs, strideB, strideH } = blockRuns(problem, by, blockQ, blockK);
  let blocks = 0;
  for (let i = 0; i < runs.length; i += 3) blocks += runs[i + 1] - runs[i];
  return blocks * (strideB === 0 ? problem.B : 1) * (strideH === 0 ? problem.Hq : 1);
}
