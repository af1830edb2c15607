/** Every argument a kernel may take: its type, and where its value comes from at a launch. Kernels name the ones they want. */
import { BYTES } from '../../../core/dtype.ts';
import { LOG2E } from '../../../core/math.ts';
import { dropThreshold, keepScale } from '../../../problem/philox.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { BlockRuns } from '../../../problem/ranges.ts';
import type { Launch } from '../driver/launch.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';

/** Addresses and numbers of one launch. An address of 0 stands for an absent tensor. */
export interface Arguments {
  readonly problem: Problem;
  /** Addresses of operands, tables and workspaces, by parameter name. */
  readonly addresses: Readonly<Record<string, number>>;
  /** The runs the launch walks, when it walks any. */
  readonly runs?: BlockRuns;
  /** Numbers only this launch knows, by parameter name. */
  readonly numbers?: Readonly<Record<string, number>>;
}

type Source = readonly [type: 'b32' | 'b64' | 'f32', value: (a: Arguments) => number];

type Typed<T extends Source[0]> = readonly [type: T, value: (a: Arguments) => number];

const address = (name: string): Typed<'b64'> => ['b64', (a) => a.addresses[name] ?? 0];
const number = (name: string): Typed<'b32'> => ['b32', (a) => a.numbers?.[name] ?? 0];
const stride = (tensor: keyof Problem['strides'], axis: 'b' | 'h' | 's'): Typed<'b64'> => [
  'b64',
  (a) => a.problem.strides[tensor][axis],
];

/** Bytes from a row to the next. */
const rowBytes = (tensor: keyof Problem['strides']): Typed<'b32'> => [
  'b32',
  (a) => a.problem.strides[tensor].s * BYTES[a.problem.dtype],
];

const TABLE = {
  q: address('q'),
  k: address('k'),
  v: address('v'),
  out: address('out'),
  lse: address('lse'),
  sink: address('sink'),
  dOut: address('dOut'),
  dLse: address('dLse'),
  dq: address('dq'),
  dk: address('dk'),
  dv: address('dv'),
  dSink: address('dSink'),
  /** B rows of (qStart, lenQ, kStart, lenK). */
  sequences: address('sequences'),
  pages: address('pages'),
  rowStart: address('rowStart'),
  runs: address('runs'),
  /** Row sums for backward, laid out like lse. */
  delta: address('delta'),
  /** lse in base 2, with +inf for rows that attend to nothing, laid out like lse. */
  lse2: address('lse2'),
  /** Per sequence, the blocks of keys that decode visits. */
  ranges: address('ranges'),
  /** Partial results of splits: f32 outputs, then (m, l). */
  partOut: address('partOut'),
  partState: address('partState'),
  /** For each key head of each sequence, how many splits are done. */
  counters: address('counters'),
  dSide: address('dSide'),
  sideState: address('sideState'),
  qB: stride('q', 'b'),
  qH: stride('q', 'h'),
  qS: stride('q', 's'),
  kB: stride('k', 'b'),
  kH: stride('k', 'h'),
  kS: stride('k', 's'),
  vB: stride('v', 'b'),
  vH: stride('v', 'h'),
  vS: stride('v', 's'),
  kRow: rowBytes('k'),
  vRow: rowBytes('v'),
  outB: stride('out', 'b'),
  outH: stride('out', 'h'),
  outS: stride('out', 's'),
  lseB: stride('lse', 'b'),
  lseH: stride('lse', 'h'),
  lseS: stride('lse', 's'),
  B: ['b32', (a) => a.problem.B],
  Hq: ['b32', (a) => a.problem.Hq],
  Sq: ['b32', (a) => a.problem.Sq],
  Sk: ['b32', (a) => a.problem.Sk],
  maxPages: ['b32', (a) => (a.problem.kv.kind === 'paged' ? a.problem.kv.maxPages : 0)],
  runB: ['b32', (a) => a.runs?.strideB ?? 0],
  runH: ['b32', (a) => a.runs?.strideH ?? 0],
  /** 1 when later rows have more work and should start first. */
  reverse: number('reverse'),
  splits: number('splits'),
  splitBlocks: number('splitBlocks'),
  phase: number('phase'),
  count: number('count'),
  scale: ['f32', (a) => a.problem.scale],
  scaleLog2: ['f32', (a) => a.problem.scale * LOG2E],
  seed0: ['b32', (a) => a.problem.dropout?.seed[0] ?? 0],
  seed1: ['b32', (a) => a.problem.dropout?.seed[1] ?? 0],
  offset: ['b32', (a) => a.problem.dropout?.offset ?? 0],
  /** See problem/philox.ts. */
  threshold: ['b32', (a) => dropThreshold(a.problem.dropout?.p ?? 0)],
  keepScale: ['f32', (a) => keepScale(a.problem.dropout?.p ?? 0)],
} as const satisfies Record<string, Source>;

export type ParameterName = keyof typeof TABLE;
type TypeOf<N extends ParameterName> = (typeof TABLE)[N][0];

/** Declares parameters and reads them into registers. */
export function take<N extends ParameterName>(asm: Assembler, ...names: readonly N[]): { [K in N]: Reg<TypeOf<K>> } {
  return Object.fromEntries(names.map((n) => [n, asm.parameter(n, TABLE[n][0])])) as { [K in N]: Reg<TypeOf<K>> };
}

/** Declares one address for each side tensor. */
export const takeSides = (asm: Assembler, count: number): Reg<'b64'>[] =>
  Array.from({ length: count }, (_, i) => asm.parameter(`side${i}`, 'b64'));

/** Fills a launch's argument block. */
export function fill(launch: Launch, args: Arguments): void {
  for (const { name, type } of launch.kernel.text.parameters) {
    // Tensor maps are bytes, which the kernel that wants them makes.
    if (type === 'bytes') continue;
    const source: Source | undefined = (TABLE as Readonly<Record<string, Source>>)[name];
    launch.set(name, source === undefined ? (args.addresses[name] ?? 0) : source[1](args));
  }
}
