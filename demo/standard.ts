/**
 * Standard attention as kernels of the WASM engine: scores, softmax and output one after the other through an N x N matrix,
 * built from the same register-tiled, blocked products and the same exponential that Tilewise's own kernels use, so that
 * a comparison shows the algorithm. The softmax works in place, which halves the memory that is usual.
 *
 * Dense float32 in [B, H, S, D] order without grouping, full or causal. Backward computes the probabilities anew from lse.
 */
import type { Config } from '../src/engine/contract.ts';
import type { FuncBuilder, Local } from '../src/engines/wasm/asm/func.ts';
import { ModuleBuilder } from '../src/engines/wasm/asm/module.ts';
import { f32, f32x4, type I32, i32, i32Const, i32x4, v128 } from '../src/engines/wasm/asm/values.ts';
import { exp2Negative, log } from '../src/engines/wasm/functions.ts';
import type { Phase, WasmCaps, WasmKernel } from '../src/engines/wasm/kernel.ts';
import { emitClear, emitProduct } from '../src/engines/wasm/kernels/gemm.ts';
import { codeKey } from '../src/engines/wasm/kernels/identity.ts';
import { minimum } from '../src/engines/wasm/kernels/items.ts';
import { layout } from '../src/engines/wasm/kernels/layout.ts';
import { emitTransposeIn } from '../src/engines/wasm/kernels/rows.ts';
import { floats, iota, type Shape, shapeOf, type Vec, Vectors } from '../src/engines/wasm/tile.ts';
import { flopsOf } from '../src/problem/cost.ts';
import type { Problem } from '../src/problem/problem.ts';

/** Addresses: tensors, K and V packed into lanes, and the matrices of scores and of their gradients. */
const PARAMS = layout(
  ['q', 'k', 'v', 'out', 'lse', 'dOut', 'dq', 'dk', 'dv', 'packedK', 'packedV', 'scores', 'dScores'],
  ['scale', 'one'],
);
type Field = Parameters<typeof PARAMS.i32>[1];

const ENTRY = { params: 'i32', index: 'i32', step: 'i32', scratch: 'i32' } as const;
/** Rows of an item, and terms of a product taken at a time: both keep what is read again in the caches. */
const BLOCK = 48;
const TERMS = 256;

interface Sizes {
  readonly heads: number;
  readonly Sq: number;
  readonly Sk: number;
  readonly D: number;
  readonly Dv: number;
  readonly causal: boolean;
}

const sizesOf = ({ B, Hq, Sq, Sk, D, Dv, mask }: Problem): Sizes => ({
  heads: B * Hq,
  Sq,
  Sk,
  D,
  Dv,
  causal: mask !== null,
});

/** Emits the phases of a pass. An item is a block of rows of one head; rows are queries or keys. */
class Phases {
  readonly m: ModuleBuilder;
  readonly #shape: Shape;
  readonly #sizes: Sizes;

  constructor(sizes: Sizes, caps: WasmCaps) {
    this.m = new ModuleBuilder(caps.shared);
    this.#shape = shapeOf({ ...caps, native: 0 });
    this.#sizes = sizes;
  }

  /** Calls `body` with the item's head, first row and number of rows. */
  #blocks(
    name: string,
    rows: number,
    body: (f: FuncBuilder, params: Local<'i32'>, head: Local<'i32'>, first: Local<'i32'>, count: Local<'i32'>) => void,
  ): void {
    const blocks = Math.ceil(rows / BLOCK);
    this.m.func(
      name,
      ENTRY,
      (f, { params, index }) => {
        const head = f.let(i32.div_u(index, blocks), 'head');
        const first = f.let(i32.mul(i32.rem_u(index, blocks), BLOCK), 'first');
        const left = i32.sub(rows, first);
        body(f, params, head, first, f.let(minimum(f, left, i32Const(BLOCK)), 'count'));
      },
      true,
    );
  }

  /** An item a head: [Sk, size] rows become [Sk / lanes][size][lanes], times a factor. */
  pack(name: string, from: Field, to: Field, factor: 'scale' | 'one', size: number): void {
    const { Sk } = this.#sizes;
    const groupBytes = size * this.#shape.lanes * 4;
    const pack = emitTransposeIn(this.m, `${name}_rows`, this.#shape, 'f32', size, groupBytes);
    this.m.func(
      name,
      ENTRY,
      (f, { params, index }) => {
        const at = (field: Field): I32 => i32.add(PARAMS.i32(params, field), i32.mul(index, Sk * size * 4));
        f.call(pack, at(from), size * 4, Sk, PARAMS.f32(params, factor), at(to));
      },
      true,
    );
  }

  /** matrix = a . packed, for a of rows [Sq, size]. */
  scores(name: string, a: Field, packed: Field, matrix: Field, size: number): void {
    const { Sq, Sk } = this.#sizes;
    const lanes = this.#shape.lanes;
    const spec = { start: 'zero', aRow: size * 4, aStep: 4, bRow: lanes * 4, cRow: Sk * 4 } as const;
    const multiply = emitProduct(this.m, `${name}_tile`, this.#shape, spec, null, null);
    this.#blocks(name, Sq, (f, params, head, first, count) => {
      const row = f.let(i32.add(i32.mul(head, Sq), first), 'row');
      const from = f.let(i32.add(PARAMS.i32(params, a), i32.mul(row, size * 4)), 'from');
      const b = f.let(i32.add(PARAMS.i32(params, packed), i32.mul(head, Sk * size * 4)), 'b');
      const c = f.let(i32.add(PARAMS.i32(params, matrix), i32.mul(row, Sk * 4)), 'c');
      f.for(0, Sk / lanes, 1, () => {
        f.call(multiply, from, b, c, count, size, 0);
        f.bump(b, size * lanes * 4);
        f.bump(c, lanes * 4);
      });
    });
  }

  /** c = matrix . b, or with `transposed` matrix^T . b, for b of rows [.., size]; `TERMS` terms at a time. */
  output(name: string, matrix: Field, b: Field, c: Field, size: number, transposed: boolean): void {
    const { Sq, Sk } = this.#sizes;
    const [rows, terms] = transposed ? [Sk, Sq] : [Sq, Sk];
    const lanes = this.#shape.lanes;
    const [aRow, aStep] = transposed ? [4, Sk * 4] : [Sk * 4, 4];
    const spec = { start: 'add', aRow, aStep, bRow: size * 4, cRow: size * 4 } as const;
    const multiply = emitProduct(this.m, `${name}_tile`, this.#shape, spec, null, null);
    this.#blocks(name, rows, (f, params, head, first, count) => {
      const to = f.let(i32.add(PARAMS.i32(params, c), i32.mul(i32.add(i32.mul(head, rows), first), size * 4)), 'to');
      emitClear(f, to, i32.mul(count, size * 4));
      const start = i32.add(PARAMS.i32(params, matrix), i32.mul(head, Sq * Sk * 4));
      const from = f.let(i32.add(start, i32.mul(first, aRow)), 'from');
      const with_ = f.let(i32.add(PARAMS.i32(params, b), i32.mul(head, terms * size * 4)), 'with');
      f.for(0, terms, TERMS, (k) => {
        const n = f.let(minimum(f, i32.sub(terms, k), i32Const(TERMS)), 'n');
        f.for(0, size / lanes, 1, (d) => {
          const column = f.let(i32.mul(d, lanes * 4), 'column');
          f.call(multiply, from, i32.add(with_, column), i32.add(to, column), count, n, 0);
        });
        f.bump(from, TERMS * aStep);
        f.bump(with_, TERMS * size * 4);
      });
    });
  }

  /** Every row of scores through `body`, with loops over its columns. */
  #rows(name: string, body: (v: Vectors, row: Row) => void): void {
    const { Sq, Sk, causal } = this.#sizes;
    this.#blocks(name, Sq, (f, params, head, first, count) => {
      const v = new Vectors(f, this.#shape);
      f.for(0, count, 1, (i) => {
        const q = f.let(i32.add(first, i), 'q');
        const index = f.let(i32.add(i32.mul(head, Sq), q), 'index');
        const limit = f.let(i32x4.splat(i32.add(q, Sk - Sq + 1)), 'limit');
        const attends = (column: Local<'i32'>, x: Vec, otherwise: Vec): Vec =>
          causal ? v.map((a, b, j) => v128.bitselect(a, b, i32x4.lt_s(j, limit)), x, otherwise, iota(v, column)) : x;
        body(v, { params, index, columns: (each) => f.for(0, Sk, this.#shape.lanes, each, 'column'), attends });
      });
    });
  }

  /** Scores become probabilities, and lse is written. */
  softmax(): void {
    const { Sk } = this.#sizes;
    const lowest = floats(Number.NEGATIVE_INFINITY);
    this.#rows('softmax', (v, { params, index, columns, attends }) => {
      const { f } = v;
      const start = f.let(i32.add(PARAMS.i32(params, 'scores'), i32.mul(index, Sk * 4)), 'start');
      const at = (column: Local<'i32'>): Local<'i32'> => f.let(i32.add(start, i32.mul(column, 4)), 'at');
      const most = v.map((x) => x, v.repeat(lowest));
      columns((column) => {
        const x = attends(column, v.load(at(column)), v.repeat(lowest));
        v.set(
          most,
          v.map((a, b) => f32x4.pmax(a, b), most, x),
        );
      });
      const max = v.splat(
        f.let(
          acrossLanes(f, most, (a, b) => f32.max(a, b)),
          'max',
        ),
      );
      const sum = v.map((x) => x, v.repeat(floats(0)));
      columns((column) => {
        const place = at(column);
        const power = v.map((x, m) => f32x4.mul(f32x4.sub(x, m), floats(Math.LOG2E)), v.load(place), max);
        const p = attends(column, exp2Negative(v, power), v.repeat(floats(0)));
        v.store(place, p);
        v.set(
          sum,
          v.map((a, b) => f32x4.add(a, b), sum, p),
        );
      });
      const total = v.splat(
        f.let(
          acrossLanes(f, sum, (a, b) => f32.add(a, b)),
          'total',
        ),
      );
      const [lse] = v.map((m, x) => f32x4.add(m, x), max, log(v, total));
      f.do(f32.store(i32.add(PARAMS.i32(params, 'lse'), i32.mul(index, 4)), f32x4.extract_lane(lse, 0)));
      const share = v.map((x) => f32x4.div(floats(1), x), total);
      columns((column) => {
        const place = at(column);
        v.store(
          place,
          v.map((x, s) => f32x4.mul(x, s), v.load(place), share),
        );
      });
    });
  }

  /** Scores become probabilities by the lse that forward left. */
  probabilities(): void {
    const { Sk } = this.#sizes;
    this.#rows('probabilities', (v, { params, index, columns, attends }) => {
      const { f } = v;
      const start = f.let(i32.add(PARAMS.i32(params, 'scores'), i32.mul(index, Sk * 4)), 'start');
      const lse = v.splat(f32.load(i32.add(PARAMS.i32(params, 'lse'), i32.mul(index, 4))));
      columns((column) => {
        const place = f.let(i32.add(start, i32.mul(column, 4)), 'at');
        const power = v.map((x, m) => f32x4.mul(f32x4.sub(x, m), floats(Math.LOG2E)), v.load(place), lse);
        v.store(place, attends(column, exp2Negative(v, power), v.repeat(floats(0))));
      });
    });
  }

  /** dScores = scale * P * (dP - rowsum(dOut * out)). */
  gradients(): void {
    const { Sk, Dv } = this.#sizes;
    this.#rows('gradients', (v, { params, index, columns }) => {
      const { f } = v;
      const row = (field: Field, size: number): Local<'i32'> =>
        f.let(i32.add(PARAMS.i32(params, field), i32.mul(index, size * 4)), field);
      const [p, dp, dOut, out] = [row('scores', Sk), row('dScores', Sk), row('dOut', Dv), row('out', Dv)];
      const sum = v.map((x) => x, v.repeat(floats(0)));
      f.for(0, Dv * 4, this.#shape.lanes * 4, (d) => {
        const [x, y] = [v.load(i32.add(dOut, d)), v.load(i32.add(out, d))];
        v.set(
          sum,
          v.map((a, b, s) => v.madd(a, b, s), x, y, sum),
        );
      });
      const delta = v.splat(
        f.let(
          acrossLanes(f, sum, (a, b) => f32.add(a, b)),
          'delta',
        ),
      );
      const scale = v.splat(PARAMS.f32(params, 'scale'));
      columns((column) => {
        const bytes = f.let(i32.mul(column, 4), 'bytes');
        const place = f.let(i32.add(dp, bytes), 'place');
        const [x, y] = [v.load(i32.add(p, bytes)), v.load(place)];
        v.store(
          place,
          v.map((a, b, d, s) => f32x4.mul(f32x4.mul(a, s), f32x4.sub(b, d)), x, y, delta, scale),
        );
      });
    });
  }
}

interface Row {
  readonly params: Local<'i32'>;
  /** Row number over all heads. */
  readonly index: Local<'i32'>;
  readonly columns: (each: (column: Local<'i32'>) => void) => void;
  /** x where the columns attend, `otherwise` elsewhere. */
  readonly attends: (column: Local<'i32'>, x: Vec, otherwise: Vec) => Vec;
}

type Scalar = ReturnType<typeof f32x4.extract_lane>;

/** All lanes of all registers joined into one number. */
function acrossLanes(f: FuncBuilder, vec: Vec, join: (a: Scalar, b: Scalar) => Scalar): Scalar {
  const lanes = vec.flatMap((register) => [0, 1, 2, 3].map((i) => f.let(f32x4.extract_lane(register, i), 'lane')));
  return lanes.slice(1).reduce<Scalar>((all, lane) => join(all, lane), lanes[0]);
}

function forwardModule(sizes: Sizes, caps: WasmCaps): ModuleBuilder {
  const phases = new Phases(sizes, caps);
  phases.pack('pack', 'k', 'packedK', 'scale', sizes.D);
  phases.scores('scores', 'q', 'packedK', 'scores', sizes.D);
  phases.softmax();
  phases.output('output', 'scores', 'v', 'out', sizes.Dv, false);
  return phases.m;
}

function backwardModule(sizes: Sizes, caps: WasmCaps): ModuleBuilder {
  const phases = new Phases(sizes, caps);
  phases.pack('pack', 'k', 'packedK', 'scale', sizes.D);
  phases.pack('pack_v', 'v', 'packedV', 'one', sizes.Dv);
  phases.scores('scores', 'q', 'packedK', 'scores', sizes.D);
  phases.probabilities();
  phases.scores('d_probabilities', 'dOut', 'packedV', 'dScores', sizes.Dv);
  phases.gradients();
  phases.output('d_v', 'scores', 'dOut', 'dv', sizes.Dv, true);
  phases.output('d_q', 'dScores', 'k', 'dq', sizes.D, false);
  phases.output('d_k', 'dScores', 'q', 'dk', sizes.D, true);
  return phases.m;
}

function refuse(p: Problem): string | null {
  const plain = p.mod === null && p.dropout === null && !p.sink && p.sides.length === 0 && p.kv.kind === 'strided';
  const dense = p.uniform && p.Hq === p.Hkv && p.strides.q.s === p.D && p.strides.out.s === p.Dv;
  const even = [p.Sq, p.Sk, p.D, p.Dv].every((n) => n > 0 && n % 16 === 0);
  if (
    p.dtype !== 'f32' ||
    !plain ||
    !dense ||
    !even ||
    !(p.mask === null || (p.mask.label === 'causal' && p.Sq === p.Sk))
  )
    return 'shows standard attention on dense float32 with sizes that are multiples of 16, full or causal';
  return null;
}

/** Bytes: the matrices, and K and V packed. */
function workspace({ heads, Sq, Sk, D, Dv }: Sizes, matrices: 1 | 2): number {
  return 4 * heads * Sk * (matrices * Sq + D + (matrices === 2 ? Dv : 0));
}

function kernel(pass: 'forward' | 'backward'): WasmKernel {
  const matrices = pass === 'forward' ? 1 : 2;
  const build = (problem: Problem, caps: WasmCaps): ModuleBuilder =>
    (pass === 'forward' ? forwardModule : backwardModule)(sizesOf(problem), caps);
  const config: Config = { rows: BLOCK, terms: TERMS };
  return {
    name: 'standard',
    pass,
    refuse,
    configs: () => [config],
    cost: (problem, _, caps) => {
      const flops = flopsOf(problem, pass);
      const bytes = workspace(sizesOf(problem), matrices);
      return { flops, bytes: 4 * bytes, workspace: bytes, seconds: flops / caps.flops };
    },
    emit: (problem, _, caps) => [{ name: `standard_${pass}`, text: build(problem, caps).text() }],
    key: (problem, own, caps) =>
      [codeKey(`standard_${pass}`, problem, own, caps), problem.B * problem.Hq, problem.Sq, problem.Sk].join('|'),
    compile: (problem, _, caps) => ({ module: build(problem, caps).bytes(), scratch: 64 }),
    launch: (problem, _, at, heap) => {
      const { heads, Sq, Sk, D, Dv } = sizesOf(problem);
      const room = (elements: number): number => heap.allocate(elements * 4);
      const { q, k, v, out, lse, dOut, dq, dk, dv } = at;
      const params = heap.allocate(PARAMS.bytes);
      const packedK = room(heads * Sk * D);
      const scores = room(heads * Sq * Sk);
      const packedV = matrices === 2 ? room(heads * Sk * Dv) : 0;
      const dScores = matrices === 2 ? room(heads * Sq * Sk) : 0;
      const places = { packedK, packedV, scores, dScores, scale: problem.scale, one: 1 };
      PARAMS.write(heap, params, { q, k, v, out, lse, dOut, dq, dk, dv, ...places });
      const queries = heads * Math.ceil(Sq / BLOCK);
      const keys = heads * Math.ceil(Sk / BLOCK);
      const phase = (entry: string, items: number): Phase => ({ entry, items, steps: 1 });
      const byQuery = (...names: string[]): Phase[] => names.map((name) => phase(name, queries));
      const phases =
        pass === 'forward'
          ? [phase('pack', heads), ...byQuery('scores', 'softmax', 'output')]
          : [
              phase('pack', heads),
              phase('pack_v', heads),
              ...byQuery('scores', 'probabilities', 'd_probabilities', 'gradients'),
              phase('d_v', keys),
              ...byQuery('d_q'),
              phase('d_k', keys),
            ];
      return { params, phases };
    },
  };
}

/** In place of the engine's own. */
export const STANDARD_KERNELS: readonly WasmKernel[] = [kernel('forward'), kernel('backward')];
