import type { Command } from 'commander';
import { tunedHere } from '../api/tuned.ts';
import { ArgumentError } from '../core/errors.ts';
import type { Engine } from '../engine/contract.ts';
import type { TunedRecord } from '../plan/tuned.ts';
import { type BenchTask, suite, taskOf } from './bench.ts';
import { command, integer, interruptible } from './command.ts';
import { withEngines } from './engines.ts';
import { type PlannedFlags, plannedOptions } from './planned.ts';
import { milliseconds, print, printJson, progress, table } from './terminal.ts';
import { type Tuning, tunings } from './tuning.ts';

interface Flags extends PlannedFlags {
  readonly suite?: boolean;
  readonly rounds: number;
  readonly dry?: boolean;
  readonly list?: boolean;
  readonly forget?: boolean;
  readonly json?: boolean;
}

/** Measures the configurations a plan chooses from, on this machine, and keeps the fastest for later plans. */
export const tune = (): Command =>
  plannedOptions(
    command(
      'tune',
      'time the configurations a plan chooses from, and keep the fastest for later plans on this machine',
      [
        'tilewise tune --engine cuda --dtype bf16 -H 16 -n 8192 -d 128 --causal --grad',
        'tilewise tune --engine cuda --dtype bf16 --suite --grad --rounds 5',
        'tilewise tune --engine webgpu --suite --dry',
        'tilewise tune --list',
      ],
    ),
  )
    .option('--suite', 'the standard set of shapes, as in bench')
    .option('--rounds <n>', 'times each configuration is timed, one after the other', integer(1), 7)
    .option('--dry', 'show what would be timed and what is predicted; time and keep nothing')
    .option('--list', 'show what is kept, and stop')
    .option('--forget', 'remove everything that is kept, and stop')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      `
A choice is kept for a class of calls: same engine, device, element type, head sizes, masks and modifiers, and lengths and
number of heads up to the next power of two. It lies in the folder "tuned" of the cache (TILEWISE_CACHE, else the user's
cache folder), and holds until other configurations are offered. The whole call is timed with tensors in the engine.`,
    )
    .action(async (flags: Flags) => {
      const store = tunedHere();
      if (store === null) throw new ArgumentError('tune', 'a machine with files', null);
      if (flags.forget) {
        const n = store.forget();
        if (flags.json) printJson({ forgotten: n });
        else print(`${n} measured choice${n === 1 ? '' : 's'} forgotten`);
      } else if (flags.list) list(store.list(), flags.json === true);
      else await withEngines(flags, (engines) => run(flags, engines, (record) => store.publish(record)));
    });

async function run(flags: Flags, engines: readonly Engine[], publish: (record: TunedRecord) => void): Promise<void> {
  const tasks: readonly BenchTask[] = flags.suite ? suite(flags) : [taskOf(flags)];
  const signal = interruptible();
  const bar = progress('');
  const all: Tuning[] = [];
  try {
    for (const [i, task] of tasks.entries()) {
      const onProgress = (share: number, what: string): void => bar.update((i + share) / tasks.length, what);
      for await (const one of tunings(engines, task, {
        rounds: flags.rounds,
        dry: flags.dry === true,
        signal,
        onProgress,
      })) {
        all.push(one);
        if (one.record !== null) publish(one.record);
        if (!flags.json) bar.note(describe(one));
      }
    }
  } finally {
    bar.stop();
  }
  if (flags.json) printJson(all);
  else for (const one of all) show(one);
}

const named = (kernel: string, config: object): string =>
  [kernel, ...Object.entries(config).map(([name, value]) => `${name}=${value}`)].join(' ');

function describe({ id, rows, record }: Tuning): string {
  if (rows.length === 1) return `${id}: one configuration, nothing to choose`;
  if (record === null) return `${id}: ${rows.length} configurations`;
  const chosen = rows.find((r) => r.predictedBest)?.seconds ?? null;
  const gain = chosen === null ? '' : `, ${(chosen / record.seconds).toFixed(2)}x the predicted choice`;
  return `${id}: ${named(record.winner.kernel, record.winner.config)}${gain}`;
}

function show({ id, rows }: Tuning): void {
  print(id);
  const body = rows.map((r) => [
    milliseconds(r.predicted),
    r.seconds === null ? '' : milliseconds(r.seconds),
    r.winner ? 'fastest' : r.predictedBest ? 'predicted' : (r.error ?? ''),
    named(r.kernel, r.config),
  ]);
  print(table(['predicted ms', 'median ms', '', 'configuration'], body));
}

function list(records: readonly TunedRecord[], json: boolean): void {
  if (json) printJson(records);
  else if (records.length === 0) print('nothing is kept: every plan goes by predictions');
  else
    print(
      table(
        ['ms', 'measured on', 'at', 'configuration'],
        records.map((r) => [
          milliseconds(r.seconds),
          r.key.split('\n')[1],
          `${r.id}, ${r.date.slice(0, 10)}`,
          named(r.winner.kernel, r.winner.config),
        ]),
      ),
    );
}
