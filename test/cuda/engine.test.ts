import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type TestContext } from 'node:test';
import { DeviceError, DisposedError, MemoryError } from '../../src/core/errors.ts';
import { tensor, zeros } from '../../src/core/tensor.ts';
import type { Operands } from '../../src/engine/contract.ts';
import { type CudaEngine, open, probe } from '../../src/engines/cuda/index.ts';
import { planOn } from '../../src/plan/choose.ts';
import { type Fake, type FakeOptions, fakeDriver } from './fake.ts';
import { problemOf } from './problems.ts';

async function opened(
  t: TestContext,
  options: FakeOptions = {},
): Promise<{ engine: CudaEngine; fake: Fake; cache: string }> {
  const cache = mkdtempSync(join(tmpdir(), 'tilewise-cuda-'));
  const fake = fakeDriver(options);
  const engine = await open({ driver: fake.driver, cache });
  t.after(async () => {
    await engine.close();
    rmSync(cache, { recursive: true, force: true });
  });
  return { engine, fake, cache };
}

function operandsOf(engine: CudaEngine): Operands {
  const make = (): ReturnType<CudaEngine['upload']> => engine.upload(zeros('bf16', [1, 2, 128, 64]));
  return {
    q: make(),
    k: make(),
    v: make(),
    out: make(),
    lse: engine.allocate('f32', [1, 2, 128]),
    sides: [],
    sink: null,
  };
}

test('probe names the GPU or says why there is none', async () => {
  const found = await probe({ driver: fakeDriver({ capability: 90 }).driver });
  assert.ok(found.available && /Fake GPU, compute capability 9, driver for CUDA 13.0/.test(found.detail));
  await assert.rejects(
    open({ driver: fakeDriver({ devices: 2, contextDevice: 1 }).driver, context: 4096 }),
    /the context is one of device 1, not of device 0/,
  );
  const none = await probe({ driver: fakeDriver({ devices: 0 }).driver });
  assert.ok(!none.available && /no device 0/.test(none.reason));
  const old = await probe({ driver: fakeDriver({ capability: 75 }).driver });
  assert.ok(!old.available && /7.5; 8.0 \(Ampere\)/.test(old.reason));
  await assert.rejects(open({ driver: fakeDriver({ capability: 75 }).driver }), DeviceError);
});

test('what is uploaded comes back, and writes replace it', async (t) => {
  const { engine } = await opened(t);
  const x = engine.upload(tensor(Float32Array.of(1, 2, 3), [3]));
  assert.deepEqual((await x.read()).data, Float32Array.of(1, 2, 3));
  engine.write(x, tensor(Float32Array.of(4, 5, 6), [3]));
  assert.deepEqual((await x.read()).data, Float32Array.of(4, 5, 6));
  const y = engine.upload(zeros('f32', [3]));
  engine.copy(x, y, { pairs: Int32Array.of(0, 2, 2, 0), length: 1 });
  assert.deepEqual((await y.read()).data, Float32Array.of(6, 0, 4));
  assert.throws(() => engine.write(x, zeros('f32', [4])), /expected f32\[3\]/);
});

test('a run queues one launch with its arguments, and the second prepare compiles nothing', async (t) => {
  const { engine, fake } = await opened(t);
  const problem = problemOf({ B: 1, Hq: 2, Sq: 128, Sk: 128, D: 64 });
  const { plan } = planOn(problem, engine);
  assert.ok(plan);
  const program = await engine.prepare(problem, plan.forward);
  await program.run(problem, operandsOf(engine));
  assert.equal(fake.launches.length, 1);
  const [launch] = fake.launches;
  assert.equal(launch.grid[1], 2);
  assert.ok(launch.argumentBytes > 100 && launch.sharedBytes > 0);
  assert.equal(await engine.prepare(problem, plan.forward), program);
  assert.equal(fake.calls.filter((c) => c === 'cuLinkCreate_v2').length, 1);
});

test('a compiled program is published on disk once and found again', async (t) => {
  const { engine, cache } = await opened(t);
  const problem = problemOf({ B: 1, Hq: 2, Sq: 128, Sk: 128, D: 64 });
  const step = planOn(problem, engine).plan!.forward;
  await engine.prepare(problem, step);
  const files = readdirSync(cache);
  assert.equal(files.length, 1);
  assert.match(files[0], /^[0-9a-f]{40}\.cubin$/);
  const second = fakeDriver();
  const other = await open({ driver: second.driver, cache });
  await other.prepare(problem, step);
  await other.close();
  assert.ok(!second.calls.includes('cuLinkCreate_v2'));
});

test('a kernel that does not compile gives the compiler log', async (t) => {
  const { engine } = await opened(t, { compiler: () => 'ptxas fatal: line 7' });
  const problem = problemOf({ B: 1, Hq: 2, Sq: 128, Sk: 128, D: 64 });
  await assert.rejects(
    engine.prepare(problem, planOn(problem, engine).plan!.forward),
    (e) => e instanceof DeviceError && /ptxas fatal: line 7/.test(e.message),
  );
});

test('out of memory names the sizes and leaves the engine usable', async (t) => {
  const { engine } = await opened(t, { memory: 2 ** 22 });
  const before = engine.bytesInUse;
  assert.throws(
    () => engine.allocate('f32', [2 ** 22]),
    (e) => e instanceof MemoryError && e.requested === 2 ** 24 && e.available <= 2 ** 22,
  );
  assert.equal(engine.bytesInUse, before);
  engine.allocate('f32', [16]).dispose();
});

test('freed memory is used again, and trimmed before giving up', async (t) => {
  const { engine, fake } = await opened(t, { memory: 2 ** 23 });
  const first = engine.allocate('u8', [2 ** 21]);
  const { address } = first;
  first.dispose();
  const again = engine.allocate('u8', [2 ** 21]);
  assert.equal(again.address, address);
  again.dispose();
  const large = engine.allocate('u8', [7 * 2 ** 20]);
  assert.ok(fake.calls.includes('cuMemFree_v2'));
  large.dispose();
  const held = fake.allocations.size;
  engine.trim();
  assert.equal(fake.allocations.size, held - 1);
});

test('a disposed tensor and a closed engine say so', async (t) => {
  const { engine, fake } = await opened(t);
  const x = engine.allocate('f32', [4]);
  x.dispose();
  x.dispose();
  await assert.rejects(x.read(), DisposedError);
  await engine.close();
  await engine.close();
  assert.throws(() => engine.allocate('f32', [1]), DisposedError);
  assert.equal(fake.allocations.size, 0);
  assert.equal(fake.liveModules.size, 0);
});

test('memory of somebody else is checked for alignment and device, and not freed', async (t) => {
  const { engine, fake } = await opened(t);
  const own = engine.allocate('f32', [4]);
  const view = engine.wrap(own.address, 'f32', [4]);
  view.dispose();
  assert.ok(fake.allocations.has(own.address));
  assert.throws(() => engine.wrap(own.address + 4, 'f32', [1]), /16 divides/);
  assert.throws(() => engine.wrap(4096, 'f32', [1]), /address 4096 is no memory of CUDA's, not of device 0/);
  const onHost = fake.driver.addressOf(new Float32Array(4));
  assert.throws(() => engine.wrap(onHost, 'f32', [1]), /is memory of the host, not of device 0/);
  assert.throws(() => engine.wrap(2 ** 33 * 8, 'f32', [1]), /memory of device 1, not of device 0/);
});

test('a failure on the GPU rejects where it is waited for, by its name', async (t) => {
  const { engine, fake } = await opened(t);
  fake.failures.set('cuEventQuery', 700);
  await assert.rejects(engine.synchronize(), /work on the GPU failed: CUDA_ERROR_700 \(700\)/);
});

test('two engines on one device do not take tensors of each other', async (t) => {
  const { engine } = await opened(t);
  const { engine: other } = await opened(t);
  const problem = problemOf({ B: 1, Hq: 2, Sq: 128, Sk: 128, D: 64 });
  const program = await engine.prepare(problem, planOn(problem, engine).plan!.forward);
  await assert.rejects(program.run(problem, operandsOf(other)), /q: expected a tensor of this CUDA engine/);
});

test('a read gives what the tensor held when it was asked for, whatever happens to the tensor next', async (t) => {
  const { engine } = await opened(t);
  // Three pieces of pinned memory.
  const n = 20 * 2 ** 20;
  const x = engine.upload(tensor(new Float32Array(n).fill(1), [n]));
  const reading = x.read();
  x.dispose();
  const y = engine.upload(tensor(new Float32Array(n).fill(2), [n]));
  const first = (await reading).data as Float32Array;
  assert.ok(first[0] === 1 && first[n >> 1] === 1 && first[n - 1] === 1);
  assert.equal(((await y.read()).data as Float32Array)[n - 1], 2);
});

test('an upload does not wait for the device, and its array may be reused at once', async (t) => {
  const { engine, fake } = await opened(t);
  const n = 10 * 2 ** 20;
  const x = engine.allocate('f32', [n]);
  const small = engine.allocate('f32', [4]);
  const [data, little] = [new Float32Array(n).fill(1), Float32Array.of(1, 2, 3, 4)];
  fake.busy = true;
  engine.write(x, tensor(data, [n]));
  engine.write(small, tensor(little, [4]));
  data.fill(2);
  little.fill(2);
  engine.write(x, tensor(data, [n]));
  data.fill(3);
  assert.equal(fake.waits(), 0);
  // What is on its way at a time is bounded.
  for (let i = 0; i < 6; i++) engine.write(x, tensor(data, [n]));
  assert.ok(fake.waits() > 0);
  fake.busy = false;
  assert.deepEqual((await small.read()).data, Float32Array.of(1, 2, 3, 4));
  const [first] = (await x.read()).data;
  assert.equal(first, 3);
  const pinned = [...fake.pinned.values()].reduce((sum, bytes) => sum + bytes, 0);
  assert.ok(pinned <= 512 * 2 ** 20, `${pinned} bytes`);
});

test('close waits for work and reads in flight; what comes later is refused', async (t) => {
  const { engine, fake } = await opened(t);
  const problem = problemOf({ B: 1, Hq: 2, Sq: 128, Sk: 128, D: 64 });
  const program = await engine.prepare(problem, planOn(problem, engine).plan!.forward);
  const operands = operandsOf(engine);
  const x = engine.upload(tensor(Float32Array.of(1, 2, 3), [3]));
  fake.busy = true;
  await program.run(problem, operands);
  const reading = x.read();
  let closed = false;
  const closing = engine.close().then(() => {
    closed = true;
  });
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(closed, false);
  assert.ok(fake.allocations.size > 0 && fake.liveModules.size > 0);
  await assert.rejects(program.run(problem, operands), DisposedError);
  await assert.rejects(x.read(), DisposedError);
  assert.throws(() => engine.record(), DisposedError);
  fake.busy = false;
  await closing;
  assert.deepEqual((await reading).data, Float32Array.of(1, 2, 3));
  assert.deepEqual([fake.allocations.size, fake.liveModules.size, fake.pinned.size], [0, 0, 0]);
  x.dispose();
});

test('memory that runs use is handed on behind them, and queued copies outlive their tensors', async (t) => {
  const { engine, fake } = await opened(t);
  const a = engine.upload(tensor(Float32Array.of(1, 2, 3, 4), [4]));
  const b = engine.allocate('f32', [4]);
  const { address } = a;
  fake.busy = true;
  engine.copy(a, b, { pairs: Int32Array.of(0, 0, 2, 2), length: 2 });
  a.dispose();
  const c = engine.upload(tensor(Float32Array.of(9, 9, 9, 9), [4]));
  assert.equal(c.address, address);
  fake.busy = false;
  assert.deepEqual((await b.read()).data, Float32Array.of(1, 2, 3, 4));
  assert.throws(() => a.address, DisposedError);
});

test('page-locked memory of reads is kept up to a bound', async (t) => {
  const { engine, fake } = await opened(t);
  const x = engine.allocate('u8', [300 * 2 ** 20]);
  for (let i = 0; i < 3; i++) await x.read();
  const kept = [...fake.pinned.values()].reduce((n, bytes) => n + bytes, 0);
  assert.ok(kept > 0 && kept <= 256 * 2 ** 20, `${kept} bytes`);
});

test('scratch that does not fit rejects the run with sizes; a smaller run goes on', async (t) => {
  const { engine } = await opened(t, { memory: 2 ** 25, capability: 80 });
  const problem = problemOf({ B: 1, Hq: 2, Sq: 128, Sk: 128, D: 64, grads: true });
  const { plan } = planOn(problem, engine);
  const operands = operandsOf(engine);
  const like = (): ReturnType<CudaEngine['upload']> => engine.allocate('bf16', [1, 2, 128, 64]);
  const grads = { dOut: like(), dLse: null, dq: like(), dk: like(), dv: like(), dSides: [], dSink: null };
  const backward = await engine.prepare(problem, plan!.backward!);
  const before = engine.bytesInUse;
  const rest = [];
  try {
    for (let size = 2 ** 24; size >= 512; ) {
      try {
        rest.push(engine.allocate('u8', [size]));
      } catch {
        size /= 2;
      }
    }
    await assert.rejects(
      backward.run(problem, { ...operands, ...grads }),
      (e) => e instanceof MemoryError && e.requested > 0 && e.available < e.requested,
    );
  } finally {
    for (const x of rest) x.dispose();
  }
  assert.equal(engine.bytesInUse, before);
  await backward.run(problem, { ...operands, ...grads });
});

test('a stream and a context of the caller are used and left alone', async (t) => {
  const cache = mkdtempSync(join(tmpdir(), 'tilewise-cuda-'));
  t.after(() => rmSync(cache, { recursive: true, force: true }));
  const fake = fakeDriver();
  const engine = await open({ driver: fake.driver, cache, context: 4096, stream: 8192 });
  const problem = problemOf({ B: 1, Hq: 2, Sq: 128, Sk: 128, D: 64 });
  const program = await engine.prepare(problem, planOn(problem, engine).plan!.forward);
  await program.run(problem, operandsOf(engine));
  assert.equal(fake.launches[0].stream, 8192);
  const event = engine.record();
  engine.waitFor(event.handle);
  event.close();
  await engine.close();
  for (const call of [
    'cuDevicePrimaryCtxRetain',
    'cuDevicePrimaryCtxRelease_v2',
    'cuStreamCreate',
    'cuStreamDestroy_v2',
  ])
    assert.ok(!fake.calls.includes(call), call);
});
