/**
 * Writes pictures, and measured tables into the documents, between <!-- results:NAME --> and <!-- /results:NAME -->, from the newest
 * result file of bench/results that has the rows (never from a --quick one).
 *
 *     node tools/results.ts [--check] [FILES, default README.md]
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ResultFile } from '../bench/cpu.ts';
import type { Row } from '../bench/harness.ts';
import { plotGpu } from './plot_gpu.ts';
import { GPU_TABLES as CUDA_TABLES } from './results_gpu.ts';
import { WEBGPU_TABLES } from './results_webgpu.ts';

const ROOM = 'bench/results';

/** Tables of the GPU benches, whose files have rows of their own. */
const GPU_TABLES: Readonly<Record<string, () => string>> = { ...CUDA_TABLES, ...WEBGPU_TABLES };

/** A table of one group: a line an id and number of threads, a column a contender. */
interface Table {
  readonly group: string;
  /** Which Node's file: the newest of any when absent. */
  readonly node?: number;
  readonly head: readonly string[];
  lines(rows: readonly Row[]): string[][];
}

const ms = (x: number): string => (x < 10 ? x.toFixed(2) : x < 100 ? x.toFixed(1) : x.toFixed(0));
const mib = (x: number): string => (x / 2 ** 20).toFixed(x < 2 ** 20 * 10 ? 1 : 0);

/** `n1024.h8.d64.causal` in words. */
function shape(id: string): string {
  const [n, h, d, ...mask] = id.split('.');
  return `N=${n.slice(1)} H=${h.slice(1)} D=${d.slice(1)} ${mask.join('.')}`;
}

/** Rows of one id and number of threads, in order of appearance. */
function lines(
  rows: readonly Row[],
): { readonly label: string; readonly threads: number; readonly by: Map<string, Row> }[] {
  const found = new Map<string, { label: string; threads: number; by: Map<string, Row> }>();
  for (const row of rows) {
    const key = `${row.id} ${row.threads}`;
    const line = found.get(key) ?? { label: shape(row.id), threads: row.threads, by: new Map() };
    line.by.set(row.who, row);
    found.set(key, line);
  }
  return [...found.values()];
}

/** Milliseconds, and how many times faster than `peer` where there is one. */
function cell(row: Row | undefined, peer?: Row): string {
  if (row === undefined) return '';
  return peer === undefined ? ms(row.median) : `${ms(row.median)} (${(peer.median / row.median).toFixed(2)}x)`;
}

const faster = (...rows: readonly (Row | undefined)[]): Row | undefined =>
  rows.filter((r) => r !== undefined).sort((a, b) => a.median - b.median)[0];

const ORT = 'onnxruntime-node';
const MODES = ['portable', 'wide', 'native'] as const;

const against =
  (...peers: readonly string[]) =>
  (rows: readonly Row[]): string[][] =>
    lines(rows).map(({ label, threads, by }) => {
      const best = faster(...peers.map((p) => by.get(p)));
      const others = peers.map((p) => cell(by.get(p)));
      return [label, String(threads), ...others, ...MODES.map((mode) => cell(by.get(`tilewise ${mode}`), best))];
    });

const OURS = ['Tilewise portable', 'Tilewise 256-bit', 'Tilewise machine code'];
const ORT_OPS = [`${ORT} MultiHeadAttention`, `${ORT} GroupQueryAttention`];
const JS_PEERS = ['@jax-js/jax wasm', 'tfjs-wasm batched', 'tfjs-wasm heads'];
const WEB_PEERS = ['onnxruntime-web MultiHeadAttention', ...JS_PEERS];

const TABLES: Readonly<Record<string, Table>> = {
  forward: {
    group: 'forward',
    node: 26,
    head: ['ms (x the best peer)', 'threads', 'onnxruntime-node MHA', 'GQA', ...OURS],
    lines: against(...ORT_OPS),
  },
  'forward-node20': {
    group: 'forward',
    node: 20,
    head: ['ms (x the best peer)', 'threads', 'onnxruntime-node MHA', 'GQA', ...OURS],
    lines: against(...ORT_OPS),
  },
  web: {
    group: 'web',
    node: 26,
    head: ['forward, ms', 'threads', 'onnxruntime-web', 'jax-js', 'tfjs', 'tfjs by head', ...OURS],
    lines: against(...WEB_PEERS),
  },
  gradients: {
    group: 'both',
    node: 26,
    head: ['forward + backward, ms', 'threads', 'jax-js', 'tfjs', 'tfjs by head', ...OURS],
    lines: against(...JS_PEERS),
  },
  passes: {
    group: 'passes',
    node: 26,
    head: ['GFLOP/s', 'threads', 'mode', 'forward', 'backward', 'ratio'],
    lines: (rows) =>
      lines(rows).flatMap(({ label, threads, by }) =>
        MODES.flatMap((mode) => {
          const [f, b] = ['forward', 'backward'].map((pass) => by.get(`tilewise ${mode} ${pass}`)?.gflops);
          if (f === undefined || b === undefined) return [];
          return [[label, String(threads), mode, f.toFixed(0), b.toFixed(0), (b / f).toFixed(2)]];
        }),
      ),
  },
  sparse: {
    group: 'sparse',
    node: 26,
    head: ['mask', 'threads', 'mode', 'ms', 'share of pairs', 'time over share x full'],
    lines: (rows) =>
      rows.map(({ id, who, threads, median, extra }) => [
        shape(id),
        String(threads),
        who.replace('tilewise ', ''),
        ms(median),
        (extra?.density ?? 1).toFixed(3),
        (extra?.overDensity ?? 1).toFixed(2),
      ]),
  },
  scaling: {
    group: 'scaling',
    node: 26,
    head: ['forward', 'mode', '1 thread, ms', '2 threads, ms', 'gain'],
    lines: (rows) => {
      const one = rows.filter((r) => r.threads === 1);
      return one.flatMap((a) => {
        const b = rows.find((r) => r.id === a.id && r.who === a.who && r.threads !== 1);
        if (b === undefined) return [];
        const gain = `${(a.median / b.median).toFixed(2)}x`;
        return [[shape(a.id), a.who.replace('tilewise ', ''), ms(a.median), ms(b.median), gain]];
      });
    },
  },
  small: {
    group: 'small',
    node: 26,
    head: ['whole call', 'tensors', 'us'],
    lines: (rows) =>
      rows.map(({ id, who, median }) => [shape(id), who.replace('tilewise ', ''), (1000 * median).toFixed(1)]),
  },
  memory: {
    group: 'memory',
    node: 26,
    head: ['forward + backward', 'mode', 'tensors, MiB', 'beyond them, MiB', 'process, MiB'],
    lines: (rows) =>
      rows.map(({ id, who, extra }) => [
        shape(id),
        who.replace('tilewise ', ''),
        mib(extra?.tensors ?? 0),
        mib(extra?.beyond ?? 0),
        mib(extra?.rss ?? 0),
      ]),
  },
};

function resultFiles(): ResultFile[] {
  if (!existsSync(ROOM)) return [];
  return readdirSync(ROOM)
    .filter((f) => f.endsWith('.json'))
    .map((f) => JSON.parse(readFileSync(join(ROOM, f), 'utf8')) as Partial<ResultFile>)
    .filter((f): f is ResultFile => Array.isArray(f.rows) && f.settings !== undefined && f.settings.quick === false)
    .sort((a, b) => b.date.localeCompare(a.date));
}

/** @throws Error when no result file has rows for the table. */
function render(name: string, files: readonly ResultFile[]): string {
  const gpu = GPU_TABLES[name];
  if (gpu !== undefined) return gpu();
  const table = TABLES[name];
  if (table === undefined)
    throw new Error(
      `no table '${name}': expected one of ${[...Object.keys(TABLES), ...Object.keys(GPU_TABLES)].join(', ')}`,
    );
  const wanted = (f: ResultFile): boolean =>
    (table.node === undefined || f.machine.node.startsWith(`${table.node}.`)) &&
    f.rows.some((r) => r.group === table.group);
  const file = files.find(wanted);
  if (file === undefined) throw new Error(`no result file of ${ROOM} has rows for '${name}'`);
  const body = table.lines(file.rows.filter((r) => r.group === table.group));
  // Columns that nobody fills are left out.
  const used = table.head.map((_, i) => body.some((line) => line[i] !== ''));
  const row = (cells: readonly string[]): string => `| ${cells.filter((_, i) => used[i]).join(' | ')} |`;
  const { cpu, cores, vectors, node } = file.machine;
  const where = `${cpu}, ${cores} cores, ${vectors}; Node ${node}; commit ${file.commit ?? '?'}; ${file.date.slice(0, 10)}; medians.`;
  return ['', row(table.head), row(table.head.map(() => '---')), ...body.map(row), '', where, ''].join('\n');
}

const words = process.argv.slice(2);
const documents = words.filter((w) => !w.startsWith('--'));
const files = resultFiles();
let stale = 0;
for (const path of documents.length > 0 ? documents : ['README.md']) {
  const before = readFileSync(path, 'utf8');
  const after = before.replace(
    /(<!-- results:([\w-]+) -->)[\s\S]*?(<!-- \/results:\2 -->)/g,
    (_, open: string, name: string, close: string) => `${open}\n${render(name, files)}\n${close}`,
  );
  if (after === before) continue;
  stale++;
  if (words.includes('--check')) console.error(`${path}: tables differ from ${ROOM}; run node tools/results.ts`);
  else writeFileSync(path, after);
}
/** Pictures by the file they are drawn into. */
const PICTURES: Readonly<Record<string, () => string>> = { 'docs/cuda-h200.svg': plotGpu };
for (const [path, draw] of Object.entries(PICTURES)) {
  const svg = draw();
  if (existsSync(path) && readFileSync(path, 'utf8') === svg) continue;
  stale++;
  if (words.includes('--check')) console.error(`${path}: differs from ${ROOM}; run node tools/results.ts`);
  else writeFileSync(path, svg);
}
if (stale > 0 && words.includes('--check')) process.exit(1);
