/** Every kernel of the engine; the plan chooses by `refuse` and `cost`. */
import { backward } from './backward.ts';
import { backwardMatrix } from './backward_matrix.ts';
import { decode } from './decode.ts';
import { defineForward, forward } from './forward.ts';
import { forwardMatrix } from './forward_matrix.ts';
import type { WebGpuKernel } from './kernel.ts';

export const KERNELS = [
  decode,
  forwardMatrix,
  defineForward('forward-subgroup', 'subgroup'),
  forward,
  backwardMatrix,
  backward,
] as unknown as readonly WebGpuKernel[];
