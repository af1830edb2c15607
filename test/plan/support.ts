import type { Caps, Config, Cost, Engine, EngineName, Kernel, Pass } from '../../src/engine/contract.ts';
import { createProblem, denseSequences, type Problem, stridesOf } from '../../src/problem/problem.ts';

/** A kernel that says what it is told to. */
export function kernel(
  name: string,
  pass: Pass,
  costs: readonly number[],
  refusal: string | null = null,
  workspace = 0,
): Kernel {
  return {
    name,
    pass,
    refuse: () => refusal,
    configs: () => costs.map((seconds, i): Config => ({ seconds, blockQ: 16 << i })),
    cost: (_problem, config): Cost => ({ flops: 1, bytes: 1, workspace, seconds: Number(config.seconds) }),
    emit: () => [],
  };
}

/** As much of an engine as planning looks at. */
export function engine(name: EngineName, kernels: readonly Kernel[], memory = 2 ** 30): Engine {
  const caps: Caps = { engine: name, device: 'none', features: {}, memory, flops: 1e9, bandwidth: 1e9 };
  return { name, caps, kernels, bytesInUse: 0 } as unknown as Engine;
}

export function problem(changes: Partial<Problem> = {}): Problem {
  const [B, Hq, Hkv, S, D] = [1, 4, 2, 128, 32];
  return createProblem({
    B,
    Hq,
    Hkv,
    Sq: S,
    Sk: S,
    D,
    Dv: D,
    dtype: 'f32',
    scale: 1,
    strides: {
      q: stridesOf('bhnd', Hq, S, D),
      k: stridesOf('bhnd', Hkv, S, D),
      v: stridesOf('bhnd', Hkv, S, D),
      out: stridesOf('bhnd', Hq, S, D),
      lse: { b: Hq * S, h: S, s: 1 },
    },
    sequences: denseSequences(B, S, S),
    uniform: true,
    kv: { kind: 'strided' },
    mask: null,
    mod: null,
    sides: [],
    sink: false,
    dropout: null,
    grads: null,
    ...changes,
  });
}
