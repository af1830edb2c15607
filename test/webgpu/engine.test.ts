/** The engine on whatever adapter this machine has: memory, sharing, errors. Numbers are the conformance table's matter. */
import assert from 'node:assert/strict';
import test, { type TestContext } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { attentionEncoder } from '../../src/api/encoder.ts';
import { attentionWithGrads } from '../../src/api/grads.ts';
import { instantiate } from '../../src/conformance/spec.ts';
import { ArgumentError, DisposedError, MemoryError, TilewiseError } from '../../src/core/errors.ts';
import { tensor, zeros } from '../../src/core/tensor.ts';
import type { Operands } from '../../src/engine/contract.ts';
import { open, probe, type WebGpuEngine, type WebGpuOptions } from '../../src/engines/webgpu/index.ts';
import { choosePlan } from '../../src/plan/choose.ts';
import type { Problem } from '../../src/problem/problem.ts';
import { missing } from '../missing.ts';

const found = await probe();
const skip = found.available ? false : `no WebGPU here: ${found.reason}`;
if (skip !== false) missing('webgpu: an adapter', skip);

function check(
  name: string,
  run: (engine: WebGpuEngine, t: TestContext) => Promise<void>,
  options: WebGpuOptions = {},
) {
  test(`webgpu: ${name}`, { skip }, async (t) => {
    const engine = await open(options);
    try {
      await run(engine, t);
    } finally {
      await engine.close();
    }
  });
}

const noise = (shape: readonly number[], seed: number) =>
  tensor(
    Float32Array.from({ length: shape.reduce((n, d) => n * d, 1) }, (_, i) => Math.sin(i * seed)),
    shape,
  );

/** A small forward problem with its operands on the engine. */
function small(engine: WebGpuEngine): { problem: Problem; operands: Operands } {
  const { problem, inputs } = instantiate('engine', { Sq: 20, Sk: 24, D: 16, noGrads: true });
  const operands = {
    q: engine.upload(inputs.q),
    k: engine.upload(inputs.k),
    v: engine.upload(inputs.v),
    out: engine.upload(zeros('f32', [1, 2, 20, 16])),
    lse: engine.upload(zeros('f32', [1, 2, 20])),
    sides: [],
    sink: null,
  };
  return { problem, operands };
}

check('uploads, reads and frees every element type, odd sizes included', async (engine) => {
  const tensors = [
    tensor(Float32Array.of(1, 2, 3), [3]),
    tensor(Uint16Array.of(1, 2, 3), [3, 1], 'f16'),
    tensor(Uint16Array.of(7), [1], 'bf16'),
    tensor(Int32Array.of(-1, 5), [2]),
    tensor(Uint8Array.of(1, 0, 1, 1, 0), [5]),
    tensor(new Float32Array(0), [0, 4]),
  ];
  const there = tensors.map((t) => engine.upload(t));
  assert.ok(engine.bytesInUse >= 16 * tensors.length);
  for (const [i, t] of there.entries()) assert.deepEqual((await t.read()).data, tensors[i].data);
  for (const t of there) t.dispose();
  assert.equal(engine.bytesInUse, 0);
  assert.throws(() => engine.write(there[0], tensors[0]), DisposedError);
});

check('copies pieces, by words and by halves, within a tensor and between two', async (engine) => {
  const source = engine.upload(
    tensor(
      Uint16Array.from({ length: 12 }, (_, i) => i + 1),
      [12],
      'f16',
    ),
  );
  const target = engine.upload(zeros('f16', [12]));
  engine.copy(source, target, { pairs: Int32Array.of(0, 4, 8, 0), length: 4 });
  assert.deepEqual([...(await target.read()).data], [9, 10, 11, 12, 1, 2, 3, 4, 0, 0, 0, 0]);
  engine.copy(source, target, { pairs: Int32Array.of(1, 9), length: 3 });
  assert.deepEqual([...(await target.read()).data], [9, 10, 11, 12, 1, 2, 3, 4, 0, 2, 3, 4]);
  engine.copy(target, target, { pairs: Int32Array.of(0, 5), length: 2 });
  assert.deepEqual([...(await target.read()).data], [9, 10, 11, 12, 1, 9, 10, 4, 0, 2, 3, 4]);
});

check('shares buffers with the caller, and writes into an encoder of theirs', async (engine) => {
  const { problem, operands } = small(engine);
  const step = choosePlan(problem, [engine]).forward;
  const program = await engine.prepare(problem, step);
  await program.run(problem, operands);
  const expected = (await operands.out.read()).data;

  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const theirs = engine.device.createBuffer({ size: 512 + 4 * 640, usage });
  const out = engine.fromBuffer(theirs, 'f32', [1, 2, 20, 16], 512);
  const encoder = engine.device.createCommandEncoder();
  const release = program.encode(encoder, problem, { ...operands, out });
  engine.device.queue.submit([encoder.finish()]);
  release();
  assert.deepEqual((await out.read()).data, expected);
  out.dispose();
  assert.throws(() => engine.fromBuffer(theirs, 'f32', [1, 2, 20, 16], 100), ArgumentError);
  assert.throws(() => engine.fromBuffer(theirs, 'f32', [1000]), ArgumentError);
  theirs.destroy();
});

check("a second engine on the first one's device leaves it running when it closes", async (engine) => {
  const guest = await open({ device: engine.device });
  const t = guest.upload(tensor(Float32Array.of(4), [1]));
  assert.deepEqual([...(await t.read()).data], [4]);
  await guest.close();
  assert.throws(() => guest.allocate('f32', [1]), DisposedError);
  const mine = engine.upload(tensor(Float32Array.of(5), [1]));
  assert.deepEqual([...(await mine.read()).data], [5]);
});

check(
  'what does not fit is refused with sizes, and nothing is kept',
  async (engine) => {
    assert.throws(
      () => engine.allocate('f32', [2 ** 20]),
      (e) => e instanceof MemoryError && e.requested === 2 ** 22 && e.available === 2 ** 20,
    );
    assert.equal(engine.bytesInUse, 0);
  },
  { memory: 2 ** 20 },
);

check('a lost device is an error of every later call', async (engine) => {
  const { problem, operands } = small(engine);
  const program = await engine.prepare(problem, choosePlan(problem, [engine]).forward);
  engine.device.destroy();
  await engine.device.lost;
  await assert.rejects(program.run(problem, operands), TilewiseError);
  await assert.rejects(engine.synchronize(), /device lost/);
  assert.throws(() => engine.allocate('f32', [1]), /device lost/);
  const again = await open();
  await again.close();
});

check('an aborted call runs nothing', async (engine) => {
  const { problem, operands } = small(engine);
  const program = await engine.prepare(problem, choosePlan(problem, [engine]).forward);
  const reason = new Error('enough');
  await assert.rejects(program.run(problem, operands, { signal: AbortSignal.abort(reason) }), reason);
});

/** What leaks grows with every thousand calls; what the allocator does to the process's memory comes and goes. */
const THOUSANDS = 6;
setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;
const residentBytes = (): number => {
  collect();
  return process.memoryUsage().rss;
};

for (const again of [true, false])
  check(
    `1,000 calls hold no more memory than one: ${again ? 'one problem' : 'a problem of its own each'}`,
    async (engine) => {
      const { problem, operands } = small(engine);
      const program = await engine.prepare(problem, choosePlan(problem, [engine]).forward);
      const calls = async (): Promise<void> => {
        for (let i = 1; i <= 1000; i++) {
          await program.run(again ? problem : { ...problem }, operands);
          if (i % 50 === 0) await engine.synchronize();
        }
      };
      await calls();
      const held = engine.bytesInUse;
      let [before, grown] = [residentBytes(), Number.POSITIVE_INFINITY];
      for (let n = 0; n < THOUSANDS && grown >= 2 ** 21; n++) {
        await calls();
        const after = residentBytes();
        grown = Math.min(grown, after - before);
        before = after;
      }
      assert.equal(engine.bytesInUse, held);
      assert.ok(grown < 2 ** 21, `the process grew by ${grown} bytes at least with every thousand calls`);
    },
  );

check(
  'a call is written into an encoder of the caller, forward and backward, between commands of theirs',
  async (engine) => {
    const [q, k, v, dOut] = [1, 2, 3, 4].map((seed) => noise([1, 2, 20, 16], seed));
    const expected = await attentionWithGrads(q, k, v, { causal: true, engine });
    const grads = await expected.backward(dOut);

    const call = await attentionEncoder(q, k, v, { engine, causal: true, grads: { k: false } });
    assert.deepEqual(
      [call.out.shape, call.lse.shape],
      [
        [1, 2, 20, 16],
        [1, 2, 20],
      ],
    );
    // q's numbers come by a command of the caller's, out of the middle of a buffer.
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const theirs = engine.device.createBuffer({ size: 256 + 4 * 640, usage });
    const there = engine.upload(q);
    const [tk, tv, tdOut] = [k, v, dOut].map((t) => engine.upload(t));
    const [out, dq, dv] = [1, 2, 3].map(() => engine.allocate('f32', [1, 2, 20, 16]));
    const lse = engine.allocate('f32', [1, 2, 20]);
    const given = { q: engine.fromBuffer(theirs, 'f32', [1, 2, 20, 16], 256), k: tk, v: tv, out, lse };
    const encoder = engine.device.createCommandEncoder();
    encoder.copyBufferToBuffer(there.buffer, there.offset, theirs, 256, 4 * 640);
    const releases = [call.forward(encoder, given), call.backward(encoder, { ...given, dOut: tdOut, dq, dv })];
    engine.device.queue.submit([encoder.finish()]);
    for (const release of releases) release();
    assert.deepEqual((await out.read()).data, expected.out.data);
    assert.deepEqual((await lse.read()).data, expected.lse.data);
    assert.deepEqual([(await dq.read()).data, (await dv.read()).data], [grads.dq.data, grads.dv.data]);
    assert.equal(engine.memoryOf(given.q).buffer, theirs);

    assert.throws(() => call.forward(encoder, { ...given, out: lse }), /out: expected f32\[1, 2, 20, 16\]/);
    assert.throws(() => call.backward(encoder, { ...given, dOut: tdOut, dq }), /dv: expected a tensor/);
    const alone = await attentionEncoder(q, k, v, { engine });
    assert.throws(() => alone.backward(encoder, { ...given, dOut: tdOut }), /grads: expected/);
    for (const one of [call, alone, expected]) one.dispose();
    theirs.destroy();
  },
);
