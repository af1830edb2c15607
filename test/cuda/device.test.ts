/** The CUDA engine on a real GPU: faults, other people's memory and streams, processes side by side. Skipped without one. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { attention } from '../../src/api/attention.ts';
import { attentionWithGrads } from '../../src/api/grads.ts';
import { toBf16 } from '../../src/core/dtype.ts';
import { DeviceError, DisposedError, MemoryError } from '../../src/core/errors.ts';
import { type HostTensor, sizeOf, tensor } from '../../src/core/tensor.ts';
import { loadDriver } from '../../src/engines/cuda/driver/library.ts';
import { type CudaEngine, open, probe } from '../../src/engines/cuda/index.ts';

const found = await probe();
const skip = found.available ? false : found.reason;
const GIB = 2 ** 30;

/** Numbers from a seed, the same in every process. */
function noise(seed: number, shape: readonly number[]): HostTensor {
  let state = seed;
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
  return tensor(
    Uint16Array.from({ length: sizeOf(shape) }, () => toBf16(next())),
    shape,
    'bf16',
  );
}

const SHAPE = [1, 4, 512, 64] as const;
const inputs = (): [HostTensor, HostTensor, HostTensor] => [noise(1, SHAPE), noise(2, SHAPE), noise(3, SHAPE)];

async function opened(t: TestContext, options: Parameters<typeof open>[0] = {}): Promise<CudaEngine> {
  const engine = await open(options);
  t.after(() => engine.close());
  return engine;
}

const CHILD = fileURLToPath(new URL(`./child.${import.meta.url.endsWith('.ts') ? 'ts' : 'js'}`, import.meta.url));

/** What a process of its own prints; its exit status and standard error in the failure. */
function child(cache: string, ...words: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const run = spawn(process.execPath, [CHILD, ...words], {
      env: { ...process.env, TILEWISE_CACHE: cache },
      timeout: 60_000,
    });
    let [out, error] = ['', ''];
    run.stdout.on('data', (part) => {
      out += part;
    });
    run.stderr.on('data', (part) => {
      error += part;
    });
    run.on('close', (status, signal) => {
      if (status === 0) resolve(out.trim());
      else reject(new Error(`${words.join(' ')}: ${status ?? signal}: ${error}`));
    });
  });
}

test('two engines in one process, and four processes on one cold cache, give the same bits', { skip }, async (t) => {
  const cache = mkdtempSync(join(tmpdir(), 'tilewise-device-'));
  t.after(() => rmSync(cache, { recursive: true, force: true }));
  const together = await Promise.all([1, 2, 3, 4].map(() => child(cache, 'attend')));
  assert.deepEqual(together, Array(4).fill(together[0]));
  const files = readdirSync(cache);
  assert.ok(
    files.every((f) => /^[0-9a-f]{40}\.cubin$/.test(f)),
    files.join(),
  );
  const written = files.map((f) => statSync(join(cache, f)).mtimeMs);
  assert.equal(await child(cache, 'attend'), together[0]);
  assert.deepEqual(
    files.map((f) => statSync(join(cache, f)).mtimeMs),
    written,
  );

  const [one, two] = [await opened(t, { cache }), await opened(t, { cache })];
  const [q, k, v] = inputs();
  const results = await Promise.all(
    [one, two, one, two].map(async (engine) => (await attention(q, k, v, { engine, causal: true })).out.data),
  );
  for (const other of results) assert.deepEqual(other, results[0]);
  const foreign = two.upload(q);
  await assert.rejects(attention(one.upload(q), one.upload(k), foreign as never, {}), /same cuda engine/);
});

test('a pointer that is no memory of the device is refused', { skip }, async (t) => {
  const engine = await opened(t);
  assert.throws(
    () => engine.wrap(4096, 'f32', [4]),
    (e) => e instanceof DeviceError && /no memory of CUDA/.test(e.message),
  );
  const { driver } = engine.device;
  const out = new BigUint64Array(1);
  assert.equal(driver.cuMemHostAlloc(out, 4096, 0), 0);
  assert.throws(() => engine.wrap(out[0], 'f32', [4]), /memory of the host/);
  driver.cuMemFreeHost(Number(out[0]));
  assert.equal(driver.cuMemAlloc_v2(out, 4096), 0);
  engine.wrap(out[0], 'f32', [4]).dispose();
  driver.cuMemFree_v2(Number(out[0]));
  assert.throws(() => engine.wrap(out[0], 'f32', [4]), DeviceError);
  await engine.upload(noise(1, [4])).read();
});

const alone = skip || ((await probe({ device: 1 })).available ? false : 'one GPU');

test('two GPUs: engines on both, and a pointer of the other one is refused', { skip: alone }, async (t) => {
  const [one, two] = [await opened(t, { device: 0 }), await opened(t, { device: 1 })];
  const [q, k, v] = inputs();
  const results = await Promise.all([one, two].map((engine) => attention(q, k, v, { engine })));
  assert.deepEqual(results[0].out.data, results[1].out.data);
  const theirs = two.upload(q);
  assert.throws(() => one.wrap(theirs.address, 'bf16', SHAPE), /memory of device 1, not of device 0/);
  two.wrap(theirs.address, 'bf16', SHAPE).dispose();
});

test('out of memory names sizes, and the engine goes on', { skip }, async (t) => {
  const engine = await opened(t);
  const { free } = engine.device.memory();
  const before = engine.bytesInUse;
  assert.throws(
    () => engine.allocate('u8', [free + GIB]),
    (e) => e instanceof MemoryError && e.requested > free && e.available <= free + GIB,
  );
  const most = engine.allocate('u8', [free - 2 * GIB]);
  assert.throws(() => engine.allocate('u8', [4 * GIB]), MemoryError);
  most.dispose();
  assert.equal(engine.bytesInUse, before);
  const [q, k, v] = inputs();
  await attention(q, k, v, { engine });
});

test('a kernel that does not compile says what the compiler said, and the engine goes on', { skip }, async (t) => {
  const engine = await opened(t, { cache: mkdtempSync(join(tmpdir(), 'tilewise-device-')) });
  for (const target of ['sm_80', 'sm_90a'] as const) {
    if (target === 'sm_90a' && engine.caps.capability !== 90) continue;
    const text = `.version 8.0\n.target ${target}\n.address_size 64\n.visible .entry broken()\n{\n    add.s32 %a, 1;\n}\n`;
    assert.throws(
      () =>
        engine.modules.load({
          ...{ name: 'broken', text, target, threads: 32, sharedBytes: 0, parameterBytes: 0, parameters: [] },
        } as unknown as Parameters<typeof engine.modules.load>[0]),
      (e) => e instanceof DeviceError && /kernel broken did not compile[\s\S]*line 6/.test(e.message),
    );
  }
  const [q, k, v] = inputs();
  await attention(q, k, v, { engine });
});

test('the context, stream, events and memory of another library', { skip }, async () => {
  const driver = await loadDriver();
  const word = new BigUint64Array(1);
  const made = (status: number): number => {
    assert.equal(status, 0);
    return Number(word[0]);
  };
  driver.cuInit(0);
  const context = made(driver.cuDevicePrimaryCtxRetain(word, 0));
  driver.cuCtxSetCurrent(context);
  const [stream, other] = [made(driver.cuStreamCreate(word, 1)), made(driver.cuStreamCreate(word, 1))];
  const event = made(driver.cuEventCreate(word, 2));
  const [q, k, v] = inputs();
  const bytes = q.data.byteLength;
  const at = [0, 1, 2, 3].map(() => made(driver.cuMemAlloc_v2(word, bytes)));
  const expected = await (async () => {
    const engine = await open();
    const { out } = await attention(q, k, v, { engine });
    await engine.close();
    return out.data;
  })();

  const engine = await open({ context, stream });
  // Inputs arrive on a stream that the engine has to wait for.
  for (const [i, t] of [q, k, v].entries())
    assert.equal(driver.cuMemcpyHtoDAsync_v2(at[i], driver.addressOf(t.data), bytes, other), 0);
  driver.cuEventRecord(event, other);
  engine.waitFor(event);
  const [eq, ek, ev, eo] = at.map((address) => engine.wrap(address, 'bf16', SHAPE));
  const { out, lse } = await attention(eq, ek, ev, { into: { out: eo } });
  assert.equal(out, eo);
  lse.dispose();
  // And the other stream waits for the engine before it reads the result by its address.
  const done = engine.record();
  driver.cuStreamWaitEvent(other, done.handle, 0);
  const result = new Uint16Array(q.data.length);
  driver.cuMemcpyDtoHAsync_v2(driver.addressOf(result), eo.address, bytes, other);
  assert.equal(driver.cuStreamSynchronize(other), 0);
  assert.deepEqual(result, expected);
  done.close();
  await engine.close();

  assert.equal(driver.cuStreamSynchronize(stream), 0, 'the stream outlives the engine');
  for (const address of at) assert.equal(driver.cuMemFree_v2(address), 0, 'and so does the memory');
  driver.cuStreamDestroy_v2(stream);
  driver.cuStreamDestroy_v2(other);
  driver.cuEventDestroy_v2(event);
  driver.cuDevicePrimaryCtxRelease_v2(0);
});

test('tensors disposed and engines closed with work in flight', { skip }, async () => {
  const engine = await open();
  const shape = [1, 16, 8192, 64];
  const host = noise(4, shape);
  const wanted = (await attention(host, host, host, { engine })).out.data;
  const q = engine.upload(host);
  const { out, lse } = await attention(q, q, q, {});
  q.dispose();
  lse.dispose();
  // The memory of q is handed out again while the kernel reads it; the copy queues behind the kernel.
  const next = engine.upload(noise(5, shape));
  const reading = out.read();
  out.dispose();
  const last = engine.upload(noise(6, shape));
  assert.deepEqual((await reading).data, wanted);
  next.dispose();
  const x = last.read();
  // It may come too late.
  const running = attention(last, last, last, {}).catch(() => {});
  const closing = engine.close();
  assert.deepEqual((await x).data, noise(6, shape).data);
  await running;
  await closing;
  await engine.close();
  await assert.rejects(last.read(), DisposedError);
  assert.throws(() => engine.allocate('f32', [1]), DisposedError);
});

test('uploads queue behind work, and their arrays may be reused at once', { skip }, async (t) => {
  const engine = await opened(t);
  const shape = [1, 16, 16384, 128];
  const q = engine.upload(tensor(new Uint16Array(sizeOf(shape)).fill(toBf16(0.5)), shape, 'bf16'));
  const n = 40 * 2 ** 20;
  const data = new Float32Array(n);
  for (let i = 0; i < n; i++) data[i] = i % 65537;
  await attention(q, q, q, {}).then(({ out }) => out.dispose());
  await engine.synchronize();
  for (let i = 0; i < 10; i++) (await attention(q, q, q, {})).out.dispose();
  const start = performance.now();
  const x = engine.upload(tensor(data, [n]));
  const took = performance.now() - start;
  data.fill(-1);
  await engine.synchronize();
  t.diagnostic(
    `upload of ${n * 4} bytes: ${took.toFixed(1)} ms; work before it done after ${(performance.now() - start).toFixed(1)} ms`,
  );
  const back = (await x.read()).data;
  for (let i = 0; i < n; i += 4099) assert.equal(back[i], i % 65537);
});

test('work that a fault ended rejects by name where it is waited for, and the engine still closes', {
  skip,
}, async () => {
  assert.match(
    await child(mkdtempSync(join(tmpdir(), 'tilewise-device-')), 'fault'),
    /^rejected .*CUDA_ERROR_ILLEGAL_ADDRESS.* closed$/s,
  );
});

test('a thousand calls hold no more memory than a hundred', { skip }, async (t) => {
  const engine = await opened(t);
  const [q, k, v] = inputs().map((x) => engine.upload(x));
  const round = async (n: number): Promise<void> => {
    for (let i = 0; i < n; i++) {
      const run = await attentionWithGrads(q, k, v, { causal: i % 2 === 0 });
      const { dq, dk, dv } = await run.backward(q);
      for (const x of [run.out, run.lse, dq, dk, dv]) x?.dispose();
      run.dispose();
      if (i % 10 === 0) {
        const { out } = await attention(q, k, v, { softcap: 20 + (i % 3) });
        await out.read();
        out.dispose();
      }
    }
    await engine.synchronize();
  };
  await round(100);
  const before = { used: engine.bytesInUse, free: engine.device.memory().free, host: process.memoryUsage().rss };
  await round(1000);
  const { rss } = process.memoryUsage();
  t.diagnostic(`device ${before.free - engine.device.memory().free} bytes, host ${rss - before.host} bytes more`);
  assert.ok(engine.bytesInUse - before.used < 2 ** 20, `${engine.bytesInUse - before.used} bytes handed out`);
  assert.ok(before.free - engine.device.memory().free <= 2 ** 22);
  assert.ok(rss - before.host < 2 ** 26, `${rss - before.host} bytes of the host`);
});
