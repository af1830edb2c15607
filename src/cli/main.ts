#!/usr/bin/env node
/** The `tilewise` command: one file a subcommand, nothing else here but their list and what happens to errors. */
import { Command, CommanderError } from 'commander';
import { attend } from './attend.ts';
import { bench } from './bench.ts';
import { check } from './check.ts';
import { report } from './command.ts';
import { doctor } from './doctor.ts';
import { dump } from './dump.ts';
import { explain } from './explain.ts';
import { ownPackage } from './machine.ts';
import { tune } from './tune.ts';

const { version, description } = ownPackage();

const program = new Command('tilewise')
  .description(description)
  .version(version)
  .showHelpAfterError('(--help lists the commands)')
  .addHelpText('after', '\nEvery command has examples: tilewise attend --help');
for (const make of [attend, doctor, explain, check, bench, tune, dump]) program.addCommand(make());
for (const one of [program, ...program.commands, ...program.commands.flatMap((c) => c.commands)]) one.exitOverride();

// A reader that has seen enough (`tilewise dump | head`) is no error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exit(0);
});

try {
  await program.parseAsync();
} catch (error) {
  // Commander has told usage errors, help and version already.
  process.exitCode =
    error instanceof CommanderError ? error.exitCode : report(error, process.argv.includes('--verbose'));
}
