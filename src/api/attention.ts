/** Exact attention, forward. */
import { type HostTensor, zeros } from '../core/tensor.ts';
import type { EngineTensor, RunOptions } from '../engine/contract.ts';
import type { Plan } from '../plan/plan.ts';
import type { Dropout } from '../problem/problem.ts';
import type { AttentionOptions, ForwardOptions } from './options.ts';
import { type Call, prepareCall } from './prepare.ts';
import { isEmpty, type View } from './request.ts';
import {
  Arena,
  checkHost,
  checkInto,
  deliver,
  freeBytes,
  type HostInputs,
  type Inputs,
  residentSides,
  resultsOf,
  rowDtype,
} from './run.ts';
import { bytesOfRoles, type Part, partOptions, sinkOnHost, sliceInputs, splitCall } from './split.ts';
import { isEngineTensor, type Tensor } from './tensors.ts';

/** What a call of `attention` gives. Host tensors are the caller's; engine tensors too, to be disposed of. */
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
export async function attention<T extends Tensor>(
  q: T,
  k: T,
  v: T,
  options?: ForwardOptions<T>,
): Promise<AttentionResult<T>>;
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
  if (!isEngineTensor(q)) {
    const inputs = { q, k: k as HostTensor, v: v as HostTensor, sink: options.sink };
    return forwardHost(call, inputs, options);
  }
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
  { into, signal, onProgress }: RunOptions & Pick<ForwardOptions, 'into'>,
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
  inputs: HostInputs,
  { into, ...options }: ForwardOptions,
): Promise<AttentionResult<HostTensor>> {
  const { out, lse } = resultsOf(call.request);
  checkHost(inputs);
  if (into?.out !== undefined) checkInto('into.out', into.out, out.dtype, out.shape, null);
  if (into?.lse !== undefined) checkInto('into.lse', into.lse, lse.dtype, lse.shape, null);
  const done = await forwardOnHost(call, inputs, options);
  return { ...done, out: deliver(done.out, into?.out), lse: deliver(done.lse, into?.lse) };
}

const forwardBytes = ({ request, plan }: Call): number =>
  bytesOfRoles(request, ['q', 'k', 'v', 'out', 'lse']) + plan.forward.cost.workspace;

/** Host tensors in and out: at once, or in parts when they do not fit into the engine's memory together. */
async function forwardOnHost(
  call: Call,
  inputs: HostInputs,
  options: AttentionOptions,
): Promise<AttentionResult<HostTensor>> {
  if (forwardBytes(call) <= freeBytes(call.engine)) return forwardOnce(call, inputs, options);
  return forwardInParts(call, await splitCall(call, forwardBytes, options.prefer), await sinkOnHost(inputs), options);
}

export async function forwardInParts(
  { request, plan }: Call,
  parts: readonly Part[],
  inputs: HostInputs,
  options: AttentionOptions,
): Promise<AttentionResult<HostTensor>> {
  const results = resultsOf(request);
  const out = zeros(results.out.dtype, results.out.shape);
  const lse = zeros(results.lse.dtype, results.lse.shape);
  for (const [i, part] of parts.entries()) {
    const run = partOptions(options, i, parts.length);
    const done = await forwardOnce(part.call, sliceInputs(part, inputs), run);
    part.place('out', done.out, out);
    part.place('lse', done.lse, lse);
  }
  return { out, lse, plan, dropout: request.problem.dropout };
}

async function forwardOnce(
  call: Call,
  { q, k, v, sink }: HostInputs,
  options: RunOptions,
): Promise<AttentionResult<HostTensor>> {
  const arena = new Arena(call.engine);
  try {
    const [eq, ek, ev] = [arena.resident('q', q), arena.resident('k', k), arena.resident('v', v)];
    const sides = residentSides(arena, call.request, sink);
    const done = await forwardResident(call, { q: eq, k: ek, v: ev, ...sides }, options);
    const [out, lse] = await Promise.all([arena.own(done.out).read(), arena.own(done.lse).read()]);
    return { ...done, out, lse };
  } finally {
    arena.release();
  }
}
