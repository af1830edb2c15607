/**
 * Gradients of the tensors a score modifier loads. Element x of a side gets the sum of dS' * d mod / d x over every position
 * (b, h, q, kv) whose load reads x, in a fixed order and without atomics:
 *
 *     positional   each index of the load is b, h, q, kv or a constant: sums over the axes the side does not have are done in
 *                  registers and then across workgroups (biases, ALiBi slopes)
 *     binned       any other index: an invocation owns an element and picks its terms out of each tile (relative bias)
 */
import { ceilDiv } from '../../../core/math.ts';
import { sizeOf, type TensorLike } from '../../../core/tensor.ts';
import { derive, type LoadNode } from '../../../mods/derive.ts';
import { type F32, type IndexName, nodesOf } from '../../../mods/expr.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { Pass } from './backward.ts';
import { binnedPasses } from './sides_binned.ts';
import { positionalPasses } from './sides_positional.ts';
import { rowsOf } from './tile.ts';
import { type TileConfig, tile } from './tiles.ts';

/** One load of a side with its factor, the derivative of the modifier by what it loads. */
export interface Term {
  readonly load: LoadNode;
  readonly factor: F32;
}

export interface Side {
  readonly k: number;
  readonly tensor: TensorLike;
  readonly terms: readonly Term[];
}

type Coordinate = Extract<IndexName, 'b' | 'h' | 'q' | 'kv'>;
/** What an axis of a side stands for: a coordinate of the score, or one element. */
export type Axis = Coordinate | number;

const isCoordinate = (name: IndexName): name is Coordinate => name !== 'lenQ' && name !== 'lenK';

/** The axes of a positional load, or null when an index is anything else or a coordinate comes twice. */
export function axesOf({ load }: Term): Axis[] | null {
  const axes: Axis[] = [];
  for (const e of load.indices) {
    if (e.kind === 'const') axes.push(e.value);
    else if (e.kind === 'index' && isCoordinate(e.name) && !axes.includes(e.name)) axes.push(e.name);
    else return null;
  }
  return axes;
}

/**
 * The tile of these passes: they keep a whole tile, and where its loads went, in workgroup memory besides what the products
 * need, so it is small enough for 16 KiB.
 */
const SMALL = tile(8, 8, 4, 32, 4, 16);
const smaller = (t: TileConfig): TileConfig =>
  rowsOf(t) * t.cols <= rowsOf(SMALL) * SMALL.cols ? t : t.gathered ? { ...SMALL, gathered: true } : SMALL;
const onSmallTiles = ({ emit, grid, workspace }: Pass): Pass => ({
  emit: (p, t) => emit(p, smaller(t)),
  grid: (p, t, over) => grid(p, smaller(t), over),
  once: true,
  workspace: (p, t) => workspace?.(p, smaller(t)) ?? {},
});

/** Why a side's gradient cannot be made, or null: its loads must be found without the score. */
export function refuseSides({ grads, mod, sides }: Problem): string | null {
  if (grads === null || mod === null) return null;
  const k = sides.findIndex((tensor, i) => {
    if (!grads.sides[i]) return false;
    const loads = [...derive(mod.expr, (t) => t === tensor).dLoads.keys()];
    return loads.some((load) => nodesOf(...load.indices).some((e) => e.kind === 'score'));
  });
  return k < 0 ? null : `the index that side ${k} is read at depends on the score: no gradient of that side`;
}

export const sidePasses = (problem: Problem): Pass[] => passesOf(problem).map(onSmallTiles);

function passesOf(problem: Problem): Pass[] {
  const { grads, mod, sides } = problem;
  if (grads === null || mod === null) return [];
  return sides.flatMap((tensor, k) => {
    if (!grads.sides[k] || sizeOf(tensor.shape) === 0) return [];
    const { dLoads } = derive(mod.expr, (t) => t === tensor);
    const terms = [...dLoads].map(([load, factor]) => ({ load, factor }));
    const axes = terms.map(axesOf);
    const side = { k, tensor, terms };
    // Loads that agree on their axes read the same element at every position, so their factors add up.
    const [first] = axes;
    const positional = first && axes.every((a) => a?.join() === first.join());
    return positional ? positionalPasses(problem, side, first) : binnedPasses(side);
  });
}

/** Scratch of one side's partial sums. */
export const partialsName = (k: number): string => `partials${k}`;

export const tilesOf = (n: number, block: number): number => ceilDiv(n, block);
