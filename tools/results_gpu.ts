/** The tables of the documents that come from result files of a GPU: their rows are the GPU benches' own. */
import { readFileSync } from 'node:fs';

interface Cell {
  /** `d64 causal n512` */
  readonly name: string;
  readonly pass: 'forward' | 'backward';
  readonly kernel: string;
  readonly tflops: number;
  /** Terabytes of K and V a second, where reading them is the limit. */
  readonly tbs: number;
}

interface Peer {
  readonly be: string;
  readonly hd?: number;
  readonly causal?: boolean;
  readonly n: number;
  readonly mode?: string;
  readonly tflops?: number;
}

interface CudaResults {
  readonly device: string;
  readonly driver: string;
  readonly date: string;
  readonly commit: string;
  readonly torch: string;
  readonly peers: readonly Peer[];
  readonly chosen: readonly Cell[];
  readonly mods: readonly Cell[];
  readonly decode_and_f32: readonly Cell[];
}

const LENGTHS = [512, 1024, 2048, 4096, 8192, 16384];
const read = (): CudaResults => JSON.parse(readFileSync('bench/results/cuda-h200.json', 'utf8')) as CudaResults;

const table = (head: readonly string[], body: readonly (readonly string[])[], foot: string): string =>
  ['', ...[head, head.map(() => '---'), ...body].map((cells) => `| ${cells.join(' | ')} |`), '', foot, ''].join('\n');

const source = ({ device, driver, torch, date, commit }: CudaResults): string =>
  `${device}, driver ${driver}; peers in the same run: ${torch}; commit ${commit}; ${date}; medians.`;

/** TFLOP/s, and in brackets how many times cuDNN's. */
function grid(pass: Cell['pass']): string {
  const results = read();
  const mode = pass === 'forward' ? 'fwd' : 'bwd';
  const body = [64, 128, 256].flatMap((d) =>
    [false, true].map((causal) => {
      const label = `D=${d} ${causal ? 'causal' : 'full'}`;
      const cells = LENGTHS.map((n) => {
        const name = `d${d} ${causal ? 'causal' : 'full'} n${n}`;
        const own = results.chosen.find((c) => c.name === name && c.pass === pass)?.tflops;
        const of = (be: string): number | undefined =>
          results.peers.find((p) => p.be === be && p.hd === d && p.causal === causal && p.n === n && p.mode === mode)
            ?.tflops;
        const [flash, cudnn] = [of('fa2'), of('cudnn')];
        if (own === undefined || flash === undefined || cudnn === undefined) return '';
        return `${own.toFixed(0)} (${(own / flash).toFixed(2)}, ${(own / cudnn).toFixed(2)})`;
      });
      return [label, ...cells];
    }),
  );
  const head = ['TFLOP/s (x FlashAttention-2, x cuDNN)', ...LENGTHS.map((n) => `N=${n}`)];
  return table(head, body, source(results));
}

function others(): string {
  const results = read();
  const byName = new Map<string, Partial<Record<Cell['pass'], Cell>>>();
  for (const cell of results.mods) byName.set(cell.name, { ...byName.get(cell.name), [cell.pass]: cell });
  const mods = [...byName].map(([name, { forward, backward }]) => [
    `${name}, N=16384 D=128`,
    `${forward?.tflops.toFixed(0) ?? ''} TFLOP/s`,
    `${backward?.tflops.toFixed(0) ?? ''} TFLOP/s`,
  ]);
  const rest = results.decode_and_f32.map(({ name, tflops, tbs }) => [
    name,
    name.startsWith('decode') ? `${tbs.toFixed(2)} TB/s` : `${tflops.toFixed(0)} TFLOP/s`,
    '',
  ]);
  return table(['what', 'forward', 'backward'], [...mods, ...rest], source(results));
}

/** Tables by the name in their markers. */
export const GPU_TABLES: Readonly<Record<string, () => string>> = {
  'cuda-forward': () => grid('forward'),
  'cuda-backward': () => grid('backward'),
  'cuda-others': others,
};
