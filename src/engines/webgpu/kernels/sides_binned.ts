/**
 * Gradients of sides read through any other index. A workgroup takes 64 or more neighbouring elements, one an invocation, and
 * every tile of its (b, h); tiles that read none of its elements are left out before any product is made. Axes that are b or h
 * themselves are not searched: they follow from the workgroup.
 */
import { sizeOf } from '../../../core/tensor.ts';
import type { Problem } from '../../../problem/problem.ts';
import { expressionFn, positionOf } from '../wgsl/expressions.ts';
import { ModuleBuilder, type Shader } from '../wgsl/module.ts';
import { unroll2 } from '../wgsl/text.ts';
import type { Pass } from './backward.ts';
import { moduleFor } from './gathered.ts';
import { placeOf } from './head.ts';
import { partialsName, type Side, type Term, tilesOf } from './sides.ts';
import { contribution, declareFactor, sideTile } from './sides_tile.ts';
import { colQuads, putWhole, rowsOf, threadsOf } from './tile.ts';
import type { TileConfig } from './tiles.ts';

/** Partial sums lie as [b h][element]: every element, whichever (b, h) reads it, in a fixed place. */
export function binnedPasses(side: Side): Pass[] {
  const size = sizeOf(side.tensor.shape);
  return side.terms.flatMap((term, n): Pass[] => [
    {
      emit: (p, t) => binShader(p, t, side, term),
      grid: (p, t) => [p.B * p.Hq, tilesOf(size, threadsOf(t)), 1],
      workspace: (p) => ({ [partialsName(side.k)]: 4 * p.B * p.Hq * size }),
    },
    { emit: (p) => sumShader(p, side, n > 0), grid: () => [Math.min(tilesOf(size, 64), 32768), 1, 1] },
  ]);
}

function binShader(problem: Problem, t: TileConfig, side: Side, term: Term): Shader {
  const m = moduleFor(problem, t);
  const { at, enter, compute } = sideTile(m, problem, t);
  const partials = m.storage(partialsName(side.k), 'array<f32>', 'read_write');
  const size = sizeOf(side.tensor.shape);
  const [rows, vs, threads] = [rowsOf(t), colQuads(t), threadsOf(t)];
  declareFactor(m, problem, [term]);
  declarePosition(m, problem, side, term);
  m.workgroup('where_', `array<vec4<i32>, ${rows * (t.cols / 4)}>`);
  m.workgroup('touched', 'atomic<u32>');
  m.workgroup('wanted', 'u32');
  const quads = t.cols / 4;
  const body = `${placeOf(t, 'workgroup')}
let b = group.x / ${m.param('Hq')};
let h = group.x % ${m.param('Hq')};
let first = i32(group.y * ${threads}u);
let mine = first + i32(tid);
var sum = 0.0;
${enter}
for (var q0 = 0u; q0 < lenQ; q0 += ${rows}u) {
for (var k0 = 0u; k0 < lenK; k0 += ${t.cols}u) {
if (tid == 0u) { atomicStore(&touched, 0u); }
workgroupBarrier(); // the last tile's elements have been picked, and the flag is down before anyone raises it
for (var i = tid; i < ${rows * quads}u; i += ${threads}u) {
let found = position4(i32(q0 + i / ${quads}u), i32(k0 + 4u * (i % ${quads}u)));
where_[i] = found;
if (any((found >= vec4<i32>(first)) & (found < vec4<i32>(first + ${threads})))) { atomicStore(&touched, 1u); }
}
workgroupBarrier(); // positions and flag are visible
if (tid == 0u) { wanted = atomicLoad(&touched); }
if (workgroupUniformLoad(&wanted) != 0u) {
${compute}
${unroll2(t.tm, vs, (i, v) => `t_${i}_${v} = ${contribution(t, i, v)};`)}
${putWhole(t, at, 't')}
workgroupBarrier(); // the tile is visible
for (var row = 0u; row < ${rows}u; row++) {
for (var quad = 0u; quad < ${quads}u; quad++) {
let hit = where_[row * ${quads}u + quad] == vec4<i32>(mine);
if (any(hit)) {
let x = select(vec4<f32>(0.0), arena[${at.whole}u + row * ${at.wholeStride}u + quad], hit);
sum += (x.x + x.y) + (x.z + x.w);
}
}
}
}
}
}
if (mine < ${size}) { ${partials}[group.x * ${size}u + u32(mine)] = sum; }`;
  return m.build({ name: `side${side.k}-bins`, threads, body });
}

/** Declares `position4(q, kv)`: the elements that four keys' loads read, -1 outside the sequence. */
function declarePosition(m: ModuleBuilder, problem: Problem, side: Side, { load }: Term): void {
  const names = load.indices.map((e, i) => expressionFn(m, `index_${i}`, e, problem.sides));
  const at = (e: number): string => {
    const args = `0.0, atB, atH, min(q, atLenQ - 1), min(kv + ${e}, atLenK - 1), atLenQ, atLenK`;
    const inside = `q < atLenQ && kv + ${e} < atLenK`;
    return `select(-1, ${positionOf(
      side.tensor,
      names.map((name) => `${name}(${args})`),
    )}, ${inside})`;
  };
  m.fn(
    'position4',
    `fn position4(q: i32, kv: i32) -> vec4<i32> {
  return vec4<i32>(
    ${[0, 1, 2, 3].map(at).join(',\n    ')});
}`,
  );
}

function sumShader(problem: Problem, side: Side, add: boolean): Shader {
  const m = new ModuleBuilder();
  const target = m.storage(`dSide${side.k}`, 'array<f32>', 'read_write');
  const partials = m.storage(partialsName(side.k), 'array<f32>');
  const size = sizeOf(side.tensor.shape);
  void problem;
  const body = `for (var element = group.x * 64u + local; element < ${size}u; element += groups.x * 64u) {
var sum = ${add ? `${target}[element]` : '0.0'};
for (var i = 0u; i < ${m.param('B')} * ${m.param('Hq')}; i++) { sum += ${partials}[i * ${size}u + element]; }
${target}[element] = sum;
}`;
  return m.build({ name: `side${side.k}-sum`, threads: 64, body });
}
