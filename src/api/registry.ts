/**
 * Where engines come from. The one file that names them: an engine is loaded when it is first asked for, by dynamic
 * import, so that an import of the library costs no engine.
 */
import { ArgumentError, DeviceError } from '../core/errors.ts';
import type { Engine, EngineName, Probe } from '../engine/contract.ts';

const LOADERS = {
  cuda: () => import('../engines/cuda/index.ts'),
  webgpu: () => import('../engines/webgpu/index.ts'),
  wasm: () => import('../engines/wasm/index.ts'),
  reference: () => import('../engines/reference/index.ts'),
};

type Loaders = typeof LOADERS;
/** Engines that this build can load. */
export type LoadableEngine = keyof Loaders;
/** What `openEngine(name, options)` takes: each engine's own options. */
export type OpenOptions<N extends EngineName> = Parameters<Awaited<ReturnType<Loaders[N]>>['open']>[0];
/** What it gives: the contract, and whatever else that engine can do. */
export type Opened<N extends EngineName> = Awaited<ReturnType<Awaited<ReturnType<Loaders[N]>>['open']>>;

/** The order of preference of `engine: 'auto'`: fastest hardware first, standard attention last. */
export const AUTO_ORDER: readonly EngineName[] = ['cuda', 'webgpu', 'wasm', 'reference'];

/** PyTorch's word for standard attention is understood wherever an engine is named. */
export type EngineWord = EngineName | 'math';

export function engineNamed(word: string): EngineName {
  const name = word === 'math' ? 'reference' : word;
  if (!Object.hasOwn(LOADERS, name)) throw new ArgumentError('engine', `one of ${AUTO_ORDER.join(', ')}, math`, word);
  return name as EngineName;
}

/**
 * Opens an engine of the caller's own: its memory and compiled programs are freed by its `close()`.
 *
 * @throws ArgumentError for an unknown name; DeviceError when the engine cannot run here (`doctor` says why beforehand).
 * @example
 * const engine = await openEngine('wasm', { threads: 2 });
 */
export async function openEngine<N extends EngineWord>(
  name: N,
  options?: OpenOptions<Named<N>>,
): Promise<Opened<Named<N>>> {
  const module = await LOADERS[engineNamed(name)]();
  return (module.open as (o?: unknown) => Promise<Engine>)(options ?? {}) as Promise<Opened<Named<N>>>;
}

type Named<N extends EngineWord> = N extends EngineName ? N : 'reference';

const shared = new Map<EngineName, Promise<Engine>>();

/**
 * The engine of that name that calls without an engine of their own share. Opened at first use and kept, as is the failure to
 * open it, until `closeSharedEngines`.
 */
export function sharedEngine(name: EngineName): Promise<Engine> {
  let opening = shared.get(name);
  if (opening === undefined) {
    opening = openEngine(name);
    shared.set(name, opening);
  }
  return opening;
}

/** Closes the shared engines, if any were opened. Later calls open them anew. */
export async function closeSharedEngines(): Promise<void> {
  const open = [...shared.values()];
  shared.clear();
  for (const engine of await Promise.allSettled(open)) if (engine.status === 'fulfilled') await engine.value.close();
}

/** Which engines can run here, in order of preference, and why each other cannot. Opens none. */
export async function doctor(): Promise<readonly Probe[]> {
  return Promise.all(
    AUTO_ORDER.map(async (engine): Promise<Probe> => {
      try {
        return await (await LOADERS[engine]()).probe();
      } catch (error) {
        return { engine, available: false, reason: reasonOf(error) };
      }
    }),
  );
}

/** Why an engine would not open, as one line for a refusal. */
export const reasonOf = (error: unknown): string =>
  error instanceof DeviceError ? error.message.replace(`${error.engine}: `, '') : String(error);
