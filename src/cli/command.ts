/** How every command is declared, and how anything that goes wrong is told. */
import { Command, InvalidArgumentError } from 'commander';
import { TilewiseError } from '../core/errors.ts';

/** A command with what all have: `--verbose`, and examples after its help. */
export const command = (name: string, summary: string, examples: readonly string[]): Command =>
  new Command(name)
    .description(summary)
    .option('--verbose', 'show stack traces of errors')
    .showHelpAfterError('(--help shows the options)')
    .addHelpText('after', `\nExamples:\n${examples.map((e) => `  $ ${e}`).join('\n')}`);

/** Parsers of option values: commander names the option in front of their messages. */
export function integer(least: number): (text: string) => number {
  return (text) => {
    const n = Number(text);
    if (!Number.isInteger(n) || n < least || text.trim() === '')
      throw new InvalidArgumentError(`expected an integer >= ${least}`);
    return n;
  };
}

/** An unsigned 64-bit integer. */
export function seed(text: string): bigint {
  if (!/^\d{1,20}$/.test(text)) throw new InvalidArgumentError('expected an integer >= 0 of 64 bits');
  return BigInt(text);
}

export function number(text: string): number {
  const x = Number(text);
  if (Number.isNaN(x) || text.trim() === '') throw new InvalidArgumentError('expected a number');
  return x;
}

/** "1024" or "512,0"; "*" on a side is no limit there. */
export function windowPair(text: string): number | [left: number | null, right: number | null] {
  const sides = text.split(',').map((side) => (side.trim() === '*' ? null : integer(0)(side)));
  if (sides.length > 2) throw new InvalidArgumentError('expected LEFT or LEFT,RIGHT');
  return sides.length === 2 ? [sides[0], sides[1]] : (sides[0] ?? [null, 0]);
}

/** True when the bare flag was given, else its value: 'bottom-right' or 'top-left'. */
export type CausalFlag = true | 'bottom-right' | 'top-left';

export function alignment(text: string): CausalFlag {
  if (text !== 'bottom-right' && text !== 'top-left')
    throw new InvalidArgumentError("expected 'bottom-right' or 'top-left'");
  return text;
}

/** Tells an error on standard error; the exit status: 1 for what the user can mend, 2 for a defect here, 130 for Ctrl-C. */
export function report(error: unknown, verbose: boolean): number {
  const expected = error instanceof TilewiseError || error instanceof InterruptedError || isSystemError(error);
  const stack = error instanceof Error && (verbose || !expected) ? error.stack : undefined;
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`tilewise: ${stack ?? message}\n`);
  return error instanceof InterruptedError ? 130 : expected ? 1 : 2;
}

const isSystemError = (error: unknown): boolean =>
  error instanceof Error && 'syscall' in error && typeof (error as NodeJS.ErrnoException).code === 'string';

/** A signal that fires at the first Ctrl-C; the second one ends the process as usual. */
export function interruptible(): AbortSignal {
  const controller = new AbortController();
  process.once('SIGINT', () => controller.abort(new InterruptedError()));
  return controller.signal;
}

/** Ctrl-C while computing. */
export class InterruptedError extends Error {
  override readonly name = 'InterruptedError';
  constructor() {
    super('interrupted');
  }
}
