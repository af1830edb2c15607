/** Whether 256-bit code may be used: the real kernels against their 128-bit selves, on a small ragged causal problem. */
import { alignTo } from '../../core/math.ts';
import { apply, CONTEXT } from '../../mods/expr.ts';
import { createProblem, denseSequences, type Problem, stridesOf } from '../../problem/problem.ts';
import { WasmHeap } from './heap.ts';
import type { Addresses, WasmCaps, WasmKernel } from './kernel.ts';
import { quiet } from './quiet.ts';
import { compileOptimised, compileWide } from './revectorize.ts';
import { Runtime } from './runtime.ts';

const [H, SQ, SK, D] = [2, 150, 171, 36];
/** Both compute the same operations in the same order; only the rounding of a fused step may differ. */
const TOLERANCE = 1e-5;
/** 256-bit code has to be faster by this factor; it is nearly 2 where the mode works and below 1 where it does not. */
const GAIN = 1.15;
const ROUNDS = 8;

/** Verdicts of this process: flags and processor do not change. */
const verdicts = new WeakMap<readonly WasmKernel[], Promise<string | null>>();

/** Why 256-bit code is not to be used, or null. Takes some 50 ms the first time. */
export function selfTest(kernels: readonly WasmKernel[], caps: WasmCaps): Promise<string | null> {
  const verdict = verdicts.get(kernels) ?? judge(kernels, caps);
  verdicts.set(kernels, verdict);
  return verdict;
}

async function judge(kernels: readonly WasmKernel[], caps: WasmCaps): Promise<string | null> {
  const alone: WasmCaps = { ...caps, shared: false, threads: 1, native: 0 };
  const problem = causalProblem();
  const wide = new Rig(problem);
  const narrow = new Rig(problem);
  try {
    for (const pass of ['forward', 'backward'] as const) {
      const kernel = kernels.find((k) => k.pass === pass && k.refuse(problem, alone) === null);
      if (kernel === undefined) continue;
      const runWide = await wide.program(kernel, alone, compileWide);
      const runNarrow = await narrow.program(kernel, alone, compileOptimised);
      const gain = await race(runNarrow, runWide);
      const error = wide.distance(narrow);
      if (!(error < TOLERANCE)) return `revectorize: ${pass} differs by ${error} from 128-bit code`;
      if (gain < GAIN) return `revectorize: ${pass} gains nothing (${gain.toFixed(2)} x)`;
    }
    return null;
  } catch (error) {
    return `revectorize: ${String(error)}`;
  } finally {
    await wide.runtime.close();
    await narrow.runtime.close();
  }
}

/** One problem's tensors in a memory of their own. */
class Rig {
  readonly runtime = new Runtime(new WasmHeap({ shared: false, limit: 2 ** 24, guards: false }), null, null);
  readonly #problem: Problem;
  readonly #at: Addresses;
  /** Index of the first float of the results, and how many there are. */
  readonly #results: readonly [first: number, count: number];

  constructor(problem: Problem) {
    this.#problem = problem;
    const [onQ, onK] = [H * SQ * D, H * SK * D];
    const sizes = { q: onQ, k: onK, v: onK, dOut: onQ, dLse: H * SQ, out: onQ, lse: H * SQ, dq: onQ, dk: onK, dv: onK };
    const at: Record<string, number> = { sink: 0, dSink: 0 };
    let count = 0;
    for (const [name, n] of Object.entries(sizes)) {
      at[name] = 4 * count;
      count += alignTo(n, 16);
    }
    const { heap } = this.runtime;
    const base = heap.allocate(4 * count);
    for (const name of Object.keys(sizes)) at[name] += base;
    this.#at = { ...(at as unknown as Addresses), sides: [], dSides: [] };
    for (let i = base / 4; i < at.out / 4; i++) heap.f32[i] = Math.sin(i * 1.7) * 1.5;
    this.#results = [at.out / 4, count - (at.out - base) / 4];
  }

  async program(
    kernel: WasmKernel,
    caps: WasmCaps,
    compile: (bytes: Uint8Array<ArrayBuffer>) => WebAssembly.Module,
  ): Promise<() => Promise<void>> {
    const config = kernel.configs(this.#problem, caps)[0];
    const program = await this.runtime.program(kernel.name, async () => {
      const { module, scratch } = kernel.compile(this.#problem, config, caps);
      await quiet();
      return { module: compile(module), scratch, routines: [] };
    });
    const launch = kernel.launch.bind(kernel, this.#problem, config, this.#at);
    return () => this.runtime.run(program, launch, 0, {});
  }

  /** The largest difference of any result; NaN counts as infinite. */
  distance(other: Rig): number {
    const [first, count] = this.#results;
    const mine = this.runtime.heap.f32.subarray(first, first + count);
    const theirs = other.runtime.heap.f32.subarray(first, first + count);
    return mine.reduce((most, x, i) => Math.max(most, x === theirs[i] ? 0 : Math.abs(x - theirs[i])), 0);
  }
}

/** How many times faster `b` is than `a`, by the best of a few alternating rounds. */
async function race(a: () => Promise<void>, b: () => Promise<void>): Promise<number> {
  const best = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
  for (let round = 0; round < ROUNDS; round++)
    for (const [i, run] of [a, b].entries()) {
      const start = performance.now();
      await run();
      best[i] = Math.min(best[i], performance.now() - start);
    }
  return best[0] / best[1];
}

function causalProblem(): Problem {
  const { q, kv } = CONTEXT;
  return createProblem({
    B: 1,
    Hq: H,
    Hkv: H,
    Sq: SQ,
    Sk: SK,
    D,
    Dv: D,
    dtype: 'f32',
    scale: 1 / Math.sqrt(D),
    strides: {
      q: stridesOf('bhnd', H, SQ, D),
      k: stridesOf('bhnd', H, SK, D),
      v: stridesOf('bhnd', H, SK, D),
      out: stridesOf('bhnd', H, SQ, D),
      lse: { b: H * SQ, h: SQ, s: 1 },
    },
    sequences: denseSequences(1, SQ, SK),
    uniform: true,
    kv: { kind: 'strided' },
    mask: { label: 'causal', expr: apply('ile', kv, q) },
    mod: null,
    sides: [],
    sink: false,
    dropout: null,
    grads: { q: true, k: true, v: true, sides: [], sink: false },
  });
}
