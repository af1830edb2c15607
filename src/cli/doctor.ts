import type { Command } from 'commander';
import { type LoadableEngine, doctor as probeAll } from '../api/registry.ts';
import type { Caps, Probe } from '../engine/contract.ts';
import { command } from './command.ts';
import { type EngineFlags, engineOptions, openOne } from './engines.ts';
import { machine } from './machine.ts';
import { count, mebibytes, pairs, print, printJson } from './terminal.ts';

interface Flags extends EngineFlags {
  readonly json?: boolean;
}

/** Which engines run here, with what features, and why each other does not. */
export const doctor = (): Command =>
  engineOptions(
    command('doctor', 'which engines run here, with what features, and why each other does not', [
      'tilewise doctor',
      'tilewise doctor --json',
    ]),
  )
    .option('--json', 'print JSON')
    .action(async (flags: Flags) => {
      const found = await Promise.all((await probeAll()).map((probe) => opened(probe, flags)));
      if (flags.json) {
        printJson({ machine: machine(), engines: found });
        return;
      }
      const { node, platform, cpu, cores, memory } = machine();
      print(`Node ${node} on ${platform}, ${cpu}, ${cores} cores, ${mebibytes(memory)} MiB\n`);
      for (const one of found) print(`${describe(one)}\n`);
    });

interface Finding {
  readonly probe: Probe;
  /** What the engine offers once open; null when it does not run here. */
  readonly caps: Caps | null;
}

/** Probing says what should work; opening shows it. */
async function opened(probe: Probe, flags: EngineFlags): Promise<Finding> {
  if (!probe.available) return { probe, caps: null };
  try {
    const engine = await openOne(probe.engine as LoadableEngine, flags);
    const { caps } = engine;
    await engine.close();
    return { probe, caps };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return { probe: { engine: probe.engine, available: false, reason }, caps: null };
  }
}

function describe({ probe, caps }: Finding): string {
  if (!probe.available) return `✗ ${probe.engine}: ${probe.reason.replace(`${probe.engine}: `, '')}`;
  if (caps === null) return `✓ ${probe.engine}: ${probe.detail}`;
  const features = Object.entries(caps.features).map(([name, value]) => [`    ${name}`, String(value)] as const);
  const rates = `${count(caps.flops)}FLOP/s, ${count(caps.bandwidth)}B/s (estimates that plans are ranked by)`;
  const list = [...features, ['    memory', `${mebibytes(caps.memory)} MiB at most`], ['    rates', rates]] as const;
  return `✓ ${probe.engine}: ${caps.device}\n${pairs(list)}`;
}
