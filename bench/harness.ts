/** Timing: everyone in turn, round after round, in one process, so that a busy moment of the machine hits all alike. */
import type { Case, Contender, Inputs, Run } from './contenders/contender.ts';

/** Milliseconds of one contender in one case. */
export interface Row {
  readonly group: string;
  /** `n1024.h8.d64.causal` and the like. */
  readonly id: string;
  readonly who: string;
  readonly threads: number;
  readonly median: number;
  readonly best: number;
  readonly runs: number;
  /** GFLOP/s at the median: see problem/LEGEND.md for what is counted. */
  readonly gflops?: number;
  /** Further figures of a group: bytes, densities. */
  readonly extra?: Readonly<Record<string, number>>;
}

export const idOf = ({ H, N, D, causal }: Case): string => `n${N}.h${H}.d${D}.${causal ? 'causal' : 'full'}`;

export interface Entrant {
  readonly who: string;
  once(): Promise<void>;
}

/**
 * Times of everybody: each warms up by one run, then all run in turn until `seconds` are spent, three rounds at least. Who
 * has taken more than its share by then sits out later rounds.
 */
export async function interleave(
  entrants: readonly Entrant[],
  seconds: number,
): Promise<Map<string, { median: number; best: number; runs: number }>> {
  const times = new Map<string, number[]>(entrants.map((e) => [e.who, []]));
  for (const { once } of entrants) await once();
  const share = (1000 * seconds) / entrants.length;
  const spent = (who: string): number => (times.get(who) ?? []).reduce((a, b) => a + b, 0);
  for (let round = 0; round < 200; round++) {
    const playing = entrants.filter((e) => round < 3 || spent(e.who) < share);
    if (playing.length === 0) break;
    for (const { who, once } of playing) {
      const start = performance.now();
      await once();
      times.get(who)?.push(performance.now() - start);
    }
  }
  return new Map([...times].map(([who, list]) => [who, summary(list)]));
}

export function summary(times: readonly number[]): { median: number; best: number; runs: number } {
  const sorted = [...times].sort((a, b) => a - b);
  return { median: sorted[sorted.length >> 1], best: sorted[0], runs: sorted.length };
}

/** Most that two contenders' results may differ: each sums thousands of float32 products in its own order. */
const TOLERANCE = 1e-3;

/** Checks everybody against the first, then times them. */
export async function compare(
  group: 'forward' | 'both',
  contenders: readonly Contender[],
  c: Case,
  inputs: Inputs,
  seconds: number,
  threads: number,
): Promise<Row[]> {
  const runs: { readonly who: string; readonly run: Run }[] = [];
  for (const contender of contenders) {
    const reason = contender.refuse(c, group);
    if (reason === null) runs.push({ who: contender.name, run: await contender[group](c, inputs) });
  }
  try {
    let expected: readonly Float32Array[] | null = null;
    for (const { who, run } of runs) {
      await run.once();
      const results = await run.results();
      expected ??= results;
      for (const [i, x] of results.entries()) {
        const difference = distance(x, expected[i]);
        if (!(difference < TOLERANCE)) throw new Error(`${who}, ${idOf(c)}: result ${i} differs by ${difference}`);
      }
    }
    const times = await interleave(
      runs.map(({ who, run }) => ({ who, once: () => run.once() })),
      seconds,
    );
    const pairs = c.H * c.N * (c.causal ? (c.N + 1) / 2 : c.N);
    const flops = (group === 'forward' ? 4 : 14) * pairs * c.D;
    return runs.map(({ who }) => {
      const t = times.get(who) as { median: number; best: number; runs: number };
      return { group, id: idOf(c), who, threads, ...t, gflops: flops / t.median / 1e6 };
    });
  } finally {
    for (const { run } of runs) await run.close();
  }
}

function distance(a: Float32Array, b: Float32Array): number {
  let most = a.length === b.length ? 0 : Number.POSITIVE_INFINITY;
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i] - b[i]);
    if (!(d <= most)) most = d;
  }
  return most;
}
