/** What all kernels of the engine refuse, and what their code is specialised to. */
import type { Config } from '../../../engine/contract.ts';
import { printExpr } from '../../../mods/print.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { WasmCaps } from '../kernel.ts';

/** Why no kernel of this engine serves a problem, or null. */
export function refuseStorage(problem: Problem): string | null {
  if (problem.dtype === 'f64') return 'f64 storage: WASM kernels compute in f32';
  if (problem.sides.some((s) => s.dtype === 'f64')) return 'f64 side tensors: WASM kernels compute in f32';
  return null;
}

/** What the code of every kernel is specialised to. */
export function codeKey(name: string, problem: Problem, config: Config, caps: WasmCaps): string {
  const { D, Dv, dtype, mask, mod, sides, sink, dropout, kv } = problem;
  const print = (e: typeof mask | typeof mod): string => (e === null ? '-' : printExpr(e.expr, sides));
  const flags = [caps.relaxed, caps.wide, caps.unroll, caps.shared, sink, dropout !== null].map(Number).join('');
  return [name, D, Dv, dtype, kv.kind, flags, caps.native, JSON.stringify(config), print(mask), print(mod)].join('|');
}
