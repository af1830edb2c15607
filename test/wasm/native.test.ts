import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { Assembler, R } from '../../src/engines/wasm/native/assembler.ts';
import { DESCRIPTOR, emitGemm, type GemmStart } from '../../src/engines/wasm/native/gemm.ts';
import { NativeHost, openNative } from '../../src/engines/wasm/native/host.ts';
import { SOFTMAX } from '../../src/engines/wasm/native/softmax.ts';

const host = await openNative();
const skip = typeof host === 'string' ? host : false;

const hex = (width: 32 | 64, emit: (a: Assembler) => void): string => {
  const a = new Assembler(width);
  emit(a);
  return Buffer.from(a.bytes()).toString('hex');
};

// Expected bytes are what GNU as gives for the same instructions.
test('encodings agree with the GNU assembler', () => {
  assert.equal(
    hex(64, (a) => a.multiplyAdd(1, 29, 31)),
    hexOf('62 92 15 40 b8 cf'),
  );
  assert.equal(
    hex(32, (a) => a.multiplyAdd(1, 13, 15)),
    hexOf('c4 c2 15 b8 cf'),
  );
  assert.equal(
    hex(64, (a) => a.broadcast(28, { base: R.r12, index: R.rdx, scale: 2 })),
    hexOf('62 42 7d 48 18 24 54'),
  );
  assert.equal(
    hex(32, (a) => a.broadcast(13, { base: R.r13 })),
    hexOf('c4 42 7d 18 6d 00'),
  );
  assert.equal(
    hex(64, (a) => a.load(30, { base: R.rbx, disp: 64 })),
    hexOf('62 61 7c 48 10 73 01'),
  );
  assert.equal(
    hex(64, (a) => a.store({ base: R.rbp, disp: 100 }, 17)),
    hexOf('62 e1 7c 48 11 8d 64 00 00 00'),
  );
  assert.equal(
    hex(64, (a) => a.load64(R.r11, { base: R.rsp, disp: -24 })),
    hexOf('4c 8b 5c 24 e8'),
  );
});

function hexOf(bytes: string): string {
  return bytes.replaceAll(' ', '');
}

/** Runs one product on a small memory and returns its largest error against float64 arithmetic. */
function errorOf(native: NativeHost, N: number, start: GemmStart, M: number, K: number, transposed: boolean): number {
  const memory = new WebAssembly.Memory({ initial: 16 });
  const f32 = new Float32Array(memory.buffer);
  const i32 = new Int32Array(memory.buffer);
  for (let i = 0; i < f32.length; i++) f32[i] = Math.sin(i * 12.9898) * 0.5;
  const [a, b, c, factor, at] = [0, 1 << 16, 2 << 16, 3 << 16, 4 << 16];
  const [aRow, aColumn] = transposed ? [4, M * 4] : [K * 4, 4];
  const before = f32.slice(c / 4, c / 4 + M * N + 64);
  const fields = { a, aRow, aColumn, b, bRow: N * 4, c, cRow: N * 4, factor, M, K };
  for (const [name, value] of Object.entries(fields)) i32[(at + DESCRIPTOR[name as keyof typeof fields]) / 4] = value;
  native.bind(native.place({ routine: start, N }))(native.baseOf(memory), at);
  let error = 0;
  for (let i = 0; i < M; i++)
    for (let j = 0; j < N; j++) {
      let sum = start === 'zero' ? 0 : before[i * N + j] * (start === 'add' ? 1 : f32[factor / 4 + j]);
      for (let k = 0; k < K; k++) sum += f32[(a + i * aRow + k * aColumn) / 4] * f32[b / 4 + k * N + j];
      error = Math.max(error, Math.abs(sum - f32[c / 4 + i * N + j]));
    }
  for (let i = M * N; i < M * N + 64; i++) assert.equal(f32[c / 4 + i], before[i], 'written past the end of C');
  return error;
}

/** One block of an online softmax, against Math.exp: the largest relative error of weights, sums and alpha. */
function softmaxError(native: NativeHost, N: number, rows: number, slope: number): number {
  const memory = new WebAssembly.Memory({ initial: 4 });
  const f32 = new Float32Array(memory.buffer);
  const i32 = new Int32Array(memory.buffer);
  const at = { p: 4096, max: 0, before: 512, sum: 1024, alpha: 1536 };
  const descriptor = 2048;
  const score = (r: number, lane: number): number => Math.fround(8 * Math.sin(r * 7.1 + lane * 3.3));
  for (let lane = 0; lane < N; lane++) {
    f32[at.before / 4 + lane] = f32[at.max / 4 + lane] = lane % 3 === 0 ? -3e38 : Math.cos(lane) * 6;
    f32[at.sum / 4 + lane] = lane % 3 === 0 ? 0 : 2;
    for (let r = 0; r < rows; r++) f32[at.p / 4 + r * N + lane] = score(r, lane);
  }
  const before = f32.slice(at.before / 4, at.before / 4 + N);
  for (const [name, value] of Object.entries({ ...at, rows }))
    i32[(descriptor + SOFTMAX[name as keyof typeof SOFTMAX]) / 4] = value;
  f32[(descriptor + SOFTMAX.slope) / 4] = slope;
  const run = (routine: 'maximum' | 'softmax'): void =>
    native.bind(native.place({ routine, N }))(native.baseOf(memory), descriptor);
  run('maximum');
  run('softmax');
  let error = 0;
  const compare = (got: number, expected: number): void => {
    error = Math.max(error, Math.abs(got - expected) / Math.max(Math.abs(expected), 1e-30));
  };
  for (let lane = 0; lane < N; lane++) {
    let max = before[lane];
    for (let r = 0; r < rows; r++) max = Math.max(max, score(r, lane));
    const alpha = 2 ** ((before[lane] - max) * slope);
    let sum = (lane % 3 === 0 ? 0 : 2) * alpha;
    for (let r = 0; r < rows; r++) {
      const weight = 2 ** ((score(r, lane) - max) * slope);
      compare(f32[at.p / 4 + r * N + lane], weight);
      sum += weight;
    }
    assert.equal(f32[at.before / 4 + lane], Math.fround(max));
    compare(f32[at.alpha / 4 + lane], alpha);
    compare(f32[at.sum / 4 + lane], sum);
  }
  return error;
}

for (const width of [32, 64] as const) {
  const unable = skip || (typeof host !== 'string' && host.width < width ? 'the processor has no AVX-512' : false);
  test(`routines in machine code, ${width * 8}-bit vectors`, { skip: unable }, async () => {
    const { default: koffi } = await import('koffi');
    const native = new NativeHost(koffi as unknown as ConstructorParameters<typeof NativeHost>[0], width);
    const start = fc.constantFrom<GemmStart>('zero', 'add', 'rescale');
    const size = fc.integer({ min: 1, max: 60 });
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 5 }), start, size, size, fc.boolean(), (n, begin, M, K, transposed) => {
        assert.ok(errorOf(native, n * 16, begin, M, K, transposed) < 1e-5);
      }),
      { numRuns: 100 },
    );
    for (const N of [16, 32, 64])
      for (const rows of [1, 7, 96]) assert.ok(softmaxError(native, N, rows, 0.7) < 2e-6, `softmax of ${rows} x ${N}`);
    native.close();
  });
}

test('columns must fill vectors', () => {
  assert.throws(() => emitGemm(64, 24, 'zero'), /N = 24/);
});
