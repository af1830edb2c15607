/** The choice of engine, kernels and tiles for one problem, as plain data: `explain` prints it, tests assert it. */
import type { Refusal } from '../core/errors.ts';
import type { Cost, EngineName, Step } from '../engine/contract.ts';

/** Two steps and why: data that can be printed, compared and kept. */
export interface Plan {
  /** Names plan, program, golden file, test case and bench row: see problem/id.ts. */
  readonly id: string;
  readonly engine: EngineName;
  readonly forward: Step;
  /** Null when no gradients were asked for. */
  readonly backward: Step | null;
  /** The same call by standard attention, which stores Sq x Sk scores: for comparison. */
  readonly standard: Cost;
  /** Why every engine and kernel that was tried and not chosen was not. */
  readonly refusals: readonly Refusal[];
}
