/**
 * Forward by tiles of queries (FlashAttention-2, algorithm 1): one workgroup walks the keys of its queries, keeps scores and
 * output in registers and rescales by the running maximum. Base tier: no subgroups, no f16, row maxima through workgroup memory.
 */
import { ceilDiv, LN2, LOG2E } from '../../../core/math.ts';
import { flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { ModuleBuilder, type Shader } from '../wgsl/module.ts';
import { LOG2, unroll, unroll2, XYZW } from '../wgsl/text.ts';
import { gatherDispatches, gathering, gatherShaders, gatherSpace, moduleFor } from './gathered.ts';
import { headOf, placeOf, type RowMax } from './head.ts';
import {
  addRuns,
  defineKernel,
  forwardBuffers,
  type Launch,
  problemTables,
  refuseShared,
  type WebGpuCaps,
  type WebGpuKernel,
} from './kernel.ts';
import { declareLoad, declareStore, quadsOf, setBase } from './rows.ts';
import { attends, declareScores, dropFactors, logits, MASKED, overRuns, START } from './scores.ts';
import { sliced } from './slices.ts';
import {
  accumulate,
  colQuads,
  declareSum,
  dot,
  dotLoads,
  exchangeSlot,
  outQuads,
  placesOf,
  rowAt,
  rowQuads,
  rowSpan,
  rowSteps,
  rowsOf,
  sumLoads,
  threadsOf,
} from './tile.ts';
import { busyShare, reuse, SOFTWARE_TILES, type TileConfig, tile, tileConfigs } from './tiles.ts';

const candidates = (problem: Problem, caps: WebGpuCaps): TileConfig[] => {
  const wide = Math.max(problem.D, problem.Dv);
  if (caps.software) return [...SOFTWARE_TILES];
  const small = [tile(8, 8, 4, 32, 4, 16), tile(8, 4, 4, 16, 4, 8)];
  if (wide <= 64) return [tile(16, 8, 8, 64, 4, 16, 4), tile(8, 8, 8, 64, 4, 16, 4), ...small];
  if (wide <= 128) return [tile(8, 16, 8, 128, 4, 8, 4), tile(8, 16, 8, 64, 4, 8, 4), ...small];
  return [tile(8, 16, 8, 64, 4, 4, 2), tile(8, 16, 4, 64, 4, 4), ...small];
};

const placing = (problem: Problem) => () => ({ width: quadsOf(problem, 'v') });

export const forward: WebGpuKernel<TileConfig> = defineForward('forward', 'workgroup');

export function defineForward(name: string, rowMax: RowMax): WebGpuKernel<TileConfig> {
  return defineKernel({
    name,
    pass: 'forward',
    refuse(problem, caps) {
      const shared = refuseShared(problem, caps, true, true);
      if (shared !== null) return shared;
      if (rowMax === 'subgroup') {
        if (caps.subgroups === null) return 'the device has no subgroups, or no subgroup_id';
        if (configsOf(problem, caps, rowMax).length === 0)
          return `subgroups of ${caps.subgroups.min} invocations do not hold those that share a row of a tile`;
      }
      return null;
    },
    configs: (problem, caps) => configsOf(problem, caps, rowMax),
    cost(problem, t, caps) {
      const flops = flopsOf(problem, 'forward');
      const bytes = tiledBytes(problem, 'forward', rowsOf(t), t.cols);
      const padding = (rowsOf(t) * ceilDiv(problem.Sq, rowsOf(t))) / Math.max(problem.Sq, 1);
      const rate = caps.flops * reuse(t, quadsOf(problem, 'v')) * (rowMax === 'subgroup' ? 1 : 0.98);
      const busy = busyShare(problem.B * problem.Hq * ceilDiv(problem.Sq, rowsOf(t)), caps);
      return { flops, bytes, workspace: 0, seconds: ((flops * padding) / rate + bytes / caps.bandwidth / 8) / busy };
    },
    shaders: (problem, t) => [
      emitForward(problem, t, rowMax),
      ...(problem.uniform ? [] : [fillShader()]),
      ...gatherShaders(problem, t),
    ],
    launch: launchForward,
  });
}

function configsOf(problem: Problem, caps: WebGpuCaps, rowMax: RowMax): TileConfig[] {
  const fitting = tileConfigs(candidates(problem, caps), placing(problem), caps);
  const able = rowMax === 'workgroup' ? fitting : fitting.filter((t) => rowSpan(t) <= (caps.subgroups?.min ?? 0));
  const gathered = gathering(problem, forwardBuffers(problem), caps);
  return (caps.software ? able.slice(0, 1) : able).map((t) => ({ ...t, ...gathered }));
}

function launchForward(problem: Problem, t: TileConfig, caps: WebGpuCaps): Launch {
  const { tables, values } = problemTables(problem);
  if (problem.mask !== null) addRuns(tables, values, problem, 'q', rowsOf(t), t.cols);
  const tiles = ceilDiv(problem.Sq, rowsOf(t));
  const slices = sliced(problem, caps.bindingSize, values).map(({ params, windows, heads, batches }) => {
    const grid = [heads.q, tiles, batches] as const;
    return { shader: 0, grid, params, windows };
  });
  return {
    dispatches: [...gatherDispatches(problem, t, problem.uniform ? 1 : 2), ...unusedRows(problem, values), ...slices],
    tables: tables.pack(),
    workspace: gatherSpace(problem, t),
    zeroed: problem.uniform ? [] : ['out'],
  };
}

/** Rows of no sequence are results too: lse is -inf there (and out 0). One shader more, when lengths vary. */
export function fillShader(): Shader {
  const m = new ModuleBuilder();
  const lse = m.storage('lse', 'array<f32>', 'read_write');
  const body = `for (var i = group.x * 64u + local; i < arrayLength(&${lse}); i += groups.x * 64u) {
${lse}[i] = ${m.param('negInf', 'f32')};
}`;
  return m.build({ name: 'fill', threads: 64, body });
}

/** The dispatch of `fillShader`, which is shader 1, where it is needed. */
export const unusedRows = (problem: Problem, params: Record<string, number>): Launch['dispatches'] =>
  problem.uniform ? [] : [{ shader: 1, grid: [64, 1, 1], params }];

function emitForward(problem: Problem, t: TileConfig, rowMax: RowMax): Shader {
  const m = moduleFor(problem, t);
  const vs = colQuads(t);
  const [quadsD, quadsV] = [quadsOf(problem, 'q'), quadsOf(problem, 'v')];
  const ns = outQuads(t, quadsV);
  const at = placesOf(t, placing(problem)());
  const operands = {
    q: { name: 'q', family: 'q' },
    k: { name: 'k', family: 'k' },
    v: { name: 'v', family: 'v' },
  } as const;
  const out = { name: 'out', family: 'out' } as const;

  declareScores(m, problem, 'kv', false);
  const [inDot, inSum] = [dotLoads(t, quadsD), sumLoads(t, quadsV)];
  const q = { load: declareLoad(m, problem, operands.q, 'u32(atLenQ)', inDot), first: 'q0', quads: quadsD };
  const k = { load: declareLoad(m, problem, operands.k, 'u32(atLenK)', inDot), first: 'k0', quads: quadsD };
  const v = {
    load: declareLoad(m, problem, operands.v, 'u32(atLenK)', inSum),
    first: 'k0',
    quads: quadsV,
    end: 'lenK',
  };
  const store = declareStore(m, problem, out, 'u32(atLenQ)');
  const lse = m.storage('lse', 'array<f32>', 'read_write');
  m.workgroup('arena', `array<vec4<f32>, ${at.size}>`);
  const slot = (u: number, c: string): string => exchangeSlot(t, at, u, c);
  const fours = (name: string, u: number): string =>
    `vec4<f32>(${[0, 1, 2, 3].map((e) => `${name}_${4 * u + e}`).join(', ')})`;
  const poison = problem.mask === null ? undefined : m.workgroup('poison', 'atomic<u32>');

  const scores = unroll2(t.tm, vs, (i, v) => {
    const kv = `i32(k0 + 4u * c + ${4 * t.ct * v}u)`;
    return `s_${i}_${v} = ${logits(m, problem, `s_${i}_${v}`, `q_${i}`, kv)};`;
  });
  const masking = unroll2(t.tm, vs, (i, v) => {
    const kv = `i32(k0 + 4u * c + ${4 * t.ct * v}u)`;
    return `s_${i}_${v} = select(vec4<f32>(${MASKED}), s_${i}_${v}, ${attends(problem, `q_${i}`, kv)});`;
  });
  const ragged = unroll2(t.tm, vs, (i, v) => {
    const kv = `i32(k0 + 4u * c + ${4 * t.ct * v}u)`;
    return `s_${i}_${v} = select(vec4<f32>(${MASKED}), s_${i}_${v}, inside4(q_${i}, ${kv}));`;
  });
  const doubtful =
    problem.mask === null
      ? `if (k0 + ${t.cols}u > lenK) {\n${ragged}\n}`
      : `if (partial) {\n${masking}\n} else if (k0 + ${t.cols}u > lenK) {\n${ragged}\n}`;
  const own = (i: number): string =>
    Array.from({ length: vs }, (_, v) => `s_${i}_${v}`).reduce((a, b) => `max(${a}, ${b})`);
  const softmax = unroll(
    t.tm,
    (i) => `{
let alpha = exp2(m_${i} - n_${i});
m_${i} = n_${i};
l_${i} *= alpha;
${unroll(ns, (n) => `o_${i}_${n} *= alpha;`)}
${unroll(
  vs,
  (v) => `s_${i}_${v} = exp2(s_${i}_${v} - vec4<f32>(m_${i}));
l_${i} += (s_${i}_${v}.x + s_${i}_${v}.y) + (s_${i}_${v}.z + s_${i}_${v}.w);${
    problem.dropout === null
      ? ''
      : `\ns_${i}_${v} *= ${dropFactors('kv', `q_${i}`, `i32(k0 + 4u * c + ${4 * t.ct * v}u)`)};`
  }`,
)}
}`,
  );

  const sum = accumulate(t, at, 'o', 's', v, poison === undefined ? {} : { poison, partial: 'partial' });
  const block = `let k0 = block * ${t.cols}u;
${dot(t, at, 's', q, k)}
${sum.fetch}
${scores}
${doubtful}
${unroll(t.tm, (i) => `let w_${i} = ${own(i)};\nvar n_${i} = max(max(w_${i}.x, w_${i}.y), max(w_${i}.z, w_${i}.w));`)}
${rowMax === 'workgroup' ? maxByWorkgroup() : maxBySubgroup(t)}
${unroll(t.tm, (i) => `n_${i} = max(n_${i}, m_${i});`)}
${softmax}
${sum.run}`;

  const body = `${placeOf(t, rowMax)}
${headOf(m, problem, 'q')}
let q0 = (groups.y - 1u - group.y) * ${rowsOf(t)}u;
if (q0 >= lenQ) { return; }
${setBase(m, problem, operands.q, 'h', 'qStart')}
${setBase(m, problem, operands.k, 'hkv', 'kStart')}
${setBase(m, problem, operands.v, 'hkv', 'kStart')}
${setBase(m, problem, out, 'h', 'qStart')}
${unroll(t.tm, (i) => `let q_${i} = i32(q0 + ${rowAt(t, i)});\nvar m_${i} = ${START};\nvar l_${i} = 0.0;`)}
${declareSum(t, 'o', quadsV)}
${overRuns(m, problem, 'q', { b: 'b', h: 'h', row: `q0 / ${rowsOf(t)}u`, blocks: `(lenK + ${t.cols - 1}u) / ${t.cols}u` }, block)}
workgroupBarrier(); // P's last readers are done with the place
${unroll(rowQuads(t), (u) => `${slot(u, 'c')} = ${fours('l', u)};`)}
workgroupBarrier(); // partial sums are visible
${unroll(rowQuads(t), (u) => `var total_${u} = vec4<f32>(0.0);\nfor (var j = 0u; j < ${t.ct}u; j++) { total_${u} += ${slot(u, 'j')}; }`)}
${unroll(t.tm, (i) => epilogue(i))}`;

  function epilogue(i: number): string {
    const row = `u32(q_${i})`;
    const sink = problem.sink
      ? `let sink = ${m.storage('sink', 'array<f32>')}[h] * ${LOG2E};
let top = max(m_${i}, sink);
sum = sum * exp2(m_${i} - top) + exp2(sink - top);
factor = exp2(m_${i} - top);
m_${i} = top;`
      : '';
    const [lb, lh, ls] = [m.param('lse_b'), m.param('lse_h'), m.param('lse_s')];
    return `{
var sum = total_${i >> 2}.${XYZW[i & 3]};
let attended = m_${i} > ${START};
var factor = 1.0;
${sink}
let share = select(0.0, factor / sum, attended);
${unroll(ns, (n) => `${store}(${row}, c + ${t.ct * n}u, select(vec4<f32>(0.0), o_${i}_${n} * share, attended));`)}
if (c == 0u && ${row} < lenQ) {
${lse}[b * ${lb} + h * ${lh} + (qStart + ${row}) * ${ls}] = select(${m.param('negInf', 'f32')}, (m_${i} + ${m.fn(LOG2.name, LOG2.text)}(sum)) * ${LN2}, attended);
}
}`;
  }

  function maxByWorkgroup(): string {
    return `workgroupBarrier(); // the products' last readers are done with the place
${unroll(rowQuads(t), (u) => `${slot(u, 'c')} = ${fours('n', u)};`)}
workgroupBarrier(); // the maxima of a row's invocations are visible
${unroll(rowQuads(t), (u) => `var top_${u} = ${slot(u, '0u')};\nfor (var j = 1u; j < ${t.ct}u; j++) { top_${u} = max(top_${u}, ${slot(u, 'j')}); }`)}
${unroll(t.tm, (i) => `n_${i} = top_${i >> 2}.${XYZW[i & 3]};`)}`;
  }

  return m.build({ name: 'forward', threads: threadsOf(t), subgroups: rowMax === 'subgroup', body });
}

function maxBySubgroup(t: TileConfig): string {
  const steps = rowSteps(t);
  return unroll2(steps.length, t.tm, (s, i) => `n_${i} = max(n_${i}, subgroupShuffleXor(n_${i}, ${steps[s]}u));`);
}
