/** The small passes of backward that touch each query row once: delta, and the gradient of the sink logits. */
import { LOG2E } from '../../../core/math.ts';
import type { Problem } from '../../../problem/problem.ts';
import { ModuleBuilder, type Shader } from '../wgsl/module.ts';
import { NEVER } from './gradients.ts';
import { headOf } from './head.ts';
import { declareLoad, quadsOf, setBase } from './rows.ts';
import { declareHead } from './scores.ts';

const THREADS = 64;

/**
 * What the tiles need of each query row, laid out like lse: (lse in base 2, delta), delta = rowsum(dOut * out) - dLse. A row
 * that attends to nothing gets an lse that no score reaches. One invocation a row.
 */
export function deltaShader(problem: Problem): Shader {
  const m = new ModuleBuilder();
  declareHead(m);
  const out = { name: 'out', family: 'out' } as const;
  const dOut = { name: 'dOut', family: 'out' } as const;
  const [loadOut, loadDOut] = [out, dOut].map((t) => declareLoad(m, problem, t, 'u32(atLenQ)'));
  const dLse = m.storage('dLse', 'array<f32>');
  const lse = m.storage('lse', 'array<f32>');
  const rows = m.storage('rows', 'array<vec2<f32>>', 'read_write');
  const at = `b * ${m.param('lse_b')} + h * ${m.param('lse_h')} + (qStart + q) * ${m.param('lse_s')}`;
  const body = `${headOf(m, problem, 'q')}
let q = group.y * ${THREADS}u + local;
if (q >= lenQ) { return; }
${setBase(m, problem, out, 'h', 'qStart')}
${setBase(m, problem, dOut, 'h', 'qStart')}
var value = 0.0;
for (var d = 0u; d < ${quadsOf(problem, 'out')}u; d++) {
let x = ${loadOut}(q, d);
let y = ${loadDOut}(q, d);
// The order of dO V^T in the tiles: where one key takes all, delta and dP then cancel to the last bit.
value = fma(x.w, y.w, fma(x.z, y.z, fma(x.y, y.y, fma(x.x, y.x, value))));
}
let at = ${at};
if (${m.param('hasDLse')} != 0u) { value -= ${dLse}[at]; }
let x = ${lse}[at];
${rows}[at] = vec2<f32>(select(x * ${LOG2E}, ${NEVER}, x < -1.0e30), value);`;
  return m.build({ name: 'delta', threads: THREADS, body });
}

/** dSink[h] = - sum over rows of exp(sink - lse) * delta; one workgroup a head, summed in a fixed order. */
export function sinkShader(problem: Problem): Shader {
  const m = new ModuleBuilder();
  const table = m.storage('tables', 'array<i32>');
  const sink = m.storage('sink', 'array<f32>');
  const rows = m.storage('rows', 'array<vec2<f32>>');
  const target = m.storage('dSink', 'array<f32>', 'read_write');
  m.workgroup('sums', `array<f32, ${THREADS}>`);
  void problem;
  const body = `let h = group.x;
var sum = 0.0;
for (var b = 0u; b < ${m.param('B')}; b++) {
let qStart = u32(${table}[b * 4u]);
let lenQ = u32(${table}[b * 4u + 1u]);
for (var q = local; q < lenQ; q += ${THREADS}u) {
let at = b * ${m.param('lse_b')} + h * ${m.param('lse_h')} + (qStart + q) * ${m.param('lse_s')};
let row = ${rows}[at];
sum -= exp2(${sink}[h] * ${LOG2E} - row.x) * row.y;
}
}
sums[local] = sum;
workgroupBarrier(); // every invocation's sum is visible
if (local == 0u) {
var total = 0.0;
for (var i = 0u; i < ${THREADS}u; i++) { total += sums[i]; }
${target}[h] = total;
}`;
  return m.build({ name: 'sink-gradient', threads: THREADS, body });
}
