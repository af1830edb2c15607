/** @jax-js/jax on its WebAssembly backend: its own dotProductAttention, jitted, and its own gradients. */
import { type Case, type Contender, type Inputs, loadPeer, type Run, toHeads, toRows } from './contender.ts';

interface JaxArray {
  readonly ref: JaxArray;
  reshape(shape: readonly number[]): JaxArray;
  mul(other: JaxArray): JaxArray;
  sum(): JaxArray;
  data(): Promise<Float32Array>;
  blockUntilReady(): Promise<JaxArray>;
  dispose(): void;
}
type Fn<R> = (q: JaxArray, k: JaxArray, v: JaxArray, dOut: JaxArray) => R;
interface Jax {
  init(...devices: string[]): Promise<string[]>;
  defaultDevice(device: string): string;
  readonly numpy: { array(data: Float32Array): JaxArray };
  readonly nn: { dotProductAttention(q: JaxArray, k: JaxArray, v: JaxArray, o: { isCausal: boolean }): JaxArray };
  jit<F>(f: F): F & { dispose?(): void };
  grad(f: Fn<JaxArray>, o: { argnums: number[] }): Fn<JaxArray[]>;
}

export async function jax(): Promise<Contender> {
  const lib = await loadPeer<Jax>('@jax-js/jax');
  await lib.init('wasm');
  lib.defaultDevice('wasm');

  const start = async (c: Case, inputs: Inputs, f: Fn<JaxArray[]>): Promise<Run> => {
    const put = (x: Float32Array): JaxArray => lib.numpy.array(toRows(c, x)).reshape([1, c.N, c.H, c.D]);
    const args = [inputs.q, inputs.k, inputs.v, inputs.dOut].map(put) as [JaxArray, JaxArray, JaxArray, JaxArray];
    const compiled = lib.jit(f);
    let last: JaxArray[] = [];
    const drop = (): void => {
      for (const x of last.splice(0)) x.dispose();
    };
    return {
      async once() {
        drop();
        const [q, k, v, dOut] = args;
        last = [...compiled(q.ref, k.ref, v.ref, dOut.ref)];
        for (const x of last) await x.ref.blockUntilReady().then((same) => same.dispose());
      },
      results: async () => Promise.all(last.map(async (x) => toHeads(c, await x.ref.data()))),
      async close() {
        drop();
        for (const x of args) x.dispose();
        compiled.dispose?.();
      },
    };
  };
  return {
    name: '@jax-js/jax wasm',
    refuse({ N }) {
      if (!('Iterator' in globalThis)) return 'needs iterator helpers (Node 22)';
      return N > 2048 ? 'stores N x N: too slow to wait for' : null;
    },
    forward: (c, inputs) =>
      start(c, inputs, (q, k, v, dOut) => {
        dOut.dispose();
        return [lib.nn.dotProductAttention(q, k, v, { isCausal: c.causal })];
      }),
    both: (c, inputs) =>
      start(
        c,
        inputs,
        lib.grad((q, k, v, dOut) => lib.nn.dotProductAttention(q, k, v, { isCausal: c.causal }).mul(dOut).sum(), {
          argnums: [0, 1, 2],
        }),
      ),
    close: async () => {},
  };
}
