import assert from 'node:assert/strict';
import test from 'node:test';
import { Run } from '../../src/conformance/execute.ts';
import { instantiate, outputsOf, type Spec } from '../../src/conformance/spec.ts';
import { DisposedError, MemoryError, UnsupportedError } from '../../src/core/errors.ts';
import { tensor, zeros } from '../../src/core/tensor.ts';
import { open, probe } from '../../src/engines/reference/index.ts';
import { choosePlan } from '../../src/plan/choose.ts';

const host = (...values: number[]) => tensor(Float32Array.from(values), [values.length]);

test('probe says the reference engine runs everywhere', async () => {
  const found = await probe();
  assert.equal(found.engine, 'reference');
  assert.equal(found.available, true);
});

test('tensors are copies: upload, write, read, copy, dispose', async () => {
  const engine = await open();
  const source = host(1, 2, 3, 4);
  const a = engine.upload(source);
  source.data[0] = 9;
  assert.deepEqual(Array.from((await a.read()).data), [1, 2, 3, 4]);
  engine.write(a, host(5, 6, 7, 8));
  const b = engine.upload(zeros('f32', [6]));
  engine.copy(a, b, { pairs: Int32Array.of(0, 4, 2, 0), length: 2 });
  const read = await b.read();
  assert.deepEqual(Array.from(read.data), [7, 8, 0, 0, 5, 6]);
  read.data[0] = 1;
  assert.equal((await b.read()).data[0], 7);
  assert.equal(engine.bytesInUse, 40);
  a.dispose();
  a.dispose();
  assert.equal(engine.bytesInUse, 24);
  await assert.rejects(a.read(), DisposedError);
  assert.throws(() => engine.write(b, host(1)), /tensor: expected f32\[6\], got f32\[1\]/);
  assert.throws(
    () => engine.copy(b, engine.allocate('f64', [6]), { pairs: Int32Array.of(0, 0), length: 1 }),
    /dtype f32/,
  );
  await engine.close();
});

test('an allocation past the limit is refused with sizes, and nothing is held', async () => {
  const engine = await open({ memory: 1000 });
  assert.throws(
    () => engine.allocate('f32', [300]),
    (error: unknown) => error instanceof MemoryError && error.requested === 1200 && error.available === 1000,
  );
  assert.equal(engine.bytesInUse, 0);
  engine.allocate('f32', [250]).dispose();
  await engine.close();
});

test('a score matrix past the workspace is refused before anything is allocated', async () => {
  const engine = await open({ workspace: 100 * 100 * 8 });
  const refusedBy = (spec: Spec): string => {
    try {
      choosePlan(instantiate('budget', spec).problem, [engine]);
      return '';
    } catch (error) {
      return error instanceof UnsupportedError ? error.message : String(error);
    }
  };
  assert.equal(refusedBy({ Sq: 100, noGrads: true }), '');
  assert.match(refusedBy({ Sq: 101, noGrads: true }), /would hold 1 MiB of scores \(101 x 101 float64/);
  assert.match(refusedBy({ Sq: 100 }), /2 at once/);
  await engine.close();
});

test('an abort stops a run between rows; progress is told; the engine stays usable', async () => {
  const engine = await open();
  const spec: Spec = { Hq: 4, Sq: 500, D: 64, noGrads: true };
  const { problem, inputs } = instantiate('abort', spec);
  const { forward } = choosePlan(problem, [engine]);
  const operands = {
    q: engine.upload(inputs.q),
    k: engine.upload(inputs.k),
    v: engine.upload(inputs.v),
    out: engine.allocate('f32', inputs.q.shape),
    lse: engine.allocate('f32', [1, 4, 500]),
    sides: [],
    sink: null,
  };
  const program = await engine.prepare(problem, forward);
  const controller = new AbortController();
  const shares: number[] = [];
  const onProgress = (share: number): void => {
    shares.push(share);
    if (shares.length === 2) controller.abort(new Error('enough'));
  };
  await assert.rejects(program.run(problem, operands, { signal: controller.signal, onProgress }), /enough/);
  assert.equal(shares.length, 2);
  assert.ok(0 < shares[0] && shares[0] < shares[1] && shares[1] < 1);
  await assert.rejects(program.run(problem, operands, { signal: AbortSignal.abort(new Error('before')) }), /before/);
  const all: number[] = [];
  await program.run(problem, operands, { onProgress: (share) => all.push(share) });
  assert.equal(all.at(-1), 1);
  await engine.close();
});

test('closing makes runs in flight reject and later work throw', async () => {
  const engine = await open();
  const spec: Spec = { Hq: 2, Sq: 400, D: 64, noGrads: true };
  const { problem, inputs } = instantiate('close', spec);
  const run = new Run(engine, problem, inputs, outputsOf(problem, spec));
  const { forward } = choosePlan(problem, [engine]);
  const running = assert.rejects(run.pass(forward), DisposedError);
  await new Promise((resolve) => setTimeout(resolve, 1));
  await engine.close();
  await engine.close();
  await running;
  assert.throws(() => engine.allocate('f32', [1]), DisposedError);
  await assert.rejects(engine.prepare(problem, forward), DisposedError);
});

test('an allocation that the host refuses is a MemoryError too, and nothing is held', async () => {
  const engine = await open({ memory: 2 ** 60 });
  assert.throws(
    () => engine.allocate('f64', [2 ** 40]),
    (error: unknown) => error instanceof MemoryError && error.requested === 2 ** 43,
  );
  assert.equal(engine.bytesInUse, 0);
  await engine.close();
});

test('a read waits for the runs before it, and closing holds nothing any more', async () => {
  const engine = await open();
  const { problem, inputs } = instantiate('queued', { Hq: 2, Sq: 300, D: 64, noGrads: true });
  const { forward } = choosePlan(problem, [engine]);
  const [q, k, v] = [engine.upload(inputs.q), engine.upload(inputs.k), engine.upload(inputs.v)];
  const out = engine.upload(zeros('f32', inputs.q.shape));
  const lse = engine.allocate('f32', [problem.B, problem.Hq, problem.Sq]);
  const program = await engine.prepare(problem, forward);
  const run = program.run(problem, { q, k, v, out, lse, sides: [], sink: null });
  const read = out.read();
  out.dispose();
  // The run itself writes to the tensor that is gone.
  await assert.rejects(run, DisposedError);
  assert.equal(
    (await read).data.length,
    out.shape.reduce((n, d) => n * d, 1),
  );
  const again = engine.upload(zeros('f32', inputs.q.shape));
  void program.run(problem, { q, k, v, out: again, lse, sides: [], sink: null });
  assert.ok((await again.read()).data.some((x) => x !== 0));
  await engine.close();
  assert.equal(engine.bytesInUse, 0);
});
