/**
 * V8's 256-bit mode for WebAssembly SIMD (Node 24 and later on x86-64 with AVX2): an experimental, process-wide flag that
 * is read when a function is compiled. It is set around our own synchronous compilations and nowhere else, and only kept
 * in use after real kernels gave the same results with it and ran faster.
 */
import { arch, environment, nodeV8, startFlags, versions } from './host.ts';

const OPT_IN = 'TILEWISE_REVECTORIZE';
/**
 * Optimise at once, everything: lazy or baseline code would be compiled after the flag is back. Inlining goes by call counts
 * that baseline code collects; without it V8 14.6 ends the process on a failed check.
 */
const ON = ['--no-liftoff', '--no-wasm-lazy-compilation', '--no-wasm-inlining', '--experimental-wasm-revectorize'];
const OFF = ['--liftoff', '--wasm-lazy-compilation', '--wasm-inlining', '--no-experimental-wasm-revectorize'];

/** The option when given, else the environment variable. */
export const wanted = (option: boolean | undefined): boolean => option ?? environment(OPT_IN) === '1';

/** Why the mode cannot be had here; null when it is worth the self-test. */
export function unavailable(): string | null {
  const major = Number.parseInt(versions.node ?? '0', 10);
  if (nodeV8() === undefined || versions.bun !== undefined || versions.deno !== undefined || major < 24)
    return 'revectorize: needs Node 24 or later';
  if (arch !== 'x64') return `revectorize: needs an x86-64 processor, got ${arch}`;
  return null;
}

/**
 * Compiles with the optimiser and the 256-bit mode on. The code stays with the module, also when it is posted to workers.
 * V8 shares code between modules of equal bytes, so the bytes get a mark of their own.
 */
export function compileWide(bytes: Uint8Array<ArrayBuffer>): WebAssembly.Module {
  return compileUnder(ON, marked(bytes, 'wide'));
}

/** Compiles with the optimiser alone: what the self-test compares with. */
export function compileOptimised(bytes: Uint8Array<ArrayBuffer>): WebAssembly.Module {
  return compileUnder(ON.slice(0, -1), marked(bytes, 'optimised'));
}

function compileUnder(flags: readonly string[], bytes: Uint8Array<ArrayBuffer>): WebAssembly.Module {
  const v8 = nodeV8();
  for (const flag of flags) v8?.setFlagsFromString(flag);
  try {
    return new WebAssembly.Module(bytes);
  } finally {
    // Flags that the process was started with stay as they were.
    ON.forEach((on, i) => {
      if (!startFlags.includes(on)) v8?.setFlagsFromString(OFF[i]);
    });
  }
}

/** The module with an empty custom section of the given name at its end. */
function marked(bytes: Uint8Array<ArrayBuffer>, mark: string): Uint8Array<ArrayBuffer> {
  const name = new TextEncoder().encode(mark);
  const out = new Uint8Array(bytes.length + 3 + name.length);
  out.set(bytes);
  out.set([0, name.length + 1, name.length, ...name], bytes.length);
  return out;
}
