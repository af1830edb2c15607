/**
 * Backward by recomputation (FlashAttention-2, algorithm 2) in two passes without atomics, so that a device gives the same bits
 * each time: dK and dV by tiles of keys, dQ by tiles of queries. Scores are recomputed from lse in both.
 *
 *     P = exp(S - lse),  dP = dO V^T * Z,  dS = P * (dP - delta) * mod'(S),  delta = rowsum(dO * out) - dLse,  Z dropout's factors
 *     dQ = scale * dS K,  dK = scale * dS^T Q,  dV = (P * Z)^T dO
 */
import { ceilDiv } from '../../../core/math.ts';
import { flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { ModuleBuilder, Shader } from '../wgsl/module.ts';
import { unroll2 } from '../wgsl/text.ts';
import { deltaShader, sinkShader } from './delta.ts';
import { gatherDispatches, gathering, gatherShaders, gatherSpace, moduleFor, refuseBuffers } from './gathered.ts';
import { columnStatistics, declareGradients, rowStatistics, scoreGradients, setLseBase } from './gradients.ts';
import { headOf, placeOf } from './head.ts';
import {
  addRuns,
  defineKernel,
  type Grid,
  type Launch,
  problemTables,
  refuseShared,
  type WebGpuCaps,
  type WebGpuKernel,
} from './kernel.ts';
import { declareLoad, declareStore, quadsOf, type RowTensor, setBase } from './rows.ts';
import { overRuns } from './scores.ts';
import { refuseSides, sidePasses } from './sides.ts';
import { type Sliced, sliced } from './slices.ts';
import {
  accumulate,
  declareSum,
  dot,
  dotLoads,
  outQuads,
  placesOf,
  rowAt,
  rowsOf,
  type Summand,
  sumLoads,
  threadsOf,
} from './tile.ts';
import { busyShare, fits, reuse, SOFTWARE_TILES, type TileConfig, tile } from './tiles.ts';

/** The tile of dK and dV, and how dQ's differs: it has one sum in registers instead of two. */
export type BackwardConfig = TileConfig & {
  readonly qTm?: number;
  readonly qCols?: number;
  readonly qDepth?: number;
};

const queryTile = (t: BackwardConfig): TileConfig => ({
  ...t,
  tm: t.qTm ?? t.tm,
  cols: t.qCols ?? t.cols,
  depth: t.qDepth ?? t.depth,
});

const candidates = (problem: Problem, caps: WebGpuCaps): BackwardConfig[] => {
  const wide = Math.max(problem.D, problem.Dv);
  if (caps.software) return [...SOFTWARE_TILES];
  const small = [tile(8, 8, 4, 32, 4, 16), tile(8, 4, 4, 16, 4, 8)];
  if (wide <= 64)
    return [{ ...tile(16, 8, 4, 64, 8, 16, 4), qTm: 8, qDepth: 4 }, tile(16, 8, 4, 32, 4, 16, 4), ...small];
  if (wide <= 128)
    return [{ ...tile(8, 16, 8, 64, 8, 8, 2), qCols: 128, qDepth: 4 }, tile(8, 16, 4, 64, 4, 8, 2), ...small];
  return [tile(8, 16, 4, 64, 4, 4), ...small];
};

/** X is dO or Q, whichever is wider. */
export const placing = (problem: Problem) => () => ({ width: Math.max(quadsOf(problem, 'q'), quadsOf(problem, 'v')) });

const Q = { name: 'q', family: 'q' } as const;
const K = { name: 'k', family: 'k' } as const;
const V = { name: 'v', family: 'v' } as const;
const D_OUT = { name: 'dOut', family: 'out' } as const;
const DQ = { name: 'dq', family: 'q' } as const;
const DK = { name: 'dk', family: 'k' } as const;
const DV = { name: 'dv', family: 'v' } as const;

/** q, k, v, dOut, rows, tables and one result, besides sides. With room for one more, dK and dV share a pass. */
const LEAST_BUFFERS = 7;

export const backward: WebGpuKernel<BackwardConfig> = defineKernel({
  name: 'backward',
  pass: 'backward',
  refuse(problem, caps) {
    // Side gradients are sums over all heads and batches at once.
    const sides = problem.grads?.sides.includes(true) === true;
    const shared = refuseShared(problem, caps, !sides, true) ?? refuseSides(problem);
    if (shared !== null) return shared;
    if (problem.kv.kind === 'paged') return 'keys and values in pages, which sequences may share, have no gradients';
    return refuseBuffers(problem, LEAST_BUFFERS, caps, true);
  },
  configs(problem, caps) {
    const fitting = candidates(problem, caps).filter((t) =>
      [t, queryTile(t)].every((one) => fits(one, placing(problem)(), caps)),
    );
    const gathered = gathering(problem, LEAST_BUFFERS, caps);
    return (caps.software ? fitting.slice(0, 1) : fitting).map((t) => ({ ...t, ...gathered }));
  },
  cost(problem, t, caps) {
    const flops = flopsOf(problem, 'backward');
    const bytes = tiledBytes(problem, 'backward', rowsOf(t), t.cols);
    // Seven products are made for the five that count.
    const rate = caps.flops * reuse(t, quadsOf(problem, 'v')) * (5 / 7);
    const busy = busyShare(problem.B * problem.Hkv * ceilDiv(problem.Sk, rowsOf(t)), caps);
    return { flops, bytes, workspace: rowBytes(problem), seconds: (flops / rate + bytes / caps.bandwidth / 8) / busy };
  },
  shaders: (problem, t, caps) => [
    ...passesOf(problem, caps).map((pass) => pass.emit(problem, t)),
    ...gatherShaders(problem, t),
  ],
  launch: launchBackward,
});

/** Two floats a row, laid out like lse, rows of no sequence included. */
export const rowBytes = ({ strides, B, Hq, Sq, sequences }: Problem): number => {
  let rows = 0;
  for (let b = 0; b < B; b++) rows = Math.max(rows, b * strides.lse.b + (sequences[4 * b] + Sq) * strides.lse.s);
  return 8 * (rows + Math.max(Hq - 1, 0) * strides.lse.h);
};

/** One dispatch of backward. */
export interface Pass {
  readonly emit: (problem: Problem, t: BackwardConfig) => Shader;
  /** Over a slice of so many heads (of queries or of keys) and batches; `once` a problem, whatever its slices. */
  readonly grid: (problem: Problem, t: BackwardConfig, over: Pick<Sliced, 'heads' | 'batches'>) => Grid;
  readonly once?: boolean;
  /** Scratch buffers by name, in bytes. */
  readonly workspace?: (problem: Problem, t: BackwardConfig) => Record<string, number>;
}

/** The dispatches a problem's gradients need, in order. */
function passesOf(problem: Problem, caps: WebGpuCaps): Pass[] {
  const { grads } = problem;
  if (grads === null) return [];
  const passes: Pass[] = [
    { emit: deltaShader, grid: (p, _, { heads, batches }) => [heads.q, ceilDiv(p.Sq, 64), batches] },
  ];
  const together = LEAST_BUFFERS + 1 + problem.sides.length <= caps.storageBuffers;
  const wanted = together
    ? [{ k: grads.k, v: grads.v }]
    : [
        { k: grads.k, v: false },
        { k: false, v: grads.v },
      ];
  for (const want of wanted)
    if (want.k || want.v)
      passes.push({
        emit: (p, t) => emitKv(p, t, want),
        grid: (p, t, { heads, batches }) => [heads.kv, ceilDiv(p.Sk, rowsOf(t)), batches],
      });
  if (grads.q)
    passes.push({
      emit: (p, t) => emitQ(p, queryTile(t)),
      grid: (p, t, { heads, batches }) => [heads.q, ceilDiv(p.Sq, rowsOf(queryTile(t))), batches],
    });
  if (grads.sink) passes.push({ emit: sinkShader, grid: (p) => [p.Hq, 1, 1], once: true });
  passes.push(...sidePasses(problem));
  return passes;
}

function launchBackward(problem: Problem, t: BackwardConfig, caps: WebGpuCaps): Launch {
  const { tables, values } = problemTables(problem);
  if (problem.mask !== null) {
    const q = queryTile(t);
    addRuns(tables, values, problem, 'q', rowsOf(q), q.cols);
    addRuns(tables, values, problem, 'kv', t.cols, rowsOf(t));
  }
  const passes = passesOf(problem, caps);
  const slices = sliced(problem, caps.bindingSize, values);
  const workspace: Record<string, number> = { rows: rowBytes(problem), ...gatherSpace(problem, t) };
  for (const pass of passes) Object.assign(workspace, pass.workspace?.(problem, t));
  return {
    dispatches: [
      ...gatherDispatches(problem, t, passes.length),
      ...passes.flatMap((pass, shader) =>
        slices.slice(0, pass.once === true ? 1 : undefined).map((slice) => ({
          shader,
          grid: pass.grid(problem, t, slice),
          params: slice.params,
          windows: slice.windows,
        })),
      ),
    ],
    tables: tables.pack(),
    workspace,
    zeroed: [...(problem.uniform ? [] : ['dq', 'dk', 'dv']), ...problem.sides.map((_, i) => `dSide${i}`)],
  };
}

/** What a shader's products read: of queries the tile at `q0`, of keys the tile at `k0`. */
function sources(m: ModuleBuilder, problem: Problem, t: TileConfig) {
  return (x: RowTensor, product: 'dot' | 'sum' = 'dot'): Summand => {
    const ofQueries = x.family === 'q' || x.family === 'out';
    const quads = quadsOf(problem, x.family);
    const options = product === 'dot' ? dotLoads(t, quads) : sumLoads(t, quads);
    const load = declareLoad(m, problem, x, ofQueries ? 'u32(atLenQ)' : 'u32(atLenK)', options);
    return { load, first: ofQueries ? 'q0' : 'k0', quads, end: ofQueries ? 'lenQ' : 'lenK' };
  };
}

/** dQ: one workgroup walks the keys of its queries, as forward does. */
function emitQ(problem: Problem, t: TileConfig): Shader {
  const m = moduleFor(problem, t);
  const quadsD = quadsOf(problem, 'q');
  const at = placesOf(t, placing(problem)());
  declareGradients(m, problem, 'kv');
  const source = sources(m, problem, t);
  const [q, k, v, dOut] = [source(Q), source(K), source(V), source(D_OUT)];
  const store = declareStore(m, problem, DQ, 'u32(atLenQ)');
  m.workgroup('arena', `array<vec4<f32>, ${at.size}>`);
  const poison = problem.mask === null ? {} : { poison: m.workgroup('poison', 'atomic<u32>') };
  const scale = m.param('scale', 'f32');

  const sum = accumulate(t, at, 'dq', 't', source(K, 'sum'), { ...poison, partial: 'partial' });
  const block = `let k0 = block * ${t.cols}u;
${dot(t, at, 's', q, k)}
${dot(t, at, 't', dOut, v)}
${sum.fetch}
${scoreGradients(m, problem, 'kv', t, { p: false, ds: true })}
${sum.run}`;
  const body = `${placeOf(t, 'workgroup')}
${headOf(m, problem, 'q')}
let q0 = (groups.y - 1u - group.y) * ${rowsOf(t)}u;
if (q0 >= lenQ) { return; }
${[Q, D_OUT, DQ].map((x) => setBase(m, problem, x, 'h', 'qStart')).join('\n')}
${[K, V].map((x) => setBase(m, problem, x, 'hkv', 'kStart')).join('\n')}
${setLseBase(m, 'h')}
${rowStatistics(t)}
${declareSum(t, 'dq', quadsD)}
${overRuns(m, problem, 'q', { b: 'b', h: 'h', row: `q0 / ${rowsOf(t)}u`, blocks: `(lenK + ${t.cols - 1}u) / ${t.cols}u` }, block)}
${unroll2(t.tm, outQuads(t, quadsD), (i, n) => `${store}(u32(q_${i}), c + ${t.ct * n}u, dq_${i}_${n} * ${scale});`)}`;
  return m.build({ name: 'backward-q', threads: threadsOf(t), body });
}

/** dK and dV: one workgroup walks the queries of its keys, over every query head that reads them. */
function emitKv(problem: Problem, t: TileConfig, want: { readonly k: boolean; readonly v: boolean }): Shader {
  const m = moduleFor(problem, t);
  const [quadsD, quadsV] = [quadsOf(problem, 'q'), quadsOf(problem, 'v')];
  const at = placesOf(t, placing(problem)());
  const { k: wantK, v: wantV } = want;
  declareGradients(m, problem, 'q');
  const source = sources(m, problem, t);
  m.workgroup('arena', `array<vec4<f32>, ${at.size}>`);
  const scale = m.param('scale', 'f32');
  const group = m.param('group');
  const [storeK, storeV] = [
    wantK ? declareStore(m, problem, DK, 'u32(atLenK)') : '',
    wantV ? declareStore(m, problem, DV, 'u32(atLenK)') : '',
  ];

  const parts: string[] = [`let q0 = block * ${t.cols}u;`, columnStatistics(t), dot(t, at, 's', source(K), source(Q))];
  if (wantK) parts.push(dot(t, at, 't', source(V), source(D_OUT)));
  const sumV = accumulate(t, at, 'dv', 's', source(D_OUT, 'sum'));
  const sumK = accumulate(t, at, 'dk', 't', source(Q, 'sum'));
  parts.push(wantV ? sumV.fetch : '', scoreGradients(m, problem, 'q', t, { p: wantV, ds: wantK }));
  if (wantV) parts.push(sumV.run);
  if (wantK) parts.push(sumK.fetch, sumK.run);

  const body = `${placeOf(t, 'workgroup')}
${headOf(m, problem, 'kv')}
let k0 = group.y * ${rowsOf(t)}u;
if (k0 >= lenK) { return; }
${setBase(m, problem, K, 'hkv', 'kStart')}
${wantK ? `${setBase(m, problem, V, 'hkv', 'kStart')}\n${setBase(m, problem, DK, 'hkv', 'kStart')}` : ''}
${wantV ? setBase(m, problem, DV, 'hkv', 'kStart') : ''}
${wantK ? declareSum(t, 'dk', quadsD) : ''}
${wantV ? declareSum(t, 'dv', quadsV) : ''}
for (var h = hkv * ${group}; h < (hkv + 1u) * ${group}; h++) {
let bh = b * ${m.param('Hq')} + h;
atH = i32(h);
${[Q, D_OUT].map((x) => setBase(m, problem, x, 'h', 'qStart')).join('\n')}
${setLseBase(m, 'h')}
${overRuns(m, problem, 'kv', { b: 'b', h: 'h', row: `k0 / ${rowsOf(t)}u`, blocks: `(lenQ + ${t.cols - 1}u) / ${t.cols}u` }, parts.join('\n'))}
}
${wantK ? unroll2(t.tm, outQuads(t, quadsD), (i, n) => `${storeK}(k0 + ${rowAt(t, i)}, c + ${t.ct * n}u, dk_${i}_${n} * ${scale});`) : ''}
${wantV ? unroll2(t.tm, outQuads(t, quadsV), (i, n) => `${storeV}(k0 + ${rowAt(t, i)}, c + ${t.ct * n}u, dv_${i}_${n});`) : ''}`;
  return m.build({
    name: wantK && wantV ? 'backward-kv' : wantK ? 'backward-k' : 'backward-v',
    threads: threadsOf(t),
    body,
  });
}
