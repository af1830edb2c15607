/**
 * Choices that were measured on a device instead of predicted. A record is kept by what it answers: engine, device, pass, class
 * of problem and the candidates as they were, so that a device or a version with other candidates finds none.
 */
import type { Config, Engine, Pass } from '../engine/contract.ts';
import { problemClass } from '../problem/id.ts';
import type { Problem } from '../problem/problem.ts';

/** A kernel with one of its configurations. */
export interface Candidate {
  readonly kernel: string;
  readonly config: Config;
}

export interface TunedRecord {
  readonly format: 'tilewise-tuned-1';
  /** What the record answers: see `tunedKey`. */
  readonly key: string;
  readonly winner: Candidate;
  /** Median seconds of the winner. */
  readonly seconds: number;
  /** Every candidate with its median, null for one that failed. */
  readonly measured: readonly (Candidate & { readonly seconds: number | null })[];
  /** Id of the problem that was timed. */
  readonly id: string;
  readonly date: string;
}

/** Where records are found. */
export interface Tuned {
  /** How many there are. */
  readonly size: number;
  find(key: string): TunedRecord | null;
}

export function tunedKey(engine: Engine, pass: Pass, problem: Problem, candidates: readonly Candidate[]): string {
  const { name, caps } = engine;
  const list = candidates.map(({ kernel, config }) => `${kernel} ${JSON.stringify(config)}`);
  return [name, caps.device, pass, problemClass(problem), ...list.sort()].join('\n');
}

export const sameCandidate = (a: Candidate, b: Candidate): boolean =>
  a.kernel === b.kernel && JSON.stringify(a.config) === JSON.stringify(b.config);
