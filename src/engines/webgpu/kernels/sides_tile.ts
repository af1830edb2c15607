/** The part that all side gradient shaders share: one tile of dS with respect to the modified score, in `t_<i>_<v>`. */
import type { Problem } from '../../../problem/problem.ts';
import { expressionFn } from '../wgsl/expressions.ts';
import type { ModuleBuilder } from '../wgsl/module.ts';
import { declareGradients, rowStatistics, scoreGradients, setLseBase } from './gradients.ts';
import { sequenceOf } from './head.ts';
import { declareLoad, quadsOf, setBase } from './rows.ts';
import type { Term } from './sides.ts';
import { dot, type Places, placesOf, type Tile } from './tile.ts';

const Q = { name: 'q', family: 'q' } as const;
const K = { name: 'k', family: 'k' } as const;
const V = { name: 'v', family: 'v' } as const;
const D_OUT = { name: 'dOut', family: 'out' } as const;

export interface SideTile {
  readonly at: Places;
  /** Code that enters head `h` of sequence `b`, both u32 names in scope; brings lenQ and lenK. */
  readonly enter: string;
  /** Code that computes the raw products and `t_<i>_<v>` of the tile at `q0`, `k0`. */
  readonly compute: string;
}

export function sideTile(m: ModuleBuilder, problem: Problem, t: Tile): SideTile {
  const at = placesOf(t, { width: 1, whole: true });
  const [quadsD, quadsV] = [quadsOf(problem, 'q'), quadsOf(problem, 'v')];
  declareGradients(m, problem, 'kv');
  m.workgroup('arena', `array<vec4<f32>, ${at.size}>`);
  const q = { load: declareLoad(m, problem, Q, 'u32(atLenQ)'), first: 'q0', quads: quadsD };
  const k = { load: declareLoad(m, problem, K, 'u32(atLenK)'), first: 'k0', quads: quadsD };
  const v = { load: declareLoad(m, problem, V, 'u32(atLenK)'), first: 'k0', quads: quadsV };
  const dOut = { load: declareLoad(m, problem, D_OUT, 'u32(atLenQ)'), first: 'q0', quads: quadsV };
  const enter = `let hkv = h / ${m.param('group')};
let bh = b * ${m.param('Hq')} + h;
atH = i32(h);
${sequenceOf(m, problem)}
${[Q, D_OUT].map((x) => setBase(m, problem, x, 'h', 'qStart')).join('\n')}
${[K, V].map((x) => setBase(m, problem, x, 'hkv', 'kStart')).join('\n')}
${setLseBase(m, 'h')}`;
  const compute = `${rowStatistics(t)}
let partial = true;
${dot(t, at, 's', q, k)}
${dot(t, at, 't', dOut, v)}
${scoreGradients(m, problem, 'kv', t, { p: false, ds: true, modified: true })}`;
  return { at, enter, compute };
}

/** Declares `factor4(score, q, kv)`: the sum of the terms' factors at four keys. The score is the scaled product. */
export function declareFactor(m: ModuleBuilder, problem: Problem, terms: readonly Term[]): void {
  const position = (e: number): string => `atB, atH, min(q, atLenQ - 1), min(kv + ${e}, atLenK - 1), atLenQ, atLenK`;
  const names = terms.map(({ factor }, i) => expressionFn(m, `factor1_${i}`, factor, problem.sides));
  const one = (x: string, e: number): string => names.map((name) => `${name}(s.${x}, ${position(e)})`).join(' + ');
  m.fn(
    'factor4',
    `fn factor4(s: vec4<f32>, q: i32, kv: i32) -> vec4<f32> {
  return vec4<f32>(
    ${['x', 'y', 'z', 'w'].map(one).join(',\n    ')});
}`,
  );
}

/** Code for what position (i, v) of the tile adds to the side: 0 exactly where nothing attends. */
export const contribution = (t: Tile, i: number, v: number): string =>
  `select(vec4<f32>(0.0), t_${i}_${v} * factor4(raw_${i}_${v}, q_${i}, i32(k0 + 4u * c + ${4 * t.ct * v}u)), t_${i}_${v} != vec4<f32>(0.0))`;
