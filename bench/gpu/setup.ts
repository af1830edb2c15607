/** What the benches of the CUDA engine share: tensors of noise made on the device, steps by hand, medians. */
import { toBf16 } from '../../src/core/dtype.ts';
import { sizeOf, tensor } from '../../src/core/tensor.ts';
import type { Config, Engine, EngineTensor, Kernel, Operands, Pass, Step } from '../../src/engine/contract.ts';
import type { CudaEngine } from '../../src/engines/cuda/index.ts';
import type { Problem } from '../../src/problem/problem.ts';
import type { ProblemShape } from '../problem.ts';

export interface Shape extends ProblemShape {
  readonly B: number;
  readonly Sk: number;
  readonly dtype?: 'bf16' | 'f32';
}

/** Elements copied at a time, from places of the bank that keep rows from repeating each other. */
const PIECE = 1 << 20;
const STEP = 7919;

/** Normal numbers on the device: a bank of them, and tensors filled from it. */
export class Noise {
  private readonly engine: CudaEngine;
  private readonly banks = new Map<string, EngineTensor>();
  private at = 0;

  constructor(engine: CudaEngine) {
    this.engine = engine;
  }

  tensor(dtype: 'bf16' | 'f32', shape: readonly number[]): EngineTensor {
    const target = this.engine.allocate(dtype, shape);
    const n = sizeOf(shape);
    const from = (): number => {
      this.at = (this.at + STEP) % PIECE;
      return this.at;
    };
    const whole = Math.floor(n / PIECE);
    const pairs = Int32Array.from({ length: 2 * whole }, (_, i) => (i % 2 === 0 ? from() : (i >> 1) * PIECE));
    this.engine.copy(this.bank(dtype), target, { pairs, length: PIECE });
    if (n % PIECE > 0)
      this.engine.copy(this.bank(dtype), target, { pairs: Int32Array.of(from(), whole * PIECE), length: n % PIECE });
    return target;
  }

  close(): void {
    for (const bank of this.banks.values()) bank.dispose();
  }

  private bank(dtype: 'bf16' | 'f32'): EngineTensor {
    let bank = this.banks.get(dtype);
    if (bank === undefined) {
      const values = Float32Array.from({ length: 2 * PIECE }, normal);
      bank = this.engine.upload(
        dtype === 'f32' ? tensor(values, [2 * PIECE]) : tensor(Uint16Array.from(values, toBf16), [2 * PIECE], dtype),
      );
      this.banks.set(dtype, bank);
    }
    return bank;
  }
}

const normal = (): number => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

export interface Made {
  readonly operands: Operands;
  dispose(): void;
}

/** Inputs of noise, and room for results: for backward too when the problem asks for gradients. */
export function operandsOf(engine: CudaEngine, noise: Noise, problem: Problem): Made {
  const { B, Hq, Hkv, Sq, Sk, D, dtype, grads, sides } = problem;
  const type = dtype as 'bf16' | 'f32';
  const [q, k] = [
    [B, Hq, Sq, D],
    [B, Hkv, Sk, D],
  ];
  const forward = {
    q: noise.tensor(type, q),
    k: noise.tensor(type, k),
    v: noise.tensor(type, k),
    out: engine.allocate(type, q),
    lse: engine.allocate('f32', [B, Hq, Sq]),
    sides: sides.map((s) => engine.upload(s as Parameters<Engine['upload']>[0])),
    sink: null,
  };
  const backward =
    grads === null
      ? {}
      : {
          dOut: noise.tensor(type, q),
          dLse: null,
          dq: engine.allocate(type, q),
          dk: engine.allocate(type, k),
          dv: engine.allocate(type, k),
          dSides: sides.map(() => null),
          dSink: null,
        };
  const operands: Operands = { ...forward, ...backward };
  const dispose = (): void => {
    for (const t of Object.values(operands)) if (t !== null && 'dispose' in t) t.dispose();
    for (const t of forward.sides) t.dispose();
  };
  return { operands, dispose };
}

/** The kernels of a pass that serve the problem. */
export const serving = (engine: CudaEngine, problem: Problem, pass: Pass): readonly Kernel[] =>
  engine.kernels.filter((k) => k.pass === pass && k.refuse(problem, engine.caps) === null) as readonly Kernel[];

export const stepOf = (engine: CudaEngine, problem: Problem, kernel: Kernel, config: Config): Step => ({
  pass: kernel.pass,
  kernel: kernel.name,
  config,
  cost: kernel.cost(problem, config, engine.caps),
});

export const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1];
