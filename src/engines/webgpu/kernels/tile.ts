/**
 * The two products every kernel is made of, tiled in registers and workgroup memory:
 *
 *     dot:         acc[rows, cols] += sum over d of A[row, d] * B[col, d]        (Q K^T, dO V^T, ...)
 *     accumulate:  sum[rows, width] += sum over cols of P[row, col] * X[col, :]  (P V, dS K, ...)
 *
 * Invocation (r, c) of rt x ct owns rows 4 r + 4 rt * u + (0..3) of the tile (u < tm / 4), columns 4 c + 4 ct * v + (0..3) of
 * the score tile (accumulators `<acc>_<i>_<v>`, vec4 over columns), and quads c + ct * n of the output (`<sum>_<i>_<n>`).
 *
 * Operands lie in workgroup memory with what is summed over as the outer axis: one step of a product reads a vec4 of rows and
 * a vec4 of columns for every four of each, and multiplies all with all. So a step needs few registers, and the next step's
 * reads fit beside its arithmetic. A and B get there by transposing four rows by four in registers.
 *
 * Workgroup memory is what limits how many workgroups share a processor, so A, B, P and X take turns in one place: rows are
 * staged a few quads at a time, and P goes through it in pieces of 4 ct columns. While one stage is multiplied, the next is
 * already on its way from slow memory into registers, where nothing looks at it before it is stored: that would wait for it.
 */
import { ceilDiv } from '../../../core/math.ts';
import { unroll, unroll2, XYZW } from '../wgsl/text.ts';
import type { LoadOptions } from './rows.ts';

export interface Tile {
  /** Invocations along rows and along columns. */
  readonly rt: number;
  readonly ct: number;
  /** Rows of one invocation: a multiple of 4. */
  readonly tm: number;
  /** Columns of the score tile: a multiple of 4 ct. */
  readonly cols: number;
  /** Quads of the head dimension staged at a time by `dot`: even. */
  readonly depth: number;
  /** Rows of X staged at a time by `accumulate`: divides 4 ct, a multiple of 4. */
  readonly span: number;
  /** Quads of the head dimension, or fours of columns, in one turn of a product's loop. */
  readonly turn: number;
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
/** Fours of rows of an invocation. */
export const rowQuads = (t: Tile): number => t.tm / 4;
/** vec4 accumulators along the columns of an invocation. */
export const colQuads = (t: Pick<Tile, 'cols' | 'ct'>): number => t.cols / (4 * t.ct);
/** Output quads of an invocation for rows of `quads` quads. */
export const outQuads = (t: Tile, quads: number): number => ceilDiv(quads, t.ct);
/** Code for the row of the tile that is row i of the invocation. */
export const rowAt = (t: Pick<Tile, 'rt'>, i: number): string => `(4u * r + ${4 * t.rt * (i >> 2) + (i & 3)}u)`;

const odd = (n: number): number => n | 1;
/** Strides for vec4 writes by quarters of a subgroup, 8 along an axis of stride 1 or, paired, 4 by 2: all banks are met once. */
const spread = (t: Tile, n: number): number => (t.paired ? Math.ceil((n - 2) / 4) * 4 + 2 : odd(n));

/** Where a tile's operands are in the arena `array<vec4<f32>, size>`, and their strides, in vec4. */
export interface Places {
  /** A by steps: its rows, in fours. */
  readonly a: number;
  readonly aStride: number;
  /** B by steps: the columns, in fours. */
  readonly b: number;
  readonly bStride: number;
  /** A piece of P, by columns: its rows, in fours. */
  readonly p: number;
  readonly pStride: number;
  readonly x: number;
  /** What the invocations of a row tell each other: by fours of rows, one vec4 an invocation. */
  readonly exchangeStride: number;
  /** A whole score tile by rows, beside everything else, where a kernel asked for it. */
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
  const rows = rowsOf(t) / 4;
  const [aStride, bStride] = [odd(rows), odd(t.cols / 4)];
  const pStride = spread(t, rows);
  const a = t.depth * 4 * bStride;
  const x = 4 * t.ct * pStride;
  const exchangeStride = odd(t.ct);
  const turns = Math.max(a + t.depth * 4 * aStride, x + t.span * t.ct * outQuads(t, width), rows * exchangeStride);
  const wholeStride = odd(t.cols / 4);
  const size = turns + (whole ? rowsOf(t) * wholeStride : 0);
  return { a, aStride, b: 0, bStride, p: 0, pStride, x, exchangeStride, whole: turns, wholeStride, size };
}

/** Where invocation `c` (code) of a row leaves a vec4 for its rows 4 u .. 4 u + 3, when nothing else is in the arena. */
export const exchangeSlot = (t: Tile, at: Places, u: number, c: string): string =>
  `arena[(r + ${t.rt * u}u) * ${at.exchangeStride}u + ${c}]`;

/** A matrix that `dot` or `accumulate` reads: its load function and the first row of the tile (u32 code). */
export interface Source {
  readonly load: string;
  readonly first: string;
  /** Quads of a row. */
  readonly quads: number;
}
/** X of `accumulate`: rows from `end` (u32 code) on count as 0, whatever `load` gives for them. */
export interface Summand extends Source {
  readonly end: string;
}

/** How `dot` may load a row of its operands: products of rows past the end are the caller's to throw away. */
export const dotLoads = (t: Tile, quads: number): LoadOptions => ({ anyRow: true, anyQuad: quads % t.depth === 0 });
/** How `accumulate` may load a row of X: it clears rows past the end itself, when it stores them. */
export const sumLoads = (t: Tile, quads: number): LoadOptions => ({ anyRow: true, anyQuad: quads % t.ct === 0 });

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
  /** Stores what was fetched from there. */
  readonly store: (start: string) => string;
}

/** Items of `vectors` vectors each, dealt out to the invocations. */
function move(
  t: Tile,
  name: string,
  count: number,
  vectors: number,
  load: (i: string, j: number, start: string) => string,
  put: (i: string, x: readonly string[], start: string) => string,
): Move {
  const n = threadsOf(t);
  const items = ceilDiv(count, n);
  const item = (k: number): string => (k === 0 ? 'tid' : `(tid + ${k * n}u)`);
  const ragged = (k: number): boolean => (k + 1) * n > count;
  return {
    vectors: items * vectors,
    declare: unroll2(items, vectors, (k, j) => `var ${name}_${k}_${j}: vec4<f32>;`),
    fetch: (start) =>
      unroll2(
        items,
        vectors,
        (k, j) => `${name}_${k}_${j} = ${load(ragged(k) ? `min(${item(k)}, ${count - 1}u)` : item(k), j, start)};`,
      ),
    store: (start) =>
      unroll(items, (k) => {
        const x = Array.from({ length: vectors }, (_, j) => `${name}_${k}_${j}`);
        const store = put(item(k), x, start);
        return ragged(k) ? `if (${item(k)} < ${count}u) {\n${store}\n}` : store;
      }),
  };
}

/**
 * Rows of an operand, four by a quad at a time, transposed on the way. Two neighbouring invocations read two neighbouring
 * quads: 32 bytes of a row, which is what slow memory hands out.
 */
function transposing(t: Tile, name: string, source: Source, rows: number, to: number, stride: number): Move {
  const fours = rows / 4;
  const four = (i: string): string => `(${i} / 2u) % ${fours}u`;
  const quad = (i: string): string => (t.depth === 2 ? `${i} % 2u` : `(${i} / ${2 * fours}u * 2u + ${i} % 2u)`);
  return move(
    t,
    name,
    fours * t.depth,
    4,
    (i, j, start) => `${source.load}(${source.first} + ${four(i)} * 4u + ${j}u, ${start} + ${quad(i)})`,
    (i, x) =>
      unroll(
        4,
        (e) =>
          `arena[${quad(i)} * ${4 * stride}u + ${four(i)} + ${to + e * stride}u] = vec4<f32>(${x.map((v) => `${v}.${XYZW[e]}`).join(', ')});`,
      ),
  );
}

/** Declares and fills `<acc>_<i>_<v>` with A B^T. It starts with a barrier and leaves the arena readable by slower invocations. */
export function dot(t: Tile, at: Places, acc: string, a: Source, b: Source): string {
  const vs = colQuads(t);
  const us = rowQuads(t);
  const { depth } = t;
  const moves = [
    transposing(t, `${acc}a`, a, rowsOf(t), at.a, at.aStride),
    transposing(t, `${acc}b`, b, t.cols, at.b, at.bStride),
  ];
  const all = (part: (m: Move) => string): string => moves.map(part).join('\n');
  const turn = Math.min(t.turn, depth);
  const step = (s: number): string => `{
${unroll(us, (u) => `let a_${u} = arena[fromA + ${s * at.aStride + t.rt * u}u];`)}
${unroll(vs, (v) => `let b_${v} = arena[fromB + ${s * at.bStride + t.ct * v}u];`)}
${unroll2(t.tm, vs, (i, v) => `${acc}_${i}_${v} = fma(vec4<f32>(a_${i >> 2}.${XYZW[i & 3]}), b_${v}, ${acc}_${i}_${v});`)}
}`;
  // One address an operand, the rest constants: that is what a load instruction takes.
  const product = `for (var d = 0u; d < ${ceilDiv(Math.min(depth, a.quads), turn)}u; d++) {
let fromA = r + ${at.a}u + d * ${4 * turn * at.aStride}u;
let fromB = c + ${at.b}u + d * ${4 * turn * at.bStride}u;
${unroll(4 * turn, step)}
}`;
  const ahead = t.ahead && moves.reduce((n, m) => n + m.vectors, 0) <= IN_FLIGHT;
  const stage = (next: string): string => `workgroupBarrier(); // what was read from this place before is done with
${ahead ? '' : all((m) => m.fetch('start'))}
${all((m) => m.store('start'))}
workgroupBarrier(); // staged rows are visible
${next}
${product}`;
  const single = a.quads <= depth;
  const loop = `for (var start = 0u; start < ${a.quads}u; start += ${depth}u) {
${stage(ahead ? `if (start + ${depth}u < ${a.quads}u) {\n${all((m) => m.fetch(`(start + ${depth}u)`))}\n}` : '')}
}`;
  return `${unroll2(t.tm, vs, (i, v) => `var ${acc}_${i}_${v} = vec4<f32>(0.0);`)}
{
${all((m) => m.declare)}
${ahead ? all((m) => m.fetch('0u')) : ''}
${single ? `let start = 0u;\n${stage('')}` : loop}
}`;
}

export const declareSum = (t: Tile, sum: string, quads: number): string =>
  unroll2(t.tm, outQuads(t, quads), (i, n) => `var ${sum}_${i}_${n} = vec4<f32>(0.0);`);

export interface AccumulateOptions {
  /**
   * Name of a `var<workgroup> atomic<u32>`: raised, for good, when a staged element of a block with masked positions is not
   * finite. Rows of P that are 0 then skip the product in such blocks, so that NaN in a masked row of X stays where it is.
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
  x: Summand,
  { poison, partial = 'true' }: AccumulateOptions = {},
): { readonly fetch: string; readonly run: string } {
  const ns = outQuads(t, x.quads);
  const us = rowQuads(t);
  const stride = t.ct * ns;
  const piece = 4 * t.ct;
  const raise = (value: string): string =>
    poison === undefined
      ? ''
      : `\nif (${partial} && any((bitcast<vec4<u32>>(${value}) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u))) { atomicStore(&${poison}, 1u); }`;
  // Step e ct + c of a piece is column 4 c + e: neighbouring invocations put their columns side by side.
  const column = (slot: string): string => `(${slot}) % ${t.ct}u * 4u + (${slot}) / ${t.ct}u`;
  const rowOf = (i: string, start: string): string =>
    `${x.first} + ${start} + ${column(`inPiece + ${i} / ${stride}u`)}`;
  const rows = move(
    t,
    `${sum}x`,
    t.span * stride,
    1,
    (i, _, start) => `${x.load}(${rowOf(i, start)}, ${i} % ${stride}u)`,
    (i, [value], start) => `${value} = select(vec4<f32>(0.0), ${value}, ${rowOf(i, start)} < ${x.end});
arena[${at.x}u + ${i}] = ${value};${raise(value)}`,
  );
  const ahead = t.ahead && rows.vectors <= IN_FLIGHT;
  const turn = Math.min(t.turn, t.span / 4);
  const reads = `let fromP = r + ${at.p}u + (inPiece + j * ${4 * turn}u) * ${at.pStride}u;
let fromX = c + ${at.x}u + j * ${4 * turn * stride}u;`;
  const p = (i: number): string => `p_${i >> 2}.${XYZW[i & 3]}`;
  const step = (s: number): string => `{
${unroll(us, (u) => `let p_${u} = arena[fromP + ${s * at.pStride + t.rt * u}u];`)}
${unroll(ns, (n) => `let x_${n} = arena[fromX + ${s * stride + t.ct * n}u];`)}
${unroll2(t.tm, ns, (i, n) => `${sum}_${i}_${n} = fma(vec4<f32>(${p(i)}), x_${n}, ${sum}_${i}_${n});`)}
}`;
  const fast = `for (var j = 0u; j < ${t.span / (4 * turn)}u; j++) {
${reads}
${unroll(4 * turn, step)}
}`;
  const careful = `for (var j = 0u; j < ${t.span}u; j++) {
${unroll(us, (u) => `let p_${u} = arena[r + ${at.p}u + (inPiece + j) * ${at.pStride}u + ${t.rt * u}u];`)}
${unroll(ns, (n) => `let x_${n} = arena[c + ${at.x}u + j * ${stride}u + ${t.ct * n}u];`)}
${unroll(
  t.tm,
  (i) => `if (${p(i)} != 0.0) {
${unroll(ns, (n) => `${sum}_${i}_${n} = fma(vec4<f32>(${p(i)}), x_${n}, ${sum}_${i}_${n});`)}
}`,
)}
}`;
  const product = poison === undefined ? fast : `if (atomicLoad(&${poison}) != 0u) {\n${careful}\n} else {\n${fast}\n}`;
  const put = (v: number): string =>
    unroll2(us, 4, (u, e) => {
      const four = [0, 1, 2, 3].map((k) => `${acc}_${4 * u + k}_${v}.${XYZW[e]}`).join(', ');
      return `arena[${at.p}u + (${e * t.ct}u + c) * ${at.pStride}u + r + ${t.rt * u}u] = vec4<f32>(${four});`;
    });
  /** One stage of piece v: `inPiece` is the first of its steps. */
  const stage = (v: number): string => {
    const putting = t.span === piece ? put(v) : `if (inPiece == 0u) {\n${put(v)}\n}`;
    const next = ahead
      ? `if (inPiece + ${t.span}u < ${piece}u) {
let inPiece = from_ + ${t.span}u;
${rows.fetch(`${v * piece}u`)}
}${v === colQuads(t) - 1 ? '' : ` else {\nlet inPiece = 0u;\n${rows.fetch(`${(v + 1) * piece}u`)}\n}`}`
      : '';
    return `let inPiece = from_;
workgroupBarrier(); // the place's last readers are done
${ahead ? '' : rows.fetch(`${v * piece}u`)}
${putting}
${rows.store(`${v * piece}u`)}
workgroupBarrier(); // P and the staged rows are visible
${next}
${product}`;
  };
  const pieceLoop = (v: number): string =>
    `for (var part = 0u; part < ${piece / t.span}u; part++) {\nlet from_ = part * ${t.span}u;\n${stage(v)}\n}`;
  return {
    fetch: `${rows.declare}\n${ahead ? `{\nlet inPiece = 0u;\n${rows.fetch('0u')}\n}` : ''}`,
    run: unroll(colQuads(t), pieceLoop),
  };
}

/** Stores a score tile by rows, where `placesOf` kept room for it whole. No barrier. */
export const putWhole = (t: Tile, at: Places, acc: string): string =>
  unroll2(
    t.tm,
    colQuads(t),
    (i, v) => `arena[${at.whole}u + ${rowAt(t, i)} * ${at.wholeStride}u + c + ${t.ct * v}u] = ${acc}_${i}_${v};`,
  );
