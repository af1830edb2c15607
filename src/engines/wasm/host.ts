/** Node's built-in modules where there are some (Node, Deno, Bun): bundlers for browsers see no import of them. */
const host = (globalThis as { process?: Partial<NodeJS.Process> }).process;

export const nodeThreads = (): typeof import('node:worker_threads') | undefined =>
  host?.getBuiltinModule?.('node:worker_threads');
export const nodeOs = (): typeof import('node:os') | undefined => host?.getBuiltinModule?.('node:os');
export const nodeFs = (): typeof import('node:fs') | undefined => host?.getBuiltinModule?.('node:fs');
export const nodeV8 = (): typeof import('node:v8') | undefined => host?.getBuiltinModule?.('node:v8');

/** Versions of the runtime's parts, `node` and `v8` among them; empty in browsers. */
export const versions: Readonly<Record<string, string | undefined>> = host?.versions ?? {};
/** The processor architecture in Node's words, undefined in browsers. */
export const arch: string | undefined = host?.arch;
export const environment = (name: string): string | undefined => allowed(() => host?.env?.[name]);
/** Hardware threads, and the processor's name; undefined where the host does not tell. */
export const parallelism = (): number | undefined => allowed(() => nodeOs()?.availableParallelism());
export const processor = (): string | undefined => allowed(() => nodeOs()?.cpus()[0]?.model.trim());
/** Flags Node was started with. */
export const startFlags: readonly string[] = host?.execArgv ?? [];

/** The answer, or undefined where the host's sandbox refuses (Deno without permissions throws). */
function allowed<T>(ask: () => T): T | undefined {
  try {
    return ask();
  } catch {
    return undefined;
  }
}
