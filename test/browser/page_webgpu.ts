/** The WebGPU engine in a page, and what may go wrong there. Part of `checks` in page.ts. */
import { CASES } from '../../src/conformance/cases.ts';
import { type CaseResult, runCase } from '../../src/conformance/suite.ts';
import {
  attention,
  attentionWithGrads,
  closeSharedEngines,
  type HostTensor,
  type Opened,
  openEngine,
  TilewiseError,
  tensor,
} from '../../src/index.ts';

const noise = (shape: readonly number[], step: number): HostTensor =>
  tensor(
    Float32Array.from({ length: shape.reduce((n, d) => n * d, 1) }, (_, i) => Math.sin(i * step)),
    shape,
  );
const inputs = (S = 70): HostTensor[] => [0.37, 0.71, 0.53].map((step) => noise([1, 2, S, 32], step));

/** What became of a promise: `NAME code` of a typed error, the bare message of another. */
const fate = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'fine',
    (e: unknown) => (e instanceof TilewiseError ? `${e.name} ${e.code}: ${e.message}` : `untyped: ${e}`),
  );

const same = (a: HostTensor, b: HostTensor): boolean => a.data.every((x, i) => x === b.data[i]);

let kept: Promise<Opened<'webgpu'>> | undefined;

export const webgpuChecks = {
  /** A case of the conformance table, on an engine that stays open for the next. */
  async conforms(id: string): Promise<{ results: CaseResult[]; left: number }> {
    kept ??= openEngine('webgpu');
    const engine = await kept;
    const one = CASES.find((c) => c.id === id);
    if (one === undefined) throw new Error(`no case ${id}`);
    const results = await runCase(one, engine);
    return { results, left: engine.bytesInUse };
  },

  /** Calls without end until one fails; then what else fails, and whether everything works when opened anew. */
  async untilLost(): Promise<Record<'running' | 'reading' | 'later' | 'word' | 'again' | 'wordAgain', string>> {
    const [q, k, v] = inputs();
    const engine = await openEngine('webgpu');
    const first = await attention(q, k, v, { engine });
    await attention(q, k, v, { engine: 'webgpu' });
    const [tq, tk, tv] = [q, k, v].map((t) => engine.upload(t));
    const forever = async (): Promise<void> => {
      for (;;) {
        const { out, lse } = await attention(tq, tk, tv, { engine });
        await engine.synchronize();
        out.dispose();
        lse.dispose();
      }
    };
    const running = await fate(forever());
    const reading = await fate(tq.read());
    const later = await fate(attention(q, k, v, { engine }));
    const word = await fate(attention(q, k, v, { engine: 'webgpu' }));
    await engine.close();
    await closeSharedEngines();
    const check = async (engine: Opened<'webgpu'> | 'webgpu'): Promise<void> => {
      if (!same((await attention(q, k, v, { engine })).out, first.out)) throw new Error('another result');
    };
    const reopened = await openEngine('webgpu');
    const again = await fate(check(reopened));
    await reopened.close();
    const wordAgain = await fate(check('webgpu'));
    await closeSharedEngines();
    return { running, reading, later, word, again, wordAgain };
  },

  /** More memory than there is, then a call of ordinary size on the same engine. */
  async outOfMemory(): Promise<{ fate: string; left: number; after: string }> {
    const engine = await openEngine('webgpu', { memory: 2 ** 50 });
    const held: { dispose(): void }[] = [];
    const most = engine.device.limits.maxBufferSize;
    const fill = async (): Promise<void> => {
      for (let i = 0; i < 4096; i++) {
        held.push(engine.allocate('u8', [most]));
        await engine.synchronize();
      }
    };
    const first = await fate(fill());
    for (const t of held) t.dispose();
    const left = engine.bytesInUse;
    const [q, k, v] = inputs();
    const after = await fate(attention(q, k, v, { engine }));
    await engine.close();
    return { fate: first, left, after };
  },

  /** A device made by the page, without any feature and with the limits that every device has. */
  async foreign(ids: readonly string[]): Promise<{ features: number; results: CaseResult[]; alive: boolean }> {
    const adapter = (await navigator.gpu.requestAdapter()) as GPUAdapter;
    const device = await adapter.requestDevice();
    const engine = await openEngine('webgpu', { device });
    const results: CaseResult[] = [];
    for (const one of CASES.filter((c) => ids.some((id) => c.id.endsWith(id))))
      results.push(...(await runCase(one, engine)));
    await engine.close();
    // The device is the page's own, and outlives the engine.
    const buffer = device.createBuffer({ size: 16, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    const alive = (await fate(buffer.mapAsync(GPUMapMode.READ))) === 'fine';
    const { size } = device.features;
    device.destroy();
    return { features: size, results, alive };
  },

  /** Two engines at once on two devices: the same bits from both, and the second goes on when the first is closed. */
  async two(): Promise<{ agree: boolean; refused: string; after: string }> {
    const engines = [await openEngine('webgpu'), await openEngine('webgpu')];
    const [q, k, v] = inputs();
    const runs = await Promise.all(
      engines.map(async (engine) => {
        const run = await attentionWithGrads(q, k, v, { causal: true, engine });
        const { dq } = await run.backward(run.out);
        run.dispose();
        return [run.out, dq] as const;
      }),
    );
    const agree = [0, 1].every((i) => same(runs[0][i], runs[1][i]));
    const foreign = engines[0].upload(q);
    const refused = await fate(attention(foreign, foreign, foreign, { engine: engines[1] }));
    await engines[0].close();
    const after = await fate(attention(q, k, v, { engine: engines[1] }));
    await engines[1].close();
    return { agree, refused, after };
  },

  /** A thousand calls of changing length: bytes that the engine holds afterwards. */
  async thousand(): Promise<number> {
    const engine = await openEngine('webgpu');
    for (let i = 0; i < 1000; i++) {
      const [q, k, v] = inputs(33 + (i % 7)).map((t) => engine.upload(t));
      const { out, lse } = await attention(q, k, v, { engine });
      if (i % 50 === 0) await out.read();
      for (const t of [q, k, v, out, lse]) t.dispose();
    }
    await engine.synchronize();
    const left = engine.bytesInUse;
    await engine.close();
    return left;
  },
};
