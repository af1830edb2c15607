/**
 * Tiles on subgroup matrices (`chromium-experimental-subgroup-matrix`, f16 in, f32 sums). A workgroup has `groups` subgroups;
 * each owns `rowBlocks` x `colBlocks` matrices of the score tile, and all share the columns, staged in workgroup memory.
 *
 * WGSL gives no access to the elements of a matrix, so scores pass through workgroup memory: matrices are stored as f32, lanes
 * work on rows of four neighbouring columns at a time, and leave f16 that is loaded as matrices again. Every stride of
 * workgroup memory is chosen so that neither the matrices' accesses nor the lanes' meet in a bank.
 */
import { ceilDiv } from '../../../core/math.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { ModuleBuilder } from '../wgsl/module.ts';
import { unroll, unroll2 } from '../wgsl/text.ts';
import type { WebGpuCaps } from './kernel.ts';
import { aligned, type RowTensor, rowAddress, widthOf } from './rows.ts';

/** Why no kernel on matrices serves the problem on the device, or null. */
export function refuseMatrices({ dtype }: Problem, caps: WebGpuCaps): string | null {
  if (caps.matrix === null) return 'the device has no subgroup matrices of f16 with f32 sums';
  // The range of bf16 does not fit f16, and f32 is more than either holds.
  return dtype === 'f16' ? null : `${dtype} storage, matrices are of f16`;
}

/** Why a kernel whose tiles all need too much is refused. */
export const refuseTiles = ({ D, Dv }: Problem, { workgroupMemory }: WebGpuCaps): string =>
  `head sizes ${D} and ${Dv} fit no tile in ${workgroupMemory} bytes of workgroup memory`;

export interface MatrixTile {
  /** Edge of a matrix. */
  readonly edge: number;
  /** Invocations of a subgroup. */
  readonly lanes: number;
  /** Subgroups of a workgroup: each has its own rows of the tile. */
  readonly groups: number;
  /** Matrices along the rows and along the columns of a subgroup's score tile. */
  readonly rowBlocks: number;
  readonly colBlocks: number;
  /** Lanes that share a row while scores are in workgroup memory; each takes every `share`-th quad of columns. */
  readonly share: number;
  /** Unused f32 between rows of scores: 8 keep rows apart in the banks, 0 saves memory. */
  readonly pad: number;
}

/** Rows of one subgroup, of the workgroup, and columns of the score tile. */
export const subRows = (t: MatrixTile): number => t.edge * t.rowBlocks;
export const rowsOf = (t: MatrixTile): number => subRows(t) * t.groups;
export const colsOf = (t: MatrixTile): number => t.edge * t.colBlocks;
export const threadsOf = (t: MatrixTile): number => t.lanes * t.groups;
/** Rows that the lanes of a subgroup work on at once, and how often they do until all are done. */
export const rowsAtOnce = (t: MatrixTile): number => t.lanes / t.share;
export const turnsOf = (t: MatrixTile): number => subRows(t) / rowsAtOnce(t);
/** Quads of a row that one lane works on. */
export const quadsPerLane = (t: MatrixTile): number => colsOf(t) / 4 / t.share;
/** Whether rows divide among turns and lanes by whole quads. */
export const divides = (t: MatrixTile): boolean =>
  [rowsAtOnce(t), turnsOf(t), quadsPerLane(t)].every((n) => n >= 1 && Number.isInteger(n));

/** Registers of f32 sums that a lane has beside everything else. */
const SUMS = 128;

/**
 * Share of its best rate that a tile reaches, from what was measured: one row of matrices loads each staged matrix for half the
 * work; a workgroup alone on a processor has nobody to work while it waits; sums that registers do not hold go to memory.
 * `bytes` is the workgroup's memory, `width` the columns of all sums of a row.
 */
export function efficiency(t: MatrixTile, bytes: number, width: number, caps: WebGpuCaps): number {
  // A processor that plays a GPU has no matrices, and takes long to compile them.
  if (caps.software) return 0.01;
  const reuse = t.rowBlocks === 1 ? 0.85 : 1;
  const company = 2 * bytes > caps.workgroupMemory ? 0.7 : 1;
  const spills = (subRows(t) * width) / t.lanes > SUMS ? 0.4 : 1;
  return reuse * company * spills * (t.groups < 4 ? 0.7 : 1);
}

/** Head size in whole matrices: what lies between is zero. */
export const padded = (t: MatrixTile, width: number): number => ceilDiv(width, t.edge) * t.edge;
/** Distances between rows in workgroup memory, in elements: of scores (f32), of probabilities and of staged rows (f16). */
export const scoreStride = (t: MatrixTile): number => colsOf(t) + t.pad;
export const halfStride = (width: number): number => width + 8;

/** Name of the workgroup memory: one variable, so that every array in it begins at a multiple of 16 bytes, as matrices need. */
const MEMORY = 'w';

/** Declares the workgroup memory, by names and types; a name's place is `w.<name>`. */
export function declareMemory(m: ModuleBuilder, fields: Readonly<Record<string, string>>): void {
  m.fn(
    'Memory',
    `struct Memory {\n${Object.entries(fields)
      .map(([name, type]) => `@align(16) ${name}: ${type},`)
      .join('\n')}\n}`,
  );
  m.workgroup(MEMORY, 'Memory');
}

export const LEFT = 'left';
export const RIGHT = 'right';
export const RESULT = 'result';
export type Use = typeof LEFT | typeof RIGHT | typeof RESULT;

export const matrixType = (t: MatrixTile, use: Use): string =>
  `subgroup_matrix_${use}<${use === RESULT ? 'f32' : 'f16'}, ${t.edge}, ${t.edge}>`;

/** Code that loads a matrix; `order` says whether the rows of memory are the rows or the columns of the matrix. */
export const load = (t: MatrixTile, use: Use, order: 'row' | 'col', from: string, at: string, stride: number): string =>
  `subgroupMatrixLoad<${matrixType(t, use)}, ${order}_major>(&${from}, ${at}, ${stride}u)`;

export const store = (to: string, at: string, matrix: string, stride: number): string =>
  `subgroupMatrixStore<row_major>(&${to}, ${at}, ${matrix}, ${stride}u);`;

export const zeros = (t: MatrixTile, name: string, rows: number, cols: number): string =>
  unroll2(rows, cols, (i, j) => `var ${name}_${i}_${j} = ${matrixType(t, RESULT)}();`);

const multiply = (sum: string, a: string, b: string): string =>
  `${sum} = subgroupMatrixMultiplyAccumulate(${a}, ${b}, ${sum});`;

/** `sum_<i>_<j>` += sum over k of A(i, k) B(k, j): `a` and `b` are code of loads or names of matrices that are there already. */
export function product(
  size: { readonly rows: number; readonly cols: number; readonly depth: number },
  sum: string,
  a: (i: number, k: number) => string,
  b: (k: number, j: number) => string,
): string {
  const { rows, cols, depth } = size;
  return unroll(
    depth,
    (k) => `{
${unroll(rows, (i) => `let a_${i} = ${a(i, k)};`)}
${unroll(cols, (j) => `let b_${j} = ${b(k, j)};\n${unroll(rows, (i) => multiply(`${sum}_${i}_${j}`, `a_${i}`, `b_${j}`))}`)}
}`,
  );
}

/**
 * Declares the invocation's place: `sub` and `ln`, its subgroup and lane, `tid`, the quad `part` of the columns it begins with,
 * and of each turn i the row `own_<i>` of the tile and `cell_<i>`, `half_<i>`, where that is among scores and probabilities. The
 * bounds always hold; they are there to be seen, for then no access below has to be clamped.
 */
export const placeOf = (t: MatrixTile): string => `let sub = min(subgroup, ${t.groups - 1}u);
let ln = min(lane, ${t.lanes - 1}u);
let tid = sub * ${t.lanes}u + ln;
let part = ln % ${t.share}u * 4u;
${unroll(
  turnsOf(t),
  (i) => `let own_${i} = sub * ${subRows(t)}u + ${i * rowsAtOnce(t)}u + ln / ${t.share}u;
let cell_${i} = own_${i} * ${scoreStride(t)}u + part;
let half_${i} = own_${i} * ${halfStride(colsOf(t))}u + part;`,
)}`;

/** Where matrix (i, j) of the subgroup's part of the score tile begins, among scores or probabilities. */
export const scoreAt = (t: MatrixTile, i: number, j: number): string =>
  `sub * ${subRows(t) * scoreStride(t)}u + ${i * t.edge * scoreStride(t) + j * t.edge}u`;
export const shareAt = (t: MatrixTile, i: number, j: number): string =>
  `sub * ${subRows(t) * halfStride(colsOf(t))}u + ${i * t.edge * halfStride(colsOf(t)) + j * t.edge}u`;

/** Column of the tile at which quad j of a lane begins. */
export const quadColumn = (t: MatrixTile, j: number): string => `part + ${j * 4 * t.share}u`;

/** Code for quad j of the lane's row i of `scores`. */
export function quad(t: MatrixTile, from: string, i: number, j: number): string {
  const at = (e: number): string => `${from}[cell_${i} + ${j * 4 * t.share + e}u]`;
  return `vec4<f32>(${[0, 1, 2, 3].map(at).join(', ')})`;
}

/** Puts the vec4 `x` back as quad j of row i of `scores`. */
export const putQuad = (t: MatrixTile, to: string, i: number, j: number, x: string): string =>
  unroll(4, (e) => `${to}[cell_${i} + ${j * 4 * t.share + e}u] = ${x}[${e}];`);

/** Puts the vec4 `x` as f16 at quad j of row i of an array of probabilities. */
export const putShare = (t: MatrixTile, to: string, i: number, j: number, x: string): string => `{
let h = vec4<f16>(${x});
${unroll(4, (e) => `${to}[half_${i} + ${j * 4 * t.share + e}u] = h[${e}];`)}
}`;

/** Combines a value of the lanes that share a row. */
export const acrossRow = (t: MatrixTile, name: string, op: (a: string, b: string) => string): string =>
  unroll(Math.log2(t.share), (s) => `${name} = ${op(name, `subgroupShuffleXor(${name}, ${2 ** s}u)`)};`);

/**
 * Takes the sums `name_<i>_<n>` (n < `blocks`) through `scores`, where lanes visit the quads of their rows: `line` sees turn i, the
 * name of a vec4 and code for its first column. `back` loads the matrices again. The place must be free, and is at the end.
 */
export function visitSums(
  t: MatrixTile,
  name: string,
  blocks: number,
  line: (i: number, x: string, column: string) => string,
  back: boolean,
): string {
  const { rowBlocks, colBlocks } = t;
  const stride = scoreStride(t);
  return unroll(ceilDiv(blocks, colBlocks), (turn) => {
    const here = Math.min(colBlocks, blocks - turn * colBlocks);
    const sum = (i: number, j: number): string => `${name}_${i}_${turn * colBlocks + j}`;
    return `${unroll2(rowBlocks, here, (i, j) => store('w.scores', scoreAt(t, i, j), sum(i, j), stride))}
workgroupBarrier(); // the sums are visible to the lanes that own their rows
${unroll2(
  turnsOf(t),
  quadsPerLane(t),
  (i, j) => `{
var x = ${quad(t, 'w.scores', i, j)};
${line(i, 'x', `${turn * colsOf(t)}u + ${quadColumn(t, j)}`)}
${back ? putQuad(t, 'w.scores', i, j, 'x') : ''}
}`,
)}
workgroupBarrier(); // lanes are done with their rows
${back ? `${unroll2(rowBlocks, here, (i, j) => `${sum(i, j)} = ${load(t, RESULT, 'row', 'w.scores', scoreAt(t, i, j), stride)};`)}\nworkgroupBarrier(); // and so are the matrices` : ''}`;
  });
}

/** Declares `to`: the top bit of each f16 in `x` (words of two) that is infinite or NaN, all ones in the exponent. */
export const oddHalves = (x: string, type: string, to: string): string =>
  `let ${to} = ((${x} & ${type}(0x7fff7fffu)) + ${type}(0x04000400u)) & ${type}(0x80008000u);`;

/**
 * Makes what a copy fetched finite, because a product of matrices lets NaN of a masked row through as 0 * NaN: an exponent of all ones
 * loses its last bit, so that infinity becomes 2^15. `seen` (u32, when somebody wants to know) is no longer 0 if there was any.
 */
export const tame = (copy: Copy, seen: string | null): string =>
  copy.registers
    .map(
      (x) => `{
${oddHalves(x, 'vec4<u32>', 'odd')}
${x} &= ~(odd >> vec4<u32>(5u));
${seen === null ? '' : `${seen} |= (odd.x | odd.y) | (odd.z | odd.w);`}
}`,
    )
    .join('\n');

/**
 * Declares `ld8_<name>(row, part) -> vec4<u32>`: the f16 elements 8 part .. 8 part + 7 of a row as they are stored, zeros between the
 * row's width and `width`. Rows at or past `limit` (u32 code, at least 1 when called) are the last row again: nobody uses what
 * becomes of them. Whatever is done to a value here waits for it, however late it is put to use; so nothing is, where that is possible.
 */
export function declareHalves(m: ModuleBuilder, problem: Problem, t: RowTensor, limit: string, width: number): string {
  const vector = aligned(problem, t.family, 8);
  const own = widthOf(problem, t.family);
  const buffer = m.storage(t.name, vector ? 'array<vec4<u32>>' : 'array<f16>');
  const parts = ceilDiv(own, 8);
  const filled = parts * 8 < width;
  const name = `ld8_${t.name}`;
  const half = (i: number): string => `select(0.0h, ${buffer}[at + ${i}u], part * 8u + ${i}u < ${own}u)`;
  const word = (i: number): string => `bitcast<u32>(vec2<f16>(${half(2 * i)}, ${half(2 * i + 1)}))`;
  const value = vector
    ? `${buffer}[(at >> 3u) + part]`
    : `vec4<u32>(${[0, 1, 2, 3].map((i) => `\n    ${word(i)}`).join(',')})`;
  return m.fn(
    name,
    `fn ${name}(row_: u32, part_: u32) -> vec4<u32> {
  let row = min(row_, ${limit} - 1u);
  let part = ${filled ? `min(part_, ${parts - 1}u)` : 'part_'};
  let at = ${rowAddress(m, problem, t)}${vector ? '' : ' + part * 8u'};
  return ${filled ? `select(vec4<u32>(0u), ${value}, part_ < ${parts}u)` : value};
}`,
  );
}

/** A copy by the whole workgroup of rows from slow memory into workgroup memory, through registers. */
export interface Copy {
  readonly registers: readonly string[];
  /** Declares them. */
  readonly declare: string;
  /** Starts the loads, from row `first` (u32 code) and vector of eight `part`. */
  readonly fetch: (first: string, part?: number) => string;
  /** Puts what was fetched where it belongs. */
  readonly put: string;
}

/** Copies `rows` rows of `width` elements (a multiple of 8) to `to`, `stride` apart. */
export function copyRows(
  t: MatrixTile,
  name: string,
  from: string,
  rows: number,
  width: number,
  to: string,
  stride: number,
): Copy {
  const threads = threadsOf(t);
  const parts = width / 8;
  const count = rows * parts;
  const vectors = ceilDiv(count, threads);
  const ragged = (k: number): boolean => (k + 1) * threads > count;
  const item = (k: number): string => {
    const plain = k === 0 ? 'tid' : `(tid + ${k * threads}u)`;
    return ragged(k) ? `min(${plain}, ${count - 1}u)` : plain;
  };
  return {
    registers: Array.from({ length: vectors }, (_, k) => `${name}_${k}`),
    declare: unroll(vectors, (k) => `var ${name}_${k}: vec4<u32>;`),
    fetch: (first, part = 0) =>
      unroll(
        vectors,
        (k) =>
          `${name}_${k} = ${from}(${first} + ${item(k)} / ${parts}u, ${part === 0 ? '' : `${part}u + `}${item(k)} % ${parts}u);`,
      ),
    put: unroll(
      vectors,
      (k) => `${ragged(k) ? `if (tid < ${count - k * threads}u) ` : ''}{
let at = ${item(k)} / ${parts}u * ${stride}u + ${item(k)} % ${parts}u * 8u;
${unroll(4, (e) => `let h_${e} = bitcast<vec2<f16>>(${name}_${k}[${e}]);\n${to}[at + ${2 * e}u] = h_${e}.x;\n${to}[at + ${2 * e + 1}u] = h_${e}.y;`)}
}`,
    ),
  };
}

/**
 * Brings `rows` rows at `first` into matrices `<name>_<i>_<k>` for their subgroups, through the place `shares` of the probabilities: as many
 * columns at a time as that has.
 */
export function enterRows(
  t: MatrixTile,
  name: string,
  from: string,
  first: string,
  width: number,
  shares: string,
): string {
  const [cols, stride] = [colsOf(t), halfStride(colsOf(t))];
  const copy = copyRows(t, `${name}r`, from, rowsOf(t), cols, shares, stride);
  const depth = width / t.edge;
  return unroll(
    ceilDiv(width, cols),
    (c) => `{
${copy.declare}
${copy.fetch(first, (c * cols) / 8)}
workgroupBarrier(); // the place's last readers are done
${copy.put}
}
workgroupBarrier(); // these columns are visible
${unroll2(t.rowBlocks, Math.min(t.colBlocks, depth - c * t.colBlocks), (i, k) => `let ${name}_${i}_${c * t.colBlocks + k} = ${load(t, LEFT, 'row', shares, shareAt(t, i, k), stride)};`)}`,
  );
}

/** What steps through the blocks of one row of the score matrix, one block ahead of the work. */
export interface Steps {
  /** Declares `more`, and if that holds `next` and `nextPartial`: the first block. */
  readonly begin: string;
  /** Moves `next` on, or makes `more` false. */
  readonly advance: string;
}

export interface Place {
  readonly b: string;
  readonly h: string;
  readonly row: string;
  readonly blocks: string;
  /** Writes the way from run to run as a loop: it keeps a driver from unrolling the walk, which pays in some kernels. */
  readonly loop?: boolean;
}

export function stepsOf(m: ModuleBuilder, problem: Problem, by: 'q' | 'kv', at: Place): Steps {
  if (problem.mask === null)
    return {
      begin: `let blocks = ${at.blocks};\nvar next = 0u;\nlet nextPartial = false;\nvar more = blocks > 0u;`,
      advance: 'next++;\nmore = next < blocks;',
    };
  const table = m.storage('tables', 'array<i32>');
  const runs = m.param(`${by}RunsAt`);
  const row = `${m.param(`${by}RowsAt`)} + ${at.b} * ${m.param(`${by}RunsB`)} + ${at.h} * ${m.param(`${by}RunsH`)} + ${at.row}`;
  const enter = `if (more) {
let runAt = ${runs} + 3u * run;
next = u32(${table}[runAt]);
runEnd = u32(${table}[runAt + 1u]);
nextPartial = ${table}[runAt + 2u] != 0;
}`;
  return {
    begin: `let runRow = ${row};
let lastRun = u32(${table}[runRow + 1u]);
var run = u32(${table}[runRow]);
var next = 0u;
var runEnd = 0u;
var nextPartial = false;
var more = run < lastRun;
${enter}`,
    advance: `next++;
${at.loop === true ? 'while (more && next >= runEnd)' : 'if (next >= runEnd)'} {
run++;
more = run < lastRun;
${enter}
}`,
  };
}
