/** What the browser tests run inside the page. Loaded as it is and bundled; arguments and results travel as JSON. */

import { CASES } from '../../src/conformance/cases.ts';
import { type CaseResult, runCase } from '../../src/conformance/suite.ts';
import {
  attention,
  attentionWithGrads,
  doctor,
  type EngineName,
  type HostTensor,
  openEngine,
  type Probe,
  tensor,
} from '../../src/index.ts';
import { webgpuChecks } from './page_webgpu.ts';

const noise = (shape: readonly number[], phase: number) =>
  tensor(
    Float32Array.from({ length: shape.reduce((n, d) => n * d, 1) }, (_, i) => 2 * Math.sin(i * 0.37 + phase)),
    shape,
  );

async function sha256(...tensors: readonly HostTensor[]): Promise<string> {
  const blob = new Blob(tensors.map(({ data }) => data.slice() as Float32Array<ArrayBuffer>));
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', await blob.arrayBuffer()));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

const checks = {
  ...webgpuChecks,

  isolated: (): boolean => crossOriginIsolated,

  doctor: (): Promise<readonly Probe[]> => doctor(),

  /** The cases of the conformance table whose ids end so, or the quick ones. */
  async table(engine: EngineName, ids: readonly string[] | 'quick'): Promise<CaseResult[]> {
    const opened = await openEngine(engine);
    const results: CaseResult[] = [];
    for (const one of CASES.filter((c) => (ids === 'quick' ? c.quick : ids.some((id) => c.id.endsWith(id)))))
      results.push(...(await runCase(one, opened)));
    await opened.close();
    return results;
  },

  /** Forward and backward on that many threads: what was opened, and a hash of every result's bits. */
  async bits(threads: number): Promise<{ threads: number; note: unknown; hash: string }> {
    const engine = await openEngine('wasm', { threads });
    const [q, k, v] = [0, 1, 2].map((phase) => noise([1, 4, 300, 64], phase));
    const run = await attentionWithGrads(q, k, v, { causal: true, engine });
    const { dq, dk, dv } = await run.backward(run.out);
    const hash = await sha256(run.out, run.lse, dq, dk, dv);
    run.dispose();
    const { threads: opened, features } = engine.caps;
    await engine.close();
    return { threads: opened, note: features.note ?? null, hash };
  },

  /** A call of seconds, stopped at its first report; then another call on the same engine. */
  async abort(threads: number): Promise<{ name: string; shares: number[]; left: number; after: number }> {
    const engine = await openEngine('wasm', { threads });
    const long = noise([1, 8, 16384, 64], 0);
    const controller = new AbortController();
    const shares: number[] = [];
    const onProgress = (share: number): void => {
      shares.push(share);
      controller.abort();
    };
    const run = attention(long, long, long, { engine, signal: controller.signal, onProgress });
    const name = await run.then(
      () => 'it finished',
      (error: Error) => error.name,
    );
    const left = engine.bytesInUse;
    const short = noise([1, 1, 4, 4], 0);
    const { out } = await attention(short, short, short, { causal: true, engine });
    await engine.close();
    return { name, shares, left, after: out.data[0] - short.data[0] };
  },

  /** Everything a call reports about its progress. */
  async progress(threads: number): Promise<number[]> {
    const engine = await openEngine('wasm', { threads });
    const shares: number[] = [];
    const x = noise([1, 8, 4096, 64], 0);
    await attention(x, x, x, { engine, onProgress: (share) => shares.push(share) });
    await engine.close();
    return shares;
  },
};

export type Checks = typeof checks;
Object.assign(globalThis, { checks });
