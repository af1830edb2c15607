/**
 * What happens to a score tile between the products: scale, modifier, mask, ragged ends, dropout. Everything works on vec4 of
 * four neighbouring columns; columns are keys (forward, dQ) or queries (dK and dV).
 */
import { derive } from '../../../mods/derive.ts';
import type { Problem } from '../../../problem/problem.ts';
import { expressionFn } from '../wgsl/expressions.ts';
import type { ModuleBuilder } from '../wgsl/module.ts';
import { declareDropout } from '../wgsl/philox.ts';

/** A masked score: far below START, so that exp2(MASKED - START) is 0, and finite, so that no difference is NaN. */
export const MASKED = '-3.0e38';
/** The maximum of a row that has seen nothing yet. */
export const START = '-1.0e30';

export type Columns = 'kv' | 'q';

/** Module variables that name the head at hand for the expression functions. Set them before any score is touched. */
export function declareHead(m: ModuleBuilder): void {
  for (const name of ['atB', 'atH', 'atLenQ', 'atLenK']) m.local(name, 'i32');
}

/** The four positions of a vec4, clamped into the sequence. */
const POSITION: Record<Columns, (e: number) => string> = {
  kv: (e) => `min(q, atLenQ - 1), min(kv + ${e}, atLenK - 1)`,
  q: (e) => `min(q + ${e}, atLenQ - 1), min(kv, atLenK - 1)`,
};

function quad(name: string, type: string, columns: Columns, score: boolean, each: string): string {
  const calls = ['x', 'y', 'z', 'w'].map(
    (x, e) => `${each}(${score ? `s.${x}` : '0.0'}, atB, atH, ${POSITION[columns](e)}, atLenQ, atLenK)`,
  );
  return `fn ${name}(${score ? 's: vec4<f32>, ' : ''}q: i32, kv: i32) -> vec4<${type}> {
  return vec4<${type}>(
    ${calls.join(',\n    ')});
}`;
}

/** Declares the helpers below for the problem; asks for no more than it has. */
export function declareScores(m: ModuleBuilder, problem: Problem, columns: Columns, backward: boolean): void {
  declareHead(m);
  if (problem.mask !== null) {
    expressionFn(m, 'mask1', problem.mask.expr, problem.sides);
    m.fn('mask4', quad('mask4', 'bool', columns, false, 'mask1'));
  }
  m.fn(
    'inside4',
    columns === 'kv'
      ? 'fn inside4(q: i32, kv: i32) -> vec4<bool> { return vec4<i32>(kv) + vec4<i32>(0, 1, 2, 3) < vec4<i32>(atLenK); }'
      : `fn inside4(q: i32, kv: i32) -> vec4<bool> {
  return (vec4<i32>(q) + vec4<i32>(0, 1, 2, 3) < vec4<i32>(atLenQ)) & vec4<bool>(kv < atLenK);
}`,
  );
  if (problem.mod !== null) {
    expressionFn(m, 'mod1', problem.mod.expr, problem.sides);
    m.fn('mod4', quad('mod4', 'f32', columns, true, 'mod1'));
    if (backward) {
      expressionFn(m, 'slope1', derive(problem.mod.expr, () => false).dScore, problem.sides);
      m.fn('slope4', quad('slope4', 'f32', columns, true, 'slope1'));
    }
  }
  if (problem.dropout !== null) declareDropout(m);
}

/** Code for the scores in base 2 of a tile of q.k products: modifier applied, mask not yet. */
export function logits(m: ModuleBuilder, problem: Problem, dots: string, q: string, kv: string): string {
  if (problem.mod === null) return `${dots} * ${m.param('scaleLog2', 'f32')}`;
  return `mod4(${dots} * ${m.param('scale', 'f32')}, ${q}, ${kv}) * ${Math.LOG2E}`;
}

/** Which positions of the vec4 attend, inside a block that `partial` or raggedness made doubtful. */
export const attends = (problem: Problem, q: string, kv: string): string =>
  problem.mask === null ? `inside4(${q}, ${kv})` : `(inside4(${q}, ${kv}) & mask4(${q}, ${kv}))`;

/** What dropout multiplies the probabilities of a vec4 by. Columns that are keys start at a multiple of 4. */
export function dropFactors(columns: Columns, q: string, kv: string): string {
  const bh = 'i32(bh)';
  if (columns === 'kv') return `tw_drop4(${q}, ${kv}, ${bh})`;
  const one = (e: number): string => `tw_drop1(${q} + ${e}, ${kv}, ${bh})`;
  return `vec4<f32>(${[0, 1, 2, 3].map(one).join(', ')})`;
}

/** Loops over the runs of one row of blocks; `body` sees `block` (u32) and `partial` (bool). */
export function overRuns(
  m: ModuleBuilder,
  problem: Problem,
  by: 'q' | 'kv',
  at: { b: string; h: string; row: string; blocks: string },
  body: string,
): string {
  if (problem.mask === null)
    return `for (var block = 0u; block < ${at.blocks}; block++) {\nlet partial = false;\n${body}\n}`;
  const table = m.storage('tables', 'array<i32>');
  const row = `${m.param(`${by}RowsAt`)} + ${at.b} * ${m.param(`${by}RunsB`)} + ${at.h} * ${m.param(`${by}RunsH`)} + ${at.row}`;
  return `{
let runRow = ${row};
let lastRun = u32(${table}[runRow + 1u]);
for (var run = u32(${table}[runRow]); run < lastRun; run++) {
let runAt = ${m.param(`${by}RunsAt`)} + 3u * run;
let partial = ${table}[runAt + 2u] != 0;
let runEnd = u32(${table}[runAt + 1u]);
for (var block = u32(${table}[runAt]); block < runEnd; block++) {
${body}
}
}
}`;
}
