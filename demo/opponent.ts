/** Standard attention as the opponent: on an engine of the same kind, threads and instructions, with kernels of its own. */
import { open, WasmEngine, type WasmOptions } from '../src/engines/wasm/index.ts';
import { STANDARD_KERNELS } from './standard.ts';

/** An engine that knows nothing but standard attention; the caller closes it. */
export async function openStandard(options: WasmOptions): Promise<WasmEngine> {
  const { runtime, caps } = await open(options);
  return new WasmEngine(runtime, caps, STANDARD_KERNELS);
}

/** How many times longer than Tilewise it is expected to take: for the time left, nothing else. */
export const SLOWNESS = 3;
