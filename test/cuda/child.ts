/** What device.test.ts runs in processes of their own. */
import { createHash } from 'node:crypto';
import { attention } from '../../src/api/attention.ts';
import { attentionWithGrads } from '../../src/api/grads.ts';
import { toBf16 } from '../../src/core/dtype.ts';
import { tensor, zeros } from '../../src/core/tensor.ts';
import { open } from '../../src/engines/cuda/index.ts';

const [, , what] = process.argv;
const engine = await open();
if (what === 'attend') {
  const shape = [1, 4, 512, 64];
  const make = (step: number) =>
    tensor(
      Uint16Array.from({ length: 4 * 512 * 64 }, (_, i) => toBf16(Math.sin(i * step))),
      shape,
      'bf16',
    );
  const [q, k, v] = [make(0.11), make(0.17), make(0.23)];
  const hash = createHash('sha256');
  const run = await attentionWithGrads(q, k, v, { engine, causal: true });
  const { dq, dk, dv } = await run.backward(q);
  const { out } = await attention(q, k, v, { engine, softcap: 20 });
  for (const t of [run.out, run.lse, dq, dk, dv, out]) if (t !== null) hash.update(t.data);
  run.dispose();
  await engine.close();
  console.log(hash.digest('hex'));
} else {
  // A view past the end of its memory: the kernel reads what is not there.
  const q = engine.upload(zeros('bf16', [1, 1, 64, 64]));
  const k = engine.wrap(q.address, 'bf16', [1, 1, 2 ** 26, 64]);
  let said = 'nothing';
  try {
    const { out, lse } = await attention(q, k, k, { prefer: { forward: { kernel: 'forward_mma' } } });
    await lse.read();
    out.dispose();
  } catch (error) {
    said = error instanceof Error ? error.message : String(error);
  }
  await engine.close();
  console.log(`rejected ${said} closed`);
}
