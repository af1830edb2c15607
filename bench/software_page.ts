/** What `software.ts` times, in Node or in a page. */
import { attentionWithGrads, openEngine, tensor } from '../src/index.ts';

const SIZES = [
  [256, 64],
  [512, 64],
  [512, 128],
] as const;
const HEADS = 4;
const CALLS = 6;

/** Milliseconds: `first` compiles, `median` is of the calls after it. */
interface SoftwareRow {
  readonly shape: readonly number[];
  readonly pass: 'forward' | 'backward';
  readonly first: number;
  readonly median: number;
}

export async function measure(): Promise<{ device: string; rows: SoftwareRow[] }> {
  const engine = await openEngine('webgpu');
  const rows: SoftwareRow[] = [];
  for (const [N, D] of SIZES) {
    const shape = [1, HEADS, N, D];
    const noise = (step: number) =>
      engine.upload(
        tensor(
          Float32Array.from({ length: HEADS * N * D }, (_, i) => Math.sin(i * step)),
          shape,
        ),
      );
    const [q, k, v, dOut] = [0.37, 0.71, 0.53, 0.29].map(noise);
    const times = { forward: [] as number[], backward: [] as number[] };
    for (let i = 0; i < CALLS; i++) {
      const start = performance.now();
      const run = await attentionWithGrads(q, k, v, { engine });
      await engine.synchronize();
      const middle = performance.now();
      const { dq, dk, dv } = await run.backward(dOut);
      await engine.synchronize();
      times.forward.push(middle - start);
      times.backward.push(performance.now() - middle);
      run.dispose();
      for (const t of [run.out, run.lse, dq, dk, dv]) t.dispose();
    }
    for (const pass of ['forward', 'backward'] as const) {
      const [first, ...later] = times[pass].map((ms) => Math.round(ms * 10) / 10);
      rows.push({ shape, pass, first, median: later.sort((a, b) => a - b)[later.length >> 1] });
    }
    for (const t of [q, k, v, dOut]) t.dispose();
  }
  const { device } = engine.caps;
  await engine.close();
  return { device, rows };
}
