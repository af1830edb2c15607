/** Decoding with a paged KV cache: a prompt, a fork that shares its pages, and two continuations. */
import { attention, attentionDecode, KvCache, openEngine, tensor } from '../src/index.ts';

const [Hq, Hkv, D] = [8, 2, 32];
let seed = 0;
const noise = (...shape: number[]) =>
  tensor(
    Float32Array.from({ length: shape.reduce((n, d) => n * d, 1) }, () => Math.sin(++seed * 12.9898)),
    shape,
  );
const engine = await openEngine('wasm');
const cache = KvCache.create(engine, { B: 1, maxSequences: 2, Hkv, D, paged: { pageSize: 16, pages: 32 } });

const [k, v] = [noise(1, Hkv, 100, D), noise(1, Hkv, 100, D)];
cache.append(k, v);
const fork = cache.fork(0);
console.log(`sequences ${cache.sequences}, rows free ${cache.freeRows}`);

for (let step = 0; step < 10; step++) {
  cache.append(noise(2, Hkv, 1, D), noise(2, Hkv, 1, D));
  await attentionDecode(noise(2, Hq, 1, D), cache);
}
console.log(`lengths ${cache.lengths}, rows free ${cache.freeRows}`);

// Ended sequences give their pages back; what is left still answers as plain attention does.
cache.free(fork);
const fresh = KvCache.create(engine, { B: 1, Hkv, D, capacity: 100 });
fresh.append(k, v);
const q = noise(1, Hq, 1, D);
const [cached, plain] = [await attentionDecode(q, fresh), await attention(q, k, v)];
const error = Math.max(...cached.out.data.map((y, i) => Math.abs(y - plain.out.data[i])));
console.log(`cached and plain agree: ${error < 1e-5}`);
cache.dispose();
fresh.dispose();
await engine.close();
