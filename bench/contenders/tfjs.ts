/** TensorFlow.js on its WebAssembly backend: softmax(q k^T) v from its own ops, the batched way or a head at a time. */
import { dirname } from 'node:path';
import { type Case, type Contender, type Inputs, loadPeer, peerFile, type Run } from './contender.ts';

interface TfTensor {
  data(): Promise<Float32Array>;
  dispose(): void;
}
interface Tf {
  setBackend(name: string): Promise<boolean>;
  ready(): Promise<void>;
  tensor(data: Float32Array, shape: readonly number[]): TfTensor;
  add(a: TfTensor, b: TfTensor): TfTensor;
  mul(a: TfTensor, b: TfTensor | number): TfTensor;
  sum(x: TfTensor): TfTensor;
  matMul(a: TfTensor, b: TfTensor, transposeA?: boolean, transposeB?: boolean): TfTensor;
  softmax(x: TfTensor): TfTensor;
  stack(list: TfTensor[]): TfTensor;
  unstack(x: TfTensor): TfTensor[];
  tidy<T>(f: () => T): T;
  grads(f: (...x: TfTensor[]) => TfTensor): (x: TfTensor[]) => TfTensor[];
}

/** `heads`: two-dimensional products a head at a time, which take its fast path. */
export async function tfjs(way: 'batched' | 'heads'): Promise<Contender> {
  const tf = await loadPeer<Tf>('@tensorflow/tfjs');
  const backend = await loadPeer<{ setWasmPaths(path: string): void; default?: { setWasmPaths(path: string): void } }>(
    '@tensorflow/tfjs-backend-wasm',
  );
  const wasm = dirname(peerFile('@tensorflow/tfjs-backend-wasm'));
  (backend.default ?? backend).setWasmPaths(`${wasm}/`);
  await tf.setBackend('wasm');
  await tf.ready();

  const one = (q: TfTensor, k: TfTensor, v: TfTensor, mask: TfTensor | null, scale: number): TfTensor => {
    const s = tf.mul(tf.matMul(q, k, false, true), scale);
    return tf.matMul(tf.softmax(mask === null ? s : tf.add(s, mask)), v);
  };
  const attend = (q: TfTensor, k: TfTensor, v: TfTensor, mask: TfTensor | null, scale: number): TfTensor => {
    if (way === 'batched') return one(q, k, v, mask, scale);
    const [ks, vs] = [tf.unstack(k), tf.unstack(v)];
    return tf.stack(tf.unstack(q).map((head, h) => one(head, ks[h], vs[h], mask, scale)));
  };

  const start = async (c: Case, inputs: Inputs, grads: boolean): Promise<Run> => {
    const { H, N, D } = c;
    const [q, k, v, dOut] = [inputs.q, inputs.k, inputs.v, inputs.dOut].map((x) => tf.tensor(x, [H, N, D]));
    const mask = c.causal ? tf.tensor(causalBias(N), [N, N]) : null;
    const f = (a: TfTensor, b: TfTensor, d: TfTensor): TfTensor => attend(a, b, d, mask, 1 / Math.sqrt(D));
    let last: TfTensor[] = [];
    const drop = (): void => {
      for (const x of last.splice(0)) x.dispose();
    };
    return {
      async once() {
        drop();
        last = tf.tidy(() =>
          grads ? tf.grads((a, b, d) => tf.sum(tf.mul(f(a, b, d), dOut)))([q, k, v]) : [f(q, k, v)],
        );
        await last[0].data();
      },
      results: async () => Promise.all(last.map((x) => x.data())),
      async close() {
        drop();
        for (const x of [q, k, v, dOut, mask]) x?.dispose();
      },
    };
  };
  return {
    name: `tfjs-wasm ${way}`,
    refuse: ({ N }) => (N > 1024 ? 'stores N x N: too slow to wait for' : null),
    forward: (c, inputs) => start(c, inputs, false),
    both: (c, inputs) => start(c, inputs, true),
    close: async () => {},
  };
}

function causalBias(N: number): Float32Array {
  const bias = new Float32Array(N * N);
  for (let q = 0; q < N; q++) bias.fill(-1e9, q * N + q + 1, (q + 1) * N);
  return bias;
}
