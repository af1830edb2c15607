/**
 * Cases that an engine is known to fail, each with its reason. A listed case still runs, and the table fails once it passes: nothing
 * stays here longer than it must. Problems that an engine's kernels refuse need no entry, the refusal is their reason.
 */
import type { EngineName } from '../engine/contract.ts';

export interface Skip {
  readonly engine: EngineName;
  /** A case's id, whole. */
  readonly id: string;
  readonly reason: string;
}

export const SKIPS: readonly Skip[] = [];
