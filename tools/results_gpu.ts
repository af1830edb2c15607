/** The tables of the documents that come from result files of a GPU (bench/cuda.ts, bench/bytes.ts). */
import { readFileSync } from 'node:fs';
import type { BytesResults } from '../bench/bytes.ts';
import type { GpuResults, GpuRow } from '../bench/cuda.ts';
import type { Pass } from '../src/engine/contract.ts';

const ROOM = 'bench/results';
const readJson = <T>(name: string): T => JSON.parse(readFileSync(`${ROOM}/${name}`, 'utf8')) as T;
export const readGpu = (): GpuResults => readJson('cuda-h200.json');
const readBytes = (): BytesResults => readJson('cuda-h200-bytes.json');

const table = (head: readonly string[], body: readonly (readonly string[])[], foot: string): string =>
  ['', ...[head, head.map(() => '---'), ...body].map((cells) => `| ${cells.join(' | ')} |`), '', foot, ''].join('\n');

function source({ device, driver, peers, date, commit }: GpuResults): string {
  const cudnn = Number(peers.cudnn ?? 0);
  const version = cudnn === 0 ? '' : ` and cuDNN ${Math.floor(cudnn / 10000)}.${Math.floor((cudnn % 10000) / 100)}`;
  const whose = `PyTorch ${String(peers.torch ?? '').replace(/\+.*/, '')} with FlashAttention-2${version}`;
  return `${device}, driver ${driver}; peers in the same run: ${whose}; commit ${commit}; ${date.slice(0, 10)}; medians.`;
}

export const LENGTHS = [512, 1024, 2048, 4096, 8192, 16384];
export const cellName = (d: number, causal: boolean, n: number): string => `d${d} ${causal ? 'causal' : 'full'} n${n}`;

/** Rates by contender of one cell. */
export function ratesOf(rows: readonly GpuRow[], name: string, pass: Pass): ReadonlyMap<string, GpuRow> {
  return new Map(
    rows.filter((r) => r.name === name && r.pass === pass && Number.isFinite(r.ms) && r.tflops).map((r) => [r.who, r]),
  );
}

const mean = (ratios: readonly number[]): string =>
  Math.exp(ratios.reduce((sum, x) => sum + Math.log(x), 0) / ratios.length).toFixed(2);

/** How many times a peer's rate we have in every cell of the grid, forward and backward. */
function ratiosTo(peer: string): number[] {
  const { rows } = readGpu();
  return (['forward', 'backward'] as const).flatMap((pass) =>
    [64, 128, 256].flatMap((d) =>
      [false, true].flatMap((causal) =>
        LENGTHS.flatMap((n) => {
          const rates = ratesOf(rows, cellName(d, causal, n), pass);
          const [own, its] = ['tilewise', peer].map((who) => rates.get(who)?.tflops);
          return own === undefined || its === undefined ? [] : [own / its];
        }),
      ),
    ),
  );
}

const ahead = (ratios: readonly number[]): number => ratios.filter((x) => x >= 1).length;

/** How many times cuDNN's rate all cells of the grid come to. */
function overall(): string {
  const ratios = ratiosTo('cudnn');
  return `All ${ratios.length} cells, forward and backward: ${mean(ratios)} x cuDNN in the geometric mean, ahead in ${ahead(ratios)}.`;
}

/** The picture in a sentence. */
function summary(): string {
  const [cudnn, flash] = ['cudnn', 'fa2'].map(ratiosTo);
  const { device, commit, date } = readGpu();
  return [
    '',
    `In the geometric mean of ${cudnn.length} cells ${mean(cudnn)} times cuDNN's rate (ahead in ${ahead(cudnn)}) and ${mean(flash)} times FlashAttention-2's (ahead in ${ahead(flash)}).`,
    `${device}; commit ${commit}; ${date.slice(0, 10)}; medians.`,
    '',
  ].join('\n');
}

/** TFLOP/s, and in brackets how many times the peers'; the line under it says what that comes to. */
function grid(pass: Pass, who: string, lengths: readonly number[]): string {
  const results = readGpu();
  const [flashes, cudnns]: [number[], number[]] = [[], []];
  const body = [64, 128, 256].flatMap((d) =>
    [false, true].map((causal) => {
      const cells = lengths.map((n) => {
        const rates = ratesOf(results.rows, cellName(d, causal, n), pass);
        const [own, flash, cudnn] = [who, 'fa2', 'cudnn'].map((w) => rates.get(w)?.tflops);
        if (own === undefined || flash === undefined || cudnn === undefined) return '';
        flashes.push(own / flash);
        cudnns.push(own / cudnn);
        return `${own.toFixed(0)} (${(own / flash).toFixed(2)}, ${(own / cudnn).toFixed(2)})`;
      });
      return [`D=${d} ${causal ? 'causal' : 'full'}`, ...cells];
    }),
  );
  const head = ['TFLOP/s (x FlashAttention-2, x cuDNN)', ...lengths.map((n) => `N=${n}`)];
  const least = (ratios: readonly number[]): string => Math.min(...ratios).toFixed(2);
  const sum = `Geometric mean: ${mean(flashes)} x FlashAttention-2 (least ${least(flashes)}), ${mean(cudnns)} x cuDNN (least ${least(cudnns)}).`;
  const all = who === 'tilewise' && pass === 'backward' ? `${overall()} ` : '';
  return table(head, body, `${sum} ${all}${source(results)}`);
}

const rate = (row: GpuRow | undefined): string => (row === undefined ? '' : row.tflops.toFixed(0));
const times = (a: GpuRow | undefined, b: GpuRow | undefined): string =>
  a === undefined || b === undefined ? '' : (a.tflops / b.tflops).toFixed(2);

/** Masks and modifiers, forward and backward. */
function mods(): string {
  const results = readGpu();
  const rows = results.rows.filter((r) => r.group === 'mods');
  const body = [...new Set(rows.map((r) => r.name))].map((name) => {
    const cells = (['forward', 'backward'] as const).flatMap((pass) => {
      const found = ratesOf(rows, name, pass);
      const own = found.get('tilewise');
      return [rate(own), times(own, found.get('flex') ?? found.get('fa2')), times(own, found.get('tilewise baseline'))];
    });
    return [name, ...cells];
  });
  const head = [
    'N=16384, H=16, D=128',
    'forward, TFLOP/s',
    'x FlexAttention',
    'x plain',
    'backward',
    'x FlexAttention',
    'x plain',
  ];
  const foot =
    'Rates count the pairs that attend. "x plain" is against our own kernel without the modifier; dropout is compared with FlashAttention-2, FlexAttention has none.';
  return table(head, body, `${foot} ${source(results)}`);
}

/** One query a sequence, bound by reading K and V. */
function decode(): string {
  const results = readGpu();
  const rows = results.rows.filter((r) => r.group === 'decode');
  const copy = Math.max(...results.ceilings.map((c) => c.copy));
  const names = [...new Set(rows.map((r) => r.name))].filter((name) => !name.includes('pages'));
  const body = names.map((name) => {
    const dense = ratesOf(rows, name, 'forward');
    const paged = ratesOf(rows, `${name} pages of 16`, 'forward').get('tilewise');
    const own = dense.get('tilewise');
    const tbs = (row: GpuRow | undefined): string => row?.tbs.toFixed(2) ?? '';
    const share = (a: number | undefined, b: number | undefined): string =>
      a === undefined || b === undefined || !Number.isFinite(b) ? '' : `${((100 * a) / b).toFixed(0)} %`;
    return [
      name,
      tbs(own),
      share(own?.tbs, copy),
      tbs(dense.get('cudnn')),
      tbs(dense.get('fa2')),
      tbs(paged),
      share(paged?.tbs, own?.tbs),
    ];
  });
  const head = ['Hq=32 Hkv=8 D=128', 'TB/s', 'of a copy', 'cuDNN', 'FlashAttention-2', 'pages of 16', 'of dense'];
  const ceiling = Number.isFinite(copy) ? `A copy on the device reads and writes ${copy.toFixed(2)} TB/s. ` : '';
  return table(head, body, `${ceiling}${source(results)}`);
}

function float32(): string {
  const results = readGpu();
  const rows = results.rows.filter((r) => r.group === 'f32');
  const body = [...new Set(rows.map((r) => r.name))].map((name) => {
    const found = ratesOf(rows, name, 'forward');
    const own = found.get('tilewise');
    const peer = (who: string): string => {
      const row = found.get(who);
      return row === undefined ? '' : `${rate(row)} (${times(own, row)}x)`;
    };
    return [name, rate(own), peer('math'), peer('efficient')];
  });
  const head = ['float32 forward, TFLOP/s', 'Tilewise', "PyTorch's math path", 'memory-efficient'];
  return table(head, body, source(results));
}

/** What a call costs the host when its plan is known. */
function host(): string {
  const results = readGpu();
  const us = (x: number | undefined): string => x?.toFixed(1) ?? '';
  const { prepare, run, call } = results.host ?? {};
  const head = ['us of the host', 'find the program', 'queue its launch', 'the whole of attention(q, k, v)'];
  return table(head, [['B=1 H=8 N=128 D=64', us(prepare), us(run), us(call)]], source(results));
}

const size = (bytes: number): string => {
  const units = ['B', 'KB', 'MB', 'GB', 'TB'];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
  return `${Number((bytes / 1000 ** power).toPrecision(3))} ${units[power]}`;
};

const PAPER = 'B=64 H=16 N=1024 D=64 full';

/** Bytes through the card's memory by its counters. */
function bytes(): string {
  const { device, driver, date, commit, model, bytes: moved } = readBytes();
  const body = model.flatMap(({ name, passes }) =>
    passes.map(({ pass, bytes: predicted }) => {
      const of = (who: string) => moved.find((m) => m.name === name && m.pass === pass && m.who === who);
      const [own, standard, math] = ['tilewise', 'standard', 'math'].map(of);
      const all = (m: typeof own): number | undefined => (m === undefined ? undefined : m.read + m.written);
      const more = (m: typeof own): string => {
        const [a, b] = [all(m), all(own)];
        return a === undefined || b === undefined ? '' : `${size(a)} (${(a / b).toFixed(0)}x)`;
      };
      return [name, pass, size(all(own) ?? 0), size(predicted ?? 0), size(own?.l2 ?? 0), more(standard), more(math)];
    }),
  );
  const head = [
    'bfloat16',
    'pass',
    'measured',
    'predicted',
    'through the L2 cache',
    'standard attention',
    "PyTorch's math path",
  ];
  // The call of the FlashAttention paper, forward and backward together.
  const whole = (who: string): number =>
    moved.filter((m) => m.name === PAPER && m.who === who).reduce((sum, m) => sum + m.read + m.written, 0);
  const fewer = (whole('standard') / whole('tilewise')).toFixed(1);
  const said = `GPT-2 medium, forward and backward: ${size(whole('tilewise'))} instead of ${size(whole('standard'))}, ${fewer} times fewer.`;
  return table(
    head,
    body,
    `${said} ${device}, driver for CUDA ${driver}; Nsight Compute's dram__bytes; commit ${commit}; ${date.slice(0, 10)}.`,
  );
}

/** Memory held beyond the operands. */
function memory(): string {
  const { device, driver, date, commit, memory: rows } = readBytes();
  const lengths = [...new Set(rows.map((r) => r.N))];
  const body = lengths.map((n) => {
    const own = rows.find((r) => r.N === n && r.operands !== undefined);
    const peer = (who: string): string => {
      const beyond = rows.find((r) => r.N === n && r.who === who)?.beyond;
      return beyond === undefined ? '' : size(beyond);
    };
    const { operands = 0, beyond = 0, predicted = 0, standard = 0 } = own ?? {};
    return [
      String(n),
      size(operands),
      size(beyond),
      size(predicted),
      peer('standard') || `(${size(standard)})`,
      peer('math'),
    ];
  });
  const head = [
    'N (B=1, H=16, D=128)',
    'operands',
    'beyond them',
    'predicted',
    'standard attention',
    "PyTorch's math path",
  ];
  const foot =
    'Forward and backward, bfloat16. The driver hands memory out in pieces of 2 MB. In brackets: its two matrices by size, where they were not tried.';
  return table(head, body, `${foot} ${device}, driver for CUDA ${driver}; commit ${commit}; ${date.slice(0, 10)}.`);
}

const PURPOSES = [
  'products',
  'turns of the warpgroups',
  'waiting for copies',
  'exponentials',
  'maxima and sums of rows',
  'scaling and rescaling',
  'rounding to 16 bits',
  'addresses and descriptors',
] as const;

/** Where the warps that compute are found, by sampling. */
function cycles(): string {
  const { device, date, commit, stalls = [] } = readBytes();
  const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;
  const body = stalls
    .filter((s) => s.function !== 'backward_delta' && !s.name?.includes('causal'))
    .map((s) => {
      const tensor = s.counters['sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active'];
      const shares = PURPOSES.map((p) => s.shares[p] ?? 0);
      const rest = 1 - shares.reduce((sum, x) => sum + x, 0);
      return [
        `${s.function}, ${/D=\d+/.exec(s.name ?? '')?.[0]}`,
        tensor === undefined ? '' : `${tensor.toFixed(0)} %`,
        ...[...shares, rest].map(percent),
      ];
    });
  const head = ['kernel', 'tensor core active', ...PURPOSES, 'masks and control'];
  const foot = `N=8192, 16k tokens, hidden size 2048. ${device}; Nsight Compute's samples of the computing warps by the instruction they are at; commit ${commit}; ${date.slice(0, 10)}.`;
  return table(head, body, foot);
}

/** Tables by the name in their markers. */
export const GPU_TABLES: Readonly<Record<string, () => string>> = {
  'cuda-summary': summary,
  'cuda-forward': () => grid('forward', 'tilewise', LENGTHS),
  'cuda-backward': () => grid('backward', 'tilewise', LENGTHS),
  'cuda-portable-forward': () => grid('forward', 'tilewise portable', [512, 2048, 8192]),
  'cuda-portable-backward': () => grid('backward', 'tilewise portable', [512, 2048, 8192]),
  'cuda-mods': mods,
  'cuda-decode': decode,
  'cuda-f32': float32,
  'cuda-host': host,
  'cuda-bytes': bytes,
  'cuda-memory': memory,
  'cuda-cycles': cycles,
};
