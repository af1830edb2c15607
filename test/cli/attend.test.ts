import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import test from 'node:test';
import { attention } from '../../src/api/attention.ts';
import { attentionWithGrads } from '../../src/api/grads.ts';
import { randomTensor } from '../../src/cli/shapes.ts';
import { type FloatDType, fromFloat64, toFloat64 } from '../../src/core/dtype.ts';
import { type HostTensor, tensor } from '../../src/core/tensor.ts';
import { formatSafetensors, readSafetensor } from '../../src/interop/safetensors.ts';
import { Folder } from './run.ts';

const folder = new Folder();
test.after(() => folder.remove());

const make = (shape: number[], seed: number): HostTensor => randomTensor({ dtype: 'f32', shape }, seed);
const q = make([1, 4, 33, 16], 1);
const k = make([1, 2, 49, 16], 2);
const v = make([1, 2, 49, 24], 3);
const dOut = make([1, 4, 33, 24], 4);
const bias = make([4, 1, 49], 5);
for (const [name, t] of Object.entries({ q, k, v, do: dOut, bias })) folder.write(`${name}.npy`, t);
const FILES = ['--q', 'q.npy', '--k', 'k.npy', '--v', 'v.npy'];

function assertClose(got: HostTensor, expected: HostTensor, tolerance = 2e-6): void {
  assert.deepEqual([got.dtype, got.shape], [expected.dtype, expected.shape]);
  const [a, b] = [toFloat64(got.dtype, got.data), toFloat64(expected.dtype, expected.data)];
  for (let i = 0; i < a.length; i++)
    assert.ok(a[i] === b[i] || Math.abs(a[i] - b[i]) <= tolerance, `element ${i}: ${a[i]}, expected ${b[i]}`);
}

test('attend writes what the reference computes', async () => {
  const { status, out } = folder.run(
    'attend',
    ...FILES,
    '--causal',
    '--window',
    '20',
    '--out',
    'o.npy',
    '--lse',
    'l.npy',
  );
  assert.equal(status, 0);
  assert.match(out, /wrote +o\.npy f32 \[1, 4, 33, 24\]/);
  const exact = await attention(q, k, v, { causal: true, window: 20, engine: 'reference' });
  assertClose(folder.tensor('o.npy'), exact.out);
  assertClose(folder.tensor('l.npy'), exact.lse);
});

test('gradients, one .safetensors file for several results, side gradients', async () => {
  const targets = [
    '--dq',
    'g.safetensors:dq',
    '--dk',
    'g.safetensors:dk',
    '--dv',
    'g.safetensors:dv',
    '--d-bias',
    'db.npy',
  ];
  const done = folder.run('attend', ...FILES, '--causal', '--bias', 'bias.npy', '--grad', 'do.npy', ...targets);
  assert.equal(done.status, 0, done.error);
  const run = await attentionWithGrads(q, k, v, { causal: true, bias, engine: 'reference' });
  const exact = await run.backward(dOut);
  const bytes = folder.bytes('g.safetensors');
  for (const name of ['dq', 'dk', 'dv'] as const) assertClose(readSafetensor(bytes, name), exact[name]!, 2e-5);
  assertClose(folder.tensor('db.npy'), exact.dBias!, 2e-5);
});

test('.safetensors in, files of fewer axes, another dtype', async () => {
  const drop = (t: HostTensor): HostTensor => tensor(t.data, t.shape.slice(1), t.dtype);
  folder.write('qkv.safetensors', formatSafetensors({ q: drop(q), k: drop(k), v: drop(v) }));
  const files = ['q', 'k', 'v'].flatMap((name) => [`--${name}`, `qkv.safetensors:${name}`]);
  assert.equal(folder.run('attend', ...files, '--dtype', 'bf16', '--out', 'h.npy').status, 0);
  const half = (t: HostTensor): HostTensor =>
    tensor(fromFloat64('bf16' as FloatDType, toFloat64(t.dtype, t.data)), t.shape, 'bf16');
  const exact = await attention(half(q), half(k), half(v), { engine: 'reference' });
  assertClose(folder.tensor('h.npy'), drop(exact.out), 0.02);
});

test('--json tells the plan, and a seed that gives the same bits again', () => {
  const first = folder.json('attend', ...FILES, '--dropout', '0.5', '--out', 'a.npy') as {
    plan: { id: string };
    seed: [number, number];
    written: unknown;
  };
  assert.match(first.plan.id, /dropout/);
  assert.deepEqual(first.written, [{ file: 'a.npy', dtype: 'f32', shape: [1, 4, 33, 24] }]);
  const seed = (BigInt(first.seed[1]) << 32n) | BigInt(first.seed[0]);
  folder.run('attend', ...FILES, '--dropout', '0.5', '--seed', String(seed), '--out', 'b.npy');
  assert.deepEqual(folder.bytes('a.npy'), folder.bytes('b.npy'));
});

test('what is wrong is told in one line, and nothing is written', () => {
  folder.write('cut.npy', folder.bytes('q.npy').subarray(0, 500));
  folder.write('ints.npy', tensor(new Int32Array(4), [4]));
  const before = readdirSync(folder.path);
  const cases: [words: string[], message: RegExp][] = [
    [
      ['--q', 'none.npy', '--k', 'k.npy', '--v', 'v.npy'],
      /^tilewise: --q: expected a file that can be read, got "none.npy \(ENOENT\)"$/,
    ],
    [['--q', 'q.txt', '--k', 'k.npy', '--v', 'v.npy'], /^tilewise: --q: expected a \.npy file/],
    [['--q', 'cut.npy', '--k', 'k.npy', '--v', 'v.npy'], /^tilewise: cut\.npy: expected 8448 bytes of elements/],
    [['--q', 'ints.npy', '--k', 'k.npy', '--v', 'v.npy'], /^tilewise: q: expected dtype/],
    [['--q', 'q.npy', '--k', 'v.npy', '--v', 'v.npy'], /^tilewise: k: expected shape/],
    [[...FILES, '--dropout', '1'], /^tilewise: dropout: expected a probability in \[0, 1\), got 1$/],
    [[...FILES, '--bias', 'q.npy'], /^tilewise: bias: expected a shape that broadcasts to/],
    [[...FILES, '--dq', 'x.npy'], /^tilewise: --grad: expected/],
    [[...FILES, '--out', 'no/o.npy'], /^tilewise: --out: expected a file in a folder that exists/],
    [[...FILES, '--engine', 'abacus'], /^tilewise: engine: expected one of/],
  ];
  for (const [words, message] of cases) {
    const { status, out, error } = folder.run('attend', '--out', 'o2.npy', ...words);
    assert.deepEqual([status, out], [1, ''], words.join(' '));
    assert.match(error.trimEnd(), message);
    assert.equal(error.trimEnd().split('\n').length, 1, error);
  }
  assert.deepEqual(readdirSync(folder.path), before);
});

test('--verbose adds the stack', () => {
  const { status, error } = folder.run('attend', '--q', 'none.npy', '--k', 'k.npy', '--v', 'v.npy', '--verbose');
  assert.equal(status, 1);
  assert.match(error, /\n +at /);
});

test('options that commander judges name the option', () => {
  const { status, error } = folder.run('attend', ...FILES, '--window', 'wide');
  assert.equal(status, 1);
  assert.match(error, /--window/);
});
