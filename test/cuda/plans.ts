/** Plans whose code is kept: as golden text, and by the registers ptxas gives it. */
import { tensor } from '../../src/core/tensor.ts';
import type { CudaCaps, CudaKernel } from '../../src/engines/cuda/kernel.ts';
import { backwardMma } from '../../src/engines/cuda/kernels/backward_mma.ts';
import { decodeSplit } from '../../src/engines/cuda/kernels/decode_split.ts';
import { forwardMma } from '../../src/engines/cuda/kernels/forward_mma.ts';
import { alibi, and, biasTensor, causal, compose, slidingWindow, softcap } from '../../src/mods/library.ts';
import type { Problem } from '../../src/problem/problem.ts';
import { problemOf } from './problems.ts';

/** An H200, as far as choosing tiles goes. */
export const CAPS: CudaCaps = {
  engine: 'cuda',
  device: 'NVIDIA H200',
  features: {},
  memory: 2 ** 37,
  flops: 4e14,
  bandwidth: 4.3e12,
  capability: 90,
  multiprocessors: 132,
  sharedPerBlock: 232448,
  l2Bytes: 60 * 2 ** 20,
};

export interface NamedPlan {
  readonly name: string;
  readonly kernel: CudaKernel;
  readonly problem: Problem;
  /** Its text is kept as well. */
  readonly golden?: true;
}

const N = 1024;
const slopes = tensor(Float32Array.of(0.5, 0.25), [2]);
const bias = tensor(new Float32Array(2 * N), [2, 1, N]);

function plans(): NamedPlan[] {
  const list: NamedPlan[] = [];
  for (const dtype of ['bf16', 'f16', 'f32'] as const)
    for (const D of [64, 128, 256])
      for (const mask of [undefined, causal()]) {
        const problem = problemOf({ dtype, D, Sq: N, Sk: N, grads: true, ...(mask && { mask }) });
        const name = `${dtype}.d${D}.${mask ? 'causal' : 'full'}`;
        list.push({ name: `forward.${name}`, kernel: forwardMma, problem });
        list.push({ name: `backward.${name}`, kernel: backwardMma, problem });
      }
  const shape = { D: 128, Sq: N, Sk: N } as const;
  const rich = problemOf({
    ...{ D: 64, Sq: N, Sk: N, grads: true },
    mask: and(causal(), slidingWindow(100)),
    mod: compose(softcap(20), alibi(slopes), biasTensor(bias)),
    over: { sink: true, dropout: { p: 0.1, seed: [1, 2], offset: 3 } },
  });
  list.push(
    {
      name: 'forward.bf16.d128.alibi',
      kernel: forwardMma,
      problem: problemOf({ ...shape, mask: causal(), mod: alibi(slopes) }),
    },
    { name: 'forward.bf16.d128.softcap', kernel: forwardMma, problem: problemOf({ ...shape, mod: softcap(20) }) },
    { name: 'forward.bf16.d64.everything', kernel: forwardMma, problem: rich },
    { name: 'backward.bf16.d64.everything', kernel: backwardMma, problem: rich },
    { name: 'decode.bf16.d128', kernel: decodeSplit, problem: problemOf({ Hq: 32, Hkv: 8, Sq: 1, Sk: 8192, D: 128 }) },
    {
      name: 'decode.bf16.d128.paged',
      kernel: decodeSplit,
      problem: problemOf({
        ...{ Hq: 32, Hkv: 8, Sq: 1, Sk: 8192, D: 128 },
        over: { kv: { kind: 'paged', pageSize: 16, maxPages: 512, table: new Int32Array(512) } },
      }),
    },
    {
      name: 'decode.f32.d64',
      kernel: decodeSplit,
      problem: problemOf({ dtype: 'f32', Hq: 4, Hkv: 1, Sq: 2, Sk: 999 }),
    },
    {
      name: 'small.forward',
      kernel: forwardMma,
      problem: problemOf({ D: 16, mask: causal(), dtype: 'f16' }),
      golden: true,
    },
    { name: 'small.backward', kernel: backwardMma, problem: problemOf({ D: 16, grads: true }), golden: true },
    {
      name: 'small.decode',
      kernel: decodeSplit,
      problem: problemOf({ Hkv: 1, Sq: 1, D: 16, dtype: 'f32' }),
      golden: true,
    },
  );
  return list;
}

export const PLANS: readonly NamedPlan[] = plans();
