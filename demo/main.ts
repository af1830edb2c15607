/**
 * The main job on this machine, from a clone: attention forward and backward on a trained layer's Q, K, V, then a sweep of
 * sequence lengths beside standard attention, a table, and a report with plots. `npm run demo -- --quick` takes under a minute.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { Command } from 'commander';
import { openEngine } from '../src/api/registry.ts';
import { integer, number, report as tellError } from '../src/cli/command.ts';
import { commit, machine } from '../src/cli/machine.ts';
import { print } from '../src/cli/terminal.ts';
import { openStandard } from './opponent.ts';
import { measureReal } from './real.ts';
import { report } from './report.ts';
import { planSweep, sweep } from './sweep.ts';
import { realTable, sweepTable } from './tables.ts';

interface Flags {
  readonly quick?: boolean;
  readonly budget: number;
  readonly minutes?: number;
  readonly threads?: number;
  readonly out: string;
}

const OUT = 'tilewise-report';

async function demo(flags: Flags): Promise<void> {
  const started = performance.now();
  const budget = flags.budget * 2 ** 30;
  const options = { revectorize: true, threads: flags.threads };
  const engine = await openEngine('wasm', options);
  const standard = await openStandard(options);
  try {
    const { cpu, cores, node } = machine();
    print(`${cpu}, ${cores} cores, Node ${node}`);
    print(`${engine.caps.device}${engine.caps.features.revectorize === true ? ', 256-bit mode' : ''}\n`);

    print("A trained layer's Q, K, V: 4 heads, N = 2048, D = 64, causal, float32");
    const real = await measureReal(engine, standard);
    print(`${realTable(real)}\n`);

    const minutes = flags.minutes ?? (flags.quick ? 0.8 : 8);
    print(
      `Random Q, K, V: H = 8, D = 64, float32; standard attention within ${flags.budget} GiB, ${minutes} minutes in all`,
    );
    const rate = real.tilewise.forward.flops / real.tilewise.forward.median;
    const tasks = planSweep(flags.quick === true, rate, standard, budget);
    const deadline = started + minutes * 60_000;
    const rows = await sweep(tasks, { engine, standard, deadline });
    print(sweepTable(rows));

    await mkdir(flags.out, { recursive: true });
    const path = `${flags.out}/index.html`;
    const about = { machine: machine(), commit: commit(), engine: engine.caps, budget };
    await writeFile(path, report({ ...about, seconds: (performance.now() - started) / 1000, real, rows }));
    print(`\nReport with plots: ${path}`);
    print(`Took ${((performance.now() - started) / 1000).toFixed(0)} s`);
  } finally {
    await engine.close();
    await standard.close();
  }
}

const program = new Command('demo')
  .description('attention on real tensors, then against standard attention over sequence lengths')
  .option('--quick', 'up to N = 16384, and less time a size: under a minute')
  .option('--budget <GiB>', 'memory that standard attention may take for its N x N matrices', number, 2)
  .option(
    '--minutes <n>',
    'what would take longer than this in all is left out, and said so; default 8, quick 0.8',
    number,
  )
  .option('--threads <n>', 'threads; default: one a hardware thread', integer(1))
  .option('--out <folder>', 'where the report goes', OUT)
  .option('--verbose', 'show stack traces of errors')
  .action(demo);

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = tellError(error, process.argv.includes('--verbose'));
}
