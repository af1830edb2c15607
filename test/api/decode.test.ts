import assert from 'node:assert/strict';
import test from 'node:test';
import { attention } from '../../src/api/attention.ts';
import { KvCache, type KvCacheOptions } from '../../src/api/cache.ts';
import { attentionDecode, type DecodeOptions } from '../../src/api/decode.ts';
import { openEngine } from '../../src/api/registry.ts';
import { allocate } from '../../src/core/dtype.ts';
import { type HostTensor, sizeOf, tensor } from '../../src/core/tensor.ts';
import { assertClose, difference, r, rand, rows, swap } from './support.ts';

const [Hq, Hkv, D, Dv] = [4, 2, 16, 8];

/** Tensors joined along the sequence axis of [1, H, S, D]. */
function join(parts: readonly HostTensor[]): HostTensor {
  const [, H, , width] = parts[0].shape;
  const S = parts.reduce((n, t) => n + t.shape[2], 0);
  const data = allocate(parts[0].dtype, H * S * width);
  for (let h = 0, at = 0; h < H; h++)
    for (const t of parts) {
      const n = t.shape[2] * width;
      data.set(t.data.subarray(h * n, (h + 1) * n), at);
      at += n;
    }
  return tensor(data, [1, H, S, width], parts[0].dtype);
}

/** What the cache ought to hold, sequence by sequence. */
class Model {
  readonly k = new Map<number, HostTensor>();
  readonly v = new Map<number, HostTensor>();
  append(s: number, k: HostTensor, v: HostTensor): void {
    this.k.set(s, this.k.has(s) ? join([this.k.get(s) as HostTensor, k]) : k);
    this.v.set(s, this.v.has(s) ? join([this.v.get(s) as HostTensor, v]) : v);
  }
  fork(from: number, to: number): void {
    this.k.set(to, this.k.get(from) as HostTensor);
    this.v.set(to, this.v.get(from) as HostTensor);
  }
  truncate(s: number, length: number): void {
    this.k.set(s, rows(this.k.get(s) as HostTensor, 2, 0, length));
    this.v.set(s, rows(this.v.get(s) as HostTensor, 2, 0, length));
  }
  free(s: number): void {
    this.k.delete(s);
    this.v.delete(s);
  }
}

async function check(
  cache: KvCache,
  model: Model,
  options: DecodeOptions<HostTensor> & { Sq?: number } = {},
): Promise<void> {
  const { Sq = 1, ...rest } = options;
  const sequences = rest.sequences ?? cache.sequences;
  const q = r(sequences.length, Hq, Sq, D);
  const { out, lse } = await attentionDecode(q, cache, rest);
  for (const [i, s] of sequences.entries()) {
    const { sequences: _, ...plain } = rest;
    const [k, v] = [model.k.get(s) as HostTensor, model.v.get(s) as HostTensor];
    const wanted = await attention(rows(q, 0, i, i + 1), k, v, { causal: true, ...plain, engine: 'math' });
    assertClose(rows(out, 0, i, i + 1), wanted.out);
    assertClose(rows(lse, 0, i, i + 1), wanted.lse);
  }
}

const STORES: readonly (readonly [name: string, Partial<KvCacheOptions>])[] = [
  ['dense', { capacity: 64 }],
  ['pages of 4', { paged: { pageSize: 4, pages: 64 } }],
  ['pages of 16', { paged: { pageSize: 16, pages: 20 } }],
];

for (const name of ['math', 'wasm'] as const)
  for (const [store, sizes] of STORES)
    test(`${name}: ${store}: append, fork, truncate, free, add and attend`, async () => {
      const engine = await openEngine(name);
      const cache = KvCache.create(engine, { B: 2, maxSequences: 4, Hkv, D, Dv, ...sizes });
      const model = new Model();
      const grow = (n: number, options: { sequences?: readonly number[]; lengths?: readonly number[] } = {}): void => {
        const which = options.sequences ?? cache.sequences;
        const [k, v] = [r(which.length, Hkv, n, D), r(which.length, Hkv, n, Dv)];
        cache.append(k, v, options);
        for (const [i, s] of which.entries()) {
          const count = options.lengths?.[i] ?? n;
          model.append(s, rows(rows(k, 0, i, i + 1), 2, 0, count), rows(rows(v, 0, i, i + 1), 2, 0, count));
        }
      };
      const nothing = await attentionDecode(r(2, Hq, 1, D), cache);
      assert.ok(nothing.out.data.every((y) => y === 0));
      grow(10, { lengths: [10, 7] });
      await check(cache, model);
      await check(cache, model, { Sq: 3 });
      const child = cache.fork(1);
      model.fork(1, child);
      assert.deepEqual(
        [cache.sequences, cache.lengths],
        [
          [0, 1, 2],
          [10, 7, 7],
        ],
      );
      await check(cache, model);
      for (let i = 0; i < 6; i++) {
        grow(1);
        await check(cache, model);
      }
      const grandchild = cache.fork(child);
      model.fork(child, grandchild);
      grow(5, { sequences: [grandchild, 1] });
      await check(cache, model, { Sq: 2 });
      cache.free(1);
      model.free(1);
      assert.deepEqual(cache.sequences, [0, 2, 3]);
      await check(cache, model);
      await check(cache, model, { sequences: [3, 0], Sq: 4 });
      const born = cache.fork(0);
      model.fork(0, born);
      assert.equal(born, 1);
      grow(3);
      await check(cache, model, { softcap: 3, window: 6 });
      await check(cache, model, { causal: false, alibi: r(Hq), Sq: 2 });
      // Shorter by less than a page, by several, and from the middle of a page that a fork shares.
      for (const [s, length] of [
        [0, 14],
        [2, 3],
        [born, 9],
      ]) {
        cache.truncate(s, length);
        model.truncate(s, length);
      }
      await check(cache, model);
      grow(6);
      await check(cache, model, { Sq: 2 });
      cache.free(0);
      model.free(0);
      assert.equal(cache.add(), 0);
      assert.deepEqual(cache.lengths[0], 0);
      grow(2);
      await check(cache, model);
      cache.dispose();
      await engine.synchronize();
      assert.equal(engine.bytesInUse, 0);
      await engine.close();
    });

test('pages come back: when every sequence is freed the whole pool is free', async () => {
  const engine = await openEngine('math');
  const cache = KvCache.create(engine, { B: 1, maxSequences: 3, Hkv, D, paged: { pageSize: 4, pages: 10 } });
  const full = cache.freeRows;
  cache.append(r(1, Hkv, 9, D), r(1, Hkv, 9, D));
  assert.equal(cache.freeRows, full - 12);
  cache.fork(0);
  cache.fork(0);
  assert.equal(cache.freeRows, full - 12);
  // Three sequences share the last page; two of them have to leave it.
  cache.append(r(3, Hkv, 1, D), r(3, Hkv, 1, D));
  assert.equal(cache.freeRows, full - 20);
  // Nor does a sequence leave a page that it adds nothing to.
  const fourth = cache.sequences[0];
  cache.free(cache.sequences[2]);
  cache.fork(fourth);
  const before = cache.freeRows;
  cache.append(r(3, Hkv, 1, D), r(3, Hkv, 1, D), { lengths: [0, 1, 0] });
  assert.equal(cache.freeRows, before);
  const [last] = cache.sequences;
  for (const s of cache.sequences.slice(1)) cache.free(s);
  cache.truncate(last, 5);
  assert.equal(cache.freeRows, full - 8);
  cache.truncate(last, 0);
  assert.equal(cache.freeRows, full);
  cache.free(last);
  assert.equal(cache.freeRows, full);
  await engine.close();
});

test('interleaved heads and engine tensors append the same rows', async () => {
  const engine = await openEngine('math');
  const [k, v, q] = [r(2, Hkv, 9, D), r(2, Hkv, 9, D), r(2, Hq, 2, D)];
  for (const sizes of [{ capacity: 9 }, { paged: { pageSize: 4, pages: 6 } }]) {
    const a = KvCache.create(engine, { B: 2, Hkv, D, ...sizes });
    const b = KvCache.create(engine, { B: 2, Hkv, D, layout: 'bnhd', ...sizes });
    a.append(k, v);
    const [ek, ev, eq] = [swap(k), swap(v), swap(q)].map((t) => engine.upload(t));
    b.append(ek, ev);
    const one = await attentionDecode(q, a);
    const two = await attentionDecode(eq, b);
    assert.equal(difference(one.out, swap(await two.out.read())), 0);
    assert.equal(difference(one.lse, await two.lse.read()), 0);
  }
  await engine.close();
});

test('16-bit caches, and results into given tensors', async () => {
  const engine = await openEngine('math');
  const h = (...shape: number[]) => rand('bf16', ...shape);
  const cache = KvCache.create(engine, { B: 1, Hkv, D, dtype: 'bf16', capacity: 12 });
  const [k, v, q] = [h(1, Hkv, 12, D), h(1, Hkv, 12, D), h(1, Hq, 1, D)];
  cache.append(k, v);
  const out = tensor(new Uint16Array(sizeOf([1, Hq, 1, D])), [1, Hq, 1, D], 'bf16');
  const done = await attentionDecode(q, cache, { into: { out } });
  assert.equal(done.out, out);
  assert.equal(difference(out, (await attention(q, k, v, { engine })).out), 0);
  await engine.close();
});

test('dense caches tell how much every sequence can still grow by', async () => {
  const engine = await openEngine('math');
  const cache = KvCache.create(engine, { B: 2, Hkv, D, capacity: 10 });
  assert.equal(cache.freeRows, 10);
  cache.append(r(2, Hkv, 3, D), r(2, Hkv, 3, D), { lengths: [1, 3] });
  assert.equal(cache.freeRows, 7);
  await engine.close();
});

for (const threads of [1, 2])
  test(`${threads} threads: rows appended while a run is in flight arrive, and their tensors may go at once`, async () => {
    const engine = await openEngine('wasm', { threads, guards: true });
    const cache = KvCache.create(engine, { B: 1, Hkv, D, capacity: 16 });
    const [k, v, q] = [r(1, Hkv, 5, D), r(1, Hkv, 5, D), r(1, Hq, 1, D)];
    const long = r(1, 2, 3000, 32);
    const run = attention(long, long, long, { engine });
    while (!engine.runtime.busy) await new Promise((resolve) => setImmediate(resolve));
    cache.append(k, v);
    const { out } = await attentionDecode(q, cache);
    assertClose(out, (await attention(q, k, v, { engine: 'math' })).out);
    await run;
    cache.dispose();
    assert.equal(engine.bytesInUse, 0);
    await engine.close();
  });

test('caches that differ in their layout alone do not share a plan', async () => {
  const engine = await openEngine('wasm');
  const [q, k, v] = [r(2, 4, 4, D), r(2, 4, 4, D), r(2, 4, 4, D)];
  for (const layout of ['bhnd', 'bnhd'] as const) {
    const cache = KvCache.create(engine, { B: 2, Hkv: 4, D, capacity: 8, layout });
    cache.append(k, v);
    const { out } = await attentionDecode(q, cache);
    assertClose(out, (await attention(q, k, v, { layout, causal: true, engine: 'math' })).out);
    cache.dispose();
  }
  await engine.close();
});

test('one query sees every key, unless the diagonal is the first key', async () => {
  const engine = await openEngine('math');
  const cache = KvCache.create(engine, { B: 1, Hkv, D, capacity: 6 });
  const [k, v, q] = [r(1, Hkv, 6, D), r(1, Hkv, 6, D), r(1, Hq, 1, D)];
  cache.append(k, v);
  for (const causal of [undefined, true, false, 'bottom-right', 'top-left'] as const) {
    const { out } = await attentionDecode(q, cache, { causal });
    const first = causal === 'top-left' ? 1 : 6;
    assertClose(out, (await attention(q, rows(k, 2, 0, first), rows(v, 2, 0, first), { engine })).out, 0);
  }
  await engine.close();
});
