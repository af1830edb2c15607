/** What the types promise to callers; the compiler does the checking, the runner only proves the file loads. */
import assert from 'node:assert/strict';
import test from 'node:test';
import type {
  attention,
  attentionDecode,
  attentionWithGrads,
  EngineTensor,
  HostTensor,
  openEngine,
  scaledDotProductAttention,
  sdpaKernel,
  Tensor,
} from '../../src/index.ts';

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <A, B>(yes: Same<A, B>): void => assert.ok(yes);

declare const api: {
  attention: typeof attention;
  attentionWithGrads: typeof attentionWithGrads;
  attentionDecode: typeof attentionDecode;
  sdpa: typeof scaledDotProductAttention;
  sdpaKernel: typeof sdpaKernel;
  openEngine: typeof openEngine;
};
declare const h: HostTensor;
declare const e: EngineTensor;
declare const t: Tensor;

export async function promises(): Promise<void> {
  same<Awaited<ReturnType<typeof hosts>>, HostTensor>(true);
  same<Awaited<ReturnType<typeof residents>>, EngineTensor>(true);
  same<Awaited<ReturnType<typeof either>>, Tensor>(true);
  const run = await api.attentionWithGrads(e, e, e, { grads: { sides: [e] } });
  const { dq, dSides } = await run.backward(e, null);
  same<typeof dq, EngineTensor>(true);
  const without = await api.attentionWithGrads(e, e, e, { grads: { q: false } });
  const some = await without.backward(e);
  same<typeof some.dq, null>(true);
  same<typeof some.dk, EngineTensor>(true);
  const unknown = await api.attentionWithGrads(e, e, e, { grads: { q: Math.random() < 2 } });
  same<Awaited<ReturnType<typeof unknown.backward>>['dq'], EngineTensor | null>(true);
  same<ReturnType<typeof dSides.get>, EngineTensor | undefined>(true);
  const bound = api.sdpaKernel(['wasm', 'math']);
  same<typeof bound.attention, typeof attention>(true);
  const inside = api.sdpaKernel('math', async (sdp) => (await sdp.attention(h, h, h)).out);
  same<typeof inside, Promise<HostTensor>>(true);
  await api.attention(h, h, h, { causal: 'top-left', window: [3, null], mod: [({ score }) => score], mask: undefined });
  // @ts-expect-error host and engine tensors do not mix
  await api.attention(h, e, e);
  // @ts-expect-error results of host tensors go into host tensors
  await api.attention(h, h, h, { into: { out: e } });
  // @ts-expect-error a misspelt option
  await api.attention(h, h, h, { casual: true });
  // @ts-expect-error an alignment that is none
  await api.attention(h, h, h, { causal: 'bottomright' });
  // @ts-expect-error a mask function gives a boolean
  await api.attention(h, h, h, { mask: ({ q }) => q });
  // @ts-expect-error gradients are asked for where they are computed
  await api.attention(h, h, h, { grads: {} });
  // @ts-expect-error gradients of engine tensors come from engine tensors
  await run.backward(h);
  await api.openEngine('wasm', { threads: 2 });
  // @ts-expect-error another engine's option
  await api.openEngine('reference', { threads: 2 });
}

const hosts = async () => (await api.attention(h, h, h)).out;
const residents = async () => api.sdpa(e, e, e, { attnMask: h });
const either = async () => (await api.attention(t, t, t)).lse;

test('the types hold', () => assert.equal(typeof promises, 'function'));
