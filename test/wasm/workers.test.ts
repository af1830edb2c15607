import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import test from 'node:test';
import { Worker } from 'node:worker_threads';
import { DeviceError } from '../../src/core/errors.ts';
import { expected, openToy, runToy } from './toy.ts';

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
