import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { DeviceError, DisposedError, MemoryError } from '../../src/core/errors.ts';
import { tensor } from '../../src/core/tensor.ts';
import { MAX_MEMORY, WasmHeap } from '../../src/engines/wasm/heap.ts';
import { expected, openToy, runToy } from './toy.ts';

const SMALL = 0;
const LONG = 1;

test('blocks are aligned, apart, inside the memory, and all of it comes back', () => {
  const step = fc.record({ bytes: fc.integer({ min: 0, max: 300_000 }), keep: fc.boolean() });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), fc.boolean(), (steps, guards) => {
      const heap = new WasmHeap({ shared: false, limit: 64 * 65536, guards });
      const live: { address: number; bytes: number }[] = [];
      const whole = heap.available;
      for (const { bytes, keep } of steps) {
        if (!keep && live.length > 0) heap.free(live.splice(bytes % live.length, 1)[0].address);
        try {
          const address = heap.allocate(bytes);
          assert.equal(address % 64, 0);
          assert.ok(address >= 64 && address + bytes + 64 <= heap.memory.buffer.byteLength);
          for (const other of live)
            assert.ok(address + bytes <= other.address || other.address + other.bytes <= address, 'blocks overlap');
          live.push({ address, bytes });
        } catch (error) {
          assert.ok(error instanceof MemoryError);
          assert.equal(error.requested, bytes);
          assert.ok(error.available < bytes + 192);
        }
        assert.equal(
          heap.bytesInUse,
          live.reduce((n, b) => n + b.bytes, 0),
        );
      }
      for (const { address } of live) heap.free(address);
      assert.equal(heap.bytesInUse, 0);
      assert.equal(heap.available, whole, 'gaps were not joined');
    }),
    { numRuns: 60 },
  );
});

test('the heap reaches past 2 GiB and refuses past 4 GiB', () => {
  const heap = new WasmHeap({ shared: true, limit: MAX_MEMORY, guards: false });
  const low = heap.allocate(2 ** 31 - 2 ** 20);
  const high = heap.allocate(2 ** 30);
  assert.ok(high + 2 ** 30 > 2 ** 31);
  new Uint8Array(heap.memory.buffer, high + 2 ** 30 - 1, 1)[0] = 7;
  assert.throws(() => heap.allocate(2 ** 31), MemoryError);
  heap.free(low);
  heap.free(high);
  assert.throws(() => heap.free(high), DeviceError);
});

test('a write beside a block is found when it is freed', () => {
  const heap = new WasmHeap({ shared: false, limit: 65536, guards: true });
  for (const offset of [-1, 16]) {
    const address = heap.allocate(64);
    heap.f32[address / 4 + offset] = 1;
    assert.throws(() => heap.free(address), /a write at (-4|64) bytes from a block of 64 bytes/);
  }
});

for (const threads of [1, 2, 3]) {
  test(`${threads} threads: short and long jobs give the same results`, async () => {
    const engine = await openToy({ threads });
    assert.equal(engine.caps.threads, threads);
    for (const seconds of [SMALL, LONG])
      for (const config of [
        { items: 1, steps: 1 },
        { items: 1, steps: 9 },
        { items: 2, steps: 3 },
        { items: 1000, steps: 5 },
      ]) {
        const out = await runToy(engine, config, seconds);
        assert.deepEqual(Array.from((await out.read()).data), expected(config));
        out.dispose();
      }
    assert.equal(engine.bytesInUse, 0);
    await engine.close();
  });
}

test('a thousand mixed jobs leak nothing', async () => {
  const engine = await openToy({ threads: 2, memory: 2 ** 22 });
  for (let i = 0; i < 1000; i++) {
    const config = { items: 1 + (i % 40), steps: 1 + (i % 3), variant: i % 300 };
    const out = await runToy(engine, config, i % 2);
    if (i % 50 === 0) assert.deepEqual(Array.from(out.view()), expected(config));
    out.dispose();
  }
  assert.equal(engine.bytesInUse, 0);
  assert.ok(engine.runtime.heap.memory.buffer.byteLength <= 2 ** 21, 'the memory grew');
  await engine.close();
});

for (const threads of [1, 2]) {
  test(`${threads} threads: calls on one engine queue, two engines do not disturb each other`, async () => {
    const engines = await Promise.all([openToy({ threads }), openToy({ threads })]);
    const config = { items: 50, steps: 4, rounds: 2000 };
    const runs = await Promise.all(Array.from({ length: 24 }, (_, i) => runToy(engines[i % 2], config, i % 3)));
    for (const out of runs) assert.deepEqual(Array.from(out.view()), expected(config));
    for (const out of runs) out.dispose();
    for (const engine of engines) {
      assert.equal(engine.bytesInUse, 0);
      await engine.close();
    }
  });

  test(`${threads} threads: abort stops a run soon, frees its memory, and the engine goes on`, async () => {
    const engine = await openToy({ threads });
    const abort = new AbortController();
    const start = performance.now();
    const run = runToy(engine, { items: 100_000, steps: 1, rounds: 1_000_000 }, LONG, { signal: abort.signal });
    setTimeout(() => abort.abort(new Error('enough')), 60);
    await assert.rejects(run, /enough/);
    assert.ok(performance.now() - start < 5000);
    await assert.rejects(runToy(engine, { items: 1, steps: 1 }, LONG, { signal: AbortSignal.abort() }), {
      name: 'AbortError',
    });
    assert.equal(engine.bytesInUse, 0);
    const out = await runToy(engine, { items: 3, steps: 2 }, LONG);
    assert.deepEqual(Array.from(out.view()), [6, 6, 6]);
    out.dispose();
    await engine.close();
  });

  test(`${threads} threads: progress grows to 1 and the event loop stays free`, async () => {
    const engine = await openToy({ threads });
    const shares: number[] = [];
    let ticks = 0;
    const timer = setInterval(() => ticks++, 10);
    const config = { items: 400, steps: 1, rounds: 2_000_000 };
    const out = await runToy(engine, config, LONG, { onProgress: (share) => shares.push(share) });
    clearInterval(timer);
    assert.ok(ticks >= 3, `the event loop turned ${ticks} times`);
    assert.ok(shares.length >= 2 && shares.every((s, i) => s >= (shares[i - 1] ?? 0) && s <= 1), `shares ${shares}`);
    assert.equal(shares.at(-1), 1);
    out.dispose();
    await engine.close();
  });

  test(`${threads} threads: a trap rejects its run only`, async () => {
    const engine = await openToy({ threads });
    for (let i = 0; i < 5; i++) {
      await assert.rejects(runToy(engine, { items: 64, steps: 2, trap: i * 13 }, LONG), DeviceError);
      const out = await runToy(engine, { items: 4, steps: 1 }, LONG);
      assert.deepEqual(Array.from(out.view()), [2, 2, 2, 2]);
      out.dispose();
    }
    assert.equal(engine.bytesInUse, 0);
    await engine.close();
  });

  test(`${threads} threads: close rejects what runs and what waits`, async () => {
    const engine = await openToy({ threads });
    const config = { items: 100_000, steps: 1, rounds: 1_000_000 };
    const runs = [runToy(engine, config, LONG), runToy(engine, config, LONG)];
    const outcomes = Promise.allSettled(runs);
    await new Promise((resolve) => setTimeout(resolve, 50));
    await engine.close();
    for (const outcome of await outcomes) {
      assert.equal(outcome.status, 'rejected');
      assert.ok(outcome.reason instanceof DisposedError, String(outcome.reason));
    }
    await engine.close();
    assert.throws(() => engine.allocate('f32', [1]), DisposedError);
    await assert.rejects(engine.synchronize(), DisposedError);
  });
}

for (const threads of [1, 2])
  test(`${threads} threads: a progress callback that throws rejects its run only`, async () => {
    const engine = await openToy({ threads });
    const onProgress = (): void => {
      throw new RangeError('mine');
    };
    const run = runToy(engine, { items: 100_000, steps: 1, rounds: 20_000 }, LONG, { onProgress });
    await assert.rejects(run, /mine/);
    const out = await runToy(engine, { items: 5, steps: 2 }, LONG);
    assert.deepEqual(Array.from(out.view()), expected({ items: 5, steps: 2 }));
    out.dispose();
    assert.equal(engine.bytesInUse, 0);
    await engine.close();
  });

for (const threads of [1, 2])
  test(`${threads} threads: after a trap nobody works on`, async () => {
    const engine = await openToy({ threads });
    const start = performance.now();
    const run = runToy(engine, { items: 100_000, steps: 1, rounds: 1_000_000, trap: 1 }, LONG);
    await assert.rejects(run, DeviceError);
    assert.ok(performance.now() - start < 20_000);
    assert.equal(engine.bytesInUse, 0);
    await engine.close();
  });

test('a thread that is done with a phase long before the others is woken for the next', async () => {
  const engine = await openToy({ threads: 2 });
  const config = { items: 3, steps: 1, rounds: 30_000_000 };
  const out = await runToy(engine, config, LONG);
  assert.deepEqual(Array.from(out.view()), expected(config));
  await engine.close();
});

test('writes, copies and frees wait for the runs before them', async () => {
  const engine = await openToy({ threads: 2 });
  const run = runToy(engine, { items: 2000, steps: 1, rounds: 20_000 }, LONG);
  const a = engine.upload(tensor(new Int32Array([1, 2, 3, 4]), [4]));
  const b = engine.allocate('i32', [4]);
  engine.write(b, tensor(new Int32Array([9, 9, 9, 9]), [4]));
  engine.copy(a, b, { pairs: new Int32Array([0, 2, 3, 0]), length: 1 });
  const read = b.read();
  assert.deepEqual(Array.from((await read).data), [4, 9, 1, 9]);
  a.dispose();
  b.dispose();
  (await run).dispose();
  assert.equal(engine.bytesInUse, 0);
  assert.throws(() => a.view(), DisposedError);
  await assert.rejects(a.read(), DisposedError);
  await engine.close();
});

test('a run that does not fit is refused whole and nothing is held', async () => {
  const engine = await openToy({ threads: 1, memory: 2 ** 20 });
  assert.throws(
    () => engine.allocate('f32', [2 ** 19]),
    (error) => error instanceof MemoryError && error.requested === 2 ** 21 && error.available < 2 ** 20,
  );
  const rest = engine.allocate('u8', [engine.runtime.heap.available - 128 - 256 - 128]);
  await assert.rejects(runToy(engine, { items: 1, steps: 1 }, SMALL), MemoryError);
  rest.dispose();
  (await runToy(engine, { items: 1, steps: 1 }, SMALL)).dispose();
  assert.equal(engine.bytesInUse, 0);
  await engine.close();
});

test('tensors of another engine are refused by name', async () => {
  const [one, two] = [await openToy({ threads: 1 }), await openToy({ threads: 1 })];
  const foreign = two.allocate('i32', [1]);
  assert.throws(
    () => one.write(foreign, tensor(new Int32Array(1), [1])),
    /target: expected a tensor of this wasm engine/,
  );
  await one.close();
  await two.close();
});

test('what is queued outlives the tensors it was asked of', async () => {
  const engine = await openToy({ threads: 1 });
  const run = runToy(engine, { items: 2000, steps: 1, rounds: 100_000 }, SMALL);
  while (!engine.runtime.busy) await new Promise((resolve) => setImmediate(resolve));
  const a = engine.upload(tensor(new Int32Array([1, 2, 3, 4]), [4]));
  const b = engine.upload(tensor(new Int32Array(4), [4]));
  engine.write(a, tensor(new Int32Array([5, 6, 7, 8]), [4]));
  engine.copy(a, b, { pairs: new Int32Array([0, 2]), length: 2 });
  const read = b.read();
  for (const pairs of [
    [3, 0],
    [0, 3],
    [-1, 0],
  ])
    assert.throws(() => engine.copy(a, b, { pairs: Int32Array.from(pairs), length: 2 }), /runs: expected pieces of 2/);
  a.dispose();
  b.dispose();
  assert.deepEqual(Array.from((await read).data), [0, 0, 5, 6]);
  (await run).dispose();
  await engine.synchronize();
  assert.equal(engine.bytesInUse, 0);
  await engine.close();
});
