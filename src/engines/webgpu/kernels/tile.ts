/**
 * The two products every kernel is made of, tiled in registers and workgroup memory:
 *
 *     dot:         acc[rows, cols] += sum over d of A[row, d] * B[col, d]        (Q K^T, dO V^T, ...)
 *     accumulate:  sum[rows, width] += sum over cols of P[row, col] * X[col, :]  (P V, dS K, ...)
 *
 * Invocation (r, c) of rt x ct owns rows r + rt * i (i < tm) of the tile, columns 4 c + 4 ct * v + (0..3) of the score
 * tile (accumulators `<acc>_<i>_<v>`, vec4 over columns), and quads c + ct * n of the output (`<sum>_<i>_<n>`). Neighbouring
 * invocations then read neighbouring rows of workgroup memory, whose strides are odd numbers of vec4: no bank conflicts.
 */
import { ceilDiv } from '../../../core/math.ts';
import { unroll, unroll2, XYZW } from '../wgsl/text.ts';

export interface Tile {
  /** Invocations along rows and along columns. */
  readonly rt: number;
  readonly ct: number;
  /** Rows of one invocation. */
  readonly tm: number;
  /** Columns of the score tile: a multiple of 4 ct. */
  readonly cols: number;
  /** Quads of the head dimension staged at a time by `dot`. */
  readonly depth: number;
  /** Columns whose rows of X are staged at a time by `accumulate`: divides cols, a multiple of 4. */
  readonly span: number;
}

export const rowsOf = (t: Tile): number => t.rt * t.tm;
export const threadsOf = (t: Tile): number => t.rt * t.ct;
/** vec4 accumulators along the columns of an invocation. */
export const colQuads = (t: Tile): number => t.cols / (4 * t.ct);
/** Output quads of an invocation for rows of `quads` quads. */
export const outQuads = (t: Tile, quads: number): number => ceilDiv(quads, t.ct);

const odd = (n: number): number => n | 1;
/** Quads of a row that is kept whole: up to the end of its last stage. */
const keptQuads = (t: Tile, quads: number): number => ceilDiv(quads, t.depth) * t.depth;

/** Lays out one workgroup array of vec4<f32>; regions that are never alive together may share a place. */
export class Arena {
  #size = 0;

  /** @returns the offset of a new region, in vec4. */
  take(quads: number): number {
    const at = this.#size;
    this.#size += quads;
    return at;
  }

  get size(): number {
    return this.#size;
  }
}

/** Where a tile's operands are in the arena, and their strides, in vec4. */
export interface Places {
  readonly a: number;
  readonly aStride: number;
  readonly b: number;
  readonly bStride: number;
  readonly p: number;
  readonly pStride: number;
  readonly x: number;
  /** Total vec4 of the arena. */
  readonly size: number;
}

export interface PlaceOptions {
  /** A's whole rows stay in workgroup memory (this many quads) instead of being staged with B. */
  readonly keep?: number;
  /** Widest X, in quads. */
  readonly width: number;
}

/** Arena of a kernel: A and B of `dot` share their place with X of `accumulate`, which runs when they are done with. */
export function placesOf(t: Tile, { keep, width }: PlaceOptions): Places {
  const arena = new Arena();
  const aStride = odd(keep === undefined ? t.depth : keptQuads(t, keep));
  const bStride = odd(t.depth);
  const p = arena.take(rowsOf(t) * odd(t.cols / 4));
  const kept = keep === undefined ? 0 : arena.take(rowsOf(t) * aStride);
  const b = arena.take(0);
  const staged = (keep === undefined ? rowsOf(t) * aStride : 0) + t.cols * bStride;
  arena.take(Math.max(staged, t.span * t.ct * outQuads(t, width)));
  const a = keep === undefined ? b + t.cols * bStride : kept;
  return { a, aStride, b, bStride, p, pStride: odd(t.cols / 4), x: b, size: arena.size };
}

/** A matrix that `dot` or `accumulate` reads: its load function and the first row of the tile (u32 code). */
export interface Source {
  readonly load: string;
  readonly first: string;
  /** Quads of a row. */
  readonly quads: number;
}

/** Vectors an invocation has on their way from slow memory at once; more would cost registers that accumulators need. */
const IN_FLIGHT = 8;

/**
 * The workgroup copies `count` vectors: `load(i)` is code for item i's value, `put(i, x)` stores it. Every invocation asks for
 * several before it stores the first, because a load takes as long as hundreds of multiply-adds.
 */
function stage(t: Tile, count: number, load: (i: string) => string, put: (i: string, x: string) => string): string {
  const n = threadsOf(t);
  const lines: string[] = [];
  for (let first = 0; first < ceilDiv(count, n); first += IN_FLIGHT) {
    const batch = Array.from({ length: Math.min(IN_FLIGHT, ceilDiv(count, n) - first) }, (_, k) => first + k);
    const item = (k: number): string => (k === 0 ? 'tid' : `tid + ${k * n}u`);
    const ragged = (k: number): boolean => (k + 1) * n > count;
    lines.push(
      '{',
      ...batch.map((k) => `let i_${k} = ${ragged(k) ? `min(${item(k)}, ${count - 1}u)` : item(k)};`),
      ...batch.map((k) => `let x_${k} = ${load(`i_${k}`)};`),
      ...batch.map((k) => {
        const store = put(`i_${k}`, `x_${k}`);
        return ragged(k) ? `if (${item(k)} < ${count}u) {\n${store}\n}` : store;
      }),
      '}',
    );
  }
  return lines.join('\n');
}

/** Copies A's rows [first, first + rows) into the arena, whole. No barrier. */
export function keepRows(t: Tile, at: Places, a: Source): string {
  return copyRows(t, at, a, keptQuads(t, a.quads), '0u');
}

function copyRows(t: Tile, at: Places, a: Source, quads: number, start: string): string {
  return stage(
    t,
    rowsOf(t) * quads,
    (i) => `${a.load}(${a.first} + ${i} / ${quads}u, ${start} + ${i} % ${quads}u)`,
    (i, x) => `arena[${at.a}u + (${i} / ${quads}u) * ${at.aStride}u + ${i} % ${quads}u] = ${x};`,
  );
}

/** Column j = 4 c + e + 4 ct v is kept in slot (4 v + e) ct + c, so that invocations c, c + 1, ... read neighbouring slots. */
function copyCols(t: Tile, at: Places, b: Source, start: string): string {
  const wide = 4 * t.ct;
  const slot = (j: string): string =>
    colQuads(t) === 1
      ? `((${j}) & 3u) * ${t.ct}u + ((${j}) >> 2u)`
      : `(((${j}) / ${wide}u) * 4u + ((${j}) & 3u)) * ${t.ct}u + (((${j}) % ${wide}u) >> 2u)`;
  return stage(
    t,
    t.cols * t.depth,
    (i) => `${b.load}(${b.first} + ${i} / ${t.depth}u, ${start} + ${i} % ${t.depth}u)`,
    (i, x) => `arena[${at.b}u + (${slot(`${i} / ${t.depth}u`)}) * ${at.bStride}u + ${i} % ${t.depth}u] = ${x};`,
  );
}

export interface DotOptions {
  /** A was put in place whole by `keepRows`. */
  readonly kept?: boolean;
}

/** Declares and fills `<acc>_<i>_<v>` with A B^T. Starts and ends without a barrier around the arena's other regions. */
export function dot(t: Tile, at: Places, acc: string, a: Source, b: Source, { kept = false }: DotOptions = {}): string {
  const vs = colQuads(t);
  const steps = ceilDiv(a.quads, t.depth);
  const inner = Math.min(t.depth, a.quads);
  const product = `for (var d = 0u; d < ${inner}u; d++) {
${unroll2(vs, 4, (v, e) => `let b_${v}_${e} = arena[${at.b}u + (${v * 4 + e}u * ${t.ct}u + c) * ${at.bStride}u + d];`)}
${unroll2(vs, 4, (v, e) => `let bt_${v}_${e} = vec4<f32>(${unrollArgs(4, (k) => `b_${v}_${k}.${XYZW[e]}`)});`)}
${unroll(
  t.tm,
  (i) => `let a_${i} = arena[${at.a}u + (r + ${t.rt * i}u) * ${at.aStride}u + ${kept ? 'start + d' : 'd'}];
${unroll2(vs, 4, (v, e) => `${acc}_${i}_${v} = fma(vec4<f32>(a_${i}.${XYZW[e]}), bt_${v}_${e}, ${acc}_${i}_${v});`)}`,
)}
}`;
  const step = `workgroupBarrier(); // what was read start this place before is done with
${kept ? '' : copyRows(t, at, a, t.depth, 'start')}
${copyCols(t, at, b, 'start')}
workgroupBarrier(); // staged rows are visible
${product}`;
  return `${unroll2(t.tm, vs, (i, v) => `var ${acc}_${i}_${v} = vec4<f32>(0.0);`)}
${steps === 1 ? `{\nlet start = 0u;\n${step}\n}` : `for (var start = 0u; start < ${a.quads}u; start += ${t.depth}u) {\n${step}\n}`}`;
}

/** Stores the score tile `<acc>` as P, rows by columns. No barrier: the next `accumulate` has one before it reads. */
export function putScores(t: Tile, at: Places, acc: string): string {
  return unroll2(
    t.tm,
    colQuads(t),
    (i, v) => `arena[${at.p}u + (r + ${t.rt * i}u) * ${at.pStride}u + c + ${t.ct * v}u] = ${acc}_${i}_${v};`,
  );
}

export const declareSum = (t: Tile, sum: string, quads: number): string =>
  unroll2(t.tm, outQuads(t, quads), (i, n) => `var ${sum}_${i}_${n} = vec4<f32>(0.0);`);

export interface AccumulateOptions {
  /**
   * Name of a `var<workgroup> atomic<u32>`: raised, for good, when a staged element is not finite. Rows of P that are 0
   * then skip the product, so that NaN in a masked row of X stays where it is.
   */
  readonly poison?: string | undefined;
  /** Code for a bool: the block may hold masked positions. */
  readonly partial?: string;
}

/** Adds P X to `<sum>_<i>_<n>`. */
export function accumulate(t: Tile, at: Places, sum: string, x: Source, options: AccumulateOptions = {}): string {
  const ns = outQuads(t, x.quads);
  const stride = t.ct * ns;
  const { poison, partial = 'true' } = options;
  const raise = (x: string): string =>
    poison === undefined
      ? ''
      : `\nif (${partial} && any((bitcast<vec4<u32>>(${x}) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u))) { atomicStore(&${poison}, 1u); }`;
  const copy = stage(
    t,
    t.span * stride,
    (i) => `${x.load}(${x.first} + start + ${i} / ${stride}u, ${i} % ${stride}u)`,
    (i, value) => `arena[${at.x}u + ${i}] = ${value};${raise(value)}`,
  );
  const p = (i: number): string => `arena[${at.p}u + (r + ${t.rt * i}u) * ${at.pStride}u + (start >> 2u) + j]`;
  const fast = `for (var j = 0u; j < ${t.span / 4}u; j++) {
${unroll(t.tm, (i) => `let p_${i} = ${p(i)};`)}
${unroll(
  4,
  (e) => `${unroll(ns, (n) => `let x_${e}_${n} = arena[${at.x}u + (j * 4u + ${e}u) * ${stride}u + c + ${t.ct * n}u];`)}
${unroll2(t.tm, ns, (i, n) => `${sum}_${i}_${n} = fma(vec4<f32>(p_${i}.${XYZW[e]}), x_${e}_${n}, ${sum}_${i}_${n});`)}`,
)}
}`;
  const careful = `for (var j = 0u; j < ${t.span / 4}u; j++) {
for (var e = 0u; e < 4u; e++) {
${unroll(ns, (n) => `let x_${n} = arena[${at.x}u + (j * 4u + e) * ${stride}u + c + ${t.ct * n}u];`)}
${unroll(
  t.tm,
  (i) => `let p_${i} = ${p(i)}[e];
if (p_${i} != 0.0) {
${unroll(ns, (n) => `${sum}_${i}_${n} = fma(vec4<f32>(p_${i}), x_${n}, ${sum}_${i}_${n});`)}
}`,
)}
}
}`;
  const product = poison === undefined ? fast : `if (atomicLoad(&${poison}) != 0u) {\n${careful}\n} else {\n${fast}\n}`;
  const step = `workgroupBarrier(); // this place's last readers are done
${copy}
workgroupBarrier(); // P and the staged rows are visible
${product}`;
  return t.span === t.cols
    ? `{\nlet start = 0u;\n${step}\n}`
    : `for (var start = 0u; start < ${t.cols}u; start += ${t.span}u) {\n${step}\n}`;
}

function unrollArgs(n: number, arg: (i: number) => string): string {
  return Array.from({ length: n }, (_, i) => arg(i)).join(', ');
}
