/** Tilewise's WASM engine in one of its modes, through the public interface, with tensors that stay in the engine. */
import { attention, attentionWithGrads, type EngineTensor, openEngine, tensor } from '../../src/index.ts';
import type { Case, Contender, Inputs, Run } from './contender.ts';

/** `portable`: what every host gets. `wide`: V8's 256-bit mode. `native`: products in machine code. */
export type Mode = 'portable' | 'wide' | 'native';

/** Null where the host lacks the mode. */
export async function tilewise(mode: Mode, threads: number): Promise<Contender | null> {
  const engine = await openEngine('wasm', { threads, revectorize: mode === 'wide', native: mode === 'native' });
  const { features } = engine.caps;
  const got = mode === 'portable' || (mode === 'wide' ? features.revectorize : features['machine code']);
  if (!got || features.threads !== threads) {
    await engine.close();
    return null;
  }
  const start = async (c: Case, inputs: Inputs, grads: boolean): Promise<Run> => {
    const shape = [1, c.H, c.N, c.D];
    const put = (x: Float32Array): EngineTensor => engine.upload(tensor(x, shape));
    const [q, k, v, dOut] = [inputs.q, inputs.k, inputs.v, inputs.dOut].map(put);
    const options = { causal: c.causal };
    let last: EngineTensor[] = [];
    const drop = (): void => {
      for (const x of last.splice(0)) x.dispose();
    };
    return {
      async once() {
        drop();
        if (!grads) {
          const { out, lse } = await attention(q, k, v, options);
          last = [out, lse];
          return;
        }
        const call = await attentionWithGrads(q, k, v, options);
        const { dq, dk, dv } = await call.backward(dOut);
        last = [dq, dk, dv].filter((x) => x !== null);
        call.out.dispose();
        call.lse.dispose();
        call.dispose();
      },
      async results() {
        const read = await Promise.all(last.slice(0, grads ? 3 : 1).map((x) => x.read()));
        return read.map(({ data }) => data as Float32Array);
      },
      async close() {
        drop();
        for (const x of [q, k, v, dOut]) x.dispose();
      },
    };
  };
  return {
    name: `tilewise ${mode}`,
    refuse: () => null,
    forward: (c, inputs) => start(c, inputs, false),
    both: (c, inputs) => start(c, inputs, true),
    close: () => engine.close(),
  };
}
