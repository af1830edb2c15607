/**
 * Memory of one forward and backward beyond inputs, outputs and gradients, in a fresh process. Prints a row as JSON.
 *
 *     node bench/memory.ts N THREADS MODE
 */

import { WasmEngine } from '../src/engines/wasm/index.ts';
import { attentionWithGrads, openEngine, tensor } from '../src/index.ts';
import { inputsOf } from './contenders/contender.ts';
import type { Row } from './harness.ts';

const [N, threads] = process.argv.slice(2, 4).map(Number);
const mode = process.argv[4];
const [H, D] = [8, 64];

const engine = await openEngine('wasm', { threads, revectorize: mode === 'wide', native: mode === 'native' });
if (!(engine instanceof WasmEngine)) throw new TypeError('expected a WasmEngine');
const { features } = engine.caps;
if ((mode === 'wide' && !features.revectorize) || (mode === 'native' && !features['machine code'])) {
  console.log('null');
  process.exit(0);
}
const { memory } = engine.runtime.heap;
const { q, k, v, dOut } = inputsOf({ H, N, D, causal: false });
const [rq, rk, rv, rd] = [q, k, v, dOut].map((x) => engine.upload(tensor(x, [1, H, N, D])));
const start = performance.now();
const call = await attentionWithGrads(rq, rk, rv, {});
const { dq, dk, dv } = await call.backward(rd);
const ms = performance.now() - start;
if (dq === null || dk === null || dv === null) throw new TypeError('expected three gradients');
// Everything that is left is a tensor: what the memory grew to beyond that was workspace, or the allocator's waste.
const row: Row = {
  group: 'memory',
  id: `n${N}.h${H}.d${D}.full`,
  who: `tilewise ${mode}`,
  threads,
  median: ms,
  best: ms,
  runs: 1,
  extra: {
    tensors: engine.bytesInUse,
    beyond: memory.buffer.byteLength - engine.bytesInUse,
    rss: process.resourceUsage().maxRSS * 1024,
  },
};
console.log(JSON.stringify(row));
await engine.close();
