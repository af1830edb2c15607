/** Exact attention, forward. */
import type { HostTensor } from '../core/tensor.ts';
import type { EngineTensor } from '../engine/contract.ts';
import type { Plan } from '../plan/plan.ts';
import type { Dropout } from '../problem/problem.ts';
import type { ForwardOptions } from './options.ts';
import { type Call, prepareCall } from './prepare.ts';
import { isEmpty, type View } from './request.ts';
import {
  Arena,
  bytesNeeded,
  checkInto,
  checkRoom,
  deliver,
  type Inputs,
  residentSides,
  resultsOf,
  rowDtype,
} from './run.ts';
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
  return attentionOf(q, k, v, options, null);
}

/** `attention` of tensors taken for others, where `view` says so. */
export async function attentionOf(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: ForwardOptions,
  view: View | null,
): Promise<AttentionResult<Tensor>> {
  options.signal?.throwIfAborted();
  const call = await prepareCall(q, k, v, options, null, view);
  if (!isEngineTensor(q)) return forwardHost(call, { q, k: k as HostTensor, v: v as HostTensor }, options);
  const scratch = new Arena(call.engine);
  try {
    const sides = residentSides(scratch, call.request, options.sink);
    return await forwardResident(call, { q, k: k as EngineTensor, v: v as EngineTensor, ...sides }, options);
  } finally {
    scratch.release();
  }
}

/** Results stay in the engine and are the caller's; nothing is left behind when it throws. */
export async function forwardResident(
  { engine, request, plan, forward }: Call,
  inputs: Inputs,
  { into, signal, onProgress }: Pick<ForwardOptions, 'into' | 'signal' | 'onProgress'>,
): Promise<AttentionResult<EngineTensor>> {
  const { problem, outShape, lseShape, covered } = request;
  const rows = rowDtype(problem);
  if (into?.out !== undefined) checkInto('into.out', into.out, problem.dtype, outShape, engine);
  if (into?.lse !== undefined) checkInto('into.lse', into.lse, rows, lseShape, engine);
  const results = new Arena(engine);
  try {
    const out = results.output(into?.out, problem.dtype, outShape, covered ? null : 0);
    const lse = results.output(into?.lse, rows, lseShape, covered ? null : Number.NEGATIVE_INFINITY);
    if (!isEmpty(request)) await forward.run(problem, { ...inputs, out, lse }, { signal, onProgress });
    results.keep();
    return { out, lse, plan, dropout: problem.dropout };
  } finally {
    results.release();
  }
}

async function forwardHost(
  call: Call,
  { q, k, v }: { readonly q: HostTensor; readonly k: HostTensor; readonly v: HostTensor },
  { into, ...options }: ForwardOptions,
): Promise<AttentionResult<HostTensor>> {
  const { problem } = call.request;
  const results = resultsOf(call.request);
  for (const [name, t] of Object.entries({ q, k, v })) checkTensor(name, t);
  if (into?.out !== undefined) checkInto('into.out', into.out, results.out.dtype, results.out.shape, null);
  if (into?.lse !== undefined) checkInto('into.lse', into.lse, results.lse.dtype, results.lse.shape, null);
  checkRoom(call, bytesNeeded(call, [q, k, v, results.out, results.lse, ...problem.sides], 'forward'));
  const arena = new Arena(call.engine);
  try {
    const [eq, ek, ev] = [arena.resident('q', q), arena.resident('k', k), arena.resident('v', v)];
    const sides = residentSides(arena, call.request, options.sink);
    const done = await forwardResident(call, { q: eq, k: ek, v: ev, ...sides }, options);
    const [out, lse] = await Promise.all([arena.own(done.out).read(), arena.own(done.lse).read()]);
    return { ...done, out: deliver(out, into?.out), lse: deliver(lse, into?.lse) };
  } finally {
    arena.release();
  }
}
