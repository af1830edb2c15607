/**
 * What happens to a tile of scores between the two products: modifier, mask, ends of the sequence. The tile may hold queries
 * as rows (forward, dQ) or keys as rows (dK, dV); a `Grid` says which register holds which position.
 */
import { childrenOf, type Expr, type F32, type IndexName, nodesOf } from '../../../mods/expr.ts';
import { lower, lowerAll } from '../../../mods/lower.ts';
import { type MathScope, mathScope, offsetFrom, type Point, type Product, type Value } from '../math.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import type { Tile } from './fragments.ts';
import type { Place } from './place.ts';
import type { Spec } from './spec.ts';

/** Positions of a thread's accumulators: element e of tile (m, n) is row 2 m + e / 2 and column 2 n + e % 2. */
export interface Grid {
  readonly rowsAre: 'q' | 'kv';
  /** Positions of the thread's rows, two a tile. */
  readonly rows: readonly Reg<'b32'>[];
  /** Positions of its columns, two a tile. */
  readonly columns: readonly Reg<'b32'>[];
  /** Query head of row r, when rows differ in it; else `head`. */
  readonly rowHead?: readonly Reg<'b32'>[];
  readonly head: Reg<'b32'>;
}

export interface Scorer {
  /** A modifier's value, and further expressions over the same nodes, for every element: result[which][m][n][e]. */
  modify(tiles: readonly (readonly Tile[])[], grid: Grid, wanted: readonly F32[]): Tile[][][];
  /**
   * The modifier's value for every element of a row of tiles, from scores not yet scaled, and up to a positive number that
   * all have in common.
   */
  modified(tiles: readonly Tile[], grid: Grid, mod: F32, scale: Reg<'f32'>): { tiles: Tile[]; factor: number };
  /** Which elements attend: null where all do. `edge` asks for the mask and for the ends of the sequence. */
  attends(grid: Grid, m: number, n: number): Reg<'pred'>[];
  readonly scope: MathScope;
  point(grid: Grid, m: number, n: number, e: number, score: Point['score']): Point;
}

const factorOf = (v: Value): number => ('kind' in v && v.kind === 'product' && v.by === null ? v.factor : 0);

/** Which positions the indices of side tensors are made of. */
function positionsRead({ mask, mod }: Spec): ReadonlySet<IndexName> {
  const roots = [mask, mod].filter((e) => e !== null);
  const indices = nodesOf(...roots).flatMap((e) => (e.kind === 'load' ? e.indices : []));
  return new Set(nodesOf(...indices).flatMap((e) => (e.kind === 'index' ? [e.name] : [])));
}

/** What of a modifier is the same for a whole head: the largest parts that read tensors at no position of a query or key. */
export function perHead(mod: F32 | null): Expr[] {
  if (mod === null) return [];
  const varies = new Set<Expr>();
  const reads = new Set<Expr>();
  const nodes = nodesOf(mod);
  for (const e of nodes) {
    const children = childrenOf(e);
    const moves = e.kind === 'score' || (e.kind === 'index' && (e.name === 'q' || e.name === 'kv'));
    if (moves || children.some((c) => varies.has(c))) varies.add(e);
    if (e.kind === 'load' || children.some((c) => reads.has(c))) reads.add(e);
  }
  const outer = new Set(nodes.flatMap((e) => (varies.has(e) ? childrenOf(e) : [])));
  return [...outer].filter((e) => !varies.has(e) && reads.has(e) && e.type !== 'bool');
}

/**
 * One scorer serves one stretch of straight-line code. `known` are values of the modifier's parts that are computed already.
 */
export function scorerOf(asm: Assembler, spec: Spec, place: Place, known: ReadonlyMap<Expr, Reg> = new Map()): Scorer {
  const { b, lenQ, lenK } = place;
  const scope = mathScope({
    asm,
    near: spec.near,
    precise: spec.storage === 'f32',
    sides: spec.sides,
    sideAddress: place.sides,
  });
  // Loads see positions inside the sequence, also in lanes past its end.
  const reading = positionsRead(spec);
  const clamped = new Map<string, Reg<'b32'>>();
  const clampTo = (name: 'q' | 'kv', position: Reg<'b32'>, length: Reg<'b32'>): Reg<'b32'> => {
    if (!reading.has(name)) return position;
    const key = `${position.name} ${length.name}`;
    let r = clamped.get(key);
    if (r === undefined) {
      r = asm.op('min.s32', position, asm.op('sub.s32', length, 1));
      clamped.set(key, r);
    }
    return r;
  };
  const position = (grid: Grid, m: number, n: number, e: number): { q: Reg<'b32'>; kv: Reg<'b32'> } => {
    const row = grid.rows[2 * m + (e >> 1)];
    const column = grid.columns[2 * n + (e & 1)];
    return grid.rowsAre === 'q' ? { q: row, kv: column } : { q: column, kv: row };
  };
  const point: Scorer['point'] = (grid, m, n, e, score) => {
    const { q, kv } = position(grid, m, n, e);
    const h = grid.rowHead?.[2 * m + (e >> 1)] ?? grid.head;
    return { score, index: { b, h, lenQ, lenK, q: clampTo('q', q, lenQ), kv: clampTo('kv', kv, lenK) } };
  };
  const isInside = (name: 'q' | 'kv', at: Reg<'b32'>): Reg<'pred'> => {
    const index = { b, h: b, lenQ, lenK, q: at, kv: at };
    const target = scope.at({ score: null, index });
    const length = target.index(name === 'q' ? 'lenQ' : 'lenK');
    return scope.reg(target.ops.ilt(target.index(name), length)) as Reg<'pred'>;
  };
  /** A register of its own for every element: equal values may have one between them, and masks write into it. */
  const registersOf = (): ((v: Value) => Reg<'f32'>) => {
    const given = new Set<Reg>();
    return (v) => {
      const r = scope.reg(v) as Reg<'f32'>;
      const mine = given.has(r) ? asm.op('mov.f32', r) : r;
      given.add(mine);
      return mine;
    };
  };
  return {
    scope,
    point,
    modify(tiles, grid, wanted) {
      const own = wanted.map(registersOf);
      const results: Tile[][][] = wanted.map(() => tiles.map((row) => row.map(() => [])));
      tiles.forEach((row, m) => {
        row.forEach((tile, n) => {
          tile.forEach((score, e) => {
            const values = lowerAll<Value>(wanted as readonly Expr[], scope.at(point(grid, m, n, e, score)));
            values.forEach((v, which) => {
              results[which][m][n].push(own[which](v));
            });
          });
        });
      });
      return results;
    },
    modified(tiles, grid, mod, scale) {
      const values = tiles.map((tile, n) =>
        tile.map((x, e) => {
          const score: Product = { kind: 'product', x, by: scale, factor: 1 };
          return lowerAll<Value>([mod], scope.at(point(grid, 0, n, e, score)), new Map(known))[0];
        }),
      );
      const common = factorOf(values[0][0]);
      const shared = common > 0 && values.every((tile) => tile.every((v) => factorOf(v) === common));
      const own = registersOf();
      const part = (v: Value): Value => (shared && 'kind' in v && v.kind === 'product' ? v.x : v);
      return { tiles: values.map((tile) => tile.map((v) => own(part(v)))), factor: shared ? common : 1 };
    },
    attends(grid, m, n) {
      return [0, 1, 2, 3].map((e) => {
        const { q, kv } = position(grid, m, n, e);
        // Rows past the end are never stored; only the summed-over side has to stop at its length.
        const bound = grid.rowsAre === 'q' ? isInside('kv', kv) : isInside('q', q);
        if (spec.mask === null) return bound;
        const kept = scope.reg(lower<Value>(spec.mask, scope.at(point(grid, m, n, e, null)))) as Reg<'pred'>;
        return asm.op('and.pred', kept, bound);
      });
    },
  };
}

/** Positions first + 8 n + 2 t and the one after it, for every 8-column tile. */
export function columnPositions(asm: Assembler, first: Reg<'b32'>, t: Reg<'b32'>, tiles: number): Reg<'b32'>[] {
  const base = asm.op('mad.lo.s32', t, 2, first);
  return Array.from({ length: tiles * 2 }, (_, i) => offsetFrom(asm, base, (i >> 1) * 8 + (i & 1)));
}

/** Positions first + 16 m + g and 8 below, for every 16-row tile. */
export function rowPositions(asm: Assembler, first: Reg<'b32'>, g: Reg<'b32'>, tiles: number): Reg<'b32'>[] {
  const base = asm.op('add.s32', first, g);
  return Array.from({ length: tiles * 2 }, (_, i) => offsetFrom(asm, base, i * 8));
}
