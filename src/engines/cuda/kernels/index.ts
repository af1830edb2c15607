/** Every kernel of this engine; the planner takes the cheapest that does not refuse. */
import type { CudaKernel } from '../kernel.ts';
import { backwardMma } from './backward_mma.ts';
import { backwardWgmma } from './backward_wgmma.ts';
import { backwardWgmmaFused } from './backward_wgmma_fused.ts';
import { backwardWgmmaPair } from './backward_wgmma_pair.ts';
import { decodeSplit } from './decode_split.ts';
import { forwardMma } from './forward_mma.ts';
import { forwardWgmma } from './forward_wgmma.ts';

export const KERNELS: readonly CudaKernel[] = [
  forwardMma,
  decodeSplit,
  backwardMma,
  forwardWgmma,
  backwardWgmma,
  backwardWgmmaFused,
  backwardWgmmaPair,
];
