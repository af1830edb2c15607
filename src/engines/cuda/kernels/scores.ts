/**
 * What happens to a tile of scores between the two products: modifier, mask, ends of the sequence. The tile may hold queries
 * as rows (forward, dQ) or keys as rows (dK, dV); a `Grid` says which register holds which position.
 */
import type { Expr, F32 } from '../../../mods/expr.ts';
import { lower, lowerAll } from '../../../mods/lower.ts';
import { type MathScope, mathScope, type Point } from '../math.ts';
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
  /** Which elements attend: null where all do. `edge` asks for the mask and for the ends of the sequence. */
  attends(grid: Grid, m: number, n: number): Reg<'pred'>[];
  readonly scope: MathScope;
  point(grid: Grid, m: number, n: number, e: number, score: Reg<'f32'> | null): Point;
}

/** One scorer serves one stretch of straight-line code. */
export function scorerOf(asm: Assembler, spec: Spec, place: Place): Scorer {
  const { b, lenQ, lenK } = place;
  const scope = mathScope({
    asm,
    precise: spec.storage === 'f32',
    sides: spec.sides,
    sideAddress: place.sides,
  });
  // Loads see positions inside the sequence, also in lanes past its end.
  const clamps = spec.sides.length > 0;
  const clamped = new Map<string, Reg<'b32'>>();
  const clampTo = (position: Reg<'b32'>, length: Reg<'b32'>): Reg<'b32'> => {
    if (!clamps) return position;
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
    return { score, index: { b, h, lenQ, lenK, q: clampTo(q, lenQ), kv: clampTo(kv, lenK) } };
  };
  const inside = new Map<string, Reg<'pred'>>();
  const isInside = (at: Reg<'b32'>, length: Reg<'b32'>): Reg<'pred'> => {
    const key = `${at.name} ${length.name}`;
    let r = inside.get(key);
    if (r === undefined) {
      r = asm.op('setp.lt.s32', at, length);
      inside.set(key, r);
    }
    return r;
  };
  return {
    scope,
    point,
    modify(tiles, grid, wanted) {
      const results: Tile[][][] = wanted.map(() => tiles.map((row) => row.map(() => [])));
      tiles.forEach((row, m) => {
        row.forEach((tile, n) => {
          tile.forEach((score, e) => {
            const values = lowerAll<Reg>(wanted as readonly Expr[], scope.at(point(grid, m, n, e, score)));
            values.forEach((v, which) => {
              results[which][m][n].push(v as Reg<'f32'>);
            });
          });
        });
      });
      return results;
    },
    attends(grid, m, n) {
      return [0, 1, 2, 3].map((e) => {
        const { q, kv } = position(grid, m, n, e);
        // Rows past the end are never stored; only the summed-over side has to stop at its length.
        const bound = grid.rowsAre === 'q' ? isInside(kv, lenK) : isInside(q, lenQ);
        if (spec.mask === null) return bound;
        const kept = lower<Reg>(spec.mask, scope.at(point(grid, m, n, e, null))) as Reg<'pred'>;
        return asm.op('and.pred', kept, bound);
      });
    },
  };
}

/** Positions first + 8 n + 2 t and the one after it, for every 8-column tile. */
export function columnPositions(asm: Assembler, first: Reg<'b32'>, t: Reg<'b32'>, tiles: number): Reg<'b32'>[] {
  const base = asm.op('mad.lo.s32', t, 2, first);
  return Array.from({ length: tiles * 2 }, (_, i) => asm.op('add.s32', base, (i >> 1) * 8 + (i & 1)));
}

/** Positions first + 16 m + g and 8 below, for every 16-row tile. */
export function rowPositions(asm: Assembler, first: Reg<'b32'>, g: Reg<'b32'>, tiles: number): Reg<'b32'>[] {
  const base = asm.op('add.s32', first, g);
  return Array.from({ length: tiles * 2 }, (_, i) => asm.op('add.s32', base, i * 8));
}
