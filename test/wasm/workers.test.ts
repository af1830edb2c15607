import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import test from 'node:test';
import { Worker } from 'node:worker_threads';
import { DeviceError } from '../../src/core/errors.ts';
import { controlWords, MAIL, wakeWord, writeJob } from '../../src/engines/wasm/job.ts';
import type { WasmCaps } from '../../src/engines/wasm/kernel.ts';
import type { Answer, Letter } from '../../src/engines/wasm/worker.ts';
import type { Problem } from '../../src/problem/problem.ts';
import { expected, openToy, runToy, toy } from './toy.ts';

const LONG = 1;
const ENDLESS = { items: 100_000, steps: 1, rounds: 1_000_000 };
const later = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** The workers that `body` started, found by standing in for Node's Worker class. */
async function spying<T>(make: typeof Worker, body: () => Promise<T>): Promise<T> {
  const threads = process.getBuiltinModule('node:worker_threads') as { Worker: typeof Worker };
  threads.Worker = make;
  try {
    return await body();
  } finally {
    threads.Worker = Worker;
  }
}

function recorder(): { readonly found: Worker[]; readonly make: typeof Worker } {
  const found: Worker[] = [];
  class Recorded extends Worker {
    constructor(...args: ConstructorParameters<typeof Worker>) {
      super(...args);
      found.push(this);
    }
  }
  return { found, make: Recorded };
}

for (const victim of [0, 1]) {
  test(`the death of worker ${victim} rejects its run, and the pool recovers`, async () => {
    const { found, make } = recorder();
    await spying(make, async () => {
      const engine = await openToy({ threads: 2 });
      for (let round = 0; round < 3; round++) {
        const run = runToy(engine, ENDLESS, LONG);
        const waiting = runToy(engine, { items: 5, steps: 2 }, LONG);
        setTimeout(() => void found[found.length - 2 + victim].terminate(), 40);
        await assert.rejects(run, (e) => e instanceof DeviceError && e.message.includes(`worker ${victim} died`));
        const out = await waiting;
        assert.deepEqual(Array.from(out.view()), expected({ items: 5, steps: 2 }));
        out.dispose();
        assert.equal(engine.bytesInUse, 0);
      }
      assert.equal(found.length, 8);
      await engine.close();
    });
  });
}

test('a worker that dies while idle is replaced before the next run', async () => {
  const { found, make } = recorder();
  await spying(make, async () => {
    const engine = await openToy({ threads: 2 });
    (await runToy(engine, { items: 5, steps: 2 }, LONG)).dispose();
    await found[1].terminate();
    await later(20);
    const out = await runToy(engine, { items: 5, steps: 2 }, LONG);
    assert.deepEqual(Array.from(out.view()), expected({ items: 5, steps: 2 }));
    assert.equal(found.length, 4);
    out.dispose();
    await engine.close();
  });
});

test('close ends the workers', async () => {
  const { found, make } = recorder();
  await spying(make, async () => {
    const engine = await openToy({ threads: 2 });
    const ends = found.map((w) => new Promise((resolve) => w.once('exit', resolve)));
    await engine.close();
    await Promise.all(ends);
  });
});

test('where workers do not start, the engine runs on one thread and says why', async () => {
  class Broken extends Worker {
    constructor() {
      super(new URL('./no-such-file.js', import.meta.url));
    }
  }
  await spying(Broken as typeof Worker, async () => {
    const engine = await openToy({ threads: 2 });
    assert.equal(engine.caps.threads, 1);
    assert.equal(engine.caps.shared, false);
    assert.match(String(engine.caps.features.note), /one thread: .*no-such-file/);
    const out = await runToy(engine, { items: 5, steps: 2 }, LONG);
    assert.deepEqual(Array.from(out.view()), expected({ items: 5, steps: 2 }));
    await engine.close();
  });
});

/** Runs a script in a Node of its own, next to this file; `toy` and `probe` are imported for it. */
function script(body: string, before = ''): { status: number | null; stdout: string; ms: number } {
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
  const toy = new URL(`./toy.${extension}`, import.meta.url).href;
  const source = `${before}\nconst { openToy, runToy } = await import(${JSON.stringify(toy)});\n${body}`;
  const start = performance.now();
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', source], {
    encoding: 'utf8',
    timeout: 30_000,
  });
  return { status, stdout: stdout + stderr, ms: performance.now() - start };
}

test('an engine that is not closed does not keep the process alive', () => {
  const { status, stdout, ms } = script(`
    const engine = await openToy({ threads: 2 });
    await runToy(engine, { items: 5, steps: 2 }, 1);
    console.log(engine.caps.threads, 'threads');`);
  assert.equal(status, 0, stdout);
  assert.match(stdout, /2 threads/);
  assert.ok(ms < 10_000, `ended after ${ms} ms`);
});

test('a run in flight keeps the process alive until it ends', () => {
  const { status, stdout } = script(`
    const engine = await openToy({ threads: 2 });
    runToy(engine, { items: 100, steps: 1, rounds: 2000000 }, 1).then(() => console.log('ended'));`);
  assert.equal(status, 0, stdout);
  assert.match(stdout, /ended/);
});

test('a process that exits in the middle of a run does not hang', () => {
  const { status, stdout, ms } = script(`
    const engine = await openToy({ threads: 2 });
    void runToy(engine, { items: 100000, steps: 1, rounds: 1000000 }, 1);
    setTimeout(() => process.exit(7), 50);`);
  assert.equal(status, 7, stdout);
  assert.ok(ms < 10_000, `ended after ${ms} ms`);
});

test('without SharedArrayBuffer there is one thread, and the reason is told', () => {
  const { status, stdout } = script(
    `const engine = await openToy({ threads: 2 });
    const out = await runToy(engine, { items: 3, steps: 2 }, 1);
    console.log(engine.caps.threads, engine.caps.features.note, out.view().join());`,
    `globalThis.SharedArrayBuffer = undefined; globalThis.crossOriginIsolated = false;`,
  );
  assert.equal(status, 0, stdout);
  assert.match(stdout, /1 one thread: the page is not cross-origin isolated 6,6,6/);
});

test('a job that comes while a worker looks for letters waits until it has read them', async (t) => {
  const control = new Int32Array(new SharedArrayBuffer(4 * controlWords(1)));
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
  // While gate[0] is 1 the worker stops right after it has read the number of the newest letter; gate[1] says that it has.
  const gate = new Int32Array(new SharedArrayBuffer(8));
  const file = new URL('../../src/engines/wasm/worker.ts', import.meta.url).href.replace(
    /ts$/,
    import.meta.url.endsWith('.ts') ? 'ts' : 'js',
  );
  const code = `
    const { workerData: { gate, mail, file } } = require('node:worker_threads');
    const load = Atomics.load;
    Atomics.load = (array, index) => {
      const value = load(array, index);
      if (index === mail && load(gate, 0) === 1) {
        Atomics.store(gate, 1, 1);
        Atomics.notify(gate, 1);
        Atomics.wait(gate, 0, 1);
      }
      return value;
    };
    import(file);`;
  const worker = new Worker(code, { eval: true, execArgv: [], workerData: { gate, mail: MAIL, file } });
  t.after(() => worker.terminate());
  const answers: Answer[] = [];
  const heard = (kind: Answer['kind']): Promise<void> =>
    new Promise((resolve) => {
      const look = (): void => {
        if (answers.some((a) => a.kind === kind)) resolve();
      };
      worker.on('message', look);
      look();
    });
  worker.on('message', (answer: Answer) => answers.push(answer));
  const post = (letter: Letter): void => worker.postMessage(letter);
  post({ kind: 'start', worker: 0, memory, control, native: false });
  await heard('ready');
  Atomics.store(gate, 0, 1);
  post({ kind: 'park', mail: 0 });
  while (Atomics.load(gate, 1) === 0) await later(1);

  const { module } = toy.compile({} as Problem, {}, { shared: true } as WasmCaps);
  Atomics.store(control, MAIL, 1);
  post({ kind: 'load', program: 7, module: new WebAssembly.Module(module), routines: [] });
  post({ kind: 'park', mail: 1 });
  new Int32Array(memory.buffer).set([256, 1, -1], 16);
  const phases = [{ entry: 0, items: 3, steps: 2 }];
  writeJob(control, { program: 7, team: 1, params: 64, scratch: 512, scratchBytes: 128, phases });
  Atomics.store(control, wakeWord(0), 1);
  Atomics.notify(control, wakeWord(0));
  Atomics.store(gate, 0, 0);
  Atomics.notify(gate, 0);
  await heard('done');
  assert.deepEqual(
    answers.map((a) => a.kind),
    ['ready', 'loaded', 'done'],
  );
  assert.deepEqual(Array.from(new Int32Array(memory.buffer, 256, 3)), [3, 3, 3]);
});
