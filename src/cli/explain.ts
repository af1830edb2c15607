import type { Command } from 'commander';
import { explain as explainCall } from '../api/explain.ts';
import { command } from './command.ts';
import { withEngines } from './engines.ts';
import { type PlannedFlags, plannedCall, plannedOptions } from './planned.ts';
import { print, printJson } from './terminal.ts';

/** The plan for given shapes, without computing anything. */
export const explain = (): Command =>
  plannedOptions(
    command('explain', 'the plan for given shapes: engine, tiles, FLOPs, bytes moved, memory, refusals', [
      'tilewise explain -n 4096 --causal',
      'tilewise explain -H 32 --kv-heads 8 -n 1 --kv-seq 8192 -d 128 --dtype bf16',
      'tilewise explain -n 16384 --causal --window 1024 --grad --json',
    ]),
  )
    .option('--json', 'print JSON')
    .action((flags: PlannedFlags & { readonly json?: boolean }) =>
      withEngines(flags, async (engines) => {
        const { q, k, v, options, grads } = plannedCall(flags);
        const asked = { ...options, engine: engines, ...(grads === null ? {} : { grads }) };
        const { text, ...data } = await explainCall(q, k, v, asked);
        if (flags.json) printJson(data);
        else print(text);
      }),
    );
