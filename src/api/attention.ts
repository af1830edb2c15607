/** Exact attention, forward. */
import type { HostTensor } from '../core/tensor.ts';
import type { EngineTensor, RunOptions } from '../engine/contract.ts';
import type { Plan } from '../plan/plan.ts';
import type { Dropout } from '../problem/problem.ts';
import type { ForwardOptions } from './options.ts';
import { type Call, prepareCall } from './prepare.ts';
import { isEmpty } from './request.ts';
import { Arena, allocateFilled, bytesNeeded, checkInto, checkRoom, filled, residentSides, rowDtype } from './run.ts';
import { checkTensor, isEngineTensor, type Tensor } from './tensors.ts';

export interface AttentionResult<T extends Tensor> {
  /** Shaped like q, with v's head size. */
  readonly out: T;
  /** Natural log of each row's softmax sum, sink included: f32 [B, Hq, Sq], packed [Hq, totalQ]; -inf where nothing attends. */
  readonly lse: T;
  readonly plan: Plan;
  /** The dropout state that was used, its seed filled in; null without dropout. */
  readonly dropout: Dropout | null;
}

/**
 * softmax(mask(mod(scale * q . k))) . v, in memory linear in the sequence length.
 *
 * q [B, Hq, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv] of one float dtype (other axes by `layout` and `cuSeqlens`); Hq is a
 * multiple of Hkv. Host tensors are read during the call only and give host tensors; engine tensors are used where they
 * are and give engine tensors, which the caller disposes. A row that attends to nothing gives 0, and lse -inf.
 *
 * @throws ArgumentError, ExpressionError, UnsupportedError, MemoryError before anything is written; DeviceError when an
 * engine fails; the signal's reason when stopped.
 * @example
 * const { out, lse } = await attention(q, k, v, { causal: true });
 */
export async function attention(
  q: HostTensor,
  k: HostTensor,
  v: HostTensor,
  options?: ForwardOptions<HostTensor>,
): Promise<AttentionResult<HostTensor>>;
export async function attention(
  q: EngineTensor,
  k: EngineTensor,
  v: EngineTensor,
  options?: ForwardOptions<EngineTensor>,
): Promise<AttentionResult<EngineTensor>>;
export async function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options?: ForwardOptions,
): Promise<AttentionResult<Tensor>>;
export async function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: ForwardOptions = {},
): Promise<AttentionResult<Tensor>> {
  options.signal?.throwIfAborted();
  const call = await prepareCall(q, k, v, options, null);
  return isEngineTensor(q)
    ? forwardResident(call, q, k as EngineTensor, v as EngineTensor, options)
    : forwardHost(call, q, k as HostTensor, v as HostTensor, options);
}

/** Results stay in the engine. */
export async function forwardResident(
  call: Call,
  q: EngineTensor,
  k: EngineTensor,
  v: EngineTensor,
  options: ForwardOptions,
): Promise<AttentionResult<EngineTensor>> {
  const { engine, request, plan, forward } = call;
  const { problem, outShape, lseShape, covered } = request;
  const { into } = options;
  if (into?.out !== undefined) checkInto('into.out', into.out, problem.dtype, outShape, engine);
  if (into?.lse !== undefined) checkInto('into.lse', into.lse, rowDtype(problem), lseShape, engine);
  const results = new Arena(engine);
  const scratch = new Arena(engine);
  try {
    const { sides, sink } = residentSides(scratch, request, options.sink);
    const output = (
      given: Tensor | undefined,
      dtype: 'f32' | typeof problem.dtype,
      shape: readonly number[],
      fill: number,
    ) => {
      if (given === undefined) return allocateFilled(results, dtype, shape, covered ? null : fill);
      if (!covered) engine.write(given as EngineTensor, filled(dtype, shape, fill));
      return given as EngineTensor;
    };
    const out = output(into?.out, problem.dtype, outShape, 0);
    const lse = output(into?.lse, rowDtype(problem), lseShape, Number.NEGATIVE_INFINITY);
    if (!isEmpty(request)) await forward.run(problem, { q, k, v, out, lse, sides, sink }, runOptions(options));
    results.keep();
    return { out, lse, plan, dropout: problem.dropout };
  } finally {
    scratch.release();
    results.release();
  }
}

async function forwardHost(
  call: Call,
  q: HostTensor,
  k: HostTensor,
  v: HostTensor,
  options: ForwardOptions,
): Promise<AttentionResult<HostTensor>> {
  const { engine, request, plan } = call;
  const { problem, outShape, lseShape } = request;
  const { into, ...rest } = options;
  for (const [name, t] of Object.entries({ q, k, v })) checkTensor(name, t);
  const results = { dtype: problem.dtype, shape: outShape };
  const rows = { dtype: rowDtype(problem), shape: lseShape };
  if (into?.out !== undefined) checkInto('into.out', into.out, results.dtype, outShape, null);
  if (into?.lse !== undefined) checkInto('into.lse', into.lse, rows.dtype, lseShape, null);
  checkRoom(call, bytesNeeded(call, [q, k, v, results, rows, ...problem.sides], 'forward'));
  const arena = new Arena(engine);
  try {
    const [eq, ek, ev] = [arena.resident('q', q), arena.resident('k', k), arena.resident('v', v)];
    const done = await forwardResident(call, eq, ek, ev, rest);
    const [out, lse] = await Promise.all([arena.own(done.out).read(), arena.own(done.lse).read()]);
    return { out: deliver(out, into?.out), lse: deliver(lse, into?.lse), plan, dropout: done.dropout };
  } finally {
    arena.release();
  }
}

/** Into the caller's own array when one was given. */
function deliver(result: HostTensor, into: Tensor | undefined): HostTensor {
  if (into === undefined) return result;
  (into as HostTensor).data.set(result.data);
  return into as HostTensor;
}

export const runOptions = ({ signal, onProgress }: ForwardOptions): RunOptions => ({ signal, onProgress });
