/** The cells that bench/cuda.ts measures: shapes, what each is compared with, and who else is asked. */
import { tensor } from '../../src/core/tensor.ts';
import type { Pass } from '../../src/engine/contract.ts';
import type { Mask, Mod } from '../../src/mods/expr.ts';
import { alibi, and, causal, documents, slidingWindow, softcap } from '../../src/mods/library.ts';
import { countPairs } from '../../src/problem/cost.ts';
import { problemOf } from '../problem.ts';
import type { Ask } from './contenders.ts';
import type { Shape } from './setup.ts';

export interface Cell {
  readonly group: 'grid' | 'mods' | 'decode' | 'f32';
  readonly name: string;
  readonly shape: Shape;
  readonly passes: readonly Pass[];
  /** Share of the pairs that attend. */
  readonly fraction: number;
  /** `process` names the peer process that is asked: `torch`, or one that has compiled a case of FlexAttention. */
  readonly peers: readonly {
    readonly who: string;
    readonly process: string;
    readonly ask: Omit<Ask, 'pass' | 'q' | 'k'>;
  }[];
  /** The same call without what is being looked at. */
  readonly baseline?: Shape;
  /** Also by mma.sync. */
  readonly portable?: boolean;
}

const torch = (be: NonNullable<Ask['be']>, more: Partial<Ask> = {}): Cell['peers'][number] => ({
  who: be,
  process: 'torch',
  ask: { do: 'sdpa', be, ...more },
});

const PORTABLE = new Set([512, 2048, 8192]);

/** 16k tokens, hidden size 2048. */
export const gridCells = (
  sizes: readonly number[],
  lengths: readonly number[],
  passes: readonly Pass[],
  portable: boolean,
): Cell[] =>
  sizes.flatMap((D) =>
    [false, true].flatMap((masked) =>
      lengths.map((N) => ({
        group: 'grid',
        name: `d${D} ${masked ? 'causal' : 'full'} n${N}`,
        shape: { B: 16384 / N, Hq: 2048 / D, Sq: N, Sk: N, D, mask: masked ? causal() : undefined },
        passes,
        fraction: masked ? 0.5 : 1,
        portable: portable && PORTABLE.has(N),
        peers: [torch('fa2', { causal: masked }), torch('cudnn', { causal: masked })],
      })),
    ),
  );

/** Queries and keys of the cells with masks and modifiers. */
export const N_MODS = 16384;
const slopes = tensor(
  Float32Array.from({ length: 16 }, (_, i) => 2 ** (-(i + 1) / 2)),
  [16],
);
const ids = tensor(
  Int32Array.from({ length: N_MODS }, (_, i) => Math.floor(i / 1500)),
  [1, N_MODS],
);

interface ModCase {
  readonly name: string;
  readonly mask?: Mask;
  readonly mod?: Mod;
  readonly dropout?: number;
  /** What is kept of the call for the baseline. */
  readonly bare?: { readonly mask?: Mask };
}

/** Cases without dropout are FlexAttention's by the same names (peers.py). */
const MODS: readonly ModCase[] = [
  { name: 'plain' },
  { name: 'causal', mask: causal() },
  { name: 'alibi-causal', mask: causal(), mod: alibi(slopes), bare: { mask: causal() } },
  { name: 'softcap', mod: softcap(20), bare: {} },
  { name: 'window1024', mask: and(causal(), slidingWindow(1023)) },
  { name: 'doc-causal', mask: and(causal(), documents(ids)) },
  { name: 'dropout0.1', dropout: 0.1, bare: {} },
  { name: 'dropout0.1-causal', mask: causal(), dropout: 0.1, bare: { mask: causal() } },
];
export const FLEX_CASES: readonly string[] = MODS.filter((m) => m.dropout === undefined).map((m) => m.name);

export const modCells = (passes: readonly Pass[]): Cell[] =>
  MODS.map(({ name, mask, mod, dropout, bare }) => {
    const sizes = { B: 1, Hq: 16, Sq: N_MODS, Sk: N_MODS, D: 128 };
    const shape = { ...sizes, mask, mod, dropout };
    return {
      ...{ group: 'mods', name, shape, passes },
      fraction: countPairs(problemOf(shape)).pairs / (16 * N_MODS * N_MODS),
      ...(bare && { baseline: { ...sizes, ...bare } }),
      peers:
        dropout === undefined
          ? [{ who: 'flex', process: name, ask: { do: 'flex', case: name } }]
          : [torch('fa2', { p: dropout, causal: mask !== undefined })],
    };
  });

export const decodeCells = (): Cell[] =>
  [
    [1, 65536],
    [16, 8192],
    [16, 32768],
    [64, 8192],
  ].flatMap(([B, N]) =>
    [undefined, 16].map((pageSize) => ({
      group: 'decode',
      name: `decode b${B} n${N}${pageSize ? ` pages of ${pageSize}` : ''}`,
      shape: { B, Hq: 32, Hkv: 8, Sq: 1, Sk: N, D: 128, pageSize },
      passes: ['forward'],
      fraction: 1,
      peers: pageSize === undefined ? [torch('cudnn'), torch('fa2')] : [],
    })),
  );

export const f32Cells = (): Cell[] =>
  [2048, 8192].map((N) => ({
    group: 'f32',
    name: `f32 d64 n${N}`,
    shape: { B: 16384 / N, Hq: 16, Sq: N, Sk: N, D: 64, dtype: 'f32' },
    passes: ['forward'],
    fraction: 1,
    peers: [torch('math', { dtype: 'f32' }), torch('efficient', { dtype: 'f32' })],
  }));
