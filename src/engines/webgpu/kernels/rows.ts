/**
 * Rows of q, k, v, out and their gradients in storage buffers: loads and stores of four neighbouring elements as f32, for
 * every storage type, alignment and KV layout. A kernel sets `base_<name>` once a head; helpers do the rest.
 */
import type { FloatDType } from '../../../core/dtype.ts';
import { ceilDiv } from '../../../core/math.ts';
import type { Problem, Strides } from '../../../problem/problem.ts';
import type { ModuleBuilder } from '../wgsl/module.ts';

/** The operand a tensor is laid out like. */
export type Family = 'q' | 'k' | 'v' | 'out';

export interface RowTensor {
  /** Binding name: an operand of the run or a workspace. */
  readonly name: string;
  readonly family: Family;
}

/** Whether `n` neighbouring elements always start at a multiple of n, so that one vector load brings them. */
export function aligned(problem: Problem, family: Family, n = 4): boolean {
  const width = widthOf(problem, family);
  const { b, h, s } = problem.strides[family];
  return [width, b, h, s].every((x) => x % n === 0);
}

/** Elements of one row. */
export const widthOf = (problem: Problem, family: Family): number =>
  family === 'q' || family === 'k' ? problem.D : problem.Dv;

/** Vectors of four that cover one row. */
export const quadsOf = (problem: Problem, family: Family): number => ceilDiv(widthOf(problem, family), 4);

/** Parameters of an operand's strides: `<family>_b`, `<family>_h`, `<family>_s`, in elements. */
export function strideValues(name: string, { b, h, s }: Strides): Record<string, number> {
  return { [`${name}_b`]: b, [`${name}_h`]: h, [`${name}_s`]: s };
}

/** Code for the element address of row `row` of the sequence, given `base_<name>`. */
export function rowAddress(m: ModuleBuilder, problem: Problem, t: RowTensor): string {
  const stride = m.param(`${t.family}_s`);
  const base = m.local(`base_${t.name}`, 'u32');
  if (problem.kv.kind === 'paged' && (t.family === 'k' || t.family === 'v')) {
    const table = m.storage('tables', 'array<i32>');
    const size = problem.kv.pageSize;
    const row = `(row + ${m.local('pageStart', 'u32')})`;
    const page = `u32(${table}[${m.local('pageRow', 'u32')} + ${row} / ${size}u])`;
    return `${base} + ${page} * ${m.param(`${t.family}_b`)} + (${row} % ${size}u) * ${stride}`;
  }
  return `${base} + row * ${stride}`;
}

/**
 * Code that points `base_<name>` at head `h` of sequence `b` whose first row is `start`. The rows of paged tensors are found
 * through what `setPages` sets.
 */
export function setBase(m: ModuleBuilder, problem: Problem, t: RowTensor, h: string, start: string): string {
  const [pb, ph, ps] = ['b', 'h', 's'].map((x) => m.param(`${t.family}_${x}`));
  const from = m.param(`${t.family}_from`);
  if (problem.kv.kind === 'paged' && (t.family === 'k' || t.family === 'v'))
    return `base_${t.name} = ${h} * ${ph} - ${from};`;
  return `base_${t.name} = b * ${pb} + ${h} * ${ph} + ${start} * ${ps} - ${from};`;
}

/** Code that finds sequence `b` in the page table, when there is one. */
export function setPages(m: ModuleBuilder, problem: Problem): string {
  if (problem.kv.kind !== 'paged') return '';
  return `${m.local('pageRow', 'u32')} = ${m.param('pagesAt')} + b * ${m.param('maxPages')};\n${m.local('pageStart', 'u32')} = kStart;`;
}

const F16 = `fn tw_f16(w: vec2<u32>) -> vec4<f32> { return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }`;
const BF16 = `fn tw_bf16(w: vec2<u32>) -> vec4<f32> {
  return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}`;
/** Rounds to nearest, ties to even; NaN keeps its quiet bit. */
const TO_BF16 = `fn tw_to_bf16(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  let rounded = (u + 0x7fffu + ((u >> 16u) & 1u)) >> 16u;
  return select(rounded, (u >> 16u) | 0x40u, (u & 0x7fffffffu) > 0x7f800000u);
}`;
/** Rounds to nearest, ties to even, by integers: pack2x16float may truncate on some drivers. */
const TO_F16 = `fn tw_to_f16(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  let sign = (u >> 16u) & 0x8000u;
  let a = u & 0x7fffffffu;
  if (a > 0x7f800000u) { return sign | 0x7e00u; }
  if (a >= 0x477ff000u) { return sign | 0x7c00u; }
  if (a < 0x38800000u) {
    let shift = min(126u - (a >> 23u), 31u);
    let m = (a & 0x7fffffu) | 0x800000u;
    let half = m >> shift;
    let rest = m & ((1u << shift) - 1u);
    let tie = 1u << (shift - 1u);
    return sign | (half + select(0u, 1u, rest > tie || (rest == tie && (half & 1u) == 1u)));
  }
  return sign | ((a - 0x38000000u + 0xfffu + ((a >> 13u) & 1u)) >> 13u);
}`;

/** Buffer type a row tensor is bound as. */
function bufferType(dtype: FloatDType, vector: boolean, write: boolean): string {
  if (dtype === 'f32') return vector ? 'array<vec4<f32>>' : 'array<f32>';
  if (vector) return 'array<vec2<u32>>';
  // Two elements of a word may belong to two invocations.
  return write ? 'array<atomic<u32>>' : 'array<u32>';
}

export interface LoadOptions {
  /** Rows at or past the limit may hold anything: what comes of them is thrown away. */
  readonly anyRow?: boolean;
  /** Only quads of the row are asked for. */
  readonly anyQuad?: boolean;
}

/** Loads that are unpacked later, so that they take as few registers on their way as they take bytes. */
export interface RawLoad {
  /** What (row, quad) gives. */
  readonly type: string;
  readonly load: string;
  /** Code for the vec4<f32> in a loaded value. */
  readonly unpack: (x: string) => string;
}

/**
 * Declares a function of (row, quad) that loads elements 4 quad .. 4 quad + 3 of a row, zero past the row's width and for rows
 * at or past `limit` (u32 code, at least 1 when called), unless the options say otherwise.
 */
export function declareRaw(
  m: ModuleBuilder,
  problem: Problem,
  t: RowTensor,
  limit: string,
  options: LoadOptions = {},
): RawLoad {
  const { dtype } = problem;
  const vector = aligned(problem, t.family);
  const buffer = m.storage(t.name, bufferType(dtype, vector, false));
  const quads = quadsOf(problem, t.family);
  // Scalar loads are not made faster.
  const anyRow = options.anyRow === true && vector;
  // Rows past the end of a page table have no address.
  const anyAddress = anyRow && problem.kv.kind === 'strided';
  const anyQuad = options.anyQuad === true && vector;
  const type = vector && dtype !== 'f32' ? 'vec2<u32>' : 'vec4<f32>';
  const load = `rd${anyRow ? '_any' : ''}${anyQuad ? '_full' : ''}_${t.name}`;
  const checks = [anyRow ? '' : `row_ < ${limit}`, anyQuad ? '' : `quad_ < ${quads}u`].filter((x) => x !== '');
  const checked = (x: string): string => (checks.length === 0 ? x : `select(${type}(), ${x}, ${checks.join(' && ')})`);
  // Clamped rather than branched around, so that the loads of a stage are all under way before the first is waited for.
  const head = `fn ${load}(row_: u32, quad_: u32) -> ${type} {
  let row = ${anyAddress ? 'row_' : `min(row_, ${limit} - 1u)`};
  let quad = ${anyQuad ? 'quad_' : `min(quad_, ${quads - 1}u)`};
  let at = ${rowAddress(m, problem, t)}`;
  if (vector) {
    m.fn(load, `${head};\n  return ${checked(`${buffer}[(at >> 2u) + quad]`)};\n}`);
    if (dtype === 'f32') return { type, load, unpack: (x) => x };
    const unpack = dtype === 'f16' ? m.fn('tw_f16', F16) : m.fn('tw_bf16', BF16);
    return { type, load, unpack: (x) => `${unpack}(${x})` };
  }
  const width = widthOf(problem, t.family);
  const element = (i: number): string => {
    const at = `at + ${i}u`;
    const value =
      dtype === 'f32'
        ? `${buffer}[${at}]`
        : dtype === 'f16'
          ? `unpack2x16float(${buffer}[(${at}) >> 1u] >> (((${at}) & 1u) * 16u)).x`
          : `bitcast<f32>((${buffer}[(${at}) >> 1u] >> (((${at}) & 1u) * 16u)) << 16u)`;
    return `  if (quad * 4u + ${i}u < ${width}u) { x[${i}] = ${value}; }`;
  };
  m.fn(
    load,
    `${head} + quad * 4u;
  var x = vec4<f32>(0.0);
${[0, 1, 2, 3].map(element).join('\n')}
  return ${checked('x')};
}`,
  );
  return { type, load, unpack: (x) => x };
}

/** Declares the same as a function to vec4<f32>, and gives its name. */
export function declareLoad(
  m: ModuleBuilder,
  problem: Problem,
  t: RowTensor,
  limit: string,
  options: LoadOptions = {},
): string {
  const { load, type, unpack } = declareRaw(m, problem, t, limit, options);
  if (type === 'vec4<f32>') return load;
  const name = `${load}_f32`;
  return m.fn(name, `fn ${name}(row: u32, quad: u32) -> vec4<f32> { return ${unpack(`${load}(row, quad)`)}; }`);
}

/** Declares `st_<name>(row, quad, x)`, which ignores rows at or past `limit` and elements past the width. */
export function declareStore(m: ModuleBuilder, problem: Problem, t: RowTensor, limit: string): string {
  const { dtype } = problem;
  const vector = aligned(problem, t.family);
  const buffer = m.storage(t.name, bufferType(dtype, vector, true), 'read_write');
  const address = rowAddress(m, problem, t);
  const name = `st_${t.name}`;
  const round = dtype === 'bf16' ? 'tw_to_bf16' : 'tw_to_f16';
  if (dtype === 'f16') m.fn('tw_to_f16', TO_F16);
  if (dtype === 'bf16') m.fn('tw_to_bf16', TO_BF16);
  const head = `fn ${name}(row: u32, quad: u32, x: vec4<f32>) {
  if (row >= ${limit} || quad >= ${quadsOf(problem, t.family)}u) { return; }
  let at = ${address}`;
  if (vector) {
    const word =
      dtype === 'f32'
        ? 'x'
        : `vec2<u32>(${round}(x.x) | (${round}(x.y) << 16u), ${round}(x.z) | (${round}(x.w) << 16u))`;
    return m.fn(name, `${head};\n  ${buffer}[(at >> 2u) + quad] = ${word};\n}`);
  }
  const width = widthOf(problem, t.family);
  if (dtype !== 'f32')
    m.fn(
      `st16_${t.name}`,
      `fn st16_${t.name}(at: u32, bits: u32) {
  let shift = (at & 1u) * 16u;
  atomicAnd(&${buffer}[at >> 1u], ~(0xffffu << shift));
  atomicOr(&${buffer}[at >> 1u], bits << shift);
}`,
    );
  const element = (i: number): string => {
    const put = dtype === 'f32' ? `${buffer}[at + ${i}u] = x[${i}];` : `st16_${t.name}(at + ${i}u, ${round}(x[${i}]));`;
    return `  if (quad * 4u + ${i}u < ${width}u) { ${put} }`;
  };
  return m.fn(name, `${head} + quad * 4u;\n${[0, 1, 2, 3].map(element).join('\n')}\n}`);
}
