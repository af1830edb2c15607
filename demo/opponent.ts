/**
 * Standard attention as the opponent: scores, softmax and product one after the other through N x N matrices. On the same
 * engine, threads and instructions when the WASM engine has such kernels, so that only the algorithm differs.
 */
import type { AttentionOptions } from '../src/api/options.ts';
import { openEngine } from '../src/api/registry.ts';
import type { Engine } from '../src/engine/contract.ts';

export interface Standard {
  readonly engine: Engine;
  /** Makes a call use it. */
  readonly options: Pick<AttentionOptions, 'prefer'>;
  readonly backward: boolean;
  /** Longest sequence worth waiting for. */
  readonly longest: number;
  /** How many times longer than Tilewise it is expected to take: for the time left, nothing else. */
  readonly slowness: number;
  readonly words: string;
}

export async function openStandard(budget: number, threads: number | undefined): Promise<Standard> {
  const wasm = await openEngine('wasm', { revectorize: true, threads });
  const kernel = (pass: string) => wasm.kernels.find((k) => k.pass === pass && k.name.startsWith('standard'))?.name;
  const [forward, backward] = [kernel('forward'), kernel('backward')];
  if (forward !== undefined) {
    const prefer = {
      forward: { kernel: forward },
      ...(backward === undefined ? {} : { backward: { kernel: backward } }),
    };
    const words = `standard attention: ${wasm.caps.device}, the same code generator`;
    return {
      engine: wasm,
      options: { prefer },
      backward: backward !== undefined,
      longest: Number.POSITIVE_INFINITY,
      slowness: 3,
      words,
    };
  }
  await wasm.close();
  const engine = await openEngine('reference', { workspace: budget });
  const words = 'standard attention: plain JavaScript in float64, one thread';
  return { engine, options: {}, backward: true, longest: 1024, slowness: 50, words };
}
