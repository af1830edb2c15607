/** Sequences of different lengths in one call, packed one after the other: no padding, no work across sequences. */
import { attention, tensor } from '../src/index.ts';

const [H, D] = [4, 32];
const lengths = [300, 17, 1, 120];
const cuSeqlens = Int32Array.from([0, ...lengths.map((_, i) => lengths.slice(0, i + 1).reduce((a, b) => a + b, 0))]);
const total = cuSeqlens[lengths.length];
const noise = () =>
  tensor(
    Float32Array.from({ length: total * H * D }, (_, i) => Math.sin(i * 78.233)),
    [total, H, D],
  );
const [q, k, v] = [noise(), noise(), noise()];

const { out } = await attention(q, k, v, { layout: 'bnhd', causal: true, cuSeqlens: { q: cuSeqlens } });
console.log(`packed ${lengths.length} sequences into [${out.shape}]`);

// Each sequence by itself gives the same rows.
let most = 0;
for (let s = 0; s < lengths.length; s++) {
  const rows = [cuSeqlens[s] * H * D, cuSeqlens[s + 1] * H * D];
  const one = (t: typeof q) => tensor(t.data.slice(...rows), [1, lengths[s], H, D]);
  const alone = await attention(one(q), one(k), one(v), { layout: 'bnhd', causal: true });
  for (const [i, y] of alone.out.data.entries()) most = Math.max(most, Math.abs(y - out.data[rows[0] + i]));
}
console.log(`packed and one by one agree: ${most < 1e-5}`);
