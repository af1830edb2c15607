/** A kernel with known results, for tests of the runtime alone: out[item] = 2 * (1 + 2 + ... + steps), in two phases. */

import type { Operands, RunOptions, Step } from '../../src/engine/contract.ts';
import { ModuleBuilder } from '../../src/engines/wasm/asm/module.ts';
import { i32, v128 } from '../../src/engines/wasm/asm/values.ts';
import { open, WasmEngine, type WasmOptions } from '../../src/engines/wasm/index.ts';
import type { WasmKernel } from '../../src/engines/wasm/kernel.ts';
import type { WasmTensor } from '../../src/engines/wasm/tensor.ts';
import { denseSequences, type Problem } from '../../src/problem/problem.ts';

const SIGNATURE = { params: 'i32', item: 'i32', step: 'i32', scratch: 'i32' } as const;

/** Config: items, steps, rounds (of a spin loop, about 1 ns each), trap (an item that traps, or -1), variant (makes programs differ). */
export const toy: WasmKernel = {
  name: 'toy',
  pass: 'forward',
  refuse: () => null,
  configs: () => [{}],
  cost: () => ({ flops: 0, bytes: 0, workspace: 0, seconds: 0 }),
  emit: () => [],
  key: (_problem, config) => `toy:${config.variant ?? 0}`,
  compile(_problem, _config, caps) {
    const module = new ModuleBuilder(caps.shared);
    module.func(
      'count',
      SIGNATURE,
      (f, p) => {
        f.if(i32.eq(p.item, i32.load(p.params, 8)), () => f.do(v128.store(p.params, v128.load(0xfffffff0 | 0))));
        f.for(0, f.let(i32.load(p.params, 4)), 1, (i) => f.do(i32.store(p.scratch, i, 4)));
        f.if(i32.eqz(p.step), () => f.do(i32.store(p.scratch, 0)));
        f.do(i32.store(p.scratch, i32.add(i32.load(p.scratch), i32.add(p.step, 1))));
        f.do(i32.store(i32.add(i32.load(p.params), i32.shl(p.item, 2)), i32.load(p.scratch)));
      },
      true,
    );
    module.func(
      'double',
      SIGNATURE,
      (f, p) => {
        const address = f.let(i32.add(i32.load(p.params), i32.shl(p.item, 2)));
        f.do(i32.store(address, i32.shl(i32.load(address), 1)));
      },
      true,
    );
    return { module: module.bytes(), scratch: 100 };
  },
  launch(_problem, config, at, heap) {
    const { items = 1, steps = 1, rounds = 0, trap = -1 } = config as Record<string, number>;
    const params = heap.allocate(12);
    heap.i32.set([at.out, rounds, trap], params / 4);
    return {
      params,
      phases: [
        { entry: 'count', items, steps },
        { entry: 'double', items, steps: 1 },
      ],
    };
  },
};

export async function openToy(options: WasmOptions = {}): Promise<WasmEngine> {
  const { runtime, caps } = await open({ guards: true, ...options });
  return new WasmEngine(runtime, caps, [toy]);
}

const strides = { b: 1, h: 1, s: 1 };
const PROBLEM: Problem = {
  B: 1,
  Hq: 1,
  Hkv: 1,
  Sq: 1,
  Sk: 1,
  D: 1,
  Dv: 1,
  dtype: 'f32',
  scale: 1,
  strides: { q: strides, k: strides, v: strides, out: strides, lse: strides },
  sequences: denseSequences(1, 1, 1),
  uniform: true,
  kv: { kind: 'strided' },
  mask: null,
  mod: null,
  sides: [],
  sink: false,
  dropout: null,
  grads: null,
};

export interface ToyConfig extends Readonly<Record<string, number>> {
  readonly items: number;
  readonly steps: number;
}

/** Runs the toy; `seconds` above 0.15 ms sends it to the pool. */
export async function runToy(
  engine: WasmEngine,
  config: ToyConfig,
  seconds: number,
  options?: RunOptions,
): Promise<WasmTensor> {
  const out = engine.allocate('i32', [config.items]);
  try {
    const cost = { flops: 0, bytes: 0, workspace: 0, seconds };
    const step: Step = { pass: 'forward', kernel: 'toy', config, cost };
    const program = await engine.prepare(PROBLEM, step);
    const operands: Operands = { q: out, k: out, v: out, out, lse: out, sides: [], sink: null };
    await program.run(PROBLEM, operands, options);
    return out;
  } catch (error) {
    out.dispose();
    throw error;
  }
}

/** What every item must hold. */
export const expected = ({ items, steps }: ToyConfig): number[] =>
  Array.from({ length: items }, () => steps * (steps + 1));
