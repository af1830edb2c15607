import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { tunings } from '../../src/cli/tuning.ts';
import { open } from '../../src/engines/cuda/index.ts';
import { fakeDriver } from '../cuda/fake.ts';
import { Folder } from './run.ts';

const folder = new Folder();
const cache = mkdtempSync(join(tmpdir(), 'tilewise-tune-'));
process.env.TILEWISE_CACHE = cache;
test.after(() => {
  folder.remove();
  rmSync(cache, { recursive: true, force: true });
});

const SHAPE = [
  '--engine',
  'wasm',
  '--threads',
  '1',
  '--no-native',
  '--no-revectorize',
  '-H',
  '2',
  '-n',
  '200',
  '-d',
  '16',
];

interface Row {
  readonly kernel: string;
  readonly config: object;
  readonly seconds: number | null;
  readonly winner: boolean;
  readonly predictedBest: boolean;
  readonly error: string | null;
}

interface Tuning {
  readonly id: string;
  readonly rows: readonly Row[];
  readonly record: { readonly winner: { readonly kernel: string; readonly config: object } } | null;
}

test('--dry tells the candidates and keeps nothing', () => {
  const [forward] = folder.json('tune', ...SHAPE, '--dry') as Tuning[];
  assert.ok(forward.rows.length > 1);
  assert.equal(forward.rows.filter((r) => r.predictedBest).length, 1);
  assert.ok(forward.rows.every((r) => r.seconds === null && !r.winner));
  assert.equal(forward.record, null);
  assert.ok(!existsSync(join(cache, 'tuned')));
  assert.match(folder.run('tune', '--list').out, /nothing is kept/);
});

test('every candidate is timed, the fastest kept, and plans take it', () => {
  const found = folder.json('tune', ...SHAPE, '--rounds', '3', '--grad') as Tuning[];
  assert.equal(found.length, 2);
  const [{ rows, record }] = found;
  assert.ok(record);
  assert.ok(rows.every((r) => r.error === null && (r.seconds as number) > 0));
  assert.deepEqual(
    rows.filter((r) => r.winner).map(({ kernel, config }) => ({ kernel, config })),
    [record.winner],
  );
  assert.ok(readdirSync(join(cache, 'tuned')).every((name) => name.endsWith('.json')));
  const { plan } = folder.json('explain', ...SHAPE) as {
    plan: { forward: { kernel: string; config: object; measured?: number } };
  };
  assert.deepEqual(plan.forward.config, record.winner.config);
  assert.ok((plan.forward.measured as number) > 0);
  assert.match(folder.run('explain', ...SHAPE).out, /chosen by measurement/);
  assert.match(folder.run('tune', '--list').out, /wasm:forward:f32/);
  assert.match(folder.run('tune', '--forget').out, /^[12] measured choices? forgotten/);
  assert.doesNotMatch(folder.run('explain', ...SHAPE).out, /chosen by measurement/);
});

test('candidates of the CUDA engine take turns, and one that fails is left out with its reason', async (t) => {
  let compiled = 0;
  const fake = fakeDriver({ compiler: () => (++compiled === 2 ? 'ptxas fatal: no room' : null) });
  const engine = await open({ driver: fake.driver, cache: join(cache, 'fake') });
  t.after(() => engine.close());
  const q = { dtype: 'bf16', shape: [1, 2, 128, 64] } as const;
  const task = { q, k: q, v: q, options: {}, grads: true };
  const found = [];
  for await (const one of tunings([engine], task, { rounds: 2, dry: false })) found.push(one);
  const [forward, backward] = found;
  assert.deepEqual(
    forward.rows.map((r) => r.error !== null),
    forward.rows.map((_, i) => i === 1),
  );
  assert.match(forward.rows[1].error as string, /did not compile/);
  assert.equal(forward.rows[1].seconds, null);
  for (const { rows, record } of [forward, backward]) {
    assert.ok(record && rows.filter((r) => r.winner).length === 1 && rows.some((r) => r.predictedBest));
    assert.equal(record.measured.length, rows.length);
  }
  const kernels = new Set(fake.launches.map((l) => l.name));
  assert.ok(kernels.has('forward_mma') && kernels.size > 2, [...kernels].join());
});

test('a call no engine serves, and wrong words, are told as everywhere', () => {
  const refused = folder.run('tune', '-n', '64', '-d', '300');
  assert.deepEqual([refused.status, /got 300/.test(refused.error)], [1, true]);
  assert.equal(folder.run('tune', '--rounds', '0').status, 1);
});
