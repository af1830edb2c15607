/** Every kernel of the engine; the plan chooses by `refuse` and `cost`. */
import { defineForward, forward } from './forward.ts';
import type { WebGpuKernel } from './kernel.ts';

export const KERNELS: readonly WebGpuKernel[] = [
  defineForward('forward-subgroup', 'subgroup'),
  forward,
] as unknown as readonly WebGpuKernel[];
