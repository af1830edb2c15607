/** onnxruntime's CPU operators, native (onnxruntime-node) and WebAssembly (onnxruntime-web). */
import { type Case, type Contender, type Inputs, loadPeer, type Run, toHeads, toRows } from './contender.ts';
import { attentionModel } from './onnx.ts';

interface OrtTensor {
  readonly data: Float32Array;
}
interface Session {
  run(feeds: Record<string, OrtTensor>): Promise<Record<string, OrtTensor>>;
  release(): Promise<void>;
}
interface Ort {
  readonly env: { logLevel: string; wasm?: { numThreads: number } };
  readonly InferenceSession: { create(model: Uint8Array, options: object): Promise<Session> };
  readonly Tensor: new (type: 'float32', data: Float32Array, shape: readonly number[]) => OrtTensor;
}

type Op = 'MultiHeadAttention' | 'GroupQueryAttention';

export async function onnxruntime(flavour: 'node' | 'web', op: Op, threads: number): Promise<Contender> {
  const loaded = await loadPeer<Ort & { default?: Ort }>(`onnxruntime-${flavour}`);
  const ort = loaded.default ?? loaded;
  if (flavour === 'web' && ort.env.wasm) ort.env.wasm.numThreads = threads;
  const options = {
    executionProviders: [flavour === 'web' ? 'wasm' : 'cpu'],
    logSeverityLevel: 3,
    ...(flavour === 'node' && { intraOpNumThreads: threads, interOpNumThreads: 1 }),
    // Its threads spin while a run goes on, as by default, but not after it: they would slow whoever comes next.
    extra: { session: { force_spinning_stop: '1' } },
  };
  return {
    name: `onnxruntime-${flavour} ${op}`,
    refuse(c, pass) {
      if (pass === 'both') return 'has no gradients';
      if (op === 'GroupQueryAttention' && !c.causal) return 'is always causal';
      // Its intermediate size overflows there.
      if (flavour === 'web' && op === 'MultiHeadAttention' && c.N >= 4096) return 'fails from N=4096';
      return null;
    },
    async forward(c: Case, inputs: Inputs): Promise<Run> {
      const { Worker } = globalThis;
      const session = await ort.InferenceSession.create(attentionModel(op, c), options);
      // onnxruntime-web defines it where it is missing, which @jax-js/jax takes for a change of host.
      globalThis.Worker = Worker;
      const shape = [1, c.N, c.H * c.D];
      const feed = (x: Float32Array): OrtTensor => new ort.Tensor('float32', toRows(c, x), shape);
      const feeds = { q: feed(inputs.q), k: feed(inputs.k), v: feed(inputs.v) };
      let last: OrtTensor | null = null;
      return {
        once: async () => {
          last = (await session.run(feeds)).o;
        },
        results: async () => (last === null ? [] : [toHeads(c, last.data)]),
        close: () => session.release(),
      };
    },
    both: () => Promise.reject(new Error('onnxruntime has no gradients')),
    close: async () => {},
  };
}
