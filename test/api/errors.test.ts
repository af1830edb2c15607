import assert from 'node:assert/strict';
import test from 'node:test';
import { attention } from '../../src/api/attention.ts';
import { KvCache } from '../../src/api/cache.ts';
import { attentionDecode } from '../../src/api/decode.ts';
import { attentionWithGrads } from '../../src/api/grads.ts';
import type { AttentionOptions, ForwardOptions } from '../../src/api/options.ts';
import { openEngine } from '../../src/api/registry.ts';
import { ArgumentError, DisposedError, ExpressionError, MemoryError, UnsupportedError } from '../../src/core/errors.ts';
import { type HostTensor, tensor } from '../../src/core/tensor.ts';
import * as x from '../../src/mods/build.ts';
import { causal } from '../../src/mods/library.ts';
import { assertClose, bits, r, rand, rejects } from './support.ts';

const [B, Hq, Hkv, Sq, Sk, D] = [2, 4, 2, 5, 7, 8];
const q = r(B, Hq, Sq, D);
const k = r(B, Hkv, Sk, D);
const v = r(B, Hkv, Sk, D);

/** What cannot be written in TypeScript can still be called. */
const bad = (options: Record<string, unknown>): AttentionOptions => options as AttentionOptions;

const OPTIONS: readonly (readonly [argument: string, options: AttentionOptions])[] = [
  ['options', bad({ casual: true })],
  ['layout', bad({ layout: 'sbhd' })],
  ['scale', { scale: Number.NaN }],
  ['scale', { scale: Number.POSITIVE_INFINITY }],
  ['scale', bad({ scale: '1' })],
  ['causal', bad({ causal: 'bottomright' })],
  ['window', { window: 0 }],
  ['window', { window: 2.5 }],
  ['window', { window: [-1, 0] }],
  ['window', bad({ window: [1] })],
  ['softcap', { softcap: 0 }],
  ['softcap', { softcap: Number.NaN }],
  ['mask', { mask: bits(0.5, Sq, Sk + 1) }],
  ['mask', { mask: bits(0.5, 3, Hq, Sq, Sk) }],
  ['mask', { mask: bits(0.5, 1, B, Hq, Sq, Sk) }],
  ['mask', { mask: r(Sq, Sk) }],
  ['bias', { bias: r(Hq, Sk, Sq) }],
  ['bias', { bias: bits(0.5, Sq, Sk) }],
  ['alibi', { alibi: r(Hkv) }],
  ['alibi', { alibi: r(Hq, B) }],
  ['sink', { sink: r(Hkv) }],
  ['sink', { sink: rand('f16', Hq) }],
  ['blockSparse.layout', { blockSparse: { layout: bits(0.5, 1, 1, 1, 2), blockSize: 4 } }],
  ['blockSparse.layout', { blockSparse: { layout: r(1, 1, 2, 2), blockSize: 4 } }],
  ['blockSparse.blockSize', { blockSparse: { layout: bits(0.5, 1, 1, 2, 2), blockSize: 0 } }],
  ['dropout', { dropout: 1 }],
  ['dropout', { dropout: -0.1 }],
  ['dropout', { dropout: Number.NaN }],
  ['dropout.seed', { dropout: { p: 0.1, seed: -1 } }],
  ['dropout.seed', { dropout: { p: 0.1, seed: 2n ** 64n } }],
  ['dropout.offset', { dropout: { p: 0.1, seed: 1, offset: 2 ** 32 } }],
  ['engine', bad({ engine: 'metal' })],
  ['engine', { engine: [] }],
];

const TENSORS: readonly (readonly [
  argument: string,
  q: unknown,
  k: unknown,
  v: unknown,
  options?: AttentionOptions,
])[] = [
  ['q', null, k, v],
  ['q', { dtype: 'f32' }, k, v],
  ['q', new Float32Array(8), k, v],
  ['q.shape', { dtype: 'f32', shape: [1, -1], data: new Float32Array(1) }, k, v],
  ['q.data', { dtype: 'f32', shape: [...q.shape], data: new Float32Array(3) }, k, v],
  ['q.data', { dtype: 'f32', shape: [...q.shape], data: Float64Array.from(q.data) }, k, v],
  ['q', r(Hq, Sq, D), k, v],
  ['q', bits(0.5, B, Hq, Sq, D), k, v],
  ['k', q, rand('f16', B, Hkv, Sk, D), v],
  ['v', q, k, rand('f64', B, Hkv, Sk, D)],
  ['k', q, r(1, Hkv, Sk, D), v],
  ['k', q, r(B, Hkv, Sk, D + 1), v],
  ['k', q, r(B, 3, Sk, D), r(B, 3, Sk, D)],
  ['v', q, k, r(B, Hkv, Sk + 1, D)],
  ['v', q, k, r(B, 1, Sk, D)],
  ['D', r(B, Hq, Sq, 0), r(B, Hkv, Sk, 0), v],
  ['D', r(B, Hq, Sq, 257), r(B, Hkv, Sk, 257), v],
  ['Dv', q, k, r(B, Hkv, Sk, 0)],
  ['k', q, k, v, { layout: 'bnhd' }],
  ['q', q, k, v, { cuSeqlens: { q: [0, 5] } }],
];

const packed = r(1, Hq, 12, D);
const CUSEQLENS: readonly (readonly [argument: string, cu: unknown])[] = [
  ['cuSeqlens.q', { q: [0, 5, 3, 12] }],
  ['cuSeqlens.q', { q: [0, 13] }],
  ['cuSeqlens.q', { q: [-1, 12] }],
  ['cuSeqlens.q', { q: [0, 1.5, 12] }],
  ['cuSeqlens.q', { q: [] }],
  ['cuSeqlens.q', { q: '0,12' }],
  ['cuSeqlens.k', { q: [0, 12], k: [0, 4, 12] }],
  ['cuSeqlens.k', { q: [0, 12], k: [0, 20] }],
];

const EXPRESSIONS: readonly AttentionOptions[] = [
  { mask: ({ q: i, kv }) => x.add(i, kv) as never },
  { mod: ({ score, q: i }) => x.add(score, i as never) },
  { mod: () => 3 as never },
  { mod: ({ score, kv }) => x.add(score, x.load(r(Sk - 1), [kv])) },
  { mask: ({ q: i, kv }) => x.load<'bool'>(bits(0.5, Sq, Sk), [kv, i]) },
  { mod: ({ score, q: i }) => x.add(score, x.load(r(Sq), [x.sub(i, 1)])) },
];

test('options that make no sense are refused by name', async () => {
  for (const [argument, options] of OPTIONS) await rejects(() => attention(q, k, v, options), ArgumentError, argument);
});

test('tensors that do not fit are refused by name', async () => {
  for (const [argument, a, b, c, options] of TENSORS)
    await rejects(() => attention(a as HostTensor, b as HostTensor, c as HostTensor, options), ArgumentError, argument);
});

test('sequence offsets that go back, or past the end, are refused', async () => {
  for (const [argument, cuSeqlens] of CUSEQLENS)
    await rejects(() => attention(packed, packed, packed, bad({ cuSeqlens })), ArgumentError, argument);
});

test('expressions of the wrong type, and loads that may leave their tensor, are refused', async () => {
  for (const options of EXPRESSIONS) await rejects(() => attention(q, k, v, options), ExpressionError);
});

test('an op without derivative is refused when gradients are asked, and only then', async () => {
  const floor: AttentionOptions = { mod: ({ score }) => x.floor(score), engine: 'math' };
  await attention(q, k, v, floor);
  await rejects(() => attentionWithGrads(q, k, v, floor), ExpressionError);
  const table = r(Sk);
  const side: AttentionOptions = { mod: ({ score, kv }) => x.add(score, x.floor(x.load(table, [kv]))), engine: 'math' };
  await rejects(() => attentionWithGrads(q, k, v, side), ExpressionError);
  (await attentionWithGrads(q, k, v, { ...side, grads: { sides: false } })).dispose();
});

test('a detached buffer is refused', async () => {
  const t = r(B, Hq, Sq, D);
  structuredClone(t.data.buffer, { transfer: [t.data.buffer as ArrayBuffer] });
  await rejects(() => attention(t, k, v), ArgumentError, 'q.data');
  await rejects(
    () => attention(q, k, v, { mask: bits(0.5, Sq, Sk), sink: { ...r(Hq), data: new Float32Array(1) } }),
    ArgumentError,
    'sink.data',
  );
});

test('options of other calls are refused', async () => {
  await rejects(() => attention(q, k, v, bad({ grads: {} })), ArgumentError, 'options');
  await rejects(() => attentionWithGrads(q, k, v, bad({ into: { out: q } })), ArgumentError, 'options');
  await rejects(() => attention(q, k, v, bad({ mask: null })), ArgumentError, 'mask');
  await attention(q, k, v, { mask: undefined, causal: undefined, engine: 'math' });
});

test('gradients that do not fit are refused by name', async () => {
  const run = await attentionWithGrads(q, k, v, { engine: 'math' });
  await rejects(() => run.backward(r(B, Hq, Sq, D + 1)), ArgumentError, 'dOut');
  await rejects(() => run.backward(rand('f16', B, Hq, Sq, D)), ArgumentError, 'dOut');
  await rejects(() => run.backward(run.out, r(B, Hq, Sk)), ArgumentError, 'dLse');
  await rejects(() => run.backward({ ...run.out, data: new Float32Array(2) }), ArgumentError, 'dOut.data');
  run.dispose();
  await rejects(() => run.backward(run.out), DisposedError);
  await rejects(
    () => attentionWithGrads(q, k, v, { bias: r(Sq, Sk), grads: { sides: [r(3)] } }),
    ArgumentError,
    'grads.sides',
  );
});

test('nothing is written when a call throws, and the engine stays usable', async () => {
  for (const name of ['math', 'wasm'] as const) {
    const engine = await openEngine(name);
    const out = tensor(new Float32Array(q.data.length).fill(7), q.shape);
    const before = engine.bytesInUse;
    for (const [, options] of OPTIONS) await assert.rejects(attention(q, k, v, { engine, ...options, into: { out } }));
    for (const options of EXPRESSIONS) await assert.rejects(attention(q, k, v, { engine, ...options, into: { out } }));
    const wrong: [string, ForwardOptions<HostTensor>['into']][] = [
      ['into.out', { out: r(B, Hq, Sq, D + 1) }],
      ['into.out', { out: rand('f16', B, Hq, Sq, D) }],
      ['into.lse', { out, lse: r(B, Sq, Hq) }],
    ];
    for (const [argument, into] of wrong)
      await rejects(() => attention(q, k, v, { engine, into: into ?? {} }), ArgumentError, argument);
    assert.ok(out.data.every((y) => y === 7));
    assert.equal(engine.bytesInUse, before);
    const good = await attention(q, k, v, { engine, into: { out } });
    assert.equal(good.out, out);
    assertClose(out, (await attention(q, k, v, { engine: 'math' })).out);
    await engine.close();
  }
});

test('tensors of different engines, or of none, do not mix', async () => {
  const [one, two] = [await openEngine('math'), await openEngine('math')];
  const [a, b, c] = [one.upload(q), one.upload(k), two.upload(v)];
  const mixed = attention as (...args: unknown[]) => Promise<unknown>;
  await rejects(() => mixed(a, b, c), ArgumentError, 'v');
  await rejects(() => mixed(a, b, v), ArgumentError, 'v');
  await rejects(() => mixed(q, b, v), ArgumentError, 'q');
  const d = one.upload(v);
  await rejects(() => attention(a, b, d, { engine: 'wasm' }), ArgumentError, 'engine');
  await rejects(() => attention(a, b, d, { engine: two }), ArgumentError, 'engine');
  await rejects(() => attention(a, b, d, { bias: two.upload(r(Sq, Sk)) }), ArgumentError, 'bias');
  await rejects(() => attention(a, b, d, { into: { out: two.allocate('f32', q.shape) } }), ArgumentError, 'into.out');
  await rejects(() => mixed(a, b, d, { into: { out: r(B, Hq, Sq, D) } }), ArgumentError, 'into.out');
  d.dispose();
  await rejects(() => attention(a, b, d), DisposedError);
  await Promise.all([one.close(), two.close()]);
  await rejects(() => attention(a, b, d), DisposedError);
});

test('what no engine serves is refused with every reason', async () => {
  const engine = await openEngine('math', { workspace: 100 });
  await assert.rejects(attention(q, k, v, { engine: [engine] }), (error) => {
    assert.ok(error instanceof UnsupportedError);
    assert.equal(error.refusals.length, 1);
    assert.match(error.message, /reference\/forward: /);
    return true;
  });
  await engine.close();
});

test('what does not fit into memory is refused before anything is allocated', async () => {
  const engine = await openEngine('math', { memory: 2000 });
  await rejects(() => attention(q, k, v, { engine, dropout: 0.5 }), MemoryError);
  await rejects(() => attention(r(1, 1, 64, 64), r(1, 1, 64, 64), r(1, 1, 64, 64), { engine }), MemoryError);
  assert.equal(engine.bytesInUse, 0);
  await engine.close();
});

test('caches refuse what does not fit, and keep what they have', async () => {
  const engine = await openEngine('math');
  const create = (options: Record<string, unknown>) => () => KvCache.create(engine, options as never);
  const sizes = { B: 2, Hkv, D };
  for (const [argument, options] of [
    ['B', { ...sizes, B: 0, capacity: 8 }],
    ['D', { ...sizes, D: 300, capacity: 8 }],
    ['capacity', sizes],
    ['capacity', { ...sizes, capacity: 8, paged: { pageSize: 4, pages: 4 } }],
    ['capacity', { ...sizes, capacity: 0 }],
    ['capacity', { ...sizes, capacity: 2 ** 30 }],
    ['paged.pageSize', { ...sizes, paged: { pageSize: 0, pages: 4 } }],
    ['maxSequences', { ...sizes, capacity: 8, maxSequences: 1 }],
    ['dtype', { ...sizes, capacity: 8, dtype: 'i32' }],
    ['layout', { ...sizes, capacity: 8, layout: 'nope' }],
  ] as const)
    await rejects(create(options), ArgumentError, argument);
  for (const storage of [{ capacity: 8 }, { paged: { pageSize: 4, pages: 4 } }]) {
    const cache = KvCache.create(engine, { ...sizes, ...storage });
    cache.append(k, v);
    for (const [argument, call] of [
      ['k', () => cache.append(k, v)],
      ['k', () => cache.append(r(1, Hkv, 1, D), v)],
      ['v', () => cache.append(r(B, Hkv, 1, D), r(B, Hkv, 2, D))],
      ['lengths', () => cache.append(r(B, Hkv, 1, D), r(B, Hkv, 1, D), { lengths: [1, 2] })],
      ['sequences', () => cache.append(r(1, Hkv, 1, D), r(1, Hkv, 1, D), { sequences: [2] })],
      ['sequences', () => cache.append(r(2, Hkv, 1, D), r(2, Hkv, 1, D), { sequences: [1, 1] })],
      ['sequence', () => cache.fork(0)],
      ['sequences', () => cache.free(5)],
      ['sequences', () => cache.truncate(5, 0)],
      ['length', () => cache.truncate(0, 1e6)],
      ['length', () => cache.truncate(0, 0.5)],
      ['sequence', () => cache.add()],
      ['q', () => attentionDecode(r(1, Hq, 1, D), cache)],
      ['q', () => attentionDecode(rand('f16', B, Hq, 1, D), cache)],
      ['k', () => attentionDecode(r(B, 3, 1, D), cache)],
      ['options', () => attentionDecode(r(B, Hq, 1, D), cache, { dropout: 0.5 } as never)],
      ['engine', () => attentionDecode(r(B, Hq, 1, D), cache, { engine: 'wasm' })],
    ] as const)
      await rejects(call, ArgumentError, argument);
    assert.deepEqual(cache.lengths, [Sk, Sk]);
    cache.dispose();
    await rejects(() => cache.append(k, v), DisposedError);
    await rejects(() => attentionDecode(r(B, Hq, 1, D), cache), DisposedError);
  }
  assert.equal(engine.bytesInUse, 0);
  await engine.close();
});

test('a mask object is checked against the shapes of each call', async () => {
  const mask = causal();
  await attention(q, k, v, { mask, engine: 'math' });
  await attention(r(1, 2, 3, 4), r(1, 2, 9, 4), r(1, 2, 9, 4), { mask, engine: 'math' });
});
