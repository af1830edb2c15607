/**
 * Forward for few queries: the keys are split over workgroups, each of which serves all query heads of a key head at once, so
 * that K and V are read once; a second dispatch joins the splits (Flash-Decoding). K and V go straight from slow memory to
 * registers, neighbouring invocations reading neighbouring quads of a row; what comes next is always on its way, because slow
 * memory is the limit.
 */
import { ceilDiv, LN2, LOG2E } from '../../../core/math.ts';
import { flopsOf, tiledBytes } from '../../../problem/cost.ts';
import type { Problem } from '../../../problem/problem.ts';
import { variesWith } from '../../../problem/ranges.ts';
import { ModuleBuilder, type Shader } from '../wgsl/module.ts';
import { LOG2, unroll, unroll2, XYZW } from '../wgsl/text.ts';
import { sequenceOf } from './head.ts';
import {
  addRuns,
  defineKernel,
  type Launch,
  problemTables,
  refuseShared,
  type WebGpuCaps,
  type WebGpuKernel,
} from './kernel.ts';
import { declareLoad, declareRaw, declareStore, quadsOf, setBase } from './rows.ts';
import { declareScores, MASKED, overRuns, START } from './scores.ts';
import { sliced } from './slices.ts';

/** More queries than this are better served by tiles. */
const MOST_ROWS = 16;
/** Keys of one K stage that an invocation has on their way. */
const KEYS = 4;
/** Quads of V that an invocation has on their way. */
const VALUES = 8;
/** Workgroups that keep any device busy, to the last. */
const ENOUGH = 2048;
/** Pieces into which a maximum over the workgroup is cut. */
const PIECES = 16;

export interface DecodeConfig {
  readonly [key: string]: number;
  readonly threads: number;
  /** Query rows (heads of the group times positions) of a workgroup: a multiple of 4. */
  readonly rows: number;
  /** Keys between two looks at the maximum: one block of the mask's runs. */
  readonly chunk: number;
}

const Q = { name: 'q', family: 'q' } as const;
const K = { name: 'k', family: 'k' } as const;
const V = { name: 'v', family: 'v' } as const;
const OUT = { name: 'out', family: 'out' } as const;

/** Invocations that share a row of K: few, as each adds a term to the sums, but with q in registers. */
const lanesOf = (problem: Problem, c: DecodeConfig): number => (quadsOf(problem, 'q') * c.rows <= 128 ? 8 : 16);

const packedRows = ({ Hq, Hkv, Sq }: Problem): number => (Hkv === 0 ? 0 : (Hq / Hkv) * Sq);
/** Keys of one K stage of the workgroup. */
const stageKeys = (problem: Problem, c: DecodeConfig): number => (c.threads / lanesOf(problem, c)) * KEYS;
/** vec4 of workgroup memory: partial products, scores, and what the maximum is found in. */
function memoryOf(problem: Problem, c: DecodeConfig): { partial: number; scores: number; reduce: number } {
  const groups = c.rows / 4;
  return {
    partial: Math.max(stageKeys(problem, c) * groups * (lanesOf(problem, c) + 1), c.threads),
    scores: c.chunk * groups,
    reduce: (c.threads + PIECES) * groups,
  };
}
const bytesOf = (problem: Problem, c: DecodeConfig): number => {
  const { partial, scores, reduce } = memoryOf(problem, c);
  return 16 * (partial + scores + reduce);
};

/** Splits of the keys, in whole chunks, and chunks of a split. */
function splitsOf(problem: Problem, c: DecodeConfig): { splits: number; each: number } {
  const chunks = Math.max(1, ceilDiv(problem.Sk, c.chunk));
  const groups = Math.max(1, problem.B * problem.Hkv * ceilDiv(packedRows(problem), c.rows));
  const each = ceilDiv(chunks, Math.min(chunks, ceilDiv(ENOUGH, groups)));
  return { splits: ceilDiv(chunks, each), each };
}

export const decode: WebGpuKernel<DecodeConfig> = defineKernel({
  name: 'decode',
  pass: 'forward',
  refuse(problem, caps) {
    const shared = refuseShared(problem, caps, true);
    if (shared !== null) return shared;
    if (problem.Sq > MOST_ROWS)
      return `${problem.Sq} queries a sequence, at most ${MOST_ROWS} are worth splitting the keys for`;
    // q, k, v, tables and two workspaces besides the sides.
    const buffers = 6 + problem.sides.length;
    return buffers > caps.storageBuffers ? `${buffers} storage buffers, the device binds ${caps.storageBuffers}` : null;
  },
  configs(problem, caps) {
    const all = [4, 8].flatMap((rows) => [
      { threads: 128, rows, chunk: 256 },
      { threads: 64, rows, chunk: 64 },
    ]);
    const fits = all.filter((c) => bytesOf(problem, c) <= caps.workgroupMemory && c.threads <= caps.invocations);
    return caps.software ? fits.filter((c) => c.threads === 64) : fits;
  },
  cost(problem, c, caps) {
    const flops = flopsOf(problem, 'forward');
    const tiles = ceilDiv(packedRows(problem), c.rows);
    const keys =
      tiledBytes(problem, 'forward', Math.max(problem.Sq, 1), c.chunk) / Math.max(1, problem.Hq / problem.Hkv);
    const bytes = keys * tiles;
    const { splits } = splitsOf(problem, c);
    const workspace = workspaceOf(problem, c, splits);
    const padded = (flops * tiles * c.rows) / Math.max(packedRows(problem), 1);
    // Products come from broadcasts here: a quarter of a tile's arithmetic rate.
    const arithmetic = padded / (caps.flops / 4);
    return {
      flops,
      bytes,
      workspace: workspace.sums + workspace.stats,
      seconds: Math.max(arithmetic, bytes / caps.bandwidth) + (c.threads < 128 ? 1e-6 : 0),
    };
  },
  shaders: (problem, c) => [emitSplit(problem, c), emitCombine(problem, c)],
  launch: launchDecode,
});

/** Scratch: unnormalised outputs [b, key head and row tile, split, row, Dv quads of vec4], and (m, l) of each row. */
function workspaceOf(problem: Problem, c: DecodeConfig, splits: number): { sums: number; stats: number } {
  const rows = problem.B * problem.Hkv * ceilDiv(packedRows(problem), c.rows) * splits * c.rows;
  return { sums: rows * quadsOf(problem, 'v') * 16, stats: rows * 8 };
}

function launchDecode(problem: Problem, c: DecodeConfig, caps: WebGpuCaps): Launch {
  const { tables, values } = problemTables(problem);
  if (problem.mask !== null && !variesWith(problem).h)
    addRuns(tables, values, problem, 'q', Math.max(problem.Sq, 1), c.chunk);
  const { splits, each } = splitsOf(problem, c);
  const tiles = ceilDiv(packedRows(problem), c.rows);
  Object.assign(values, { splits, each, tiles });
  const { sums, stats } = workspaceOf(problem, c, splits);
  return {
    dispatches: sliced(problem, caps.bindingSize, values).flatMap(({ params, windows, heads, batches }) => [
      { shader: 0, grid: [heads.kv * tiles, splits, batches] as const, params, windows },
      { shader: 1, grid: [heads.q, problem.Sq, batches] as const, params, windows },
    ]),
    tables: tables.pack(),
    workspace: { sums, stats },
    zeroed: [],
  };
}

const powerOfTwo = (n: number): number => 2 ** Math.ceil(Math.log2(Math.max(n, 1)));

function emitSplit(problem: Problem, c: DecodeConfig): Shader {
  const m = new ModuleBuilder();
  const { rows, threads, chunk } = c;
  const groups = rows / 4;
  const [quadsD, quadsV] = [quadsOf(problem, 'q'), quadsOf(problem, 'v')];
  const lanes = lanesOf(problem, c);
  const perLane = ceilDiv(quadsD, lanes);
  const keysAt = threads / lanes;
  const stage = stageKeys(problem, c);
  declareScores(m, problem, 'kv', false);
  const loadQ = declareLoad(m, problem, Q, 'u32(atLenQ)');
  // What lies past the last key is looked at when it has come, never when it is asked for: that would wait for it.
  const rawK = declareRaw(m, problem, K, 'u32(atLenK)', { anyRow: true, anyQuad: quadsD % lanes === 0 });
  const memory = memoryOf(problem, c);
  m.workgroup('partial_', `array<vec4<f32>, ${memory.partial}>`);
  m.workgroup('scores', `array<vec4<f32>, ${memory.scores}>`);
  m.workgroup('reduce', `array<vec4<f32>, ${memory.reduce}>`);
  const sums = m.storage('sums', 'array<vec4<f32>>', 'read_write');
  const stats = m.storage('stats', 'array<vec2<f32>>', 'read_write');
  const [Sq, group, tiles, splits, each] = ['Sq', 'group', 'tiles', 'splits', 'each'].map((p) => m.param(p));

  /** Row r of the workgroup: its head and position. Rows past the end repeat the last. */
  const rowSetup = (r: number): string => `let row_${r} = min(tile * ${rows}u + ${r}u, ${group} * ${Sq} - 1u);
let h_${r} = hkv * ${group} + row_${r} / ${Sq};
let q_${r} = min(row_${r} % ${Sq}, lenQ - 1u);
${setBase(m, problem, Q, `h_${r}`, 'qStart')}
${unroll(perLane, (w) => `let q_${r}_${w} = ${loadQ}(q_${r}, lane + ${lanes * w}u);`)}`;

  const kRegister = (line: (u: number, w: number) => string): string => unroll2(KEYS, perLane, line);
  const fetchKeys = (first: string): string =>
    kRegister((u, w) => `k_${u}_${w} = ${rawK.load}(k0 + ${first} + ${u * keysAt}u + owner, lane + ${lanes * w}u);`);
  const products = `{
${kRegister((u, w) => `var k_${u}_${w}: ${rawK.type};`)}
${fetchKeys('0u')}
for (var part = 0u; part < ${chunk / stage}u; part++) {
${unroll(KEYS, (u) => {
  const dot = (r: number): string =>
    Array.from({ length: perLane }, (_, w) => `dot(q_${r}_${w}, x_${u}_${w})`).join(' + ');
  return `${unroll(perLane, (w) => `let x_${u}_${w} = ${rawK.unpack(`k_${u}_${w}`)};`)}
${unroll(groups, (g) => `partial_[((${u * keysAt}u + owner) * ${groups}u + ${g}u) * ${lanes + 1}u + lane] = vec4<f32>(${[0, 1, 2, 3].map((e) => dot(4 * g + e)).join(', ')});`)}`;
})}
if (part < ${chunk / stage - 1}u) {
${fetchKeys(`(part + 1u) * ${stage}u`)}
}
workgroupBarrier(); // every lane's part of the products is visible
if (tid < ${stage * groups}u) {
var sum = partial_[tid * ${lanes + 1}u];
${unroll(lanes - 1, (l) => `sum += partial_[tid * ${lanes + 1}u + ${l + 1}u];`)}
scores[part * ${stage * groups}u + tid] = sum;
}
workgroupBarrier(); // the sums are visible, and their parts done with
}
}`;

  const scale = m.param('scale', 'f32');
  const one = (r: number): string => {
    const [g, e] = [Math.floor(r / 4), XYZW[r % 4]];
    const where = `atB, i32(h_${r}), i32(q_${r}), i32(min(kv, lenK - 1u)), atLenQ, atLenK`;
    const value = problem.mod === null ? `x_${g}.${e} * ${scale}` : `mod1(x_${g}.${e} * ${scale}, ${where})`;
    const seen = problem.mask === null ? 'kv < lenK' : `kv < lenK && (!partial || mask1(0.0, ${where}))`;
    return `x_${g}.${e} = select(${MASKED}, ${value} * ${LOG2E}, ${seen});`;
  };
  const drop = (r: number): string =>
    problem.dropout === null
      ? ''
      : `x_${Math.floor(r / 4)}.${XYZW[r % 4]} *= tw_drop1(i32(q_${r}), i32(kv), i32(b * ${m.param('Hq')} + h_${r}));`;
  const softmax = `${unroll(groups, (g) => `var n_${g} = m_${g};`)}
for (var i = tid; i < ${chunk}u; i += ${threads}u) {
let kv = k0 + i;
${unroll(groups, (g) => `var x_${g} = scores[i * ${groups}u + ${g}u];`)}
${unroll(rows, one)}
${unroll(groups, (g) => `scores[i * ${groups}u + ${g}u] = x_${g};\nn_${g} = max(n_${g}, x_${g});`)}
}
${reduceAll(c, 'n', 'max')}
${unroll(groups, (g) => `let alpha_${g} = exp2(m_${g} - n_${g});\nm_${g} = n_${g};\nl_${g} *= alpha_${g};`)}
${unroll(rows, (r) => `o_${r} *= alpha_${Math.floor(r / 4)}.${XYZW[r % 4]};`)}
for (var i = tid; i < ${chunk}u; i += ${threads}u) {
let kv = k0 + i;
${unroll(groups, (g) => `var x_${g} = exp2(scores[i * ${groups}u + ${g}u] - m_${g});\nl_${g} += x_${g};`)}
${unroll(rows, drop)}
${unroll(groups, (g) => `scores[i * ${groups}u + ${g}u] = x_${g};`)}
}
workgroupBarrier(); // the probabilities are visible`;

  // Quads of V along invocations; those left over take other keys.
  const wide = Math.max(powerOfTwo(quadsV), (threads * VALUES) / chunk);
  if (wide > threads) throw new Error(`decode: ${quadsV} quads of V for ${threads} invocations`);
  const keyGroups = threads / wide;
  const rawV = declareRaw(m, problem, V, 'u32(atLenK)', { anyRow: true, anyQuad: quadsV === wide });
  const rounds = chunk / (keyGroups * VALUES);
  const rowOf = (u: number, first: string): string => `k0 + ${first} + ${u * keyGroups}u + keyGroup`;
  const fetchValues = (first: string): string =>
    unroll(VALUES, (u) => `v_${u} = ${rawV.load}(${rowOf(u, first)}, column);`);
  const declareValues = unroll(VALUES, (u) => `var v_${u}: ${rawV.type};`);
  const values = `for (var part = 0u; part < ${rounds}u; part++) {
${unroll(VALUES, (u) => `let x_${u} = select(vec4<f32>(0.0), ${rawV.unpack(`v_${u}`)}, ${rowOf(u, `part * ${keyGroups * VALUES}u`)} < lenK);`)}
if (part < ${rounds - 1}u) {
${fetchValues(`(part + 1u) * ${keyGroups * VALUES}u`)}
}
${unroll(VALUES, (u) => {
  const p = (r: number): string => `p_${u}_${Math.floor(r / 4)}.${XYZW[r % 4]}`;
  // A probability of exactly 0 keeps NaN of a masked row where it is.
  const v = (r: number): string =>
    problem.mask === null ? `x_${u}` : `select(x_${u}, vec4<f32>(0.0), ${p(r)} == 0.0)`;
  return `${unroll(groups, (g) => `let p_${u}_${g} = scores[(part * ${keyGroups * VALUES}u + ${u * keyGroups}u + keyGroup) * ${groups}u + ${g}u];`)}
${unroll(rows, (r) => `o_${r} = fma(vec4<f32>(${p(r)}), ${v(r)}, o_${r});`)}`;
})}
}`;

  const runs = problem.mask !== null && !variesWith(problem).h;
  const visit = `if (block >= firstBlock && block < lastBlock) {
let k0 = block * ${chunk}u;
${products}
${declareValues}
${fetchValues('0u')}
${softmax}
${values}
}`;
  const blocks = runs
    ? overRuns(m, problem, 'q', { b: 'b', h: '0u', row: '0u', blocks: '' }, visit)
    : `for (var block = firstBlock; block < min(lastBlock, (lenK + ${chunk - 1}u) / ${chunk}u); block++) {
let partial = true;
${visit}
}`;
  const body = `let tid = local;
let lane = tid % ${lanes}u;
let owner = tid / ${lanes}u;
let column = tid % ${wide}u;
let keyGroup = tid / ${wide}u;
let hkv = group.x / ${tiles} + ${m.param('firstHkv')};
let tile = group.x % ${tiles};
let b = group.z + ${m.param('firstB')};
${sequenceOf(m, problem)}
let firstBlock = group.y * ${each};
let lastBlock = firstBlock + ${each};
if (lenQ == 0u) { return; }
${unroll(rows, rowSetup)}
${setBase(m, problem, K, 'hkv', 'kStart')}
${setBase(m, problem, V, 'hkv', 'kStart')}
${unroll(groups, (g) => `var m_${g} = vec4<f32>(${START});\nvar l_${g} = vec4<f32>(0.0);`)}
${unroll(rows, (r) => `var o_${r} = vec4<f32>(0.0);`)}
${blocks}
${reduceAll(c, 'l', 'sum')}
let at = (((b * ${m.param('Hkv')} + hkv) * ${tiles} + tile) * ${splits} + group.y) * ${rows}u;
if (tid == 0u) {
${unroll(rows, (r) => `${stats}[at + ${r}u] = vec2<f32>(m_${Math.floor(r / 4)}.${XYZW[r % 4]}, l_${Math.floor(r / 4)}.${XYZW[r % 4]});`)}
}
${unroll(
  rows,
  (r) => `workgroupBarrier(); // the place is free
partial_[tid] = o_${r};
workgroupBarrier(); // every key group's sum is visible
if (tid < ${quadsV}u) {
var sum = partial_[tid];
for (var k = 1u; k < ${keyGroups}u; k++) { sum += partial_[tid + k * ${wide}u]; }
${sums}[(at + ${r}u) * ${quadsV}u + tid] = sum;
}`,
)}`;
  return m.build({ name: 'decode-split', threads, body });
}

/** Maximum or sum of `<name>_<g>` over the workgroup, in every invocation and always in the same order. */
function reduceAll(c: DecodeConfig, name: string, how: 'max' | 'sum'): string {
  const groups = c.rows / 4;
  const join = (a: string, b: string): string => (how === 'max' ? `max(${a}, ${b})` : `${a} + ${b}`);
  const cell = (i: string, g: number): string => `reduce[(${i}) * ${groups}u + ${g}u]`;
  return `workgroupBarrier(); // the place's last readers are done
${unroll(groups, (g) => `${cell('tid', g)} = ${name}_${g};`)}
workgroupBarrier(); // every invocation's value is visible
if (tid < ${PIECES}u) {
${unroll(
  groups,
  (g) => `{
var x = ${cell('tid', g)};
for (var i = tid + ${PIECES}u; i < ${c.threads}u; i += ${PIECES}u) { x = ${join('x', cell('i', g))}; }
${cell(`${c.threads}u + tid`, g)} = x;
}`,
)}
}
workgroupBarrier(); // the pieces are visible
${unroll(
  groups,
  (g) => `${name}_${g} = ${cell(`${c.threads}u`, g)};
for (var i = 1u; i < ${PIECES}u; i++) { ${name}_${g} = ${join(`${name}_${g}`, cell(`${c.threads}u + i`, g))}; }`,
)}`;
}

/** Joins the splits of one row: the (out, lse) merge, in base 2, with the sink. */
function emitCombine(problem: Problem, c: DecodeConfig): Shader {
  const m = new ModuleBuilder();
  const threads = 64;
  m.local('atLenQ', 'i32');
  const quadsV = quadsOf(problem, 'v');
  const table = m.storage('tables', 'array<i32>');
  const sums = m.storage('sums', 'array<vec4<f32>>');
  const stats = m.storage('stats', 'array<vec2<f32>>');
  const lse = m.storage('lse', 'array<f32>', 'read_write');
  const store = declareStore(m, problem, OUT, 'u32(atLenQ)');
  const [Sq, group, tiles, splits] = ['Sq', 'group', 'tiles', 'splits'].map((p) => m.param(p));
  const sink = problem.sink
    ? `let sink = ${m.storage('sink', 'array<f32>')}[h] * ${LOG2E};
let higher = max(top, sink);
total = total * exp2(top - higher) + exp2(sink - higher);
top = higher;`
    : '';
  const body = `let h = group.x + ${m.param('firstH')};
let q = group.y;
let b = group.z + ${m.param('firstB')};
let qStart = u32(${table}[b * 4u]);
atLenQ = ${table}[b * 4u + 1u];
if (q >= u32(atLenQ)) { return; }
let packed = (h % ${group}) * ${Sq} + q;
let at = ((b * ${m.param('Hkv')} + h / ${group}) * ${tiles} + packed / ${c.rows}u) * ${splits} * ${c.rows}u + packed % ${c.rows}u;
var top = ${START};
for (var s = 0u; s < ${splits}; s++) { top = max(top, ${stats}[at + s * ${c.rows}u].x); }
let attended = top > ${START};
var total = 0.0;
for (var s = 0u; s < ${splits}; s++) {
let one = ${stats}[at + s * ${c.rows}u];
total += one.y * exp2(one.x - top);
}
${sink}
${setBase(m, problem, OUT, 'h', 'qStart')}
for (var quad = local; quad < ${quadsV}u; quad += ${threads}u) {
var sum = vec4<f32>(0.0);
for (var s = 0u; s < ${splits}; s++) {
sum += ${sums}[(at + s * ${c.rows}u) * ${quadsV}u + quad] * exp2(${stats}[at + s * ${c.rows}u].x - top);
}
${store}(q, quad, select(vec4<f32>(0.0), sum / total, attended));
}
if (local == 0u) {
${lse}[b * ${m.param('lse_b')} + h * ${m.param('lse_h')} + (qStart + q) * ${m.param('lse_s')}] = select(${m.param('negInf', 'f32')}, (top + ${m.fn(LOG2.name, LOG2.text)}(total)) * ${LN2}, attended);
}`;
  return m.build({ name: 'decode-combine', threads, body });
}
