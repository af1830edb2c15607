/** A mask and a score modifier of one's own, as expressions: compiled into the kernels, blocks they hide are skipped. */
import { attentionWithGrads, explain, expr, tensor } from '../src/index.ts';

const [H, S, D] = [4, 256, 32];
const noise = (...shape: number[]) =>
  tensor(
    Float32Array.from({ length: shape.reduce((n, d) => n * d, 1) }, (_, i) => Math.cos(i * 78.233)),
    shape,
  );
const [q, k, v] = [noise(1, H, S, D), noise(1, H, S, D), noise(1, H, S, D)];
/** One strength a head; learnt, so its gradient is wanted. */
const decay = tensor([0.1, 0.2, 0.3, 0.4], [H]);

const run = await attentionWithGrads(q, k, v, {
  // Every 64th key is seen by all; of the others, the 32 before the query.
  mask: ({ q, kv }) => {
    const near = expr.and(expr.le(kv, q), expr.lt(expr.sub(q, kv), 32));
    return expr.or(near, expr.eq(expr.mod(kv, 64), 0));
  },
  // score - decay[h] * log(1 + |q - kv|)
  mod: ({ score, h, q, kv }) => {
    const distance = expr.toF32(expr.abs(expr.sub(q, kv)));
    return expr.sub(score, expr.mul(expr.load(decay, [h]), expr.log(expr.add(distance, 1))));
  },
});
const { dSides } = await run.backward(run.out);
run.dispose();
console.log(`gradient of decay: ${Array.from(dSides.get(decay)?.data ?? [], (y) => y.toFixed(3)).join(' ')}`);

const { density } = await explain(q, k, v, { window: 32 });
console.log(`a window of 32 keys keeps ${(100 * density.pairs).toFixed(1)} % of the pairs`);
