/** What the benches of the CUDA engine share: problems from shapes, tensors of noise made on the device, steps by hand. */
import { toBf16 } from '../../src/core/dtype.ts';
import { sizeOf, type TensorLike, tensor } from '../../src/core/tensor.ts';
import type { Config, Engine, EngineTensor, Kernel, Operands, Pass, Step } from '../../src/engine/contract.ts';
import type { CudaEngine } from '../../src/engines/cuda/index.ts';
import { CONTEXT, type Mask, type Mod, nodesOf } from '../../src/mods/expr.ts';
import { createProblem, denseSequences, type KvStorage, type Problem, stridesOf } from '../../src/problem/problem.ts';

export interface Shape {
  readonly B: number;
  readonly Hq: number;
  readonly Hkv?: number;
  readonly Sq: number;
  readonly Sk: number;
  readonly D: number;
  readonly dtype?: 'bf16' | 'f32';
  readonly mask?: Mask | undefined;
  readonly mod?: Mod | undefined;
  /** Probability of dropping. */
  readonly dropout?: number | undefined;
  readonly grads?: boolean;
  /** Rows of a page of K and V, in shuffled order; dense when absent. */
  readonly pageSize?: number | undefined;
}

export function problemOf(shape: Shape): Problem {
  const { B, Hq, Hkv = Hq, Sq, Sk, D, dtype = 'bf16', mask, mod, dropout, grads, pageSize } = shape;
  const built = {
    mask: mask ? { label: mask.label, expr: mask.build(CONTEXT) } : null,
    mod: mod ? { label: mod.label, expr: mod.build(CONTEXT) } : null,
  };
  const sides = new Set<TensorLike>();
  for (const named of [built.mask, built.mod])
    if (named) for (const e of nodesOf(named.expr)) if (e.kind === 'load') sides.add(e.tensor);
  const q = stridesOf('bhnd', Hq, Sq, D);
  const k = stridesOf('bhnd', Hkv, pageSize ?? Sk, D);
  return createProblem({
    B,
    Hq,
    Hkv,
    Sq,
    Sk,
    D,
    Dv: D,
    dtype,
    scale: D ** -0.5,
    strides: { q, k, v: k, out: q, lse: stridesOf('bhnd', Hq, Sq, 1) },
    sequences: denseSequences(B, Sq, Sk),
    uniform: true,
    kv: pageSize === undefined ? { kind: 'strided' } : pagesOf(B, Sk / pageSize, pageSize),
    ...built,
    sides: [...sides],
    sink: false,
    dropout: dropout === undefined ? null : { p: dropout, seed: [1, 2], offset: 0 },
    grads: grads === true ? { q: true, k: true, v: true, sides: [...sides].map(() => false), sink: false } : null,
  });
}

/** As many pages as the keys fill, far from their neighbours. */
function pagesOf(B: number, maxPages: number, pageSize: number): KvStorage {
  const n = B * maxPages;
  const step = 7919;
  return { kind: 'paged', pageSize, maxPages, table: Int32Array.from({ length: n }, (_, i) => (i * step) % n) };
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
