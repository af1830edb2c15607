/** Result files of `bench`: their form, and two of them side by side. */
import { FormatError } from '../core/errors.ts';
import type { Caps, Config, Pass } from '../engine/contract.ts';
import type { Machine } from './machine.ts';

/** One pass of one call. Times in seconds, scratch in bytes. */
export interface BenchRow {
  readonly id: string;
  readonly pass: Pass;
  readonly kernel: string;
  readonly config: Config;
  readonly flops: number;
  readonly median: number;
  readonly best: number;
  readonly runs: number;
  readonly gflops: number;
  readonly scratch: number;
  /** Largest absolute error against float64 on sampled rows; null when not checked. */
  readonly error: number | null;
  readonly plausible: boolean;
}

export interface BenchFile {
  readonly format: 'tilewise-bench-1';
  readonly date: string;
  readonly commit: string | null;
  readonly machine: Machine;
  readonly engine: Caps;
  readonly rows: readonly BenchRow[];
}

export interface Comparison {
  readonly id: string;
  readonly pass: Pass;
  /** Median seconds. */
  readonly base: number;
  readonly head: number;
  /** Above 1: head is faster. */
  readonly ratio: number;
}

/** @throws FormatError naming the file. */
export function parseBench(text: string, source: string): BenchFile {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new FormatError(source, 'JSON', error instanceof Error ? error.message : error);
  }
  const file = value as Partial<BenchFile> | null;
  if (file?.format !== 'tilewise-bench-1' || !Array.isArray(file.rows))
    throw new FormatError(source, "results of 'tilewise bench'", file?.format);
  for (const row of file.rows as Partial<BenchRow>[])
    if (typeof row?.id !== 'string' || typeof row.pass !== 'string' || !(Number(row.median) > 0))
      throw new FormatError(source, 'rows with id, pass and median', JSON.stringify(row));
  return file as BenchFile;
}

/** Rows that both files have, in the order of `base`. */
export function compareFiles(base: BenchFile, head: BenchFile): readonly Comparison[] {
  const named = new Map(head.rows.map((row) => [`${row.id} ${row.pass}`, row]));
  return base.rows.flatMap((row) => {
    const other = named.get(`${row.id} ${row.pass}`);
    if (other === undefined) return [];
    return [{ id: row.id, pass: row.pass, base: row.median, head: other.median, ratio: row.median / other.median }];
  });
}
