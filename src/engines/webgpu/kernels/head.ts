/** Which head, sequence and invocation of a tile a workgroup works on. */
import type { Problem } from '../../../problem/problem.ts';
import type { ModuleBuilder } from '../wgsl/module.ts';
import { setPages } from './rows.ts';
import { type Tile, threadsOf } from './tile.ts';

/** How the invocations that share a row agree on its maximum. */
export type RowMax = 'workgroup' | 'subgroup';

/** Declares the invocation's place in the tile: `tid`, row group `r`, column group `c`. */
export function placeOf(t: Tile, rowMax: RowMax): string {
  // Lanes of a subgroup are neighbours by construction, whatever the order of local indices. The bound, which always holds,
  // is for the compiler: indices of workgroup memory that it sees to be inside are not checked one by one.
  const tid =
    rowMax === 'subgroup' ? `let tid = (subgroup * subgroupSize + lane) % ${threadsOf(t)}u;` : 'let tid = local;';
  return t.paired
    ? `${tid}
let r = (tid / ${2 * t.ct}u) * 2u + (tid / 2u) % 2u;
let c = ((tid / 4u) % ${t.ct / 2}u) * 2u + tid % 2u;`
    : `${tid}
let r = tid / ${t.ct}u;
let c = tid % ${t.ct}u;`;
}

/** Lengths and starts of sequence `b`, for code and for the helpers of scores.ts. */
export function sequenceOf(m: ModuleBuilder, problem: Problem): string {
  const table = m.storage('tables', 'array<i32>');
  return `let qStart = u32(${table}[b * 4u]);
let lenQ = u32(${table}[b * 4u + 1u]);
let kStart = u32(${table}[b * 4u + 2u]);
let lenK = u32(${table}[b * 4u + 3u]);
atB = i32(b);
atLenQ = i32(lenQ);
atLenK = i32(lenK);
${setPages(m, problem)}`;
}

/** Head and sequence of workgroup (head, tile, b): query heads when tiles are of queries, else key heads. */
export function headOf(m: ModuleBuilder, problem: Problem, by: 'q' | 'kv'): string {
  const heads =
    by === 'q'
      ? `let h = group.x + ${m.param('firstH')};
let hkv = h / ${m.param('group')};
let bh = b * ${m.param('Hq')} + h;
atH = i32(h);`
      : `let hkv = group.x + ${m.param('firstHkv')};`;
  return `let b = group.z + ${m.param('firstB')};
${heads}
${sequenceOf(m, problem)}`;
}
