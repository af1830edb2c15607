/** A plan and its problem in words and as plain data: what will run, what it costs, and what standard attention would. */
import { BYTES } from '../core/dtype.ts';
import { ceilDiv } from '../core/math.ts';
import type { Cost, Step } from '../engine/contract.ts';
import { countPairs } from '../problem/cost.ts';
import type { Problem } from '../problem/problem.ts';
import { blockRuns, lengthsOf } from '../problem/ranges.ts';
import type { Plan } from './plan.ts';

/** Sizes in bytes, work in FLOPs. */
export interface Explanation {
  readonly plan: Plan;
  readonly shapes: Pick<Problem, 'B' | 'Hq' | 'Hkv' | 'Sq' | 'Sk' | 'D' | 'Dv' | 'dtype'>;
  /** Labels of what shapes the scores, in the order they act. */
  readonly features: readonly string[];
  /** Share of all (query, key) pairs that attend; `exact` is false when some blocks were counted as half full. */
  readonly density: { readonly pairs: number; readonly exact: boolean };
  /** Key blocks visited of all key blocks, at the forward step's block sizes. */
  readonly blocks: {
    readonly blockQ: number;
    readonly blockK: number;
    readonly visited: number;
    readonly partial: number;
    readonly all: number;
  };
  readonly memory: {
    readonly inputs: number;
    readonly outputs: number;
    readonly gradients: number;
    /** Most scratch of any pass. */
    readonly workspace: number;
    /** What standard attention holds in scores instead. */
    readonly standard: number;
  };
  /** All of it as a table for people. */
  readonly text: string;
}

/** What a plan comes to for its problem, in numbers and in words. */
export function explainPlan(plan: Plan, problem: Problem): Explanation {
  const { B, Hq, Hkv, Sq, Sk, D, Dv, dtype } = problem;
  let all = 0;
  for (let b = 0; b < B; b++) {
    const { lenQ, lenK } = lengthsOf(problem, b);
    all += lenQ * lenK * Hq;
  }
  const { pairs, exact } = countPairs(problem);
  const data: Omit<Explanation, 'text'> = {
    plan,
    shapes: { B, Hq, Hkv, Sq, Sk, D, Dv, dtype },
    features: featuresOf(problem),
    density: { pairs: all === 0 ? 0 : pairs / all, exact },
    blocks: blocksOf(problem, plan.forward),
    memory: memoryOf(problem, plan),
  };
  return { ...data, text: format(data) };
}

function featuresOf({ mask, mod, sink, dropout, uniform, kv, grads }: Problem): readonly string[] {
  const features: string[] = [];
  if (mod !== null) features.push(mod.label);
  if (mask !== null) features.push(mask.label);
  if (sink) features.push('sink');
  if (dropout !== null) features.push(`dropout ${dropout.p}`);
  if (!uniform) features.push('lengths vary');
  if (kv.kind === 'paged') features.push(`pages of ${kv.pageSize}`);
  if (grads !== null) features.push('gradients');
  return features;
}

/** Kernels that name their blocks are counted in them, others in blocks of 64. */
function blocksOf(problem: Problem, { config }: Step): Explanation['blocks'] {
  const size = (name: string): number => {
    const n = config[name];
    return typeof n === 'number' && n > 0 ? n : 64;
  };
  const [blockQ, blockK] = [size('blockQ'), size('blockK')];
  const { runs, rowStart, rowOf } = blockRuns(problem, 'q', blockQ, blockK);
  let [visited, partial, all] = [0, 0, 0];
  for (let b = 0; b < problem.B; b++) {
    const { lenQ, lenK } = lengthsOf(problem, b);
    const rows = ceilDiv(lenQ, blockQ);
    all += rows * ceilDiv(lenK, blockK) * problem.Hq;
    for (let h = 0; h < problem.Hq; h++)
      for (let i = 0; i < rows; i++) {
        const row = rowOf(b, h, i);
        for (let r = rowStart[row]; r < rowStart[row + 1]; r++) {
          const n = runs[r * 3 + 1] - runs[r * 3];
          visited += n;
          if (runs[r * 3 + 2] !== 0) partial += n;
        }
      }
  }
  return { blockQ, blockK, visited, partial, all };
}

function memoryOf(problem: Problem, { forward, backward, standard }: Plan): Explanation['memory'] {
  const { B, Hq, Hkv, D, Dv, dtype, grads } = problem;
  let [rowsQ, rowsK] = [0, 0];
  for (let b = 0; b < B; b++) {
    const { lenQ, lenK } = lengthsOf(problem, b);
    rowsQ += lenQ * Hq;
    rowsK += lenK * Hkv;
  }
  const size = BYTES[dtype];
  const q = rowsQ * D * size;
  const k = rowsK * D * size;
  const v = rowsK * Dv * size;
  const sides = problem.sides.map((s) => s.shape.reduce((n, d) => n * d, 1));
  const row = dtype === 'f64' ? 8 : 4;
  return {
    inputs:
      q +
      k +
      v +
      problem.sides.reduce((sum, s, i) => sum + sides[i] * BYTES[s.dtype], 0) +
      (problem.sink ? Hq * row : 0),
    outputs: rowsQ * (Dv * size + row),
    gradients:
      grads === null
        ? 0
        : (grads.q ? q : 0) +
          (grads.k ? k : 0) +
          (grads.v ? v : 0) +
          grads.sides.reduce((sum, asked, i) => sum + (asked ? sides[i] * row : 0), 0) +
          (grads.sink ? Hq * row : 0),
    workspace: Math.max(forward.cost.workspace, backward?.cost.workspace ?? 0),
    standard: standard.workspace,
  };
}

function format({ plan, shapes: s, features, density, blocks, memory }: Omit<Explanation, 'text'>): string {
  const dv = s.Dv === s.D ? '' : ` Dv=${s.Dv}`;
  const share = (part: number, whole: number): string =>
    whole === 0 ? '0 %' : `${((100 * part) / whole).toFixed(1)} %`;
  const rows: [string, string][] = [
    ['id', plan.id],
    ['engine', plan.engine],
    ['shapes', `B=${s.B} Hq=${s.Hq} Hkv=${s.Hkv} Sq=${s.Sq} Sk=${s.Sk} D=${s.D}${dv} ${s.dtype}`],
    ['features', features.join(', ') || 'none'],
    ['pairs that attend', `${density.exact ? '' : 'about '}${share(density.pairs, 1)}`],
    [
      'blocks visited',
      `${blocks.visited} of ${blocks.all} (${share(blocks.visited, blocks.all)}) of ${blocks.blockQ} x ${blocks.blockK}, ${blocks.partial} masked`,
    ],
    ...stepRows('forward', plan.forward),
    ...(plan.backward === null ? [] : stepRows('backward', plan.backward)),
    ['standard attention', costText(plan.standard)],
    [
      'memory',
      `inputs ${bytes(memory.inputs)}, outputs ${bytes(memory.outputs)}, gradients ${bytes(memory.gradients)}, ` +
        `scratch ${bytes(memory.workspace)} (standard: ${bytes(memory.standard)})`,
    ],
    ...plan.refusals.map((r): [string, string] => [
      'refused',
      `${r.kernel === undefined ? r.engine : `${r.engine}/${r.kernel}`}: ${r.reason}`,
    ]),
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n');
}

function stepRows(name: string, { kernel, config, cost, measured }: Step): [string, string][] {
  const settings = Object.entries(config).map(([key, value]) => `${key}=${value}`);
  return [
    [name, [kernel, ...settings].join(' ')],
    ['', `${costText(cost)}, predicted ${(cost.seconds * 1e3).toPrecision(3)} ms`],
    ...(measured === undefined
      ? []
      : [['', `chosen by measurement: ${(measured * 1e3).toPrecision(3)} ms`] as [string, string]]),
  ];
}

const costText = ({ flops, bytes: moved, workspace }: Cost): string =>
  `${(flops / 1e9).toPrecision(3)} GFLOP, ${bytes(moved)} moved, ${bytes(workspace)} scratch`;

/** Binary units, three digits. */
function bytes(n: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  const power = n < 1 ? 0 : Math.min(Math.floor(Math.log2(n) / 10), units.length - 1);
  return power === 0 ? `${n} B` : `${(n / 1024 ** power).toPrecision(3)} ${units[power]}`;
}
