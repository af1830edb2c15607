/** The `--engine`, `--threads`, `--device`, `--no-revectorize` and `--no-native` options, and the engines they ask for. */
import type { Command } from 'commander';
import { AUTO_ORDER, engineNamed, type LoadableEngine, openEngine, reasonOf } from '../api/registry.ts';
import { type Refusal, UnsupportedError } from '../core/errors.ts';
import type { Engine } from '../engine/contract.ts';
import { integer } from './command.ts';

export interface EngineFlags {
  readonly engine?: string;
  readonly threads?: number;
  readonly device?: number;
  /** Commander's name for the absence of `--no-revectorize`. */
  readonly revectorize: boolean;
  /** Commander's name for the absence of `--no-native`. */
  readonly native: boolean;
}

export const engineOptions = (to: Command): Command =>
  to
    .option(
      '--engine <name>',
      `engine: ${AUTO_ORDER.join(', ')}, math, or auto (all in this order); default: wasm, then reference`,
    )
    .option('--threads <n>', 'threads of the wasm engine; default: one a hardware thread', integer(1))
    .option('--device <n>', "which GPU the cuda engine takes, by the driver's numbers; default: 0", integer(0))
    .option('--no-revectorize', "leave V8's experimental 256-bit mode off")
    .option('--no-native', 'leave out x86-64 machine code of the library itself (Linux, with the package koffi)');

/** One engine with the options of the command line. @throws what its `open` throws. */
export async function openOne(
  name: LoadableEngine,
  { threads, device, revectorize, native }: Omit<EngineFlags, 'engine'>,
): Promise<Engine> {
  if (name === 'wasm') return openEngine('wasm', { threads, revectorize, native });
  return name === 'cuda' ? openEngine('cuda', { device }) : openEngine(name);
}

/**
 * The engines to plan with, in order. One that was named must open; of several, those that do not are left out.
 *
 * @throws ArgumentError for an unknown name; DeviceError for a named engine that cannot run here.
 */
async function openEngines(flags: EngineFlags): Promise<Engine[]> {
  const { engine: word } = flags;
  if (word !== undefined && word !== 'auto') return [await openOne(engineNamed(word), flags)];
  const order: readonly LoadableEngine[] = word === 'auto' ? AUTO_ORDER : ['wasm', 'reference'];
  const engines: Engine[] = [];
  const refusals: Refusal[] = [];
  for (const name of order) {
    try {
      engines.push(await openOne(name, flags));
    } catch (error) {
      refusals.push({ engine: name, reason: reasonOf(error) });
    }
  }
  // What was asked for by name fails above; what was only preferred is passed over, but not in silence.
  for (const { engine, reason } of refusals) process.stderr.write(`tilewise: ${engine} is not used: ${reason}\n`);
  if (engines.length === 0) throw new UnsupportedError('tilewise', refusals);
  return engines;
}

/** Runs `work` on the engines of the command line and closes them, whatever happens. */
export async function withEngines<T>(flags: EngineFlags, work: (engines: readonly Engine[]) => Promise<T>): Promise<T> {
  const engines = await openEngines(flags);
  try {
    return await work(engines);
  } finally {
    await Promise.all(engines.map((e) => e.close()));
  }
}
