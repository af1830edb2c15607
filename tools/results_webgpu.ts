/** The tables of the documents that come from bench/webgpu_bars.ts. */
import { existsSync, readFileSync } from 'node:fs';
import type { WebGpuResults, WebGpuRow } from '../bench/webgpu_bars.ts';

const FILE = 'bench/results/nvidia-h200-webgpu.json';
const read = (): WebGpuResults => {
  if (!existsSync(FILE)) throw new Error(`no ${FILE}: node bench/webgpu_bars.ts ${FILE}`);
  return JSON.parse(readFileSync(FILE, 'utf8')) as WebGpuResults;
};

type Cells = readonly string[];

function table(head: Cells, body: readonly Cells[], { device, commit, date }: WebGpuResults, note?: string): string {
  // Columns that nobody fills are left out.
  const used = head.map((_, i) => body.some((line) => line[i] !== ''));
  const lines = [head, head.map(() => '---'), ...body].map(
    (line) => `| ${line.filter((_, i) => used[i]).join(' | ')} |`,
  );
  const foot = `${device}; Dawn; onnxruntime's WebGPU kernels in the same run; commit ${commit ?? '?'}; ${date}; medians.`;
  return ['', ...lines, '', note === undefined ? foot : `${foot} ${note}`, ''].join('\n');
}

const TIERS = ['base', 'subgroup', 'matrix'] as const;

/** Names of a group's rows, once each and in order. */
const namesOf = ({ rows }: WebGpuResults, group: WebGpuRow['group']): string[] => [
  ...new Set(rows.filter((r) => r.group === group).map((r) => r.name)),
];

/** `f32 n4096 d64 causal` in words. */
function words(name: string): string {
  const [dtype, n, d, ...mask] = name.split(' ');
  return `${dtype} N=${n.slice(1)} D=${d.slice(1)} ${mask.join(' ')}`;
}

const rowOf = ({ rows }: WebGpuResults, group: WebGpuRow['group'], name: string, tier: string): WebGpuRow | undefined =>
  rows.find((r) => r.group === group && r.name === name && r.tier === tier);

/** onnxruntime on the same problem: multi-head attention, or its causal grouped one. */
function peerOf({ peers }: WebGpuResults, name: string): number | undefined {
  const [dtype, n, d, mask] = name.split(' ');
  const op = mask === 'causal' ? 'gqa' : 'mha';
  const tflops = peers.find((p) => p.op === op && p.dtype === dtype && `n${p.n}` === n && `d${p.d}` === d)?.tflops;
  // The peer's time is a difference of calls many times as long, and for small problems may come out below zero.
  return tflops !== undefined && tflops > 0 ? tflops : undefined;
}

function forward(which = ''): string {
  const results = read();
  const names = namesOf(results, 'forward').filter((name) => name.includes(which));
  const body = names.map((name) => {
    const peer = peerOf(results, name);
    const cells = TIERS.map((tier) => {
      const own = rowOf(results, 'forward', name, tier)?.tflops;
      if (own === undefined) return '';
      return peer === undefined ? own.toFixed(1) : `${own.toFixed(1)} (${(own / peer).toFixed(2)}x)`;
    });
    return [words(name), peer?.toFixed(1) ?? '', ...cells];
  });
  const note = names.some((name) => name.includes('n1024'))
    ? "onnxruntime's time is the difference of two calls with copies; at N = 1024 those are 15 to 200 times as long as the operation, and its figures uncertain."
    : undefined;
  return table(['TFLOP/s (x onnxruntime)', 'onnxruntime', ...TIERS], body, results, note);
}

function backward(): string {
  const results = read();
  const body = namesOf(results, 'backward').map((name) => [
    words(name),
    ...TIERS.map((tier) => {
      const [own, of] = (['backward', 'forward'] as const).map((group) => rowOf(results, group, name, tier)?.tflops);
      return own === undefined || of === undefined ? '' : `${own.toFixed(1)} (${(own / of).toFixed(2)})`;
    }),
  ]);
  return table(["TFLOP/s (of forward's)", ...TIERS], body, results, results.note);
}

function others(): string {
  const results = read();
  const body: Cells[] = [];
  for (const name of namesOf(results, 'window')) {
    const full = name.replace(/(d\d+) .*/, '$1 full');
    for (const tier of TIERS) {
      const own = rowOf(results, 'window', name, tier);
      const all = rowOf(results, 'window', full, tier);
      if (own === undefined || all === undefined) continue;
      const over = own.ms / all.ms / own.density;
      const of = name === full ? '' : `, ${over.toFixed(2)} x density ${own.density.toFixed(3)} of full`;
      body.push([words(name), tier, `${own.ms.toFixed(2)} ms${of}`]);
    }
  }
  const most = Math.max(...results.copies.map((c) => c.tbs));
  for (const { name, tbs } of results.copies) body.push([name, '', `${tbs.toFixed(2)} TB/s`]);
  for (const { name, tier, tbs = 0 } of results.rows.filter((r) => r.group === 'decode'))
    body.push([`decode ${name}`, tier, `${tbs.toFixed(2)} TB/s, ${((100 * tbs) / most).toFixed(0)} % of a copy`]);
  for (const { tier, ms } of results.rows.filter((r) => r.group === 'overhead'))
    body.push(['host time of a call, program ready', tier, `${(1000 * ms).toFixed(1)} us`]);
  return table(['what', 'tier', 'result'], body, results);
}

/** Tables by the name in their markers. */
export const WEBGPU_TABLES: Readonly<Record<string, () => string>> = {
  'webgpu-forward': () => forward(),
  'webgpu-forward-long': () => forward('n4096'),
  'webgpu-backward': backward,
  'webgpu-others': others,
};
