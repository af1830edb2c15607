/**
 * The two products every kernel is made of, tiled in registers and workgroup memory:
 *
 *     dot:         acc[rows, cols] += sum over d of A[row, d] * B[col, d]        (Q K^T, dO V^T, ...)
 *     accumulate:  sum[rows, width] += sum over cols of P[row, col] * X[col, :]  (P V, dS K, ...)
 *
 * Invocation (r, c) of rt x ct owns rows r + rt * i (i < tm) of the tile, columns 4 c + 4 ct * v + (0..3) of the score
 * tile (accumulators `<acc>_<i>_<v>`, vec4 over columns), and quads c + ct * n of the output (`<sum>_<i>_<n>`). Neighbouring
 * invocations then read neighbouring rows of workgroup memory, whose strides are odd numbers of vec4: no bank conflicts.
 *
 * Workgroup memory is what limits how many workgroups share a processor, so A, B, P and X take turns in one place: rows are
 * staged a few quads at a time, and P goes through it in pieces of 4 ct columns. While one stage is multiplied, the next is
 * already on its way from slow memory into registers.
 */
import { ceilDiv } from '../../../core/math.ts';
import { unroll, unroll2, XYZW } from '../wgsl/text.ts';
import type { LoadOptions } from './rows.ts';

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
  /** Rows of X staged at a time by `accumulate`: divides 4 ct, a multiple of 4. */
  readonly span: number;
  /** The next stage is loaded while one is multiplied, as far as registers allow. */
  readonly ahead: boolean;
  /**
   * Four neighbouring invocations are two by two in the tile. NVIDIA's processors then answer a vec4 read of a subgroup with
   * half the passes over workgroup memory, both along rows and along columns.
   */
  readonly paired: boolean;
}

/** Neighbouring invocations among which the ones of a row are found. */
export const rowSpan = (t: Tile): number => t.ct * (t.paired ? 2 : 1);
/** Distances, in exclusive or, between the invocations of a row. */
export const rowSteps = (t: Tile): number[] =>
  Array.from({ length: Math.log2(t.ct) }, (_, s) => (t.paired && s > 0 ? 2 : 1) * 2 ** s);

export const rowsOf = (t: Tile): number => t.rt * t.tm;
export const threadsOf = (t: Tile): number => t.rt * t.ct;
/** vec4 accumulators along the columns of an invocation. */
export const colQuads = (t: Tile): number => t.cols / (4 * t.ct);
/** Output quads of an invocation for rows of `quads` quads. */
export const outQuads = (t: Tile, quads: number): number => ceilDiv(quads, t.ct);

const odd = (n: number): number => n | 1;

/** Where a tile's operands are in the arena `array<vec4<f32>, size>`, and their strides, in vec4. */
export interface Places {
  readonly a: number;
  readonly b: number;
  /** Stride of A's and B's staged rows. */
  readonly stride: number;
  /** A piece of P. */
  readonly p: number;
  readonly pStride: number;
  readonly x: number;
  /** A whole score tile, beside everything else, where a kernel asked for it. */
  readonly whole: number;
  readonly wholeStride: number;
  readonly size: number;
}

export interface PlaceOptions {
  /** Widest X, in quads. */
  readonly width: number;
  /** Room for a whole score tile that stays while products are made. */
  readonly whole?: boolean;
}

export function placesOf(t: Tile, { width, whole = false }: PlaceOptions): Places {
  const stride = odd(t.depth);
  const pStride = odd(t.ct);
  const x = rowsOf(t) * pStride;
  const turns = Math.max((rowsOf(t) + t.cols) * stride, x + t.span * t.ct * outQuads(t, width));
  const wholeStride = odd(t.cols / 4);
  const size = turns + (whole ? rowsOf(t) * wholeStride : 0);
  return { a: t.cols * stride, b: 0, stride, p: 0, pStride, x, whole: turns, wholeStride, size };
}

/** Where invocation `c` of a row leaves a number for the others of its row, in P's place. */
export const exchangeSlot = (at: Places, row: string, c: string): string =>
  `arena[${at.p}u + (${row}) * ${at.pStride}u + ${c}].x`;

/** A matrix that `dot` or `accumulate` reads: its load function and the first row of the tile (u32 code). */
export interface Source {
  readonly load: string;
  readonly first: string;
  /** Quads of a row. */
  readonly quads: number;
}

/** How `dot` may load a row of its operands: products of rows past the end are the caller's to throw away. */
export const dotLoads = (t: Tile, quads: number): LoadOptions => ({ anyRow: true, anyQuad: quads % t.depth === 0 });
/** How `accumulate` may load a row of X. */
export const sumLoads = (t: Tile, quads: number): LoadOptions => ({ anyQuad: quads % t.ct === 0 });

/** Vectors an invocation may have on their way from slow memory during a product; more would cost it accumulators. */
const IN_FLIGHT = 8;

/** A copy by the whole workgroup from slow memory into the arena, through registers. */
interface Move {
  /** Vectors of one invocation. */
  readonly vectors: number;
  /** Declares the registers. */
  readonly declare: string;
  /** Starts the loads; `start` is code for where in the source. */
  readonly fetch: (start: string) => string;
  /** Stores what was fetched. */
  readonly store: string;
}

function move(
  t: Tile,
  name: string,
  count: number,
  load: (i: string, start: string) => string,
  put: (i: string, x: string) => string,
): Move {
  const n = threadsOf(t);
  const vectors = ceilDiv(count, n);
  const item = (k: number): string => (k === 0 ? 'tid' : `(tid + ${k * n}u)`);
  const ragged = (k: number): boolean => (k + 1) * n > count;
  return {
    vectors,
    declare: unroll(vectors, (k) => `var ${name}_${k}: vec4<f32>;`),
    fetch: (start) =>
      unroll(vectors, (k) => `${name}_${k} = ${load(ragged(k) ? `min(${item(k)}, ${count - 1}u)` : item(k), start)};`),
    store: unroll(vectors, (k) => {
      const store = put(item(k), `${name}_${k}`);
      return ragged(k) ? `if (${item(k)} < ${count}u) {\n${store}\n}` : store;
    }),
  };
}

/** Column j = 4 c + e + 4 ct v is kept in slot (4 v + e) ct + c, so that invocations c, c + 1, ... read neighbouring slots. */
function slotOf(t: Tile, j: string): string {
  const wide = 4 * t.ct;
  return colQuads(t) === 1
    ? `((${j}) % 4u) * ${t.ct}u + ((${j}) / 4u)`
    : `(((${j}) / ${wide}u) * 4u + ((${j}) % 4u)) * ${t.ct}u + (((${j}) % ${wide}u) / 4u)`;
}

/** Declares and fills `<acc>_<i>_<v>` with A B^T. It starts with a barrier and leaves the arena readable by slower invocations. */
export function dot(t: Tile, at: Places, acc: string, a: Source, b: Source): string {
  const vs = colQuads(t);
  const { depth } = t;
  const copy = (name: string, x: Source, rows: number, to: number, slot: (row: string) => string): Move =>
    move(
      t,
      name,
      rows * depth,
      (i, start) => `${x.load}(${x.first} + ${i} / ${depth}u, ${start} + ${i} % ${depth}u)`,
      (i, value) => `arena[${to}u + (${slot(`${i} / ${depth}u`)}) * ${at.stride}u + ${i} % ${depth}u] = ${value};`,
    );
  const moves = [
    copy(`${acc}a`, a, rowsOf(t), at.a, (row) => row),
    copy(`${acc}b`, b, t.cols, at.b, (row) => slotOf(t, row)),
  ];
  const all = (part: (m: Move) => string): string => moves.map(part).join('\n');
  // One address each, the rest constants: that is what a load instruction takes.
  const product = `let rowA = r * ${at.stride}u + ${at.a}u;
let rowB = c * ${at.stride}u + ${at.b}u;
for (var d = 0u; d < ${Math.min(depth, a.quads)}u; d++) {
${unroll2(vs, 4, (v, e) => `let b_${v}_${e} = arena[rowB + d + ${(v * 4 + e) * t.ct * at.stride}u];`)}
${unroll2(vs, 4, (v, e) => `let bt_${v}_${e} = vec4<f32>(${[0, 1, 2, 3].map((k) => `b_${v}_${k}.${XYZW[e]}`).join(', ')});`)}
${unroll(
  t.tm,
  (i) => `let a_${i} = arena[rowA + d + ${t.rt * i * at.stride}u];
${unroll2(vs, 4, (v, e) => `${acc}_${i}_${v} = fma(vec4<f32>(a_${i}.${XYZW[e]}), bt_${v}_${e}, ${acc}_${i}_${v});`)}`,
)}
}`;
  const ahead = t.ahead && moves.reduce((n, m) => n + m.vectors, 0) <= IN_FLIGHT;
  const step = (next: string): string => `workgroupBarrier(); // what was read from this place before is done with
${ahead ? '' : all((m) => m.fetch('start'))}
${all((m) => m.store)}
workgroupBarrier(); // staged rows are visible
${next}
${product}`;
  const single = a.quads <= depth;
  const loop = `for (var start = 0u; start < ${a.quads}u; start += ${depth}u) {
${step(ahead ? `if (start + ${depth}u < ${a.quads}u) {\n${all((m) => m.fetch(`(start + ${depth}u)`))}\n}` : '')}
}`;
  return `${unroll2(t.tm, vs, (i, v) => `var ${acc}_${i}_${v} = vec4<f32>(0.0);`)}
{
${all((m) => m.declare)}
${ahead ? all((m) => m.fetch('0u')) : ''}
${single ? `let start = 0u;\n${step('')}` : loop}
}`;
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

/** `fetch` starts the loads of X's first rows and may come early; `run` adds P X to `<sum>_<i>_<n>`, P being `<acc>_<i>_<v>`. */
export function accumulate(
  t: Tile,
  at: Places,
  sum: string,
  acc: string,
  x: Source,
  { poison, partial = 'true' }: AccumulateOptions = {},
): { readonly fetch: string; readonly run: string } {
  const ns = outQuads(t, x.quads);
  const stride = t.ct * ns;
  const piece = 4 * t.ct;
  const raise = (value: string): string =>
    poison === undefined
      ? ''
      : `\nif (${partial} && any((bitcast<vec4<u32>>(${value}) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u))) { atomicStore(&${poison}, 1u); }`;
  const rows = move(
    t,
    `${sum}x`,
    t.span * stride,
    (i, start) => `${x.load}(${x.first} + ${start} + ${i} / ${stride}u, ${i} % ${stride}u)`,
    (i, value) => `arena[${at.x}u + ${i}] = ${value};${raise(value)}`,
  );
  const ahead = t.ahead && rows.vectors <= IN_FLIGHT;

  const reads = `let rowP = r * ${at.pStride}u + ${at.p}u + inPiece / 4u;
let rowX = c + ${at.x}u;`;
  const p = (i: number): string => `arena[rowP + j + ${t.rt * i * at.pStride}u]`;
  const fast = `${reads}
for (var j = 0u; j < ${t.span / 4}u; j++) {
${unroll(t.tm, (i) => `let p_${i} = ${p(i)};`)}
${unroll(
  4,
  (e) => `${unroll(ns, (n) => `let x_${e}_${n} = arena[rowX + j * ${4 * stride}u + ${e * stride + t.ct * n}u];`)}
${unroll2(t.tm, ns, (i, n) => `${sum}_${i}_${n} = fma(vec4<f32>(p_${i}.${XYZW[e]}), x_${e}_${n}, ${sum}_${i}_${n});`)}`,
)}
}`;
  const careful = `${reads}
for (var j = 0u; j < ${t.span / 4}u; j++) {
for (var e = 0u; e < 4u; e++) {
${unroll(ns, (n) => `let x_${n} = arena[rowX + (j * 4u + e) * ${stride}u + ${t.ct * n}u];`)}
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
  const put = (v: number): string =>
    unroll(t.tm, (i) => `arena[${at.p}u + (r + ${t.rt * i}u) * ${at.pStride}u + c] = ${acc}_${i}_${v};`);
  /** `inPiece` is where in the piece the staged rows are. */
  const step = (v: number): string => {
    const putting = t.span === piece ? put(v) : `if (inPiece == 0u) {\n${put(v)}\n}`;
    const start = v * piece;
    const last = t.span === piece && v === colQuads(t) - 1;
    const more =
      v === colQuads(t) - 1
        ? `if (inPiece + ${t.span}u < ${piece}u) {\n${rows.fetch(`(inPiece + ${start + t.span}u)`)}\n}`
        : rows.fetch(`(inPiece + ${start + t.span}u)`);
    return `workgroupBarrier(); // the place's last readers are done
${ahead ? '' : rows.fetch(`(inPiece + ${start}u)`)}
${putting}
${rows.store}
workgroupBarrier(); // P and the staged rows are visible
${ahead && !last ? more : ''}
${product}`;
  };
  const pieceLoop = (v: number): string =>
    t.span === piece
      ? `{\nlet inPiece = 0u;\n${step(v)}\n}`
      : `for (var part = 0u; part < ${piece / t.span}u; part++) {\nlet inPiece = part * ${t.span}u;\n${step(v)}\n}`;
  return {
    fetch: `${rows.declare}\n${ahead ? rows.fetch('0u') : ''}`,
    run: unroll(colQuads(t), pieceLoop),
  };
}

/** Stores a score tile where `placesOf` kept room for it whole. No barrier. */
export const putWhole = (t: Tile, at: Places, acc: string): string =>
  unroll2(
    t.tm,
    colQuads(t),
    (i, v) => `arena[${at.whole}u + (r + ${t.rt * i}u) * ${at.wholeStride}u + c + ${t.ct * v}u] = ${acc}_${i}_${v};`,
  );
