/** What people see: tables and numbers on standard output, progress on standard error and only when that is a terminal. */
import cliProgress from 'cli-progress';
import Table from 'cli-table3';

/** Writes a line of results. */
export const print = (text = ''): void => void process.stdout.write(`${text}\n`);

/** Writes results for programs: one JSON document. Typed arrays become arrays, infinities and NaN strings. */
export const printJson = (value: unknown): void => print(toJson(value));

export const toJson = (value: unknown): string => JSON.stringify(value, plain, 2);

const plain = (_: string, value: unknown): unknown =>
  ArrayBuffer.isView(value)
    ? Array.from(value as unknown as ArrayLike<number>)
    : typeof value === 'number' && !Number.isFinite(value)
      ? String(value)
      : value;

/** Cells of a column of numbers are right-aligned: a column is numeric when its first cell is. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const numeric = head.map((_, i) => rows.length > 0 && /^[-\d.]|^(inf|nan)/i.test(String(rows[0][i])));
  const t = new Table({
    head: [...head],
    colAligns: numeric.map((n) => (n ? 'right' : 'left')),
    style: { head: [], border: [], compact: true },
  });
  for (const row of rows) t.push(row.map(String));
  return t.toString();
}

/** Pairs, one a line, keys padded to one width. */
export function pairs(list: readonly (readonly [key: string, value: string])[]): string {
  const width = Math.max(...list.map(([key]) => key.length));
  return list.map(([key, value]) => `${key.padEnd(width)}  ${value}`).join('\n');
}

/** Milliseconds from seconds, three significant digits. */
export const milliseconds = (seconds: number): string => significant(seconds * 1000);

/** GFLOP/s. */
export const rate = (flops: number, seconds: number): string => significant(flops / seconds / 1e9);

export const mebibytes = (bytes: number): string => significant(bytes / 2 ** 20);

/** Bytes in binary units, three digits: 1.5 MiB. */
export function bytes(n: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  const i = n < 1024 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(n) / 10));
  return `${Number((n / 1024 ** i).toPrecision(3))} ${units[i]}`;
}

/** Three significant digits without an exponent for numbers of everyday size. */
export function significant(x: number): string {
  if (x === 0 || !Number.isFinite(x)) return String(x);
  const size = Math.abs(x);
  if (size < 1e-3 || size >= 1e7) return x.toExponential(1);
  return x.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
}

/** A count with a decimal prefix: 8.6 G. */
export function count(x: number): string {
  const prefixes = ['', ' k', ' M', ' G', ' T', ' P'];
  const i = x < 1000 ? 0 : Math.min(prefixes.length - 1, Math.floor(Math.log10(x) / 3));
  return `${significant(x / 1000 ** i)}${prefixes[i]}`;
}

/** One line that tells how far long work is and how long it will take. */
export interface Progress {
  /** The finished share, 0 to 1. */
  update(share: number, what?: string): void;
  /** A line that stays, above the moving one; also where nothing moves. */
  note(line: string): void;
  /** Removes the line. Calling it twice is allowed. */
  stop(): void;
}

/** A bar on standard error with the time left; notes alone when standard error is no terminal. */
export function progress(what: string): Progress {
  const write = (text: string): void => void process.stderr.write(text);
  if (!process.stderr.isTTY) return { update: () => {}, note: (line) => write(`${line}\n`), stop: () => {} };
  const bar = new cliProgress.SingleBar({
    format: '{bar} {percentage}% | {eta_formatted} left | {what}',
    stream: process.stderr,
    barsize: 24,
    clearOnComplete: true,
    hideCursor: true,
    etaBuffer: 50,
    barCompleteChar: '█',
    barIncompleteChar: '░',
  });
  bar.start(1000, 0, { what });
  let running = true;
  return {
    update: (share, now) => bar.update(Math.round(share * 1000), now === undefined ? {} : { what: now }),
    // The moving line is drawn again at the next update.
    note: (line) => write(`\r\x1b[2K${line}\n`),
    stop: () => {
      if (running) bar.stop();
      running = false;
    },
  };
}
