/**
 * Forward in 16-bit storage on subgroup matrices (`chromium-experimental-subgroup-matrix`, f16 in, f32 sums): one subgroup is a
 * workgroup and walks the keys of its queries. Q, K and V are loaded as matrices straight from slow memory; scores pass through
 * workgroup memory, where lanes own rows, and come back as probabilities. The output stays in matrices: it is only rescaled
 * when a row's maximum has grown by more than SLACK since the last time, because nothing but a trip through workgroup memory
 * can touch its rows.
 */
import { ceilDiv, LN2, LOG2E } from '../../../core/math.ts';
import { flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { ModuleBuilder, type Shader } from '../wgsl/module.ts';
import { unroll, unroll2 } from '../wgsl/text.ts';
import { headOf } from './head.ts';
import {
  addRuns,
  defineKernel,
  type Launch,
  problemTables,
  refuseShared,
  type WebGpuCaps,
  type WebGpuKernel,
} from './kernel.ts';
import { aligned, setBase } from './rows.ts';
import { declareScores, MASKED, overRuns, START } from './scores.ts';
import { busyShare } from './tiles.ts';

/** Doublings a row's maximum may grow by before the output is rescaled: probabilities stay below 2^SLACK, far inside f16. */
const SLACK = 8;

export interface MatrixConfig {
  readonly [key: string]: number;
  /** Edge of a matrix. */
  readonly edge: number;
  /** Matrices along the queries and along the keys of a tile. */
  readonly rowBlocks: number;
  readonly colBlocks: number;
  /** Invocations of a subgroup, and of the workgroup. */
  readonly lanes: number;
}

const Q = { name: 'q', family: 'q' } as const;
const K = { name: 'k', family: 'k' } as const;
const V = { name: 'v', family: 'v' } as const;
const OUT = { name: 'out', family: 'out' } as const;

const rowsOf = (c: MatrixConfig): number => c.edge * c.rowBlocks;
const keysOf = (c: MatrixConfig): number => c.edge * c.colBlocks;
/** Strides of the score and probability tiles: whole 16 bytes, which matrix loads need, and not a multiple of all banks. */
const scoreStride = (c: MatrixConfig): number => keysOf(c) + 4;
const shareStride = (c: MatrixConfig): number => keysOf(c) + 8;
const bytesOf = (c: MatrixConfig): number => rowsOf(c) * (scoreStride(c) * 4 + shareStride(c) * 2 + 4) + 16;

export const forwardMatrix: WebGpuKernel<MatrixConfig> = defineKernel({
  name: 'forward-matrix',
  pass: 'forward',
  refuse(problem, caps) {
    const shared = refuseShared(problem, caps);
    if (shared !== null) return shared;
    const { matrix } = caps;
    if (matrix === null) return 'the device has no subgroup matrices of f16 with f32 sums';
    if (problem.dtype !== 'f16') return `${problem.dtype} storage, matrices are of f16`;
    if (problem.kv.kind === 'paged' || !problem.uniform) return 'keys in pages or sequences of many lengths';
    const { D, Dv, strides } = problem;
    if (D % matrix.edge !== 0 || Dv % matrix.edge !== 0) return `head sizes that are no multiple of ${matrix.edge}`;
    const rows = (['q', 'k', 'v', 'out'] as const).flatMap((f) => [strides[f].b, strides[f].h, strides[f].s]);
    if (rows.some((n) => n % 8 !== 0) || !aligned(problem, 'out')) return 'rows that start off 16 bytes';
    const configs = configsOf(problem, caps);
    return configs.length === 0 ? `${problem.Sq} queries fill no tile` : null;
  },
  configs: configsOf,
  cost(problem, c, caps) {
    const flops = flopsOf(problem, 'forward');
    const bytes = tiledBytes(problem, 'forward', rowsOf(c), keysOf(c));
    const fill = c.rowBlocks * c.edge * Math.max(problem.D, problem.Dv) > 32 * 64 ? 0.8 : 1;
    const busy = busyShare(problem.B * problem.Hq * ceilDiv(problem.Sq, rowsOf(c)), caps);
    const seconds = (flops / (caps.flops * 3 * fill) + bytes / caps.bandwidth / 32) / busy;
    return { flops, bytes, workspace: 0, seconds };
  },
  shaders: (problem, c) => [emit(problem, c)],
  launch(problem, c): Launch {
    const { tables, values } = problemTables(problem);
    if (problem.mask !== null) addRuns(tables, values, problem, 'q', rowsOf(c), keysOf(c));
    const grid = [problem.Hq, ceilDiv(problem.Sq, rowsOf(c)), problem.B] as const;
    return { dispatches: [{ shader: 0, grid, params: values }], tables: tables.pack(), workspace: {}, zeroed: [] };
  },
});

function configsOf(problem: Problem, caps: WebGpuCaps): MatrixConfig[] {
  const { matrix } = caps;
  if (matrix === null) return [];
  const shapes = [
    [2, 2],
    [1, 4],
    [2, 4],
    [1, 2],
  ];
  return shapes
    .map(([rowBlocks, colBlocks]) => ({ edge: matrix.edge, rowBlocks, colBlocks, lanes: matrix.lanes }))
    .filter((c) => rowsOf(c) <= problem.Sq && bytesOf(c) <= caps.workgroupMemory);
}

function emit(problem: Problem, c: MatrixConfig): Shader {
  const m = new ModuleBuilder();
  const { edge, rowBlocks, colBlocks, lanes } = c;
  const [rows, keys] = [rowsOf(c), keysOf(c)];
  const { D, Dv } = problem;
  const [ss, ps] = [scoreStride(c), shareStride(c)];
  const outBlocks = Dv / edge;
  // Either a lane owns whole rows, or neighbouring lanes share one.
  const lanesPerRow = Math.max(1, lanes / rows);
  const rowsPerLane = Math.max(1, rows / lanes);
  const own = keys / lanesPerRow;

  for (const extension of ['f16', 'subgroups', 'chromium_experimental_subgroup_matrix']) m.enable(extension);
  declareScores(m, problem, 'kv', false);
  const [q, k, v] = [Q, K, V].map((t) => m.storage(t.name, 'array<f16>'));
  const out = m.storage(OUT.name, 'array<f16>', 'read_write');
  const lse = m.storage('lse', 'array<f32>', 'read_write');
  m.workgroup('scores', `array<f32, ${rows * ss}>`);
  m.workgroup('shares', `array<f16, ${rows * ps}>`);
  m.workgroup('factors', `array<f32, ${rows}>`);
  m.workgroup('grown', 'u32');
  const [qs, ks, vs, os] = ['q_s', 'k_s', 'v_s', 'out_s'].map((p) => m.param(p));
  const left = `subgroup_matrix_left<f16, ${edge}, ${edge}>`;
  const right = `subgroup_matrix_right<f16, ${edge}, ${edge}>`;
  const result = `subgroup_matrix_result<f32, ${edge}, ${edge}>`;

  const row = (x: number): string => (rowsPerLane === 1 ? `lane / ${lanesPerRow}u` : `lane + ${x * lanes}u`);
  const perRow = (line: (x: number) => string): string => unroll(rowsPerLane, line);
  const acrossRow = (name: string, op: (a: string, b: string) => string): string =>
    unroll(Math.log2(lanesPerRow), (s) => `${name} = ${op(name, `subgroupShuffleXor(${name}, ${2 ** s}u)`)};`);

  const products = `{
${unroll2(rowBlocks, colBlocks, (i, j) => `var s_${i}_${j} = ${result}();`)}
for (var d = 0u; d < ${D}u; d += ${edge}u) {
${unroll(rowBlocks, (i) => `let a_${i} = subgroupMatrixLoad<${left}, row_major>(&${q}, base_q + (q0 + ${i * edge}u) * ${qs} + d, ${qs});`)}
${unroll(
  colBlocks,
  (j) => `let b_${j} = subgroupMatrixLoad<${right}, col_major>(&${k}, base_k + (k0 + ${j * edge}u) * ${ks} + d, ${ks});
${unroll(rowBlocks, (i) => `s_${i}_${j} = subgroupMatrixMultiplyAccumulate(a_${i}, b_${j}, s_${i}_${j});`)}`,
)}
}
${unroll2(rowBlocks, colBlocks, (i, j) => `subgroupMatrixStore<row_major>(&scores, ${i * edge * ss + j * edge}u, s_${i}_${j}, ${ss}u);`)}
}`;
  // The last keys of a sequence: a matrix load would run past them, so lanes make the products one by one.
  const raggedProducts = perRow(
    (x) => `for (var j = 0u; j < ${own}u; j++) {
let key = min(k0 + column + j, lenK - 1u);
var sum = 0.0;
for (var d = 0u; d < ${D}u; d++) { sum = fma(f32(${q}[base_q + (q0 + row_${x}) * ${qs} + d]), f32(${k}[base_k + key * ${ks} + d]), sum); }
scores[row_${x} * ${ss}u + column + j] = sum;
}`,
  );

  const name = (x: number, j: number): string => `x_${x}_${j}`;
  const scale = m.param('scale', 'f32');
  const where = (x: number, j: number): string =>
    `atB, atH, i32(q0 + row_${x}), i32(min(k0 + column + ${j}u, lenK - 1u)), atLenQ, atLenK`;
  const logit = (x: number, j: number): string => {
    const raw = `scores[row_${x} * ${ss}u + column + ${j}u]`;
    if (problem.mod === null) return `${raw} * ${m.param('scaleLog2', 'f32')}`;
    return `mod1(${raw} * ${scale}, ${where(x, j)}) * ${LOG2E}`;
  };
  const seen = (x: number, j: number): string =>
    `k0 + column + ${j}u < lenK${problem.mask === null ? '' : ` && (!partial || mask1(0.0, ${where(x, j)}))`}`;
  const maxima = perRow(
    (x) => `${unroll(own, (j) => `var ${name(x, j)} = ${logit(x, j)};`)}
if (doubtful) {
${unroll(own, (j) => `${name(x, j)} = select(${MASKED}, ${name(x, j)}, ${seen(x, j)});`)}
}
var n_${x} = ${START};
${unroll(own, (j) => `n_${x} = max(n_${x}, ${name(x, j)});`)}
${acrossRow(`n_${x}`, (a, b) => `max(${a}, ${b})`)}`,
  );
  const grew = Array.from({ length: rowsPerLane }, (_, x) => `n_${x} > m_${x} + ${SLACK}.0`).join(' || ');
  const shares = perRow(
    (x) => `${unroll(own, (j) => `${name(x, j)} = exp2(${name(x, j)} - m_${x});\nl_${x} += ${name(x, j)};`)}
${
  problem.dropout === null
    ? ''
    : unroll(own / 4, (g) => {
        const keep = `keep_${x}_${g}`;
        return `let ${keep} = tw_drop4(i32(q0 + row_${x}), i32(k0 + column + ${4 * g}u), i32(bh));
${unroll(4, (e) => `${name(x, 4 * g + e)} *= ${keep}[${e}];`)}`;
      })
}
${unroll(own, (j) => `shares[row_${x} * ${ps}u + column + ${j}u] = f16(${name(x, j)});`)}`,
  );
  /** Takes each column of output matrices through workgroup memory, where lanes visit their rows. */
  const visitOutput = (line: (x: number, n: number) => string, back: boolean): string => {
    const width = edge / lanesPerRow;
    return unroll(
      outBlocks,
      (
        n,
      ) => `${unroll(rowBlocks, (i) => `subgroupMatrixStore<row_major>(&scores, ${i * edge * ss}u, o_${i}_${n}, ${ss}u);`)}
workgroupBarrier(); // the output's rows are visible to the lanes that own them
${perRow(
  (x) => `for (var j = 0u; j < ${width}u; j++) {
let col = (lane % ${lanesPerRow}u) * ${width}u + j;
let cell = row_${x} * ${ss}u + col;
${line(x, n)}
}`,
)}
workgroupBarrier(); // rows are done with
${back ? unroll(rowBlocks, (i) => `o_${i}_${n} = subgroupMatrixLoad<${result}, row_major>(&scores, ${i * edge * ss}u, ${ss}u);`) : ''}
workgroupBarrier(); // the place is free again`,
    );
  };
  const rescale = visitOutput((x) => `scores[cell] *= factors[row_${x}];`, true);
  // Masked positions may hide NaN in V, which a matrix product would let through as 0 * NaN: lanes skip what has no share.
  const careful = visitOutput(
    (x, n) => `var sum = scores[cell];
for (var key = 0u; key < ${keys}u; key++) {
let p = f32(shares[row_${x} * ${ps}u + key]);
if (p != 0.0) { sum = fma(p, f32(${v}[base_v + (k0 + key) * ${vs} + ${n * edge}u + col]), sum); }
}
scores[cell] = sum;`,
    true,
  );
  const fast = `for (var key = 0u; key < ${keys}u; key += ${edge}u) {
${unroll(rowBlocks, (i) => `let p_${i} = subgroupMatrixLoad<${left}, row_major>(&shares, ${i * edge * ps}u + key, ${ps}u);`)}
${unroll(
  outBlocks,
  (n) => `{
let x = subgroupMatrixLoad<${right}, row_major>(&${v}, base_v + (k0 + key) * ${vs} + ${n * edge}u, ${vs});
${unroll(rowBlocks, (i) => `o_${i}_${n} = subgroupMatrixMultiplyAccumulate(p_${i}, x, o_${i}_${n});`)}
}`,
)}
}`;
  const block = `let k0 = block * ${keys}u;
let ragged = k0 + ${keys}u > lenK;
let doubtful = partial || ragged;
if (ragged) {
${raggedProducts}
} else {
${products}
}
workgroupBarrier(); // the products are visible to the lanes that own their rows
${maxima}
let anyGrew = subgroupAny(${grew});
if (lane == 0u) { grown = select(0u, 1u, anyGrew); }
if (workgroupUniformLoad(&grown) != 0u) {
${perRow(
  (x) => `{
let top = max(m_${x}, n_${x});
let factor = exp2(m_${x} - top);
factors[row_${x}] = factor;
l_${x} *= factor;
m_${x} = top;
}`,
)}
workgroupBarrier(); // factors are visible
if (begun) {
${rescale}
}
}
begun = true;
${shares}
workgroupBarrier(); // the probabilities are visible
if (doubtful) {
${careful}
} else {
${fast}
}`;
  const sink = problem.sink ? m.storage('sink', 'array<f32>') : '';
  const body = `${headOf(m, problem, 'q')}
let first = (groups.y - 1u - group.y) * ${rows}u;
// The last tile starts earlier rather than reaching past the end; its first rows are another tile's to write.
let q0 = min(first, lenQ - ${rows}u);
// Locals and not module variables: matrix loads want addresses that are seen to be uniform.
${[Q, OUT].map((t) => `let ${setBase(m, problem, t, 'h', 'qStart')}`).join('\n')}
${[K, V].map((t) => `let ${setBase(m, problem, t, 'hkv', 'kStart')}`).join('\n')}
let column = (lane % ${lanesPerRow}u) * ${own}u;
var begun = false;
${perRow((x) => `let row_${x} = ${row(x)};\nvar m_${x} = ${START};\nvar l_${x} = 0.0;`)}
${unroll2(rowBlocks, outBlocks, (i, n) => `var o_${i}_${n} = ${result}();`)}
${overRuns(m, problem, 'q', { b: 'b', h: 'h', row: `first / ${rows}u`, blocks: `(lenK + ${keys - 1}u) / ${keys}u` }, block)}
${perRow(
  (x) => `${acrossRow(`l_${x}`, (a, b) => `${a} + ${b}`)}
{
let attended = m_${x} > ${START};
var share = 1.0;
${
  problem.sink
    ? `let sink = ${sink}[h] * ${LOG2E};
let top = max(m_${x}, sink);
share = exp2(m_${x} - top);
l_${x} = l_${x} * share + exp2(sink - top);
m_${x} = top;`
    : ''
}
factors[row_${x}] = select(0.0, share / l_${x}, attended);
if (lane % ${lanesPerRow}u == 0u && q0 + row_${x} >= first) {
${lse}[b * ${m.param('lse_b')} + h * ${m.param('lse_h')} + (qStart + q0 + row_${x}) * ${m.param('lse_s')}] = select(${m.param('negInf', 'f32')}, (m_${x} + log2(l_${x})) * ${LN2}, attended);
}
}`,
)}
workgroupBarrier(); // factors are visible
${visitOutput(
  (x, n) =>
    `if (q0 + row_${x} >= first) { ${out}[base_out + (q0 + row_${x}) * ${os} + ${n * edge}u + col] = f16(scores[cell] * factors[row_${x}]); }`,
  false,
)}`;
  return m.build({ name: 'forward-matrix', threads: lanes, subgroups: true, body });
}
