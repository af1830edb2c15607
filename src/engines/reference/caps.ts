/** What the reference engine offers, and its one limit: room for the score matrix. */
import type { Caps } from '../../engine/contract.ts';
import type { Problem } from '../../problem/problem.ts';

export interface ReferenceCaps extends Caps {
  readonly engine: 'reference';
  /** Most bytes of N x N float64 matrices that one run may hold. */
  readonly workspace: number;
}

export function refuseWorkspace(problem: Problem, matrices: number, caps: ReferenceCaps): string | null {
  const bytes = problem.Sq * problem.Sk * 8 * matrices;
  if (bytes <= caps.workspace) return null;
  return `standard attention would hold ${mib(bytes)} of scores (${problem.Sq} x ${problem.Sk} float64, ${matrices} at once), the budget is ${mib(caps.workspace)}`;
}

const mib = (bytes: number): string => `${Math.ceil(bytes / 2 ** 20)} MiB`;
