/** Gradient descent through attention, everything resident in one engine: learns V so that the output meets a target. */
import { attentionWithGrads, openEngine, tensor } from '../src/index.ts';

const shape = [1, 2, 64, 16];
const size = 2 * 64 * 16;
const noise = (seed: number) => Float32Array.from({ length: size }, (_, i) => Math.sin(i * 12.9898 + seed));
const engine = await openEngine('wasm');
const [q, k] = [engine.upload(tensor(noise(1), shape)), engine.upload(tensor(noise(2), shape))];
const values = new Float32Array(size);
const v = engine.upload(tensor(values, shape));
const target = noise(3);

const losses: number[] = [];
for (let step = 0; step < 20; step++) {
  const run = await attentionWithGrads(q, k, v, { causal: true, grads: { q: false, k: false } });
  const { data } = await run.out.read();
  const error = Float32Array.from(target, (y, i) => data[i] - y);
  losses.push(error.reduce((sum, e) => sum + e * e, 0) / size);
  const dOut = engine.upload(tensor(error, shape));
  const { dv } = await run.backward(dOut);
  const gradient = (await dv?.read())?.data ?? [];
  for (let i = 0; i < size; i++) values[i] -= 0.5 * gradient[i];
  engine.write(v, tensor(values, shape));
  for (const t of [run.out, run.lse, dOut, dv]) t?.dispose();
  run.dispose();
}
console.log(`loss ${losses[0].toFixed(4)} -> ${losses[losses.length - 1].toFixed(4)}`);
console.log(`it went down at every step: ${losses.every((loss, i) => i === 0 || loss < losses[i - 1])}`);
for (const t of [q, k, v]) t.dispose();
console.log(`bytes left in the engine: ${engine.bytesInUse}`);
await engine.close();
