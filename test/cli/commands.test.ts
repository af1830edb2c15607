import assert from 'node:assert/strict';
import test from 'node:test';
import { Folder } from './run.ts';

const folder = new Folder();
test.after(() => folder.remove());

test('--help of every command has examples', () => {
  for (const name of ['attend', 'doctor', 'explain', 'check', 'bench', 'tune', 'dump']) {
    const { status, out } = folder.run(name, '--help');
    assert.equal(status, 0);
    assert.match(out, new RegExp(`\\$ tilewise ${name}`));
  }
  assert.match(folder.run('--version').out, /^\d+\.\d+\.\d+$/m);
});

test('doctor knows every engine, and says why one does not run', () => {
  const { engines } = folder.json('doctor') as {
    engines: { probe: { engine: string; available: boolean; reason?: string }; caps: { features: object } | null }[];
  };
  const named = new Map(engines.map((e) => [e.probe.engine, e]));
  for (const name of ['wasm', 'reference']) {
    assert.equal(named.get(name)?.probe.available, true, named.get(name)?.probe.reason);
    assert.ok(Object.keys(named.get(name)?.caps?.features ?? {}).length > 0);
  }
  for (const { probe } of engines) if (!probe.available) assert.ok(probe.reason);
  assert.match(folder.run('doctor').out, /✓ reference/);
});

test('explain gives the plan of shapes without tensors', () => {
  const words = ['explain', '-H', '4', '--kv-heads', '2', '-n', '300', '-d', '64', '--causal', '--grad'];
  const found = folder.json(...words) as {
    plan: { id: string; engine: string; backward: object };
    density: { pairs: number };
    memory: { workspace: number; standard: number };
  };
  assert.match(found.plan.id, /hq4\.hkv2\.sq300\.sk300\.d64:causal$/);
  assert.ok(found.plan.backward);
  assert.ok(Math.abs(found.density.pairs - 301 / 600) < 1e-9);
  assert.match(folder.run(...words).out, /standard attention/);
});

test('explain, dump and bench refuse what no call could be', () => {
  for (const name of ['explain', 'dump', 'bench']) {
    const { status, error } = folder.run(name, '-n', '64', '-d', '300');
    assert.equal(status, 1);
    assert.match(error, /^tilewise: D: expected a head size from 1 to 256, got 300/m);
  }
});

test('dump shows the code of the wasm engine', () => {
  const { plan, listings } = folder.json('dump', '-n', '256', '--causal', '--engine', 'wasm') as {
    plan: { engine: string };
    listings: { text: string }[];
  };
  assert.equal(plan.engine, 'wasm');
  assert.match(listings[0].text, /\(module[\s\S]*f32x4/);
});

test('check judges cases, and filters them', () => {
  const { results } = folder.json('check', '--engine', 'math', '--filter', 'one-by-one') as {
    results: { ok: boolean; id: string }[];
  };
  assert.ok(results.length > 0 && results.every((r) => r.ok && r.id.includes('one-by-one')));
  const none = folder.run('check', '--filter', 'no such case');
  assert.equal(none.status, 1);
  assert.match(none.error, /--filter/);
});

test('bench checks, times, saves and compares', () => {
  const shape = ['-n', '64', '-H', '2', '-d', '16', '--grad', '--seconds', '0.01', '--engine', 'math'];
  const done = folder.run('bench', ...shape, '--save', 'a.json');
  assert.equal(done.status, 0, done.error);
  const file = folder.json('bench', ...shape) as { rows: { plausible: boolean; gflops: number }[]; machine: object };
  assert.equal(file.rows.length, 2);
  assert.ok(file.rows.every((r) => r.plausible && r.gflops > 0));
  folder.write('b.json', JSON.stringify(file));
  const rows = folder.json('bench', 'compare', 'a.json', 'b.json') as { ratio: number }[];
  assert.equal(rows.length, 2);
  assert.match(folder.run('bench', 'compare', 'a.json', 'b.json').out, /speed-up/);
  folder.write('c.json', '{"format":"other"}');
  assert.match(folder.run('bench', 'compare', 'a.json', 'c.json').error, /c\.json: expected results/);
  assert.match(folder.run('bench', 'compare', 'a.json', 'd.json').error, /ENOENT/);
});
