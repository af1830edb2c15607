/** Every kernel of the engine; the plan chooses by `refuse` and `cost`. */
import { backward } from './backward.ts';
import { decode } from './decode.ts';
import { defineForward, forward } from './forward.ts';
import type { WebGpuKernel } from './kernel.ts';

export const KERNELS = [
  decode,
  defineForward('forward-subgroup', 'subgroup'),
  forward,
  backward,
] as unknown as readonly WebGpuKernel[];
