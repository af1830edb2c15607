/** Seeded numbers for cases, the same on every machine. */

/** Uniform in [0, 1): mulberry32, a 32-bit generator. */
function uniform(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface Random {
  /** Uniform in [0, 1). */
  uniform(): number;
  /** Standard normal, rounded to float32. */
  normal(): number;
  /** Integer in [0, n). */
  below(n: number): number;
}

export function random(seed: number): Random {
  const next = uniform(seed);
  return {
    uniform: next,
    normal: () => Math.fround(Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())),
    below: (n) => Math.floor(next() * n),
  };
}

/** A stable 32-bit seed from a name (FNV-1a). */
export function seedOf(name: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
  return hash;
}
