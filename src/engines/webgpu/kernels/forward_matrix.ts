/**
 * Forward in 16-bit storage on subgroup matrices: a workgroup walks the keys of its queries (FlashAttention-2, algorithm 1). Q stays
 * in matrices; K and V are staged for all subgroups, a block ahead of their use. The output stays in matrices too and is only
 * rescaled when a row's maximum has grown by more than SLACK since the last time, because nothing but a trip through
 * workgroup memory can touch its rows.
 */
import { ceilDiv, LN2, LOG2E } from '../../../core/math.ts';
import { flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { ModuleBuilder, type Shader } from '../wgsl/module.ts';
import { unroll, unroll2 } from '../wgsl/text.ts';
import { fillShader, unusedRows } from './forward.ts';
import { headOf } from './head.ts';
import {
  addRuns,
  defineKernel,
  type Launch,
  problemTables,
  refuseShared,
  type WebGpuCaps,
  type WebGpuKernel,
} from './kernel.ts';
import {
  acrossRow,
  colsOf,
  copyRows,
  declareHalves,
  declareMemory,
  divides,
  efficiency,
  enterRows,
  halfStride,
  load,
  type MatrixTile,
  oddHalves,
  padded,
  placeOf,
  product,
  putShare,
  quad,
  quadColumn,
  quadsPerLane,
  refuseMatrices,
  refuseTiles,
  rowsOf,
  scoreAt,
  scoreStride,
  shareAt,
  stepsOf,
  store,
  tame,
  threadsOf,
  turnsOf,
  visitSums,
  zeros,
} from './matrix.ts';
import { declareStore, setBase } from './rows.ts';
import { attends, declareScores, dropFactors, logits, MASKED, START } from './scores.ts';
import { sliced } from './slices.ts';
import { busyShare } from './tiles.ts';

/** Doublings a row's maximum may grow by before the output is rescaled: probabilities stay below 2^SLACK, far inside f16. */
const SLACK = 8;

/** How much faster than multiply-adds matrices get through it. */
const BEST = 6;

export interface MatrixConfig extends MatrixTile {
  readonly [key: string]: number | boolean;
  /** K and V take turns in one place, for two more barriers a block. */
  readonly turns: boolean;
}

const Q = { name: 'q', family: 'q' } as const;
const K = { name: 'k', family: 'k' } as const;
const V = { name: 'v', family: 'v' } as const;
const OUT = { name: 'out', family: 'out' } as const;

/** Halves of one place for staged rows. */
const placeSize = (t: MatrixTile, width: number): number => colsOf(t) * halfStride(padded(t, width));

function bytesOf({ D, Dv }: Problem, c: MatrixConfig): number {
  const [k, v] = [placeSize(c, D), placeSize(c, Dv)];
  const staged = c.turns ? Math.max(k, v) : k + v;
  return rowsOf(c) * (scoreStride(c) * 4 + halfStride(colsOf(c)) * 2) + staged * 2 + 32;
}

export const forwardMatrix: WebGpuKernel<MatrixConfig> = defineKernel({
  name: 'forward-matrix',
  pass: 'forward',
  refuse(problem, caps) {
    const shared = refuseShared(problem, caps, true) ?? refuseMatrices(problem, caps);
    if (shared !== null) return shared;
    return configsOf(problem, caps).length === 0 ? refuseTiles(problem, caps) : null;
  },
  configs: configsOf,
  cost(problem, c, caps) {
    const flops = flopsOf(problem, 'forward');
    const bytes = tiledBytes(problem, 'forward', rowsOf(c), colsOf(c));
    const tiles = ceilDiv(problem.Sq, rowsOf(c));
    const padding = (rowsOf(c) * tiles) / Math.max(problem.Sq, 1);
    const rate = caps.flops * BEST * efficiency(c, bytesOf(problem, c), padded(c, problem.Dv), caps);
    const busy = busyShare(problem.B * problem.Hq * tiles, caps);
    const seconds = ((flops * padding) / rate + bytes / caps.bandwidth / 32) / busy;
    return { flops, bytes, workspace: 0, seconds };
  },
  shaders: (problem, c) => [emit(problem, c), ...(problem.uniform ? [] : [fillShader()])],
  launch(problem, c, caps): Launch {
    const { tables, values } = problemTables(problem);
    if (problem.mask !== null) addRuns(tables, values, problem, 'q', rowsOf(c), colsOf(c));
    const tiles = ceilDiv(problem.Sq, rowsOf(c));
    const slices = sliced(problem, caps.bindingSize, values).map(({ params, windows, heads, batches }) => {
      const grid = [heads.q, tiles, batches] as const;
      return { shader: 0, grid, params, windows };
    });
    return {
      dispatches: [...unusedRows(problem, values), ...slices],
      tables: tables.pack(),
      workspace: {},
      zeroed: problem.uniform ? [] : ['out'],
    };
  },
});

function configsOf(problem: Problem, caps: WebGpuCaps): MatrixConfig[] {
  const { matrix } = caps;
  if (matrix === null) return [];
  const shapes: readonly (readonly [
    groups: number,
    rowBlocks: number,
    colBlocks: number,
    pad: number,
    turns: boolean,
  ])[] = caps.software
    ? [[2, 1, 1, 8, false]]
    : [
        [4, 2, 1, 8, false],
        [4, 2, 1, 8, true],
        [4, 1, 1, 8, true],
        [1, 1, 1, 8, true],
      ];
  const share = Math.max(1, matrix.lanes / matrix.edge);
  return shapes
    .map(([groups, rowBlocks, colBlocks, pad, turns]) => ({
      ...matrix,
      share,
      groups,
      rowBlocks,
      colBlocks,
      pad,
      turns,
    }))
    .filter((c) => divides(c) && threadsOf(c) <= caps.invocations && bytesOf(problem, c) <= caps.workgroupMemory);
}

/**
 * Declares `strays(q, quad)`: what the infinities and NaN of V, which products see as finite numbers, add to four elements of the
 * output: the sum of those that the query attends. Only called where there are any.
 */
const declareStrays = (m: ModuleBuilder, loadV: string): string =>
  m.fn(
    'strays',
    `fn strays(q: i32, quad: u32) -> vec4<f32> {
  var sum = vec4<f32>(0.0);
  for (var kv = 0; kv < atLenK; kv++) {
    let eight = ${loadV}(u32(kv), quad / 2u);
    let four = select(eight.xy, eight.zw, quad % 2u == 1u);
    ${oddHalves('four', 'vec2<u32>', 'odd')}
    if (any(odd != vec2<u32>(0u)) && mask1(0.0, atB, atH, min(q, atLenQ - 1), kv, atLenQ, atLenK)) {
      let kept = four & ((odd >> vec2<u32>(15u)) * 0xffffu);
      sum += vec4<f32>(vec4<f16>(bitcast<vec2<f16>>(kept.x), bitcast<vec2<f16>>(kept.y)));
    }
  }
  return sum;
}`,
  );

function emit(problem: Problem, t: MatrixConfig): Shader {
  const m = new ModuleBuilder();
  const { edge, rowBlocks, colBlocks, turns } = t;
  const [rows, cols] = [rowsOf(t), colsOf(t)];
  const [D, Dv] = [padded(t, problem.D), padded(t, problem.Dv)];
  const [ks, vs] = [halfStride(D), halfStride(Dv)];
  const depth = D / edge;
  const outBlocks = Dv / edge;
  const quads = quadsPerLane(t);
  const turnCount = turnsOf(t);
  const eachRow = (line: (i: number) => string): string => unroll(turnCount, line);
  const eachQuad = (line: (i: number, j: number) => string): string => unroll2(turnCount, quads, line);

  for (const extension of ['f16', 'subgroups', 'chromium_experimental_subgroup_matrix']) m.enable(extension);
  declareScores(m, problem, 'kv', false);
  const loads = {
    q: declareHalves(m, problem, Q, 'u32(atLenQ)', D),
    k: declareHalves(m, problem, K, 'u32(atLenK)', D),
    v: declareHalves(m, problem, V, 'u32(atLenK)', Dv),
  };
  const storeOut = declareStore(m, problem, OUT, 'u32(atLenQ)');
  const lse = m.storage('lse', 'array<f32>', 'read_write');
  const strays = problem.mask === null ? null : declareStrays(m, loads.v);
  declareMemory(m, {
    scores: `array<f32, ${rows * scoreStride(t)}>`,
    shares: `array<f16, ${rows * halfStride(cols)}>`,
    keys: `array<f16, ${cols * (turns ? Math.max(ks, vs) : ks)}>`,
    ...(turns ? {} : { values: `array<f16, ${cols * vs}>` }),
    grown: 'atomic<u32>',
    ...(strays === null ? {} : { stray: 'atomic<u32>' }),
  });
  const [keys, values] = ['w.keys', turns ? 'w.keys' : 'w.values'];

  const copyK = copyRows(t, 'kr', loads.k, cols, D, keys, ks);
  const copyV = copyRows(t, 'vr', loads.v, cols, Dv, values, vs);
  const enterQ = enterRows(t, 'q', loads.q, 'q0', D, 'w.shares');

  const scores = `${zeros(t, 's', rowBlocks, colBlocks)}
${product(
  { rows: rowBlocks, cols: colBlocks, depth },
  's',
  (i, k) => `q_${i}_${k}`,
  (k, j) => load(t, 'right', 'col', keys, `${j * edge * ks + k * edge}u`, ks),
)}
${unroll2(rowBlocks, colBlocks, (i, j) => store('w.scores', scoreAt(t, i, j), `s_${i}_${j}`, scoreStride(t)))}`;

  const x = (i: number, j: number): string => `x_${i}_${j}`;
  const q = (i: number): string => `i32(q0 + own_${i})`;
  const kv = (j: number): string => `i32(k0 + ${quadColumn(t, j)})`;
  const keep = (condition: (i: number, j: number) => string): string =>
    eachQuad((i, j) => `${x(i, j)} = select(vec4<f32>(${MASKED}), ${x(i, j)}, ${condition(i, j)});`);
  // One condition for masks and ragged ends: each branch in the way of scores costs more than what it spares.
  const doubtful = `if (${problem.mask === null ? '' : 'partial || '}k0 + ${cols}u > lenK) {
${keep((i, j) => attends(problem, q(i), kv(j)))}
}`;
  const largest = (i: number): string =>
    Array.from({ length: quads }, (_, j) => x(i, j)).reduce((a, b) => `max(${a}, ${b})`);
  const maxima = eachRow(
    (i) => `let w_${i} = ${largest(i)};
var n_${i} = max(max(w_${i}.x, w_${i}.y), max(w_${i}.z, w_${i}.w));
${acrossRow(t, `n_${i}`, (a, b) => `max(${a}, ${b})`)}
let grew_${i} = n_${i} > m_${i} + ${SLACK}.0;
let top_${i} = select(m_${i}, n_${i}, grew_${i});
factor_${i} = exp2(m_${i} - top_${i});
m_${i} = top_${i};
l_${i} *= factor_${i};`,
  );
  const anyGrew = Array.from({ length: turnCount }, (_, i) => `grew_${i}`).join(' || ');
  const shares = eachQuad((i, j) => {
    const drop = problem.dropout === null ? '' : `${x(i, j)} *= ${dropFactors('kv', q(i), kv(j))};`;
    return `${x(i, j)} = exp2(${x(i, j)} - vec4<f32>(m_${i}));
l_${i} += (${x(i, j)}.x + ${x(i, j)}.y) + (${x(i, j)}.z + ${x(i, j)}.w);
${drop}
${putShare(t, 'w.shares', i, j, x(i, j))}`;
  });
  const softmax = `${eachQuad((i, j) => `var ${x(i, j)} = ${quad(t, 'w.scores', i, j)};`)}
${eachQuad((i, j) => `${x(i, j)} = ${logits(m, problem, x(i, j), q(i), kv(j))};`)}
${doubtful}
${maxima}
if (${anyGrew}) { atomicMax(&w.grown, step); }
${shares}`;

  const rescale = visitSums(t, 'o', outBlocks, (i, x) => `${x} *= factor_${i};`, true);
  const weigh = product(
    { rows: rowBlocks, cols: outBlocks, depth: colBlocks },
    'o',
    (i, k) => load(t, 'left', 'row', 'w.shares', shareAt(t, i, k), halfStride(cols)),
    (k, n) => load(t, 'right', 'row', values, `${k * edge * vs + n * edge}u`, vs),
  );
  const steps = stepsOf(m, problem, 'q', {
    b: 'b',
    h: 'h',
    row: `q0 / ${rows}u`,
    blocks: `(lenK + ${cols - 1}u) / ${cols}u`,
  });
  // After a block's products: the next one's keys take their place, and `next` is two blocks ahead again.
  const onward = `if (last) { break; }
${
  turns
    ? `workgroupBarrier(); // the values are done with
${copyK.put}
${copyK.fetch(`next * ${cols}u`)}
workgroupBarrier(); // the keys are visible`
    : ''
}
block = following;
partial = followingPartial;
following = next;
followingPartial = nextPartial;
last = !more;
${steps.advance}`;
  // Blocks that rescale leave the inner loop and come back to it: what lies inside takes registers and places from all blocks.
  const walk = `var block = next;
var partial = nextPartial;
${strays === null ? '' : 'var seen = 0u;'}
${copyK.declare}
${copyV.declare}
${copyK.fetch(`block * ${cols}u`)}
${copyV.fetch(`block * ${cols}u`)}
workgroupBarrier(); // Q's last readers are done
${copyK.put}
${steps.advance}
var following = next;
var followingPartial = nextPartial;
var last = !more;
${copyK.fetch(`following * ${cols}u`)}
${steps.advance}
workgroupBarrier(); // the first keys are visible
for (var step = 1u; ; step++) {
var rescaling = false;
${eachRow((i) => `var factor_${i} = 1.0;`)}
for (;; step++) {
let k0 = block * ${cols}u;
${scores}
workgroupBarrier(); // the scores are visible to the lanes that own their rows; the keys and the last values are done with
${strays === null ? '' : tame(copyV, 'seen')}
${copyV.put}
${turns ? '' : copyK.put}
${softmax}
${copyV.fetch(`following * ${cols}u`)}
${turns ? '' : copyK.fetch(`next * ${cols}u`)}
// Also the barrier that makes probabilities, keys and values visible.
rescaling = workgroupUniformLoad(&w.grown) == step;
if (rescaling) { break; }
${weigh}
${onward}
}
if (!rescaling) { break; }
if (step > 1u) {
${rescale}
}
${weigh}
${onward}
}
${strays === null ? '' : 'if (seen != 0u) { atomicStore(&w.stray, 1u); }'}`;

  const sink = problem.sink ? m.storage('sink', 'array<f32>') : '';
  const finish = eachRow(
    (i) => `${acrossRow(t, `l_${i}`, (a, b) => `${a} + ${b}`)}
let attended_${i} = m_${i} > ${START};
var share_${i} = 1.0;
${
  problem.sink
    ? `{
let sink = ${sink}[h] * ${LOG2E};
let top = max(m_${i}, sink);
share_${i} = exp2(m_${i} - top);
l_${i} = l_${i} * share_${i} + exp2(sink - top);
m_${i} = top;
}`
    : ''
}
share_${i} = select(0.0, share_${i} / l_${i}, attended_${i});
if (part == 0u && q0 + own_${i} < lenQ) {
${lse}[b * ${m.param('lse_b')} + h * ${m.param('lse_h')} + (qStart + q0 + own_${i}) * ${m.param('lse_s')}] = select(${m.param('negInf', 'f32')}, (m_${i} + log2(l_${i})) * ${LN2}, attended_${i});
}`,
  );
  const result = (i: number, x: string, column: string): string => {
    const quad = `(${column}) / 4u`;
    const add =
      strays === null ? '' : `if (atomicLoad(&w.stray) != 0u) { ${x} += ${strays}(i32(q0 + own_${i}), ${quad}); }\n`;
    const share = `select(vec4<f32>(0.0), ${x} * share_${i}, attended_${i})`;
    return `${add}${storeOut}(q0 + own_${i}, ${quad}, ${share});`;
  };
  const body = `${headOf(m, problem, 'q')}
let q0 = (groups.y - 1u - group.y) * ${rows}u;
if (q0 >= lenQ) { return; }
${placeOf(t)}
${[Q, OUT].map((x) => setBase(m, problem, x, 'h', 'qStart')).join('\n')}
${[K, V].map((x) => setBase(m, problem, x, 'hkv', 'kStart')).join('\n')}
${enterQ}
${eachRow((i) => `var m_${i} = ${START};\nvar l_${i} = 0.0;`)}
${zeros(t, 'o', rowBlocks, outBlocks)}
${steps.begin}
if (more) {
${walk}
}
${finish}
workgroupBarrier(); // the scores' place is free
${visitSums(t, 'o', outBlocks, result, false)}`;
  return m.build({ name: 'forward-matrix', threads: threadsOf(t), subgroups: true, body });
}
