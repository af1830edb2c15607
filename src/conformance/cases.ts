/**
 * The conformance table: what an engine must be able to do, by topic. Sizes straddle tile edges rather than being large; the numbers
 * come from the case's id. `quick` marks a subset that touches every feature once.
 */
import * as x from '../mods/build.ts';
import {
  alibi,
  and,
  biasTensor,
  blockLayout,
  causal,
  compose,
  documents,
  maskOf,
  maskTensor,
  modOf,
  not,
  or,
  prefix,
  relativeBias,
  slidingWindow,
  softcap,
} from '../mods/library.ts';
import type { Dropout } from '../problem/problem.ts';
import { bytes, flags, floats, holes, integers, slopes } from './sides.ts';
import { type Spec, sizesName } from './spec.ts';

export interface Case {
  /** `f32:b1.hq2.hkv2.sq65.sk97.d40:topic/name`: sizes as in a problem's id, then where it stands in the table. */
  readonly id: string;
  readonly quick: boolean;
  readonly spec: Spec;
}

type Topic = Readonly<Record<string, Spec & { readonly quick?: true }>>;

const quick = true;
const dropout = (p: number, offset = 0): Dropout => ({ p, seed: [0x9e3779b9, 0x01234567], offset });
const bottomRight = () => causal();
const topLeft = () => causal({ align: 'top-left' });

const HEAD_SIZES = [1, 2, 3, 5, 8, 16, 24, 40, 64, 80, 96, 112, 128, 160, 192, 256];
const sizes: Topic = {
  ...Object.fromEntries(HEAD_SIZES.map((D) => [`d${D}`, { Sq: 33, Sk: 49, D, ...(D === 40 && { quick }) }])),
  'd64-dv128': { Sq: 33, Sk: 65, D: 64, Dv: 128, quick },
  'd128-dv64': { Sq: 33, Sk: 65, D: 128, Dv: 64 },
  'd192-dv128': { Sq: 33, Sk: 65, D: 192, Dv: 128 },
  'd40-dv24': { Sq: 33, Sk: 65, D: 40, Dv: 24 },
  'd1-dv7': { Sq: 9, Sk: 11, D: 1, Dv: 7 },
  'd7-dv256': { Sq: 9, Sk: 11, D: 7, Dv: 256 },
  'one-by-one': { Sq: 1, Sk: 1, B: 2, D: 64, quick },
  'one-query': { Sq: 1, Sk: 130, Hq: 4, Hkv: 2, D: 64, quick },
  'one-query-long': { Sq: 1, Sk: 1025, Hq: 4, Hkv: 1, D: 64 },
  'one-key': { Sq: 130, Sk: 1, D: 64 },
  'few-queries': { Sq: 7, Sk: 300, D: 64 },
  'few-keys': { Sq: 300, Sk: 7, D: 64 },
  below: { Sq: 63, Sk: 127, D: 64 },
  exact: { Sq: 64, Sk: 128, D: 64 },
  above: { Sq: 65, Sk: 129, D: 64 },
  long: { Sq: 257, Sk: 515, D: 64, Hq: 1, quick },
  batches: { B: 3, Sq: 40, Sk: 50 },
  'no-keys': { Sq: 5, Sk: 0, quick },
  'no-queries': { Sq: 0, Sk: 5 },
  nothing: { Sq: 0, Sk: 0 },
  'scale-zero': { Sq: 33, Sk: 49, scale: 0 },
  'scale-negative': { Sq: 33, Sk: 49, scale: -0.3 },
};

const heads: Topic = {
  grouped: { Hq: 4, Hkv: 2, Sq: 65, Sk: 97, quick },
  'grouped-by-three': { Hq: 6, Hkv: 2, Sq: 33, Sk: 65, B: 2, mask: bottomRight },
  multiquery: { Hq: 8, Hkv: 1, Sq: 33, Sk: 65 },
  'grouped-bnhd': { Hq: 4, Hkv: 2, Sq: 65, Sk: 97, B: 2, layout: 'bnhd', quick },
  bnhd: { Hq: 3, Sq: 65, Sk: 97, B: 2, layout: 'bnhd', mask: bottomRight },
  'bnhd-d40-dv24': { Hq: 3, Sq: 33, Sk: 49, B: 2, layout: 'bnhd', D: 40, Dv: 24 },
  guards: { Sq: 65, Sk: 97, B: 2, D: 40, guard: 8, quick },
  'guards-bnhd': { Sq: 65, Sk: 97, B: 2, D: 64, Hq: 4, Hkv: 2, guard: 8, layout: 'bnhd', mask: bottomRight },
  'guards-odd': { Sq: 33, Sk: 49, D: 5, guard: 3 },
};

const masks: Topic = {
  causal: { Sq: 130, mask: bottomRight, D: 64, quick },
  'causal-wide': { Sq: 65, Sk: 130, mask: bottomRight, quick },
  'causal-tall': { Sq: 130, Sk: 65, mask: bottomRight, quick },
  'causal-top-left': { Sq: 130, mask: topLeft },
  'causal-top-left-wide': { Sq: 65, Sk: 130, mask: topLeft },
  'causal-top-left-tall': { Sq: 130, Sk: 65, mask: topLeft },
  'causal-long': { Sq: 520, Hq: 1, D: 64, mask: bottomRight },
  'causal-one-query': { Sq: 1, Sk: 130, mask: bottomRight },
  'window-back': { Sq: 130, mask: () => and(causal(), slidingWindow(33)), quick },
  'window-both': { Sq: 130, Sk: 97, mask: () => slidingWindow(20, 7) },
  'window-ahead': { Sq: 97, Sk: 130, mask: () => slidingWindow(0, 40) },
  'window-one': { Sq: 70, mask: () => slidingWindow(0, 0) },
  'window-long': { Sq: 515, Hq: 1, D: 64, mask: () => and(causal(), slidingWindow(100)) },
  prefix: { Sq: 130, mask: () => prefix(40), quick },
  'prefix-tensor': { B: 3, Sq: 70, mask: (s) => prefix(integers([s.B], (i) => [0, 33, 70][i])) },
  documents: {
    B: 2,
    Sq: 130,
    mask: (s) => documents(integers([s.B, s.Sq], (i) => Math.floor((i % s.Sq) / 37))),
    quick,
  },
  'documents-shuffled': { Sq: 97, mask: (s, r) => documents(integers([1, s.Sq], () => r.below(4))) },
  'documents-causal': {
    Sq: 130,
    mask: (s) => and(causal(), documents(integers([1, s.Sq], (i) => Math.floor(i / 50)))),
  },
  'documents-two': {
    Sq: 65,
    Sk: 97,
    mask: (s, r) =>
      documents(
        integers([1, s.Sq], () => r.below(3)),
        integers([1, s.Sk], () => r.below(4)),
      ),
  },
  or: {
    Sq: 97,
    mask: () =>
      or(
        slidingWindow(5, 5),
        maskOf(({ kv }) => x.lt(kv, 9), 'first9'),
      ),
  },
  not: { Sq: 97, mask: () => not(causal()), quick },
  'boolean-keys': { B: 2, Sq: 40, Sk: 97, mask: (s, r) => maskTensor(flags(r, [s.Sk])), quick },
  'boolean-queries': { Sq: 97, Sk: 40, mask: (s, r) => maskTensor(flags(r, [s.Sq, 1])) },
  'boolean-matrix': { B: 2, Sq: 65, Sk: 97, mask: (s, r) => maskTensor(flags(r, [s.Sq, s.Sk])) },
  'boolean-batch-keys': { B: 3, Sq: 40, Sk: 97, mask: (s, r) => maskTensor(flags(r, [s.B, 1, 1, s.Sk])) },
  'boolean-batch': { B: 2, Sq: 40, Sk: 97, mask: (s, r) => maskTensor(flags(r, [s.B, 1, s.Sq, s.Sk])) },
  'boolean-heads': { B: 2, Sq: 40, Sk: 97, Hq: 4, Hkv: 2, mask: (s, r) => maskTensor(flags(r, [1, s.Hq, s.Sq, s.Sk])) },
  'boolean-full': { B: 2, Sq: 40, Sk: 97, mask: (s, r) => maskTensor(flags(r, [s.B, s.Hq, s.Sq, s.Sk])), quick },
  'boolean-sparse': { Sq: 97, Sk: 97, mask: (s, r) => maskTensor(flags(r, [s.Sq, s.Sk], 0.02)) },
  'boolean-none': { Sq: 33, Sk: 65, mask: (s, r) => maskTensor(flags(r, [s.Sq, s.Sk], 0)) },
  custom: { B: 2, Sq: 65, Sk: 97, mask: () => maskOf(({ q, kv }) => x.ne(x.mod(x.add(q, kv), 3), 0)), quick },
  'custom-heads': {
    B: 2,
    Hq: 4,
    Sq: 65,
    Sk: 97,
    mask: () => maskOf(({ b, h, q, kv }) => x.le(x.abs(x.sub(q, kv)), x.add(x.mul(h, 20), b))),
  },
  'custom-bits': {
    Sq: 65,
    Sk: 97,
    mask: () =>
      maskOf(({ q, kv }) => x.ne(x.bitAnd(x.bitXor(q, x.shr(kv, 1)), 5), x.shl(x.bitOr(x.idiv(kv, 16), 1), 1))),
  },
  'nan-keys': {
    B: 2,
    Sq: 65,
    Sk: 97,
    mask: () => maskOf(({ kv, lenK }) => x.lt(kv, x.sub(lenK, 30))),
    nanRow: (_b, kv, s) => kv >= s.Sk - 30,
    quick,
  },
  'nan-scattered': {
    Sq: 65,
    Sk: 97,
    mask: () => maskOf(({ kv }) => x.ne(x.mod(kv, 5), 2)),
    nanRow: (_b, kv) => kv % 5 === 2,
  },
  'nan-batch': {
    B: 2,
    Sq: 40,
    Sk: 97,
    mask: (s) => maskTensor(bytes([s.B, 1, 1, s.Sk], (i) => Number(i % s.Sk < 50 + 20 * Math.floor(i / s.Sk)))),
    nanRow: (b, kv) => kv >= 50 + 20 * b,
  },
  // Later keys than a query's own are hidden from it, whatever they hold; the queries that see them are NaN, and so is their lse.
  'nan-later': { Sq: 97, mask: bottomRight, nanRow: (_b, kv) => kv === 75, noGrads: true, nanResults: true },
};

const blocks: Topic = Object.fromEntries(
  [16, 32, 64, 128, 256].map((size) => [
    `blocks${size}`,
    {
      Sq: 300,
      Sk: 270,
      Hq: size === 32 ? 2 : 1,
      D: 32,
      mask: (s, r) =>
        blockLayout(flags(r, [1, s.Hq, Math.ceil(s.Sq / size), Math.ceil(s.Sk / size)], size > 100 ? 0.7 : 0.4), size),
      ...(size === 64 && { quick }),
    } satisfies Spec & { quick?: true },
  ]),
);

const mods: Topic = {
  softcap: { Sq: 65, Sk: 97, mod: () => softcap(2), gain: 3, quick },
  'softcap-causal': { Sq: 130, D: 64, mask: bottomRight, mod: () => softcap(15) },
  alibi: { Sq: 65, Sk: 97, Hq: 4, mod: (s, r) => alibi(slopes(r, [s.Hq])), quick },
  'alibi-causal-grouped': { Sq: 130, Hq: 4, Hkv: 2, mask: bottomRight, mod: (s, r) => alibi(slopes(r, [s.Hq])) },
  'alibi-batch': { B: 2, Sq: 65, Sk: 40, mod: (s, r) => alibi(slopes(r, [s.B, s.Hq])) },
  'bias-matrix': { B: 2, Sq: 65, Sk: 97, mod: (s, r) => biasTensor(floats(r, [s.Sq, s.Sk])), quick },
  'bias-keys': { B: 2, Sq: 65, Sk: 97, mod: (s, r) => biasTensor(floats(r, [s.Sk])) },
  'bias-queries': { Sq: 65, Sk: 97, mod: (s, r) => biasTensor(floats(r, [s.Sq, 1])) },
  'bias-heads': { B: 2, Sq: 65, Sk: 97, mod: (s, r) => biasTensor(floats(r, [1, s.Hq, s.Sq, s.Sk])) },
  'bias-batch': { B: 2, Sq: 65, Sk: 97, mod: (s, r) => biasTensor(floats(r, [s.B, 1, s.Sq, s.Sk])) },
  'bias-full': { B: 2, Sq: 40, Sk: 65, Hq: 4, Hkv: 2, mod: (s, r) => biasTensor(floats(r, [s.B, s.Hq, s.Sq, s.Sk])) },
  'bias-head-scalar': { Sq: 40, Sk: 65, Hq: 4, mod: (s, r) => biasTensor(floats(r, [s.Hq, 1, 1])) },
  'bias-f16': { Sq: 65, Sk: 97, mod: (s, r) => biasTensor(floats(r, [s.Sq, s.Sk], 1, 'f16')) },
  'bias-bf16': { Sq: 65, Sk: 97, mod: (s, r) => biasTensor(floats(r, [s.Sq, s.Sk], 1, 'bf16')) },
  'bias-causal': { Sq: 97, mask: bottomRight, mod: (s, r) => biasTensor(floats(r, [1, s.Hq, s.Sq, s.Sk])) },
  'bias-infinite': { Sq: 65, Sk: 97, mod: (s, r) => biasTensor(holes(r, [s.Sq, s.Sk], [0, 3, 64])), quick },
  'bias-not-wanted': { Sq: 65, Sk: 97, mod: (s, r) => biasTensor(floats(r, [s.Sq, s.Sk])), wanted: ['q', 'k', 'v'] },
  relative: { Sq: 65, Sk: 97, mod: (s, r) => relativeBias(floats(r, [s.Hq, 41])), quick },
  'relative-shared': { Sq: 97, mask: bottomRight, mod: (_s, r) => relativeBias(floats(r, [1, 9])) },
  composed: {
    B: 2,
    Sq: 65,
    Sk: 97,
    Hq: 4,
    Hkv: 2,
    mask: bottomRight,
    mod: (s, r) => compose(softcap(5), alibi(slopes(r, [s.Hq])), biasTensor(floats(r, [s.Sq, s.Sk]))),
    quick,
  },
  custom: {
    Sq: 65,
    Sk: 97,
    mod: () =>
      modOf(({ score, q, kv }) => {
        const distance = x.toF32(x.abs(x.sub(q, kv)));
        const far = x.lt(x.constant('f32', 20), distance);
        return x.select(far, x.mul(score, 0.5), x.sub(score, x.log(x.add(distance, 1))));
      }),
    quick,
  },
  'custom-smooth': {
    Sq: 33,
    Sk: 65,
    mod: () =>
      modOf(({ score }) =>
        x.add(x.mul(x.sqrt(x.add(x.mul(score, score), 1)), 0.5), x.exp(x.neg(x.abs(x.min(score, 1))))),
      ),
  },
  'custom-kinks': {
    Sq: 33,
    Sk: 65,
    mod: () => modOf(({ score }) => x.max(x.div(score, 2), x.add(x.floor(x.detach(score)), x.mul(score, 0.25)))),
  },
  'custom-loads': {
    Sq: 33,
    Sk: 65,
    Hq: 4,
    Hkv: 2,
    mod: (s, r) => {
      const gains = floats(r, [s.Hq], 0.3);
      const shifts = floats(r, [s.Sk]);
      return modOf(({ score, h, kv }) => x.mul(x.add(score, x.load(shifts, [kv])), x.add(x.load(gains, [h]), 1)));
    },
  },
  'custom-constant': { Sq: 33, Sk: 65, mod: () => modOf(({ q, kv }) => x.toF32(x.mod(x.add(q, kv), 4))) },
};

const sinks: Topic = {
  sink: { Sq: 65, Sk: 97, Hq: 4, Hkv: 2, sink: true, quick },
  'sink-causal-tall': { Sq: 97, Sk: 40, sink: true, mask: bottomRight },
  'sink-softcap-window': { Sq: 130, sink: true, mask: () => and(causal(), slidingWindow(20)), mod: () => softcap(3) },
  'sink-dlse': { Sq: 65, Sk: 97, sink: true, dLse: true },
  'sink-no-keys': { Sq: 5, Sk: 0, sink: true },
};

const drops: Topic = {
  dropout: { B: 2, Sq: 65, Sk: 97, dropout: dropout(0.2), quick },
  'dropout-half-causal': { Sq: 130, Hq: 4, Hkv: 2, dropout: dropout(0.5, 7), mask: bottomRight },
  'dropout-most': { Sq: 33, Sk: 65, dropout: dropout(0.95, 0xffffffff) },
  'dropout-dlse-sink': { Sq: 65, Sk: 99, dropout: dropout(0.1), dLse: true, sink: true },
  'dropout-packed': {
    lengths: [
      [33, 50],
      [0, 4],
      [65, 30],
    ],
    dropout: dropout(0.3),
    mask: bottomRight,
  },
  'dropout-bias': { Sq: 65, Sk: 97, dropout: dropout(0.3), mod: (s, r) => biasTensor(floats(r, [s.Sq, s.Sk])) },
};

const lseGradients: Topic = {
  dlse: { Sq: 65, Sk: 97, dLse: true, quick },
  'dlse-causal-tall': { Sq: 97, Sk: 40, Hq: 4, Hkv: 2, dLse: true, mask: bottomRight },
  'dlse-bias': { Sq: 65, Sk: 97, dLse: true, mod: (s, r) => biasTensor(floats(r, [s.Sq, s.Sk])) },
};

const MIXED = [
  [65, 65],
  [1, 1],
  [40, 97],
  [0, 9],
  [9, 0],
  [0, 0],
  [130, 33],
] as const;
const packed: Topic = {
  packed: { lengths: MIXED, quick },
  'packed-causal': { lengths: MIXED, mask: bottomRight, quick },
  'packed-top-left': { lengths: MIXED, mask: topLeft },
  'packed-grouped-bnhd': { lengths: MIXED, Hq: 4, Hkv: 2, layout: 'bnhd', mask: bottomRight, D: 64 },
  'packed-window': {
    lengths: [
      [130, 130],
      [70, 90],
    ],
    mask: () => and(causal(), slidingWindow(17)),
  },
  'packed-alibi': {
    lengths: [
      [65, 65],
      [40, 97],
    ],
    mod: (s, r) => alibi(slopes(r, [s.Hq])),
    mask: bottomRight,
  },
  'packed-dlse-sink': { lengths: MIXED, dLse: true, sink: true },
  'packed-guards': { lengths: MIXED, guard: 8, D: 40, mask: bottomRight },
  'packed-one': { lengths: [[97, 97]], mask: bottomRight },
  'packed-empty': {
    lengths: [
      [0, 0],
      [0, 0],
    ],
  },
  ragged: { lengths: MIXED, storage: 'dense', mask: bottomRight, quick },
  'ragged-decode': {
    lengths: [
      [1, 130],
      [1, 1],
      [1, 64],
      [1, 0],
    ],
    storage: 'dense',
    Hq: 4,
    Hkv: 2,
    noGrads: true,
  },
};

const paged: Topic = {
  paged: {
    lengths: [
      [33, 50],
      [1, 1],
      [20, 97],
    ],
    storage: 'paged',
    mask: bottomRight,
    noGrads: true,
    quick,
  },
  'paged-decode': {
    lengths: [
      [1, 130],
      [1, 16],
      [1, 0],
    ],
    storage: 'paged',
    Hq: 8,
    Hkv: 2,
    D: 64,
    noGrads: true,
    quick,
  },
  'paged-bnhd': {
    lengths: [
      [1, 130],
      [5, 64],
    ],
    storage: 'paged',
    layout: 'bnhd',
    Hq: 4,
    Hkv: 2,
    noGrads: true,
  },
  'paged-64': {
    lengths: [
      [1, 300],
      [1, 200],
    ],
    storage: 'paged',
    pageSize: 64,
    mask: bottomRight,
    noGrads: true,
  },
  'paged-1': { lengths: [[3, 20]], storage: 'paged', pageSize: 1, noGrads: true },
  'paged-window-sink': {
    lengths: [
      [1, 130],
      [4, 97],
    ],
    storage: 'paged',
    mask: () => and(causal(), slidingWindow(40)),
    sink: true,
    noGrads: true,
  },
};

const logits: Topic = {
  'logits-large': { Sq: 65, Sk: 97, gain: 30, D: 64, quick },
  'logits-huge': { Sq: 65, Sk: 97, gain: 1000, D: 64, mask: bottomRight },
  'logits-tiny': { Sq: 65, Sk: 97, gain: 1e-4 },
  'logits-down': {
    Sq: 65,
    Sk: 300,
    mod: () => modOf(({ score, kv }) => x.sub(score, x.mul(x.toF32(kv), 0.5))),
  },
  'logits-up': { Sq: 65, Sk: 300, mod: () => modOf(({ score, kv }) => x.add(score, x.mul(x.toF32(kv), 0.5))) },
};

const gradients: Topic = {
  'only-q': { Sq: 65, Sk: 97, wanted: ['q'] },
  'only-k': { Sq: 65, Sk: 97, wanted: ['k'] },
  'only-v': { Sq: 65, Sk: 97, wanted: ['v'], mask: bottomRight },
  'only-sides': { Sq: 65, Sk: 97, wanted: ['sides'], mod: (s, r) => biasTensor(floats(r, [s.Sq, s.Sk])), quick },
  none: { Sq: 65, Sk: 97, noGrads: true },
};

/** What every storage type is put through. */
const storage = (dtype: 'f64' | 'f16' | 'bf16'): Topic => ({
  full: { dtype, Sq: 65, Sk: 97, D: 64, quick },
  causal: { dtype, Sq: 130, D: 64, Hq: 4, Hkv: 2, mask: bottomRight, quick },
  'causal-tall-bnhd': { dtype, Sq: 97, Sk: 65, D: 64, layout: 'bnhd', mask: bottomRight },
  d128: { dtype, Sq: 97, Sk: 130, D: 128, mask: bottomRight },
  d40: { dtype, Sq: 33, Sk: 65, D: 40 },
  'd5-dv3': { dtype, Sq: 33, Sk: 65, D: 5, Dv: 3 },
  d256: { dtype, Sq: 33, Sk: 65, D: 256 },
  guards: { dtype, Sq: 33, Sk: 65, D: 40, guard: 8 },
  'one-query': { dtype, Sq: 1, Sk: 300, D: 64, Hq: 4, Hkv: 1 },
  'one-by-one': { dtype, Sq: 1, Sk: 1, D: 64 },
  'd192-dv128': { dtype, Sq: 33, Sk: 65, D: 192, Dv: 128, mask: bottomRight },
  'd64-dv128': { dtype, Sq: 97, Sk: 65, D: 64, Dv: 128 },
  long: { dtype, Sq: 290, Sk: 410, D: 64, Hq: 2, Hkv: 1, mask: bottomRight },
  'long-window-d192': {
    dtype,
    Sq: 200,
    Sk: 330,
    D: 192,
    Hq: 1,
    mask: () => and(causal(), slidingWindow(100)),
    noGrads: true,
  },
  softcap: { dtype, Sq: 97, Sk: 130, D: 64, mask: bottomRight, mod: () => softcap(20) },
  'softcap-wide': { dtype, Sq: 65, Sk: 130, D: 64, gain: 20, mod: () => softcap(50) },
  alibi: { dtype, Sq: 97, Sk: 130, D: 64, mod: (s, r) => alibi(slopes(r, [s.Hq])) },
  dropout: { dtype, Sq: 65, Sk: 97, dropout: dropout(0.2) },
  'dropout-causal': { dtype, Sq: 150, Sk: 260, D: 64, Hq: 2, Hkv: 1, mask: bottomRight, dropout: dropout(0.3, 5) },
  'sink-dlse': { dtype, Sq: 65, Sk: 97, sink: true, dLse: true },
  composed: {
    dtype,
    Sq: 65,
    Sk: 97,
    mask: () => slidingWindow(30, 10),
    mod: (s, r) => compose(softcap(5), alibi(slopes(r, [s.Hq])), biasTensor(floats(r, [s.Sq, s.Sk]))),
  },
  packed: { dtype, lengths: MIXED, mask: bottomRight },
  paged: {
    dtype,
    lengths: [
      [33, 50],
      [1, 97],
    ],
    storage: 'paged',
    mask: bottomRight,
    noGrads: true,
  },
  'logits-large': { dtype, Sq: 65, Sk: 97, gain: 8, D: 64 },
  'nan-keys': {
    dtype,
    Sq: 65,
    Sk: 97,
    mask: () => maskOf(({ kv }) => x.lt(kv, 70)),
    nanRow: (_b, kv) => kv >= 70,
  },
});

const TOPICS: Readonly<Record<string, Topic>> = {
  sizes,
  heads,
  masks,
  blocks,
  mods,
  sinks,
  drops,
  dlse: lseGradients,
  packed,
  paged,
  logits,
  gradients,
  f16: storage('f16'),
  bf16: storage('bf16'),
  f64: storage('f64'),
};

export const CASES: readonly Case[] = Object.entries(TOPICS).flatMap(([topic, cases]) =>
  Object.entries(cases).map(([name, { quick: inQuick, ...spec }]) => ({
    id: `${sizesName(spec)}:${topic}/${name}`,
    quick: inQuick === true,
    spec,
  })),
);
