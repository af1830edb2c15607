/** What Tilewise is compared with: attention as a textbook writes it, the whole N x N matrix of a head in memory. */

/** Arrays of shape [H, N, D], row by row. */
export interface Heads {
  readonly H: number;
  readonly N: number;
  readonly D: number;
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
}

/** softmax(q kT / sqrt(D)) v of head `h`, written to its place in `out`. Returns the matrix [N, N]. */
export function forwardHead({ N, D, q, k, v }: Heads, h: number, causal: boolean, out: Float32Array): Float32Array {
  const p = new Float32Array(N * N);
  const base = h * N * D;
  const scale = 1 / Math.sqrt(D);
  for (let i = 0; i < N; i++) {
    const keys = causal ? i + 1 : N;
    let max = Number.NEGATIVE_INFINITY;
    for (let j = 0; j < keys; j++) {
      let dot = 0;
      for (let d = 0; d < D; d++) dot += q[base + i * D + d] * k[base + j * D + d];
      p[i * N + j] = dot * scale;
      max = Math.max(max, dot * scale);
    }
    let sum = 0;
    for (let j = 0; j < keys; j++) {
      p[i * N + j] = Math.exp(p[i * N + j] - max);
      sum += p[i * N + j];
    }
    for (let j = 0; j < keys; j++) {
      p[i * N + j] /= sum;
      for (let d = 0; d < D; d++) out[base + i * D + d] += p[i * N + j] * v[base + j * D + d];
    }
  }
  return p;
}

export interface Gradients {
  readonly dq: Float32Array;
  readonly dk: Float32Array;
  readonly dv: Float32Array;
}

/** Gradients of head `h` from its matrix `p`, written to their places. */
export function backwardHead(
  { N, D, q, k, v }: Heads,
  h: number,
  p: Float32Array,
  dOut: Float32Array,
  { dq, dk, dv }: Gradients,
): void {
  const base = h * N * D;
  const scale = 1 / Math.sqrt(D);
  const dp = new Float32Array(N);
  for (let i = 0; i < N; i++) {
    let delta = 0;
    for (let j = 0; j < N; j++) {
      const weight = p[i * N + j];
      if (weight === 0) continue;
      let dot = 0;
      for (let d = 0; d < D; d++) {
        dot += dOut[base + i * D + d] * v[base + j * D + d];
        dv[base + j * D + d] += weight * dOut[base + i * D + d];
      }
      dp[j] = dot;
      delta += weight * dot;
    }
    for (let j = 0; j < N; j++) {
      const ds = p[i * N + j] === 0 ? 0 : p[i * N + j] * (dp[j] - delta) * scale;
      if (ds === 0) continue;
      for (let d = 0; d < D; d++) {
        dq[base + i * D + d] += ds * k[base + j * D + d];
        dk[base + j * D + d] += ds * q[base + i * D + d];
      }
    }
  }
}
