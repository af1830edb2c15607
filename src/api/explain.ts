/** What a call would do, without doing it. */
import type { TensorLike } from '../core/tensor.ts';
import { type Explanation, explainPlan } from '../plan/explain.ts';
import type { GradOptions } from './options.ts';
import { prepareCall } from './prepare.ts';

/**
 * The plan for tensors of these shapes, or for the tensors themselves: engine, kernels, tiles, FLOPs, bytes moved by the
 * tiled and by the standard way, memory, the share of blocks visited, and why everything else was refused.
 *
 * `text` is for people, the rest is plain data. Nothing is computed; the engine is opened and the kernels are compiled.
 *
 * @param options as for `attention`; with `grads` (`{}` is all of them) backward is planned too.
 * @throws as `attention` does, except for data.
 * @example
 * const shape = [1, 8, 4096, 64];
 * const q = { dtype: 'f32', shape } as const;
 * console.log((await explain(q, q, q, { causal: true })).text);
 */
export async function explain(
  q: TensorLike,
  k: TensorLike,
  v: TensorLike,
  options: GradOptions = {},
): Promise<Explanation> {
  const { grads, ...rest } = options;
  const call = await prepareCall(q, k, v, rest, grads ?? null);
  return explainPlan(call.plan, call.request.problem);
}
