/** Attention of a few new queries over cached keys and values. */
import { ArgumentError } from '../core/errors.ts';
import type { HostTensor } from '../core/tensor.ts';
import type { EngineTensor } from '../engine/contract.ts';
import { type Problem, stridesOf } from '../problem/problem.ts';
import { type AttentionResult, forwardResident } from './attention.ts';
import type { CacheView, KvCache } from './cache.ts';
import { buildExpressions } from './expressions.ts';
import { checkNames, type ForwardOptions } from './options.ts';
import { checkChosen, prepare } from './prepare.ts';
import { finishProblem, type Request } from './request.ts';
import { Arena, checkInto, deliver, residentSides, resultsOf } from './run.ts';
import { signatureOf } from './signature.ts';
import { checkTensor, isEngineTensor, type Tensor } from './tensors.ts';

/** The cache decides these, and nothing is trained on it. */
const NOT_HERE = ['layout', 'cuSeqlens', 'dropout'] as const;

/** Options of `attentionDecode`: those of `attention`, without what the cache decides. */
export interface DecodeOptions<T extends Tensor = Tensor> extends Omit<ForwardOptions<T>, (typeof NOT_HERE)[number]> {
  /** Which sequences of the cache the queries belong to; by default all that are alive, in order. */
  readonly sequences?: readonly number[];
}

/**
 * Attention of q [n, Hq, Sq, D] (axes by the cache's layout) over the cached rows of n sequences, each with its own
 * length. Append first: the last query stands at its sequence's last key. Causal from the bottom right unless
 * `causal: false`. A sequence without rows gives 0.
 *
 * @throws as `attention` does.
 * @example
 * cache.append(k, v);
 * const { out } = await attentionDecode(q, cache);
 */
export async function attentionDecode(
  q: HostTensor,
  cache: KvCache,
  options?: DecodeOptions<HostTensor>,
): Promise<AttentionResult<HostTensor>>;
export async function attentionDecode(
  q: EngineTensor,
  cache: KvCache,
  options?: DecodeOptions<EngineTensor>,
): Promise<AttentionResult<EngineTensor>>;
export async function attentionDecode<T extends Tensor>(
  q: T,
  cache: KvCache,
  options?: DecodeOptions<T>,
): Promise<AttentionResult<T>>;
export async function attentionDecode(
  q: Tensor,
  cache: KvCache,
  { sequences, ...given }: DecodeOptions = {},
): Promise<AttentionResult<Tensor>> {
  given.signal?.throwIfAborted();
  const { engine } = cache;
  checkTensor('q', q);
  if (isEngineTensor(q) && q.engine !== engine)
    throw new ArgumentError('q', `a host tensor, or one of the cache's ${engine.name} engine`, q.engine.name);
  checkChosen(engine, given.engine);
  const slots = cache.resolve(sequences);
  const view = cache.view(slots);
  const oneQuery = q.shape[cache.layout === 'bhnd' ? 2 : 1] === 1;
  // A single query stands at the last key: causal masks nothing, and kernels are spared the test.
  const causal = given.causal === undefined || given.causal === true ? 'bottom-right' : given.causal;
  const options: ForwardOptions = { ...given, causal: oneQuery && causal === 'bottom-right' ? false : causal };
  const request = decodeRequest(q, cache, view, options);
  const signature = decodeSignature(q, cache, view, request.problem, options);
  const call = { ...(await prepare([engine], signature, () => request, options.prefer)), request };
  const { into } = options;
  const arena = new Arena(engine);
  try {
    const inputs = { q: arena.resident('q', q), k: view.k, v: view.v, ...residentSides(arena, request, options.sink) };
    if (isEngineTensor(q)) return await forwardResident(call, inputs, options);
    const wanted = resultsOf(request);
    if (into?.out !== undefined) checkInto('into.out', into.out, wanted.out.dtype, wanted.out.shape, null);
    if (into?.lse !== undefined) checkInto('into.lse', into.lse, wanted.lse.dtype, wanted.lse.shape, null);
    const done = await forwardResident(call, inputs, { ...options, into: {} });
    const [out, lse] = await Promise.all([arena.own(done.out).read(), arena.own(done.lse).read()]);
    return { ...done, out: deliver(out, into?.out), lse: deliver(lse, into?.lse) };
  } finally {
    arena.release();
  }
}

function decodeRequest(q: Tensor, cache: KvCache, view: CacheView, options: ForwardOptions): Request {
  checkNames(options, NOT_HERE);
  const { layout, Hkv, D, Dv, dtype } = cache;
  const B = view.lengths.length;
  const [Hq, Sq] = layout === 'bhnd' ? [q.shape[1], q.shape[2]] : [q.shape[2], q.shape[1]];
  if (q.dtype !== dtype || q.shape.length !== 4 || q.shape[0] !== B || q.shape[3] !== D)
    throw new ArgumentError('q', `${dtype}[${layout === 'bhnd' ? `${B}, Hq, Sq, ${D}` : `${B}, Sq, Hq, ${D}`}]`, q);
  const Sk = view.lengths.reduce((most, n) => Math.max(most, n), 0);
  const sequences = new Int32Array(B * 4);
  for (let b = 0; b < B; b++) sequences.set([0, Sq, view.starts[b], view.lengths[b]], b * 4);
  const base = {
    B,
    Hq,
    Hkv,
    Sq,
    Sk,
    D,
    Dv,
    dtype,
    strides: {
      q: stridesOf(layout, Hq, Sq, D),
      ...view.strides,
      out: stridesOf(layout, Hq, Sq, Dv),
      lse: { b: Hq * Sq, h: Sq, s: 1 },
    },
    sequences,
    uniform: view.lengths.every((n, b) => n === Sk && view.starts[b] === 0),
    kv: view.kv,
  };
  const problem = finishProblem(base, buildExpressions(options, base), options, null);
  return {
    problem,
    outShape: [...q.shape.slice(0, 3), Dv],
    lseShape: [B, Hq, Sq],
    covered: true,
    rowsK: Sk,
    batches: B,
  };
}

/**
 * Programs do not depend on lengths, but the best plan does: it is made anew when the longest sequence has doubled. A
 * program that was planned for shorter sequences serves longer ones until then.
 */
function decodeSignature(
  q: Tensor,
  { layout }: KvCache,
  view: CacheView,
  problem: Problem,
  options: ForwardOptions,
): string | null {
  const plain = signatureOf([q, view.k, view.v], options, null);
  const paged = problem.kv.kind === 'paged';
  return plain === null
    ? null
    : `${plain}decode=${Math.ceil(Math.log2(Math.max(problem.Sk, 1)))} ${layout} ${problem.uniform} ${paged} ${problem.strides.k.b};`;
}
