/**
 * Backward in 16-bit storage on subgroup matrices: the passes of `backward`, products by matrices. One emitter serves both, since
 * they differ only in which operands are rows and which are columns of the score tile:
 *
 *     by 'kv'   rows are keys, columns queries    S^T = K Q^T,  dP^T = V dO^T,  dV += (P * Z)^T dO,  dK += dS^T Q
 *     by 'q'    rows are queries, columns keys    S = Q K^T,    dP = dO V^T,    dQ += dS K
 *
 * The rows' operands stay in matrices, the columns' are staged for all subgroups a block ahead of their use.
 */
import { ceilDiv } from '../../../core/math.ts';
import { flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { ModuleBuilder, type Shader } from '../wgsl/module.ts';
import { unroll, unroll2 } from '../wgsl/text.ts';
import { rowBytes } from './backward.ts';
import { deltaShader, sinkShader } from './delta.ts';
import { refuseBuffers } from './gathered.ts';
import { declareGradients, type Owned, rowStatistics, scoreGradients, setLseBase } from './gradients.ts';
import { headOf } from './head.ts';
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
import {
  colsOf,
  copyRows,
  declareHalves,
  declareMemory,
  divides,
  efficiency,
  enterRows,
  halfStride,
  load,
  type MatrixTile,
  padded,
  placeOf,
  product,
  putShare,
  quad,
  quadColumn,
  quadsPerLane,
  refuseMatrices,
  refuseTiles,
  rowsAtOnce,
  rowsOf,
  scoreAt,
  scoreStride,
  shareAt,
  stepsOf,
  store,
  tame,
  threadsOf,
  turnsOf,
  visitSums,
  zeros,
} from './matrix.ts';
import { declareStore, type RowTensor, setBase, widthOf } from './rows.ts';
import { refuseSides, sidePasses } from './sides.ts';
import { type Sliced, sliced } from './slices.ts';
import { busyShare, tile } from './tiles.ts';

/** How much faster than multiply-adds matrices get through it, counting five products of the seven that are made. */
const BEST = 6;

export interface BackwardMatrixConfig extends MatrixTile {
  readonly [key: string]: number | boolean;
  /** S and dP take turns in one place, for two more barriers a block. */
  readonly turns: boolean;
  /** dK and dV share a pass; apart, the scores are made twice, with fewer registers. */
  readonly together: boolean;
}

const Q = { name: 'q', family: 'q' } as const;
const K = { name: 'k', family: 'k' } as const;
const V = { name: 'v', family: 'v' } as const;
const D_OUT = { name: 'dOut', family: 'out' } as const;
const DQ = { name: 'dq', family: 'q' } as const;
const DK = { name: 'dk', family: 'k' } as const;
const DV = { name: 'dv', family: 'v' } as const;

/** q, k, v, dOut, rows, tables, dk and dv. */
const BUFFERS = 8;

/** Bytes of workgroup memory of the pass that needs most. */
function bytesOf({ D, Dv }: Problem, c: BackwardMatrixConfig): number {
  const row = (c.turns ? 1 : 2) * scoreStride(c) * 4 + 2 * halfStride(colsOf(c)) * 2;
  const staged = halfStride(padded(c, D)) + halfStride(padded(c, Dv));
  return rowsOf(c) * row + colsOf(c) * (staged * 2 + 8) + 32;
}

export const backwardMatrix: WebGpuKernel<BackwardMatrixConfig> = defineKernel({
  name: 'backward-matrix',
  pass: 'backward',
  refuse(problem, caps) {
    // Side gradients are sums over all heads and batches at once.
    const sides = problem.grads?.sides.includes(true) === true;
    const shared = refuseShared(problem, caps, !sides) ?? refuseSides(problem);
    if (shared !== null) return shared;
    if (problem.kv.kind === 'paged') return 'no gradients of paged keys and values';
    const unable = refuseMatrices(problem, caps) ?? refuseBuffers(problem, BUFFERS, caps, false);
    if (unable !== null) return unable;
    return configsOf(problem, caps).length === 0 ? refuseTiles(problem, caps) : null;
  },
  configs: configsOf,
  cost(problem, c, caps) {
    const flops = flopsOf(problem, 'backward');
    const bytes = tiledBytes(problem, 'backward', rowsOf(c), colsOf(c));
    const tiles = ceilDiv(problem.Sk, rowsOf(c));
    const padding = (rowsOf(c) * tiles) / Math.max(problem.Sk, 1);
    const width = c.together ? padded(c, problem.D) + padded(c, problem.Dv) : Math.max(problem.D, problem.Dv);
    const rate = caps.flops * BEST * (c.together ? 1 : 7 / 8) * efficiency(c, bytesOf(problem, c), width, caps);
    const busy = busyShare(problem.B * problem.Hkv * tiles, caps);
    const seconds = ((flops * padding) / rate + bytes / caps.bandwidth / 32) / busy;
    return { flops, bytes, workspace: rowBytes(problem), seconds };
  },
  shaders: (problem, c) => passesOf(problem, c).map((pass) => pass.shader()),
  launch(problem, c, caps): Launch {
    const { tables, values } = problemTables(problem);
    if (problem.mask !== null) {
      addRuns(tables, values, problem, 'q', rowsOf(c), colsOf(c));
      addRuns(tables, values, problem, 'kv', colsOf(c), rowsOf(c));
    }
    const passes = passesOf(problem, c);
    const slices = sliced(problem, caps.bindingSize, values);
    const workspace: Record<string, number> = { rows: rowBytes(problem) };
    for (const pass of passes) Object.assign(workspace, pass.workspace);
    return {
      dispatches: passes.flatMap(({ grid, once }, shader) =>
        slices
          .slice(0, once === true ? 1 : undefined)
          .map((slice) => ({ shader, grid: grid(slice), params: slice.params, windows: slice.windows })),
      ),
      tables: tables.pack(),
      workspace,
      zeroed: [...(problem.uniform ? [] : ['dq', 'dk', 'dv']), ...problem.sides.map((_, i) => `dSide${i}`)],
    };
  },
});

function configsOf(problem: Problem, caps: WebGpuCaps): BackwardMatrixConfig[] {
  const { matrix } = caps;
  if (matrix === null) return [];
  const shapes: readonly (readonly [number, number, number, boolean, boolean])[] = caps.software
    ? [[2, 1, 1, false, true]]
    : [
        [4, 1, 1, false, true],
        [4, 1, 1, true, true],
        [4, 1, 1, true, false],
        [1, 1, 1, true, true],
      ];
  return shapes
    .map(([groups, rowBlocks, colBlocks, turns, together]) => ({
      ...matrix,
      share: Math.max(1, matrix.lanes / matrix.edge),
      pad: 8,
      groups,
      rowBlocks,
      colBlocks,
      turns,
      together,
    }))
    .filter((c) => divides(c) && threadsOf(c) <= caps.invocations && bytesOf(problem, c) <= caps.workgroupMemory);
}

interface MatrixPass {
  readonly shader: () => Shader;
  readonly grid: (over: Pick<Sliced, 'heads' | 'batches'>) => Grid;
  /** Once a problem, whatever its slices. */
  readonly once?: boolean | undefined;
  readonly workspace?: Record<string, number> | undefined;
}

/** The small passes' tile. */
const SIDES = tile(8, 8, 4, 32, 4, 16);

function passesOf(problem: Problem, c: BackwardMatrixConfig): MatrixPass[] {
  const { grads, Hq, Sq, Sk } = problem;
  if (grads === null) return [];
  const passes: MatrixPass[] = [
    { shader: () => deltaShader(problem), grid: ({ heads, batches }) => [heads.q, ceilDiv(Sq, 64), batches] },
  ];
  const wanted = c.together
    ? [{ p: grads.v, ds: grads.k }]
    : [
        { p: grads.v, ds: false },
        { p: false, ds: grads.k },
      ];
  for (const want of wanted)
    if (want.p || want.ds)
      passes.push({
        shader: () => emit(problem, c, 'kv', want),
        grid: ({ heads, batches }) => [heads.kv, ceilDiv(Sk, rowsOf(c)), batches],
      });
  if (grads.q)
    passes.push({
      shader: () => emit(problem, c, 'q', { p: false, ds: true }),
      grid: ({ heads, batches }) => [heads.q, ceilDiv(Sq, rowsOf(c)), batches],
    });
  if (grads.sink) passes.push({ shader: () => sinkShader(problem), grid: () => [Hq, 1, 1], once: true });
  for (const side of sidePasses(problem))
    passes.push({
      shader: () => side.emit(problem, SIDES),
      grid: (over) => side.grid(problem, SIDES, over),
      once: side.once,
      workspace: side.workspace?.(problem, SIDES),
    });
  return passes;
}

/** What a pass accumulates: P * Z times the columns' dO, and dS times the columns' q or k. */
interface Want {
  readonly p: boolean;
  readonly ds: boolean;
}

/** An operand of a pass with its staged or matrix form. */
interface Side {
  /** Operands of the two products S and dP. */
  readonly s: RowTensor;
  readonly t: RowTensor;
  readonly limit: string;
  readonly head: string;
  readonly start: string;
}

const QUERIES: Side = { s: Q, t: D_OUT, limit: 'u32(atLenQ)', head: 'h', start: 'qStart' };
const KEYS: Side = { s: K, t: V, limit: 'u32(atLenK)', head: 'hkv', start: 'kStart' };

function emit(problem: Problem, t: BackwardMatrixConfig, by: 'q' | 'kv', want: Want): Shader {
  const m = new ModuleBuilder();
  const { edge, rowBlocks, colBlocks, turns } = t;
  const [rows, cols] = [rowsOf(t), colsOf(t)];
  const [D, Dv] = [padded(t, problem.D), padded(t, problem.Dv)];
  const [ss, ts] = [halfStride(D), halfStride(Dv)];
  const ps = halfStride(cols);
  const [R, C] = by === 'q' ? [QUERIES, KEYS] : [KEYS, QUERIES];
  const columns = by === 'q' ? 'kv' : 'q';
  const quads = quadsPerLane(t);
  const scale = m.param('scale', 'f32');

  for (const extension of ['f16', 'subgroups', 'chromium_experimental_subgroup_matrix']) m.enable(extension);
  declareGradients(m, problem, columns);
  const halves = (side: Side, x: RowTensor): string =>
    declareHalves(m, problem, x, side.limit, padded(t, widthOf(problem, x.family)));
  const [loadRowS, loadColS, loadColT] = [halves(R, R.s), halves(C, C.s), halves(C, C.t)];
  const loadRowT = want.ds ? halves(R, R.t) : '';
  const sums = [
    ...(want.p ? [{ name: 'dv', to: DV, width: Dv, factor: '' }] : []),
    ...(want.ds ? [{ name: 'ds', to: by === 'q' ? DQ : DK, width: D, factor: ` * ${scale}` }] : []),
  ].map((sum) => ({ ...sum, blocks: sum.width / edge, put: declareStore(m, problem, sum.to, R.limit) }));
  const apart = want.ds && !turns;
  const both = want.p && want.ds;
  declareMemory(m, {
    scores: `array<f32, ${rows * scoreStride(t)}>`,
    ...(apart ? { second: `array<f32, ${rows * scoreStride(t)}>` } : {}),
    shares: `array<f16, ${rows * ps}>`,
    ...(both ? { slopes: `array<f16, ${rows * ps}>` } : {}),
    stagedS: `array<f16, ${cols * ss}>`,
    stagedT: `array<f16, ${cols * ts}>`,
    ...(by === 'kv' ? { lses: `array<f32, ${cols}>`, deltas: `array<f32, ${cols}>` } : {}),
  });
  const [scores, second] = ['w.scores', apart ? 'w.second' : 'w.scores'];
  const [shares, slopes] = ['w.shares', both ? 'w.slopes' : 'w.shares'];
  const staged = { s: 'w.stagedS', t: 'w.stagedT' };

  const copies = [
    copyRows(t, 'sr', loadColS, cols, D, staged.s, ss),
    copyRows(t, 'tr', loadColT, cols, Dv, staged.t, ts),
  ];
  const all = (line: (copy: (typeof copies)[number]) => string): string => copies.map(line).join('\n');
  // Columns that are queries bring their lse and delta along, past the last query its own: no position there attends.
  const rowStats = m.storage('rows', 'array<vec2<f32>>');
  const query = `min(next * ${cols}u + min(tid, ${cols - 1}u), lenQ - 1u)`;
  const statistics = {
    declare: by === 'kv' ? `var stat: vec2<f32>;` : '',
    fetch: by === 'kv' ? `stat = ${rowStats}[lseBase + ${query} * ${m.param('lse_s')}];` : '',
    put:
      by === 'kv'
        ? `if (tid < ${cols}u) {\nlet at = min(tid, ${cols - 1}u);\nw.lses[at] = stat.x;\nw.deltas[at] = stat.y;\n}`
        : '',
  };
  const fetch = `${all((c) => c.fetch(`next * ${cols}u`))}\n${statistics.fetch}`;
  const put = `${all((c) => c.put)}\n${statistics.put}`;

  const dots = (
    sum: string,
    row: string,
    staged: string,
    stride: number,
    width: number,
  ): string => `${zeros(t, sum, rowBlocks, colBlocks)}
${product(
  { rows: rowBlocks, cols: colBlocks, depth: width / edge },
  sum,
  (i, k) => `${row}_${i}_${k}`,
  (k, j) => load(t, 'right', 'col', staged, `${j * edge * stride + k * edge}u`, stride),
)}`;
  const put2 = (to: string, sum: string): string =>
    unroll2(rowBlocks, colBlocks, (i, j) => store(to, scoreAt(t, i, j), `${sum}_${i}_${j}`, scoreStride(t)));
  const take = (from: string, name: string): string =>
    unroll2(turnsOf(t), quads, (i, j) => `var ${name}_${i}_${j} = ${quad(t, from, i, j)};`);
  const lanes: Owned = { rt: rowsAtOnce(t), ct: t.share, tm: turnsOf(t), cols };
  const row = (i: number): string => `own_${i}`;
  const columnStatistics = unroll(quads, (j) => {
    const four = (from: string): string =>
      `vec4<f32>(${[0, 1, 2, 3].map((e) => `${from}[${quadColumn(t, j)} + ${e}u]`).join(', ')})`;
    return `let qc_${j} = i32(q0 + ${quadColumn(t, j)});
let lse_${j} = ${four('w.lses')};
let delta_${j} = ${four('w.deltas')};`;
  });
  const products = !want.ds
    ? `{
${dots('sm', 'a', staged.s, ss, D)}
${put2(scores, 'sm')}
}
workgroupBarrier(); // the scores are visible to the lanes that own their rows
${take(scores, 's')}`
    : turns
      ? `${dots('sm', 'a', staged.s, ss, D)}
${put2(scores, 'sm')}
${dots('tm', 'b', staged.t, ts, Dv)}
workgroupBarrier(); // the scores are visible to the lanes that own their rows
${take(scores, 's')}
workgroupBarrier(); // and read
${put2(scores, 'tm')}
workgroupBarrier(); // dP is visible
${take(scores, 't')}`
      : `{
${dots('sm', 'a', staged.s, ss, D)}
${put2(scores, 'sm')}
${dots('tm', 'b', staged.t, ts, Dv)}
${put2(second, 'tm')}
}
workgroupBarrier(); // scores and dP are visible to the lanes that own their rows
${take(scores, 's')}
${take(second, 't')}`;
  const work = `${products}
${by === 'kv' ? columnStatistics : ''}
${scoreGradients(m, problem, columns, lanes, want, row, true)}
${want.p ? unroll2(turnsOf(t), quads, (i, j) => putShare(t, shares, i, j, `s_${i}_${j}`)) : ''}
${want.ds ? unroll2(turnsOf(t), quads, (i, j) => putShare(t, slopes, i, j, `t_${i}_${j}`)) : ''}`;
  const weigh = (sum: string, blocks: number, from: string, staged: string, stride: number): string =>
    product(
      { rows: rowBlocks, cols: blocks, depth: colBlocks },
      sum,
      (i, k) => load(t, 'left', 'row', from, shareAt(t, i, k), ps),
      (k, n) => load(t, 'right', 'row', staged, `${k * edge * stride + n * edge}u`, stride),
    );
  const sum = `${want.p ? weigh('dv', Dv / edge, shares, staged.t, ts) : ''}
${want.ds ? weigh('ds', D / edge, slopes, staged.s, ss) : ''}`;

  const steps = stepsOf(m, problem, by, {
    b: 'b',
    h: 'h',
    row: `first / ${rows}u`,
    blocks: `(${by === 'q' ? 'lenK' : 'lenQ'} + ${cols - 1}u) / ${cols}u`,
    loop: true,
  });
  // A row that attends a key of NaN has an lse of NaN, so nothing is lost with the key's own.
  const finite = by === 'q' && problem.mask !== null ? tame(copies[0], null) : '';
  const walk = `${all((c) => c.declare)}
${statistics.declare}
${fetch}
for (;;) {
let ${by === 'q' ? 'k0' : 'q0'} = next * ${cols}u;
let partial = nextPartial;
workgroupBarrier(); // the staged rows' last readers are done
${finite}
${put}
${steps.advance}
${fetch}
workgroupBarrier(); // the staged rows are visible
${work}
workgroupBarrier(); // probabilities and score gradients are visible
${sum}
if (!more) { break; }
}`;
  const results = sums
    .map(({ name, blocks, put, factor }) =>
      visitSums(t, name, blocks, (i, x, column) => `${put}(first + own_${i}, (${column}) / 4u, ${x}${factor});`, false),
    )
    .join('\n');
  const bases = (side: Side, tensors: readonly RowTensor[]): string =>
    tensors.map((x) => setBase(m, problem, x, side.head, side.start)).join('\n');
  const overKeys = `${bases(C, [C.s, C.t])}
${setLseBase(m, 'h')}
${by === 'q' ? rowStatistics(lanes, row) : ''}
${steps.begin}
if (more) {
${walk}
}`;
  const group = m.param('group');
  const body = `${headOf(m, problem, by)}
let first = ${by === 'q' ? '(groups.y - 1u - group.y)' : 'group.y'} * ${rows}u;
if (first >= ${by === 'q' ? 'lenQ' : 'lenK'}) { return; }
let ${by === 'q' ? 'q0' : 'k0'} = first;
${placeOf(t)}
// quads c, c + ${t.share}, ... of the columns are this lane's
let c = part / 4u;
${bases(R, [R.s, ...(want.ds ? [R.t] : []), ...sums.map((s) => s.to)])}
${enterRows(t, 'a', loadRowS, 'first', D, shares)}
${want.ds ? enterRows(t, 'b', loadRowT, 'first', Dv, shares) : ''}
${sums.map((s) => zeros(t, s.name, rowBlocks, s.blocks)).join('\n')}
${
  by === 'q'
    ? overKeys
    : `for (var h = hkv * ${group}; h < (hkv + 1u) * ${group}; h++) {
let bh = b * ${m.param('Hq')} + h;
atH = i32(h);
${overKeys}
}`
}
workgroupBarrier(); // the scores' place is free
${results}`;
  const name = by === 'q' ? 'q' : want.p && want.ds ? 'kv' : want.p ? 'v' : 'k';
  return m.build({ name: `backward-matrix-${name}`, threads: threadsOf(t), subgroups: true, body });
}
