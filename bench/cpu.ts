/**
 * Measures the WASM engine against its peers on this machine, and writes bench/results/<machine>-<date>-node<major>.json.
 *
 *     npm ci --prefix bench/peers
 *     node bench/cpu.ts [--quick] [--no-peers] [--out FILE] [forward web both passes sparse scaling small memory]
 *
 * Every group and number of threads has a process of its own; inside, everyone runs in turn. Groups that are not named keep
 * the rows that the file has.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { commit, machine } from '../src/cli/machine.ts';
import { GROUPS } from './groups.ts';
import type { Row } from './harness.ts';

/** A committed result file. */
export interface ResultFile {
  readonly date: string;
  readonly commit: string | null;
  readonly machine: ReturnType<typeof machine> & { readonly vectors: string };
  readonly settings: { readonly quick: boolean; readonly peers: Readonly<Record<string, string>> };
  readonly rows: readonly Row[];
}

const words = process.argv.slice(2);
const flag = (name: string): boolean => words.includes(`--${name}`);
const value = (name: string): string | undefined => {
  const at = words.indexOf(`--${name}`);
  return at < 0 ? undefined : words[at + 1];
};
const isGroup = (word: string): word is keyof typeof GROUPS => Object.hasOwn(GROUPS, word);

if (flag('child')) {
  const group = words[words.indexOf('--child') + 1];
  if (!isGroup(group)) throw new TypeError(`no group ${group}`);
  const scope = { threads: Number(value('threads')), quick: flag('quick'), peers: !flag('no-peers') };
  process.stdout.write(JSON.stringify(await GROUPS[group](scope)));
  process.exit(0);
}

const script = (name: string): string =>
  fileURLToPath(new URL(`./${name}.${import.meta.url.endsWith('.ts') ? 'ts' : 'js'}`, import.meta.url));

function child<T>(file: string, args: readonly string[], env: Readonly<Record<string, string>> = {}): T | null {
  const { status, stdout } = spawnSync(process.execPath, [...process.execArgv, script(file), ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    env: { ...process.env, ...env },
  });
  if (status === 0) return JSON.parse(stdout) as T;
  console.error(`${file} ${args.join(' ')} ended with ${status}: its rows are missing`);
  process.exitCode = 1;
  return null;
}

const { cores, ...about } = machine();
const pass = ['quick', 'no-peers'].filter(flag).map((name) => `--${name}`);
const chosen = words.filter((w) => isGroup(w) || w === 'memory');
const names = chosen.length > 0 ? chosen : [...Object.keys(GROUPS), 'memory'];
const rows: Row[] = [];
for (const name of names) {
  if (name === 'memory') {
    for (const N of flag('quick') ? [1024] : [1024, 2048, 4096, 8192, 16384])
      for (const mode of ['portable', 'wide', 'native']) {
        const row = child<Row>('memory', [String(N), '2', mode]);
        if (row !== null) rows.push(row);
      }
    continue;
  }
  // One group compares one thread with two itself; most others are a matter of one thread, as their peers have no more.
  const teams = name === 'scaling' ? [2] : (name === 'forward' || name === 'passes') && cores > 1 ? [1, 2] : [1];
  for (const threads of teams) {
    console.error(`-- ${name}, ${threads} ${threads === 1 ? 'thread' : 'threads'}`);
    const measured = child<Row[]>('cpu', ['--child', name, '--threads', String(threads), ...pass]) ?? [];
    rows.push(...measured.map((row) => ({ ...row, group: name })));
  }
}

const peers = JSON.parse(readFileSync('bench/peers/package.json', 'utf8')) as { dependencies: Record<string, string> };
const date = new Date().toISOString();
const slug = `${about.cpu} ${cores} cores`
  .toLowerCase()
  .replace(/\((r|tm)\)/g, '')
  .replace(/[^a-z0-9]+/g, '-');
const suffix = `node${about.node.split('.')[0]}${flag('quick') ? '-quick' : ''}`;
const out = value('out') ?? `bench/results/${slug}-${date.slice(0, 10)}-${suffix}.json`;
const earlier = existsSync(out) ? (JSON.parse(readFileSync(out, 'utf8')) as ResultFile).rows : [];
const result: ResultFile = {
  date,
  commit: commit(),
  machine: { cores, ...about, vectors: vectors() },
  settings: { quick: flag('quick'), peers: flag('no-peers') ? {} : peers.dependencies },
  rows: [...earlier.filter((r) => !names.includes(r.group)), ...rows],
};
mkdirSync(dirname(out), { recursive: true });
writeFileSync(out, `${JSON.stringify(result, null, 1)}\n`);
console.error(`wrote ${out}`);

/** The widest vectors of the processor, where the system tells. */
function vectors(): string {
  try {
    const flags = readFileSync('/proc/cpuinfo', 'utf8');
    return flags.includes('avx512f') ? 'avx512' : flags.includes('avx2') ? 'avx2' : 'sse or neon';
  } catch {
    return 'unknown';
  }
}
