import assert from 'node:assert/strict';
import test from 'node:test';
import { attention } from '../../src/api/attention.ts';
import { KvCache } from '../../src/api/cache.ts';
import { attentionDecode } from '../../src/api/decode.ts';
import { attentionWithGrads, type GradientsOf } from '../../src/api/grads.ts';
import type { ForwardOptions } from '../../src/api/options.ts';
import { openEngine } from '../../src/api/registry.ts';
import { scaledDotProductAttention } from '../../src/api/sdpa.ts';
import { DisposedError } from '../../src/core/errors.ts';
import type { HostTensor } from '../../src/core/tensor.ts';
import type { EngineTensor } from '../../src/engine/contract.ts';
import * as x from '../../src/mods/build.ts';
import type { MaskContext } from '../../src/mods/expr.ts';
import { biasTensor, causal, maskTensor, not } from '../../src/mods/library.ts';
import { assertClose, bits, r } from './support.ts';

for (const name of ['math', 'wasm'] as const) {
  test(`${name}: a thousand mixed calls leave nothing behind`, async () => {
    const engine = await openEngine(name);
    const [q, k, v] = [r(1, 4, 9, 8), r(1, 2, 11, 8), r(1, 2, 11, 8)];
    const [eq, ek, ev] = [engine.upload(q), engine.upload(k), engine.upload(v)];
    const mask = bits(0.7, 9, 11);
    const start = engine.bytesInUse;
    const gone = AbortSignal.abort(new Error('stop'));
    const order = name === 'wasm' ? [engine, 'math' as const] : engine;
    for (let i = 0; i < 1000; i++) {
      switch (i % 8) {
        case 0:
          await attention(q, k, v, { causal: true, bias: r(9, 11), engine });
          break;
        case 1: {
          const { out, lse } = await attention(eq, ek, ev, { mask: causal(), alibi: r(4) });
          out.dispose();
          lse.dispose();
          break;
        }
        case 2:
          await assert.rejects(attention(eq, ek, ev, { signal: gone }), /stop/);
          break;
        case 3: {
          const run = await attentionWithGrads(q, k, v, { mask, sink: r(4), engine: order });
          await run.backward(r(1, 4, 9, 8));
          run.dispose();
          run.dispose();
          break;
        }
        case 4: {
          const cache = KvCache.create(engine, {
            B: 1,
            maxSequences: 2,
            Hkv: 2,
            D: 8,
            paged: { pageSize: 4, pages: 9 },
          });
          cache.append(k, v);
          cache.append(ek, ev, { sequences: [cache.fork(0)] });
          await attentionDecode(r(2, 4, 1, 8), cache);
          cache.dispose();
          break;
        }
        case 5:
          await assert.rejects(attention(q, k, v, { bias: r(9, 12), engine }));
          break;
        case 6:
          (await scaledDotProductAttention(eq, ek, ev, { attnMask: mask, enableGqa: true })).dispose();
          break;
        default:
          await assert.rejects(attentionWithGrads(q, k, v, { engine, signal: gone }), /stop/);
      }
      assert.equal(engine.bytesInUse, start, `after call ${i}`);
    }
    for (const t of [eq, ek, ev]) t.dispose();
    assert.equal(engine.bytesInUse, 0);
    await engine.close();
  });

  test(`${name}: an engine that goes out of scope is closed`, async () => {
    const engine = await openEngine(name);
    // What `await using` calls at the end of its block, which Node 20 cannot read.
    await engine[Symbol.asyncDispose]();
    await assert.rejects(attention(r(1, 1, 2, 4), r(1, 1, 2, 4), r(1, 1, 2, 4), { engine }), DisposedError);
  });

  test(`${name}: a signal stops a run, and what it allocated is freed`, async () => {
    const engine = await openEngine(name, name === 'wasm' ? { threads: 2 } : undefined);
    const t = name === 'math' ? r(1, 8, 800, 32) : r(1, 8, 2048, 64);
    const small = r(1, 1, 8, 8);
    const reason = new Error('enough');
    const controller = new AbortController();
    let last = 0;
    const onProgress = (share: number): void => {
      last = share;
      controller.abort(reason);
    };
    await assert.rejects(attention(t, t, t, { engine, signal: controller.signal, onProgress }), (e) => e === reason);
    assert.ok(last < 1, `stopped at ${last}`);
    assert.equal(engine.bytesInUse, 0);
    await assert.rejects(attention(t, t, t, { engine, signal: controller.signal }), (e) => e === reason);
    const later = new AbortController();
    setTimeout(() => later.abort(reason));
    await assert.rejects(attention(t, t, t, { engine, signal: later.signal }), (e) => e === reason);
    assert.equal(engine.bytesInUse, 0);
    await attention(small, small, small, { engine });
    assert.equal(engine.bytesInUse, 0);
    await engine.close();
  });

  test(`${name}: progress grows from 0 to 1`, async () => {
    const engine = await openEngine(name);
    const t = r(1, 4, 300, 16);
    const shares: number[] = [];
    await attention(t, t, t, { engine, onProgress: (share) => shares.push(share) });
    assert.ok(shares.length > 0);
    assert.equal(shares[shares.length - 1], 1);
    assert.deepEqual(
      [...shares].sort((x, y) => x - y),
      shares,
    );
    await engine.close();
  });

  test(`${name}: calls at the same time do not disturb each other`, async () => {
    const engine = await openEngine(name);
    const inputs = Array.from({ length: 12 }, (_, i) => r(1, 2, 20 + i, 8));
    const alone = [];
    for (const t of inputs) alone.push((await attention(t, t, t, { engine, causal: true })).out.data);
    const together = await Promise.all(inputs.map((t) => attention(t, t, t, { engine, causal: true })));
    for (const [i, { out }] of together.entries()) assert.deepEqual(out.data, alone[i]);
    // Tensors that were freed while another call ran are gone when the queue is empty.
    await engine.synchronize();
    assert.equal(engine.bytesInUse, 0);
    await engine.close();
  });
}

test('results may go where the caller says', async () => {
  const engine = await openEngine('math');
  const t = engine.upload(r(1, 2, 6, 4));
  const into = { out: engine.allocate('f32', [1, 2, 6, 4]), lse: engine.allocate('f32', [1, 2, 6]) };
  const before = engine.bytesInUse;
  const { out, lse } = await attention(t, t, t, { into });
  assert.ok(out === into.out && lse === into.lse);
  assert.equal(engine.bytesInUse, before);
  const fresh = await attention(t, t, t);
  assert.deepEqual((await into.out.read()).data, (await fresh.out.read()).data);
  const packed = engine.upload(r(1, 2, 6, 4));
  const flat = { out: into.out, lse: engine.allocate('f32', [2, 6]) };
  await attention(packed, packed, packed, { into: flat, cuSeqlens: { q: [1, 4] } });
  const rows = (await flat.lse.read()).data;
  assert.deepEqual([rows[0], rows[5]], [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY]);
  await engine.close();
});

test('changed data are seen: nothing of host tensors is remembered', async () => {
  const mask = bits(1, 6, 6);
  const bias = r(6, 6);
  const t = r(1, 1, 6, 4);
  const first = await attention(t, t, t, { mask, bias, engine: 'math' });
  mask.data.fill(0, 0, 6);
  bias.data.fill(0);
  const second = await attention(t, t, t, { mask, bias, engine: 'math' });
  assert.ok(Number.isFinite(first.lse.data[0]));
  assert.equal(second.lse.data[0], Number.NEGATIVE_INFINITY);
  assert.notEqual(second.lse.data[5], first.lse.data[5]);
});

test('remembered calls are told apart by every option and by the tensors they read', async () => {
  const engine = await openEngine('wasm', { threads: 1 });
  const host = [r(1, 2, 12, 8), r(1, 2, 12, 8), r(1, 2, 12, 8)] as const;
  const [q, k, v] = host.map((t) => engine.upload(t));
  const sides = [r(1, 2, 12, 12), r(1, 2, 12, 12)];
  const masks = [bits(0.5, 12, 12), bits(0.5, 12, 12)];
  const slopes = [r(2), r(2)];
  const layouts = [bits(0.5, 1, 2, 3, 3), bits(0.5, 1, 2, 3, 3)];
  const resident = new Map([...sides, ...masks, ...slopes, ...layouts].map((t) => [t, engine.upload(t)]));
  type Options = ForwardOptions<HostTensor>;
  type In = (t: HostTensor) => HostTensor;
  const of = <T>(values: readonly T[], options: (value: T, at: In) => Options) =>
    values.map((value) => (at: In) => options(value, at));
  const variants: readonly ((at: In) => Options)[] = [
    () => ({}),
    ...of([0.1, 0.2], (scale) => ({ scale })),
    ...of([1, 2], (softcap) => ({ softcap })),
    ...of([true, 'top-left' as const], (align) => ({ causal: align })),
    ...of([2, 3, [2, 3] as const, [3, null] as const], (window) => ({ window })),
    ...of(sides, (t, at) => ({ bias: at(t) })),
    ...of(slopes, (t, at) => ({ alibi: at(t) })),
    ...of(masks, (t, at) => ({ mask: at(t) })),
    ...of(masks, (t, at) => ({ mask: not(maskTensor(at(t))) })),
    ...of(sides, (t, at) => ({ mod: [biasTensor(at(t))] })),
    ...of(layouts, (t, at) => ({ blockSparse: { layout: at(t), blockSize: 4 } })),
    ...of([0.1, 0.3], (p) => ({ dropout: { p, seed: 1 } })),
    ...of([1, 2], (seed) => ({ dropout: { p: 0.1, seed } })),
  ];
  for (let round = 0; round < 2; round++)
    for (const variant of variants) {
      const wanted = await attention(...host, { ...variant((t) => t), engine: 'math' });
      const own = variant((t) => resident.get(t) as unknown as HostTensor);
      const { out, lse } = await attention(q, k, v, own as unknown as ForwardOptions<EngineTensor>);
      assertClose(await out.read(), wanted.out);
      assertClose(await lse.read(), wanted.lse);
      out.dispose();
      lse.dispose();
    }
  for (const grads of [{ q: false }, { k: false }, { v: false }, { sink: false }, { sides: false }, {}] as const) {
    const options = { grads, sink: r(2), bias: resident.get(sides[0]) };
    const run = await attentionWithGrads(q, k, v, options);
    const g: GradientsOf<EngineTensor> = await run.backward(q);
    const found = {
      q: g.dq !== null,
      k: g.dk !== null,
      v: g.dv !== null,
      sink: g.dSink !== null,
      sides: g.dBias !== null,
    };
    assert.deepEqual(found, { q: true, k: true, v: true, sink: true, sides: true, ...grads });
    run.dispose();
  }
  await engine.close();
});

test('wasm: the same bits where addresses use all 32 bits', async () => {
  const engine = await openEngine('wasm', { threads: 1 });
  const [q, k, v, dOut] = [r(1, 4, 70, 20), r(1, 2, 70, 20), r(1, 2, 70, 12), r(1, 4, 70, 12)];
  const options = { causal: true, bias: r(1, 4, 70, 70), alibi: r(4), sink: r(4), mask: bits(0.9, 70, 70), engine };
  const results = async (): Promise<unknown[]> => {
    const run = await attentionWithGrads(q, k, v, { ...options, dropout: { p: 0.1, seed: 3 } });
    const { dq, dk, dv, dBias, dSlopes, dSink } = await run.backward(dOut);
    run.dispose();
    const cache = KvCache.create(engine, { B: 1, Hkv: 2, D: 20, Dv: 12, paged: { pageSize: 16, pages: 8 } });
    cache.append(k, v);
    const decoded = await attentionDecode(r0, cache);
    cache.dispose();
    return [run.out, run.lse, dq, dk, dv, dBias, dSlopes, dSink, decoded.out].map((t) => t?.data);
  };
  const r0 = r(1, 4, 1, 20);
  const low = await results();
  const block = engine.allocate('u8', [2 ** 31]);
  assert.deepEqual(await results(), low);
  block.dispose();
  assert.equal(engine.bytesInUse, 0);
  await engine.close();
});

test('a function is called anew, a variable it reads may have changed', async () => {
  const engine = await openEngine('math');
  const t = engine.upload(r(1, 1, 6, 4));
  let n = 6;
  const mask = ({ kv }: MaskContext) => x.lt(kv, n);
  const lseOf = async (call: Promise<{ lse: EngineTensor }>) => (await (await call).lse.read()).data[0];
  const before = await lseOf(attention(t, t, t, { mask }));
  n = 0;
  assert.ok(Number.isFinite(before));
  assert.equal(await lseOf(attention(t, t, t, { mask })), Number.NEGATIVE_INFINITY);
  await engine.close();
});
