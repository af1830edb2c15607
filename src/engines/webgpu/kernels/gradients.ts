/** From the two products of a tile, q.k and dO.v, to what backward accumulates: the probabilities and the score gradients. */
import type { Problem } from '../../../problem/problem.ts';
import type { ModuleBuilder } from '../wgsl/module.ts';
import { unroll, unroll2 } from '../wgsl/text.ts';
import { attends, type Columns, declareScores, dropFactors, logits } from './scores.ts';
import { colQuads, rowAt, type Tile } from './tile.ts';

/** An lse no score reaches: exp2(score - NEVER) is 0. */
export const NEVER = '3.0e38';

/** Declares what the statistics below use: `row_at(q)`, the row's (lse in base 2, delta) as the delta pass left them. */
export function declareGradients(m: ModuleBuilder, problem: Problem, columns: Columns): void {
  declareScores(m, problem, columns, true);
  m.local('lseBase', 'u32');
  const rows = m.storage('rows', 'array<vec2<f32>>');
  m.fn(
    'row_at',
    `fn row_at(q: i32) -> vec2<f32> {
  if (q >= atLenQ) { return vec2<f32>(${NEVER}, 0.0); }
  return ${rows}[lseBase + u32(q) * ${m.param('lse_s')}];
}`,
  );
}

export const setLseBase = (m: ModuleBuilder, h: string): string =>
  `lseBase = b * ${m.param('lse_b')} + ${h} * ${m.param('lse_h')} + qStart * ${m.param('lse_s')};`;

/** How many rows and quads of columns an invocation has. */
export type Owned = Pick<Tile, 'rt' | 'ct' | 'tm' | 'cols'>;
/** Code for an invocation's row i in the tile. */
type RowCode = (i: number) => string;
const rowsOwned =
  (t: Owned): RowCode =>
  (i) =>
    rowAt(t, i);

/** Rows are queries: `q_<i>`, `lse_<i>`, `delta_<i>` of the tile at `q0`. */
export const rowStatistics = (t: Owned, row = rowsOwned(t)): string =>
  unroll(
    t.tm,
    (i) => `let q_${i} = i32(q0 + ${row(i)});
let row_${i} = row_at(q_${i});
let lse_${i} = row_${i}.x;
let delta_${i} = row_${i}.y;`,
  );

/** Columns are queries: `lse_<v>`, `delta_<v>` of the block at `q0`. */
export function columnStatistics(t: Tile): string {
  const four = (v: number, part: string): string =>
    `vec4<f32>(${[0, 1, 2, 3].map((e) => `row_${v}_${e}.${part}`).join(', ')})`;
  return unroll(
    colQuads(t),
    (v) => `let qc_${v} = i32(q0 + 4u * c + ${4 * t.ct * v}u);
${unroll(4, (e) => `let row_${v}_${e} = row_at(qc_${v} + ${e});`)}
let lse_${v} = ${four(v, 'x')};
let delta_${v} = ${four(v, 'y')};`,
  );
}

export interface Wanted {
  /** `s_<i>_<v>` becomes P * Z, which dV needs. */
  readonly p: boolean;
  /** `t_<i>_<v>` becomes dS. */
  readonly ds: boolean;
  /** dS with respect to the modified score instead of the scaled product: what side gradients start from. */
  readonly modified?: boolean;
}

/**
 * Turns `s_<i>_<v>` = q.k and `t_<i>_<v>` = dO.v into probabilities and score gradients. `partial` (bool code) and raggedness
 * decide whether positions have to be looked at one by one, both in one condition with `oneBranch`; what does not attend becomes
 * exactly 0, whatever NaN it met.
 */
export function scoreGradients(
  m: ModuleBuilder,
  problem: Problem,
  columns: Columns,
  t: Owned,
  want: Wanted,
  row = rowsOwned(t),
  oneBranch = false,
): string {
  const vs = colQuads(t);
  const { mod, dropout, mask } = problem;
  const q = (i: number, v: number): string => (columns === 'kv' ? `q_${i}` : `qc_${v}`);
  const kv = (i: number, v: number): string =>
    columns === 'kv' ? `i32(k0 + 4u * c + ${4 * t.ct * v}u)` : `i32(k0 + ${row(i)})`;
  const lse = (i: number, v: number): string => (columns === 'kv' ? `vec4<f32>(lse_${i})` : `lse_${v}`);
  const delta = (i: number, v: number): string => (columns === 'kv' ? `delta_${i}` : `delta_${v}`);
  const slope = mod !== null && want.ds && want.modified !== true;
  const each = (line: (i: number, v: number) => string): string => unroll2(t.tm, vs, line);
  const keep = (condition: (i: number, v: number) => string): string =>
    each((i, v) => `s_${i}_${v} = select(vec4<f32>(0.0), s_${i}_${v}, ${condition(i, v)});`);

  const probabilities = each((i, v) => {
    const value = logits(m, problem, `s_${i}_${v}`, q(i, v), kv(i, v));
    const raw = mod === null ? '' : `let raw_${i}_${v} = s_${i}_${v} * ${m.param('scale', 'f32')};\n`;
    return `${raw}s_${i}_${v} = exp2(${value} - ${lse(i, v)});`;
  });
  const ragged = columns === 'kv' ? `k0 + ${t.cols}u > lenK` : `q0 + ${t.cols}u > lenQ`;
  const inside = keep((i, v) => `inside4(${q(i, v)}, ${kv(i, v)})`);
  const attending = keep((i, v) => attends(problem, q(i, v), kv(i, v)));
  const doubtful =
    mask === null
      ? `if (${ragged}) {\n${inside}\n}`
      : oneBranch
        ? `if (partial || ${ragged}) {\n${attending}\n}`
        : `if (partial) {\n${attending}\n} else if (${ragged}) {\n${inside}\n}`;
  const gradients = each((i, v) => {
    const z = dropout === null ? '' : `let z = ${dropFactors(columns, q(i, v), kv(i, v))};`;
    const dp = dropout === null ? `t_${i}_${v}` : `t_${i}_${v} * z`;
    const factor = slope ? ` * slope4(raw_${i}_${v}, ${q(i, v)}, ${kv(i, v)})` : '';
    const ds = `t_${i}_${v} = select(vec4<f32>(0.0), s_${i}_${v} * (${dp} - ${delta(i, v)})${factor}, s_${i}_${v} != vec4<f32>(0.0));`;
    const dropped = dropout === null || !want.p ? '' : `s_${i}_${v} *= z;`;
    return `{\n${z}\n${want.ds ? ds : ''}\n${dropped}\n}`;
  });
  return `${probabilities}\n${doubtful}\n${gradients}`;
}
