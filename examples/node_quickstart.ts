/** Attention on host tensors: causal, grouped heads, and what the plan says about it. */
import { attention, explain, tensor } from '../src/index.ts';

const [B, Hq, Hkv, S, D] = [1, 8, 2, 512, 64];
const noise = (...shape: number[]) =>
  tensor(
    Float32Array.from({ length: shape.reduce((n, d) => n * d, 1) }, (_, i) => Math.sin(i * 12.9898) * 2),
    shape,
  );
const [q, k, v] = [noise(B, Hq, S, D), noise(B, Hkv, S, D), noise(B, Hkv, S, D)];

const { out, lse, plan } = await attention(q, k, v, { causal: true });
console.log(`out [${out.shape}], lse [${lse.shape}], by ${plan.id}`);

// The first query sees the first key alone, so its output is that key's value.
const first = out.data.slice(0, D).every((y, i) => Math.abs(y - v.data[i]) < 1e-5);
console.log(`row 0 is the first value: ${first}`);
console.log((await explain(q, k, v, { causal: true })).text);
