/** Gradients of sides that are indexed by position: one pass over tiles, one that adds up partial sums. */
import { sizeOf } from '../../../core/tensor.ts';
import type { Problem } from '../../../problem/problem.ts';
import { ModuleBuilder, type Shader } from '../wgsl/module.ts';
import { unroll, unroll2 } from '../wgsl/text.ts';
import type { Pass } from './backward.ts';
import { moduleFor } from './gathered.ts';
import { placeOf } from './head.ts';
import { type Axis, partialsName, type Side, tilesOf } from './sides.ts';
import { contribution, declareFactor, sideTile } from './sides_tile.ts';
import { colQuads, putWhole, rowAt, rowsOf, type Tile, threadsOf } from './tile.ts';
import type { TileConfig } from './tiles.ts';

/** Which of q and kv the side has an axis for decides what one workgroup sums and what it writes. */
export function positionalPasses(problem: Problem, side: Side, axes: readonly Axis[]): Pass[] {
  const q = axes.includes('q');
  const kv = axes.includes('kv');
  if (q && kv) {
    const heads = (axes.includes('b') ? problem.B : 1) * (axes.includes('h') ? problem.Hq : 1);
    return [
      {
        emit: (p, t) => matrixShader(p, t, side, axes),
        grid: (p, t) => [heads, tilesOf(p.Sq, rowsOf(t)), tilesOf(p.Sk, t.cols)],
      },
    ];
  }
  const shape = q ? 'queries' : kv ? 'keys' : 'heads';
  /** Partial sums of one (b, h). */
  const width = (p: Problem, t: Tile): number => (q ? p.Sq : kv ? p.Sk : tilesOf(p.Sq, rowsOf(t)));
  const size = sizeOf(side.tensor.shape);
  return [
    {
      emit: (p, t) => partialShader(p, t, side, shape),
      grid: (p, t) => [p.B * p.Hq, kv ? 1 : tilesOf(p.Sq, rowsOf(t)), kv ? tilesOf(p.Sk, t.cols) : 1],
      workspace: (p, t) => ({ [partialsName(side.k)]: 4 * p.B * p.Hq * width(p, t) }),
    },
    { emit: (p, t) => sumShader(p, t, side, axes, shape), grid: () => [Math.min(tilesOf(size, 64), 32768), 1, 1] },
  ];
}

/** Element of the side at (b, h, q, kv) of the scope, in C order. */
function elementOf(side: Side, axes: readonly Axis[], names: Readonly<Record<string, string>>): string {
  let stride = 1;
  const terms: string[] = [];
  for (let a = axes.length - 1; a >= 0; a--) {
    const axis = axes[a];
    terms.push(`${typeof axis === 'number' ? `${axis}u` : names[axis]} * ${stride}u`);
    stride *= side.tensor.shape[a];
  }
  return terms.join(' + ') || '0u';
}

/** Both q and kv: a workgroup owns a tile of the side and sums over the batches and heads that share it. */
function matrixShader(problem: Problem, t: TileConfig, side: Side, axes: readonly Axis[]): Shader {
  const m = moduleFor(problem, t);
  const { enter, compute } = sideTile(m, problem, t);
  declareFactor(m, problem, side.terms);
  const target = m.storage(`dSide${side.k}`, 'array<f32>', 'read_write');
  const [B, Hq] = [m.param('B'), m.param('Hq')];
  const [hasB, hasH] = [axes.includes('b'), axes.includes('h')];
  const vs = colQuads(t);
  const first = `let fixedB = ${hasB ? (hasH ? `group.x / ${Hq}` : 'group.x') : '0u'};
let fixedH = ${hasH ? `group.x % ${Hq}` : '0u'};`;
  const store = unroll2(t.tm, vs, (i, v) =>
    unroll(4, (e) => {
      const [row, col] = [`(q0 + ${rowAt(t, i)})`, `(k0 + 4u * c + ${4 * t.ct * v + e}u)`];
      const at = elementOf(side, axes, { b: 'fixedB', h: 'fixedH', q: row, kv: col });
      return `if (${row} < ${m.param('Sq')} && ${col} < ${m.param('Sk')}) { ${target}[${at}] = sum_${i}_${v}[${e}]; }`;
    }),
  );
  const body = `${placeOf(t, 'workgroup')}
let q0 = group.y * ${rowsOf(t)}u;
let k0 = group.z * ${t.cols}u;
${first}
${unroll2(t.tm, vs, (i, v) => `var sum_${i}_${v} = vec4<f32>(0.0);`)}
for (var b = fixedB; b < ${hasB ? 'fixedB + 1u' : B}; b++) {
for (var h = fixedH; h < ${hasH ? 'fixedH + 1u' : Hq}; h++) {
${enter}
if (q0 < lenQ && k0 < lenK) {
${compute}
${unroll2(t.tm, vs, (i, v) => `sum_${i}_${v} += ${contribution(t, i, v)};`)}
}
}
}
${store}`;
  return m.build({ name: `side${side.k}-matrix`, threads: threadsOf(t), body });
}

/**
 * Not both: workgroup (b h, row tile, key tile) sums over what the side lacks and leaves one number a query (`queries`), a key
 * (`keys`) or a tile of queries (`heads`) of its (b, h).
 */
function partialShader(problem: Problem, t: TileConfig, side: Side, shape: 'queries' | 'keys' | 'heads'): Shader {
  const m = moduleFor(problem, t);
  const { at, enter, compute } = sideTile(m, problem, t);
  declareFactor(m, problem, side.terms);
  const partials = m.storage(partialsName(side.k), 'array<f32>', 'read_write');
  m.workgroup('exchange', `array<f32, ${rowsOf(t) * t.ct}>`);
  const vs = colQuads(t);
  const total = (i: number): string =>
    Array.from(
      { length: vs },
      (_, v) => `(sum_${i}_${v}.x + sum_${i}_${v}.y) + (sum_${i}_${v}.z + sum_${i}_${v}.w)`,
    ).join(' + ');
  const byRow = `${unroll(t.tm, (i) => `exchange[${rowAt(t, i)} * ${t.ct}u + c] = ${total(i)};`)}
workgroupBarrier(); // sums of a row's invocations are visible`;
  const row = (name: string): string =>
    `for (var j = 0u; j < ${t.ct}u; j++) { total += exchange[${name} * ${t.ct}u + j]; }`;
  const finish = {
    queries: `${byRow}
for (var row = tid; row < ${rowsOf(t)}u; row += ${threadsOf(t)}u) {
var total = 0.0;
${row('row')}
if (q0 + row < ${m.param('Sq')}) { ${partials}[group.x * ${m.param('Sq')} + q0 + row] = total; }
}`,
    keys: `workgroupBarrier(); // the products' places are done with
${putWhole(t, at, 'sum')}
workgroupBarrier(); // the tile is visible
for (var col = tid; col < ${t.cols}u; col += ${threadsOf(t)}u) {
var total = 0.0;
for (var row = 0u; row < ${rowsOf(t)}u; row++) { total += arena[${at.whole}u + row * ${at.wholeStride}u + (col >> 2u)][col & 3u]; }
if (k0 + col < ${m.param('Sk')}) { ${partials}[group.x * ${m.param('Sk')} + k0 + col] = total; }
}`,
    heads: `${byRow}
if (tid == 0u) {
var total = 0.0;
for (var row = 0u; row < ${rowsOf(t)}u; row++) {
${row('row')}
}
${partials}[group.x * groups.y + group.y] = total;
}`,
  }[shape];
  const tileBody = `${compute}
${unroll2(t.tm, vs, (i, v) => `sum_${i}_${v} += ${contribution(t, i, v)};`)}`;
  const loop =
    shape === 'keys'
      ? `if (k0 < lenK) {
for (var q0 = 0u; q0 < lenQ; q0 += ${rowsOf(t)}u) {
${tileBody}
}
}`
      : `if (q0 < lenQ) {
for (var k0 = 0u; k0 < lenK; k0 += ${t.cols}u) {
${tileBody}
}
}`;
  const body = `${placeOf(t, 'workgroup')}
let b = group.x / ${m.param('Hq')};
let h = group.x % ${m.param('Hq')};
${shape === 'keys' ? `let k0 = group.z * ${t.cols}u;` : `let q0 = group.y * ${rowsOf(t)}u;`}
${unroll2(t.tm, vs, (i, v) => `var sum_${i}_${v} = vec4<f32>(0.0);`)}
${enter}
${loop}
${finish}`;
  return m.build({ name: `side${side.k}-${shape}`, threads: threadsOf(t), body });
}

/** Adds up the partial sums of every (b, h) that reads an element; elements nobody reads get 0. */
function sumShader(
  problem: Problem,
  t: Tile,
  side: Side,
  axes: readonly Axis[],
  shape: 'queries' | 'keys' | 'heads',
): Shader {
  const m = new ModuleBuilder();
  const target = m.storage(`dSide${side.k}`, 'array<f32>', 'read_write');
  const partials = m.storage(partialsName(side.k), 'array<f32>');
  const names = { b: 'onlyB', h: 'onlyH', q: 'only', kv: 'only' } as const;
  const lines = ['var onlyB = 0u;', 'var onlyH = 0u;', 'var only = 0u;', 'var read = true;', 'var rest = element;'];
  for (let a = axes.length - 1; a >= 0; a--) {
    const size = side.tensor.shape[a];
    const axis = axes[a];
    lines.push(
      typeof axis === 'number' ? `read = read && rest % ${size}u == ${axis}u;` : `${names[axis]} = rest % ${size}u;`,
    );
    lines.push(`rest /= ${size}u;`);
  }
  void problem;
  const rows = rowsOf(t);
  const [B, Hq, Sq, Sk] = ['B', 'Hq', 'Sq', 'Sk'].map((p) => m.param(p));
  const width = { queries: Sq, keys: Sk, heads: `((${Sq} + ${rows - 1}u) / ${rows}u)` }[shape];
  const inner =
    shape === 'heads'
      ? `for (var i = 0u; i < ${width}; i++) { sum += ${partials}[(b * ${Hq} + h) * ${width} + i]; }`
      : `sum += ${partials}[(b * ${Hq} + h) * ${width} + only];`;
  const [hasB, hasH] = [axes.includes('b'), axes.includes('h')];
  const inRange = [
    hasB ? `onlyB < ${B}` : '',
    hasH ? `onlyH < ${Hq}` : '',
    shape === 'heads' ? '' : `only < ${width}`,
    'read',
  ].filter((x) => x !== '');
  const body = `for (var element = group.x * 64u + local; element < ${sizeOf(side.tensor.shape)}u; element += groups.x * 64u) {
${lines.join('\n')}
var sum = 0.0;
if (${inRange.join(' && ')}) {
for (var b = ${hasB ? 'onlyB' : '0u'}; b < ${hasB ? 'onlyB + 1u' : B}; b++) {
for (var h = ${hasH ? 'onlyH' : '0u'}; h < ${hasH ? 'onlyH + 1u' : Hq}; h++) {
${inner}
}
}
}
${target}[element] = sum;
}`;
  return m.build({ name: `side${side.k}-sum`, threads: 64, body });
}
