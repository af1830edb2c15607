/** Exact attention with its gradients, by recomputation from the log-sum-exp (Dao et al., "FlashAttention", algorithm 4). */
import { ArgumentError, DisposedError } from '../core/errors.ts';
import { type HostTensor, sameShape, type TensorLike } from '../core/tensor.ts';
import type { EngineTensor, RunOptions } from '../engine/contract.ts';
import { type AttentionResult, forwardResident } from './attention.ts';
import type { GradOptions } from './options.ts';
import { type Call, prepareCall } from './prepare.ts';
import { isEmpty } from './request.ts';
import { Arena, bytesNeeded, checkRoom, type Inputs, residentSides, resultsOf, rowDtype } from './run.ts';
import { checkTensor, isEngineTensor, type Tensor } from './tensors.ts';

/** Gradients shaped like the tensors they belong to; null where none was asked for or there is no such tensor. */
export interface GradientsOf<T extends Tensor> {
  readonly dq: T | null;
  readonly dk: T | null;
  readonly dv: T | null;
  /** Of `options.bias`, summed over its broadcast axes, f32. */
  readonly dBias: T | null;
  /** Of `options.alibi`, f32. */
  readonly dSlopes: T | null;
  /** Of `options.sink`, f32. */
  readonly dSink: T | null;
  /** Of every float tensor the mods read (bias and slopes included) that has a gradient, by the tensor itself. */
  readonly dSides: ReadonlyMap<TensorLike, T>;
}

export interface AttentionWithGrads<T extends Tensor> extends AttentionResult<T> {
  /**
   * Gradients of a loss from its gradients with respect to out and, when lse was used, lse. May be called again until
   * `dispose`, with the same dropout bits as forward.
   *
   * @throws ArgumentError for shapes or dtypes that disagree, DisposedError after `dispose`.
   */
  backward(dOut: T, dLse?: T | null, options?: BackwardOptions): Promise<GradientsOf<T>>;
  /** Frees what is kept for backward. With engine tensors, q, k, v, out and lse stay the caller's, alive until here. */
  dispose(): void;
  [Symbol.dispose](): void;
}

export type BackwardOptions = Pick<GradOptions, 'signal' | 'onProgress'>;

/**
 * `attention`, keeping what backward needs: q, k, v, out and lse, no matrix of probabilities.
 *
 * `options.grads` says which gradients; by default every one there is.
 *
 * @throws as `attention` does; ExpressionError when a mod has no derivative.
 * @example
 * const run = await attentionWithGrads(q, k, v, { causal: true });
 * const { dq, dk, dv } = await run.backward(dOut);
 * run.dispose();
 */
export async function attentionWithGrads(
  q: HostTensor,
  k: HostTensor,
  v: HostTensor,
  options?: GradOptions,
): Promise<AttentionWithGrads<HostTensor>>;
export async function attentionWithGrads(
  q: EngineTensor,
  k: EngineTensor,
  v: EngineTensor,
  options?: GradOptions,
): Promise<AttentionWithGrads<EngineTensor>>;
export async function attentionWithGrads(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options?: GradOptions,
): Promise<AttentionWithGrads<Tensor>>;
export async function attentionWithGrads(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: GradOptions = {},
): Promise<AttentionWithGrads<Tensor>> {
  const { grads = {}, ...rest } = options;
  rest.signal?.throwIfAborted();
  const call = await prepareCall(q, k, v, rest, grads);
  const saved = new Arena(call.engine);
  try {
    return isEngineTensor(q)
      ? await withGradsResident(call, saved, q, k as EngineTensor, v as EngineTensor, rest)
      : await withGradsHost(call, saved, q, k as HostTensor, v as HostTensor, rest);
  } catch (error) {
    saved.release();
    throw error;
  }
}

async function withGradsResident(
  call: Call,
  saved: Arena,
  q: EngineTensor,
  k: EngineTensor,
  v: EngineTensor,
  options: GradOptions,
): Promise<AttentionWithGrads<EngineTensor>> {
  const inputs: Inputs = { q, k, v, ...residentSides(saved, call.request, options.sink) };
  const result = await forwardResident(call, inputs, options);
  return session(result, saved, async (dOut, dLse, run) => {
    checkGradients(call, true, dOut, dLse);
    const { out, lse } = result;
    return named(call, options, await runBackward(call, inputs, { out, lse, dOut, dLse }, run));
  });
}

async function withGradsHost(
  call: Call,
  saved: Arena,
  q: HostTensor,
  k: HostTensor,
  v: HostTensor,
  options: GradOptions,
): Promise<AttentionWithGrads<HostTensor>> {
  for (const [name, t] of Object.entries({ q, k, v })) checkTensor(name, t);
  const { out, lse } = resultsOf(call.request);
  const held = [q, k, v, out, lse, ...call.request.problem.sides];
  checkRoom(call, bytesNeeded(call, held, 'forward'));
  const inputs: Inputs = {
    q: saved.resident('q', q),
    k: saved.resident('k', k),
    v: saved.resident('v', v),
    ...residentSides(saved, call.request, options.sink),
  };
  const result = await forwardResident(call, inputs, options);
  const kept = { out: saved.own(result.out), lse: saved.own(result.lse) };
  const [hostOut, hostLse] = await Promise.all([kept.out.read(), kept.lse.read()]);
  return session({ ...result, out: hostOut, lse: hostLse }, saved, async (dOut, dLse, run) => {
    checkGradients(call, false, dOut, dLse);
    checkRoom(call, bytesNeeded(call, [dOut, q, k, v, ...call.request.problem.sides], 'backward'));
    const arena = new Arena(call.engine);
    try {
      const given = { dOut: arena.resident('dOut', dOut), dLse: dLse === null ? null : arena.resident('dLse', dLse) };
      const grads = await runBackward(call, inputs, { ...kept, ...given }, run);
      const all = [grads.dq, grads.dk, grads.dv, grads.dSink, ...grads.dSides];
      for (const t of all) if (t !== null) arena.own(t);
      const [dq, dk, dv, dSink, ...dSides] = await Promise.all(all.map((t) => (t === null ? null : t.read())));
      return named(call, options, { dq, dk, dv, dSink, dSides });
    } finally {
      arena.release();
    }
  });
}

/** Gradients by index of the problem's sides. */
interface Raw<T> {
  readonly dq: T | null;
  readonly dk: T | null;
  readonly dv: T | null;
  readonly dSink: T | null;
  readonly dSides: readonly (T | null)[];
}

/** The caller owns the tensors that come back; nothing is left behind when it throws. */
async function runBackward(
  { engine, request, backward }: Call,
  inputs: Inputs,
  given: { out: EngineTensor; lse: EngineTensor; dOut: EngineTensor; dLse: EngineTensor | null },
  options: RunOptions,
): Promise<Raw<EngineTensor>> {
  const { problem, covered } = request;
  const { grads } = problem;
  if (grads === null || backward === null) throw new Error('backward was not planned');
  const empty = isEmpty(request);
  const results = new Arena(engine);
  try {
    // Rows of no sequence have zero gradients; so has everything when there are no queries at all.
    const like = (wanted: boolean, t: EngineTensor, zero: boolean): EngineTensor | null =>
      wanted ? results.output(undefined, t.dtype, t.shape, zero ? 0 : null) : null;
    const rows = rowDtype(problem);
    const sum = (wanted: boolean, shape: readonly number[]): EngineTensor | null =>
      wanted ? results.output(undefined, rows, shape, empty ? 0 : null) : null;
    const gradients: Raw<EngineTensor> = {
      dq: like(grads.q, inputs.q, empty || !covered),
      dk: like(grads.k, inputs.k, empty || !covered),
      dv: like(grads.v, inputs.v, empty || !covered),
      dSink: sum(grads.sink, [problem.Hq]),
      dSides: problem.sides.map((side, i) => sum(grads.sides[i], side.shape)),
    };
    if (!empty) await backward.run(problem, { ...inputs, ...given, ...gradients }, options);
    results.keep();
    return gradients;
  } finally {
    results.release();
  }
}

/** Adds the names callers know gradients by. */
function named<T extends Tensor>(call: Call, { bias, alibi }: GradOptions, raw: Raw<T>): GradientsOf<T> {
  const dSides = new Map<TensorLike, T>();
  call.request.problem.sides.forEach((side, i) => {
    const gradient = raw.dSides[i];
    if (gradient !== null) dSides.set(side, gradient);
  });
  const of = (t: TensorLike | undefined): T | null => (t === undefined ? null : (dSides.get(t) ?? null));
  const { dq, dk, dv, dSink } = raw;
  return { dq, dk, dv, dBias: of(bias), dSlopes: of(alibi), dSink, dSides };
}

/** @param resident whether the call was made with engine tensors. */
function checkGradients(call: Call, resident: boolean, dOut: Tensor, dLse: Tensor | null): void {
  checkGradient(call, resident, 'dOut', dOut, 'out');
  if (dLse !== null) checkGradient(call, resident, 'dLse', dLse, 'lse');
}

function checkGradient(call: Call, resident: boolean, name: string, t: Tensor, of: 'out' | 'lse'): void {
  const wanted = resultsOf(call.request)[of];
  checkTensor(name, t);
  if (t.dtype !== wanted.dtype || !sameShape(t.shape, wanted.shape))
    throw new ArgumentError(name, `${wanted.dtype}[${wanted.shape.join(', ')}], as ${of} is`, t);
  if (resident ? !isEngineTensor(t) || t.engine !== call.engine : isEngineTensor(t))
    throw new ArgumentError(
      name,
      resident ? `a tensor of the ${call.engine.name} engine` : 'a host tensor, as q is',
      t,
    );
}

type Step<T extends Tensor> = (dOut: T, dLse: T | null, options: RunOptions) => Promise<GradientsOf<T>>;

/** The result object: forward's results, backward, and the right to end it. Runs in flight keep what they use. */
function session<T extends Tensor>(result: AttentionResult<T>, saved: Arena, step: Step<T>): AttentionWithGrads<T> {
  let disposed = false;
  let running = 0;
  const end = (): void => {
    if (disposed && running === 0) saved.release();
  };
  const dispose = (): void => {
    disposed = true;
    end();
  };
  return {
    ...result,
    async backward(dOut, dLse = null, { signal, onProgress } = {}) {
      if (disposed) throw new DisposedError('attentionWithGrads');
      signal?.throwIfAborted();
      running++;
      try {
        return await step(dOut, dLse, { signal, onProgress });
      } finally {
        running--;
        end();
      }
    },
    dispose,
    [Symbol.dispose]: dispose,
  };
}
