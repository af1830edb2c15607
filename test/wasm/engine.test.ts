import assert from 'node:assert/strict';
import test from 'node:test';
import { ArgumentError } from '../../src/core/errors.ts';
import { tensor } from '../../src/core/tensor.ts';
import type { Operands, Step } from '../../src/engine/contract.ts';
import { open, probe, type WasmEngine, type WasmOptions } from '../../src/engines/wasm/index.ts';
import { KERNELS } from '../../src/engines/wasm/kernels/all.ts';
import { unavailable } from '../../src/engines/wasm/revectorize.ts';
import { selfTest } from '../../src/engines/wasm/selftest.ts';
import { createProblem, denseSequences, type Problem, stridesOf } from '../../src/problem/problem.ts';

const wideMissing = unavailable();

function plain(H: number, S: number, D: number): Problem {
  const strides = stridesOf('bhnd', H, S, D);
  return createProblem({
    B: 1,
    Hq: H,
    Hkv: H,
    Sq: S,
    Sk: S,
    D,
    Dv: D,
    dtype: 'f32',
    scale: 1 / Math.sqrt(D),
    strides: { q: strides, k: strides, v: strides, out: strides, lse: { b: H * S, h: S, s: 1 } },
    sequences: denseSequences(1, S, S),
    uniform: true,
    kv: { kind: 'strided' },
    mask: null,
    mod: null,
    sides: [],
    sink: false,
    dropout: null,
    grads: null,
  });
}

/** Output and lse of one forward run on sine-wave inputs. */
async function forward(engine: WasmEngine, problem: Problem): Promise<Float32Array[]> {
  const { Hq: H, Sq: S, D } = problem;
  const input = (phase: number) => {
    const data = Float32Array.from({ length: H * S * D }, (_, i) => Math.sin(i * 0.37 + phase) * 2);
    return engine.upload(tensor(data, [1, H, S, D]));
  };
  const kernel = engine.kernels[0];
  const config = kernel.configs(problem, engine.caps)[0];
  const step: Step = { pass: 'forward', kernel: kernel.name, config, cost: kernel.cost(problem, config, engine.caps) };
  const program = await engine.prepare(problem, step);
  const operands: Operands = {
    q: input(0),
    k: input(1),
    v: input(2),
    out: engine.allocate('f32', [1, H, S, D]),
    lse: engine.allocate('f32', [1, H, S]),
    sides: [],
    sink: null,
  };
  await program.run(problem, operands);
  const results = [await operands.out.read(), await operands.lse.read()].map(({ data }) => data as Float32Array);
  for (const name of ['q', 'k', 'v', 'out', 'lse'] as const) operands[name].dispose();
  assert.equal(engine.bytesInUse, 0);
  return results;
}

async function withEngine<T>(options: WasmOptions, body: (engine: WasmEngine) => Promise<T>): Promise<T> {
  const engine = await open({ guards: true, ...options });
  try {
    return await body(engine);
  } finally {
    await engine.close();
  }
}

test('the same bits whatever the number of threads, and on repeat', async () => {
  const problem = plain(3, 200, 40);
  const one = await withEngine({ threads: 1, revectorize: false }, (engine) => forward(engine, problem));
  for (const threads of [1, 2, 3]) {
    const other = await withEngine({ threads, revectorize: false }, async (engine) => {
      await forward(engine, problem);
      return forward(engine, problem);
    });
    assert.deepEqual(other, one);
  }
});

test('256-bit code gives the same results', { skip: wideMissing ?? false }, async (t) => {
  const problem = plain(3, 200, 40);
  const narrow = await withEngine({ threads: 2, revectorize: false }, (engine) => forward(engine, problem));
  await withEngine({ threads: 2, revectorize: true }, async (engine) => {
    if (!engine.caps.wide) return t.skip(String(engine.caps.features.note));
    const wide = await forward(engine, problem);
    wide.forEach((array, r) => {
      array.forEach((x, i) => {
        assert.ok(Math.abs(x - narrow[r][i]) < 1e-5);
      });
    });
  });
});

test('256-bit code that is wrong is not used', { skip: wideMissing ?? false }, async () => {
  const [kernel] = KERNELS;
  let compiled = 0;
  const lying = {
    ...kernel,
    // The second program, the 128-bit one, attends to everything.
    compile: (problem: Problem, ...rest: Parameters<typeof kernel.compile> extends [unknown, ...infer R] ? R : never) =>
      kernel.compile(compiled++ === 0 ? problem : { ...problem, mask: null }, ...rest),
  };
  const caps = await withEngine({ threads: 1 }, async (engine) => ({ ...engine.caps, wide: true }));
  assert.match(String(await selfTest([lying], caps)), /revectorize: forward differs by/);
  const twice = { ...kernel, compile: () => assert.fail('no compiler today') };
  assert.match(String(await selfTest([twice], caps)), /revectorize: .*no compiler today/);
});

test('probe and caps say what there is', async () => {
  const found = await probe();
  assert.ok(found.available);
  assert.match(found.detail, /thread.*simd/);
  await withEngine({ threads: 2, memory: 2 ** 20 }, async ({ caps }) => {
    assert.equal(caps.memory, 2 ** 20);
    assert.equal(caps.threads, 2);
    assert.ok(caps.flops > 1e9);
  });
});

test('options out of range are refused by name', async () => {
  await assert.rejects(open({ threads: 0 }), ArgumentError);
  await assert.rejects(open({ threads: 1.5 }), /threads: expected an integer from 1 to 1024, got 1.5/);
  await assert.rejects(open({ memory: 2 ** 33 }), /memory: expected bytes, at most 4294967296, got 8589934592/);
  await assert.rejects(open({ memory: Number.NaN }), /memory/);
});
