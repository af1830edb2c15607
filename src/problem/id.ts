/** One id names a plan, cache entry, golden file, test case and bench row. */
import type { Problem } from './problem.ts';

/**
 * What is asked, for people and for matching results: `f32:b2.hq16.hkv4.sq512.sk512.d128:causal+softcap30+dropout+sink`.
 *
 * `dv` appears when it differs from `d`; the last part joins the labels of mask and modifier, `dropout`, `sink`, `packed`
 * (lengths vary) and `paged` with `+`, and is `full` when there is none. Not a cache key: labels say nothing about the
 * values behind them.
 */
export function problemId(p: Problem): string {
  const sizes = [`b${p.B}`, `hq${p.Hq}`, `hkv${p.Hkv}`, `sq${p.Sq}`, `sk${p.Sk}`, `d${p.D}`];
  if (p.Dv !== p.D) sizes.push(`dv${p.Dv}`);
  const what: string[] = [];
  if (p.mask !== null) what.push(clean(p.mask.label));
  if (p.mod !== null) what.push(clean(p.mod.label));
  if (p.dropout !== null) what.push('dropout');
  if (p.sink) what.push('sink');
  if (!p.uniform) what.push('packed');
  if (p.kv.kind === 'paged') what.push('paged');
  return `${p.dtype}:${sizes.join('.')}:${what.join('+') || 'full'}`;
}

/**
 * Problems that one configuration should serve alike: `problemId` with lengths and batch x heads rounded up to powers of two,
 * and a group's size for the heads. Measured configurations are kept by it.
 */
export function problemClass(p: Problem): string {
  const round = (n: number): number => 2 ** Math.ceil(Math.log2(Math.max(n, 1)));
  const group = p.Hkv === 0 ? 1 : p.Hq / p.Hkv;
  const [B, Hq, Sq, Sk] = [1, round(p.B * p.Hq), round(p.Sq), round(p.Sk)];
  return problemId({ ...p, B, Hq, Hkv: Hq / group, Sq, Sk });
}

/** Id of a pass on an engine: `wasm:forward:<problemId>`. */
export const planId = (engine: string, pass: string, problem: Problem): string =>
  `${engine}:${pass}:${problemId(problem)}`;

/** Ids become file names and cells of tables. */
const clean = (label: string): string => label.replace(/[^\w.,()|!+-]+/g, '-');
