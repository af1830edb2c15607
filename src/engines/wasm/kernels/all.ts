/** The engine's kernels, in the order the planner tries them. */
import type { WasmKernel } from '../kernel.ts';
import { backward } from './backward.ts';
import { decode } from './decode.ts';
import { forward } from './forward.ts';

export const KERNELS: readonly WasmKernel[] = [forward, decode, backward];
