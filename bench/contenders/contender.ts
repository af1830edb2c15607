/** What takes part in a comparison: Tilewise in one of its modes, or another library, behind one small interface. */
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

/** Batch 1, float32, Sq = Sk = N, as many key heads as query heads. */
export interface Case {
  readonly H: number;
  readonly N: number;
  readonly D: number;
  readonly causal: boolean;
}

/** [H, N, D] each. */
export interface Inputs {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly dOut: Float32Array;
}

/** A case set up: inputs are where the contender wants them, `once` computes and `results` reads the last results. */
export interface Run {
  once(): Promise<void>;
  /** out, or dq, dk, dv: [H, N, D] each. */
  results(): Promise<readonly Float32Array[]>;
  close(): Promise<void>;
}

export interface Contender {
  readonly name: string;
  /** Why it takes no part in a case, or null. */
  refuse(c: Case, pass: 'forward' | 'both'): string | null;
  forward(c: Case, inputs: Inputs): Promise<Run>;
  /** Forward and backward together. */
  both(c: Case, inputs: Inputs): Promise<Run>;
  close(): Promise<void>;
}

/** Peers are installed apart: npm ci --prefix bench/peers. Run from the project's root. */
const peers = createRequire(pathToFileURL(`${process.cwd()}/bench/peers/package.json`));

export async function loadPeer<T>(name: string): Promise<T> {
  try {
    return (await import(pathToFileURL(peers.resolve(name)).href)) as T;
  } catch (cause) {
    throw new Error(`${name} is not installed: run npm ci --prefix bench/peers`, { cause });
  }
}
/** The file of a peer's package. */
export const peerFile = (path: string): string => peers.resolve(path);

/** [H, N, D] to [N, H, D]. */
export function toRows({ H, N, D }: Case, x: Float32Array): Float32Array {
  const y = new Float32Array(x.length);
  for (let h = 0; h < H; h++)
    for (let n = 0; n < N; n++) y.set(x.subarray((h * N + n) * D, (h * N + n + 1) * D), (n * H + h) * D);
  return y;
}

/** [N, H, D] to [H, N, D]. */
export const toHeads = ({ H, N, D }: Case, x: Float32Array): Float32Array =>
  toRows({ H: N, N: H, D, causal: false }, x);

/** Normally distributed numbers, the same in every process. */
export function inputsOf({ H, N, D }: Case): Inputs {
  let state = 12345;
  const uniform = (): number => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
  const normal = (): Float32Array => {
    const x = new Float32Array(H * N * D);
    for (let i = 0; i < x.length; i++) x[i] = Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
    return x;
  };
  return { q: normal(), k: normal(), v: normal(), dOut: normal() };
}
