/** Exact attention with its gradients, by recomputation from the log-sum-exp (Dao et al., "FlashAttention", algorithm 4). */
import { ArgumentError, DisposedError } from '../core/errors.ts';
import { type HostTensor, sameShape, sizeOf, type TensorLike, zeros } from '../core/tensor.ts';
import type { EngineTensor, RunOptions } from '../engine/contract.ts';
import { type AttentionResult, forwardInParts, forwardResident } from './attention.ts';
import { checkNames, type GradientChoice, type GradOptions } from './options.ts';
import { type Call, prepareCall } from './prepare.ts';
import { isEmpty } from './request.ts';
import {
  Arena,
  checkHost,
  freeBytes,
  type HostInputs,
  type Inputs,
  residentSides,
  resultsOf,
  rowDtype,
} from './run.ts';
import { bytesOfRoles, type Part, partOptions, sinkOnHost, sliceInputs, splitCall } from './split.ts';
import { checkTensor, isEngineTensor, type Tensor } from './tensors.ts';

/** T, unless `options.grads` may say no to it: then null is possible, or certain. */
type Unless<T, G, K extends string> = G extends { readonly [P in K]?: infer Flag }
  ? Flag extends false
    ? null
    : T
  : T;

/**
 * Gradients shaped like the tensors they belong to; null where none was asked for or there is no such tensor. `G` is the
 * type of `options.grads`.
 */
export interface GradientsOf<T extends Tensor, G = unknown> {
  readonly dq: Unless<T, G, 'q'>;
  readonly dk: Unless<T, G, 'k'>;
  readonly dv: Unless<T, G, 'v'>;
  /** Of `options.bias`, summed over its broadcast axes, f32. */
  readonly dBias: T | null;
  /** Of `options.alibi`, f32. */
  readonly dSlopes: T | null;
  /** Of `options.sink`, f32. */
  readonly dSink: T | null;
  /** Of every float tensor the mods read (bias and slopes included) that has a gradient, by the tensor itself. */
  readonly dSides: ReadonlyMap<TensorLike, T>;
}

/** A forward call that can be gone back through. */
export interface AttentionWithGrads<T extends Tensor, G = unknown> extends AttentionResult<T> {
  /**
   * Gradients of a loss from its gradients with respect to out and, when lse was used, lse. May be called again until
   * `dispose`, with the same dropout bits as forward.
   *
   * @throws ArgumentError for shapes or dtypes that disagree, DisposedError after `dispose`.
   */
  backward(dOut: T, dLse?: T | null, options?: BackwardOptions): Promise<GradientsOf<T, G>>;
  /** Frees what is kept for backward. With engine tensors, q, k, v, out and lse stay the caller's, alive until here. */
  dispose(): void;
  [Symbol.dispose](): void;
}

/** A backward run can be stopped and followed by itself. */
export type BackwardOptions = Pick<GradOptions, 'signal' | 'onProgress'>;

/**
 * `attention`, keeping what backward needs: q, k, v, out and lse, no matrix of probabilities. Host tensors may change after
 * it, unless the call was too large for the engine's memory and done in parts: backward then reads them again.
 *
 * `options.grads` says which gradients; by default every one there is.
 *
 * @throws as `attention` does; ExpressionError when a mod has no derivative.
 * @example
 * const run = await attentionWithGrads(q, k, v, { causal: true });
 * const { dq, dk, dv } = await run.backward(dOut);
 * run.dispose();
 */
export async function attentionWithGrads<const G extends GradientChoice = object>(
  q: HostTensor,
  k: HostTensor,
  v: HostTensor,
  options?: GradOptions & { readonly grads?: G | undefined },
): Promise<AttentionWithGrads<HostTensor, G>>;
export async function attentionWithGrads<const G extends GradientChoice = object>(
  q: EngineTensor,
  k: EngineTensor,
  v: EngineTensor,
  options?: GradOptions & { readonly grads?: G | undefined },
): Promise<AttentionWithGrads<EngineTensor, G>>;
export async function attentionWithGrads<T extends Tensor, const G extends GradientChoice = object>(
  q: T,
  k: T,
  v: T,
  options?: GradOptions & { readonly grads?: G | undefined },
): Promise<AttentionWithGrads<T, G>>;
export async function attentionWithGrads(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: GradOptions = {},
): Promise<AttentionWithGrads<Tensor, GradientChoice>> {
  const { grads = {}, ...rest } = options;
  checkNames(rest, ['into']);
  rest.signal?.throwIfAborted();
  const call = await prepareCall(q, k, v, rest, grads);
  const saved = new Arena(call.engine);
  try {
    return isEngineTensor(q)
      ? await withGradsResident(call, saved, q, k as EngineTensor, v as EngineTensor, rest)
      : await withGradsHost(call, saved, { q, k: k as HostTensor, v: v as HostTensor, sink: rest.sink }, rest);
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
): Promise<AttentionWithGrads<EngineTensor, GradientChoice>> {
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
  inputs: HostInputs,
  options: GradOptions,
): Promise<AttentionWithGrads<HostTensor, GradientChoice>> {
  checkHost(inputs);
  if (backwardBytes(call) > freeBytes(call.engine)) return withGradsInParts(call, saved, inputs, options);
  const resident: Inputs = {
    q: saved.resident('q', inputs.q),
    k: saved.resident('k', inputs.k),
    v: saved.resident('v', inputs.v),
    ...residentSides(saved, call.request, inputs.sink),
  };
  const result = await forwardResident(call, resident, options);
  const kept = { out: saved.own(result.out), lse: saved.own(result.lse) };
  const [out, lse] = await Promise.all([kept.out.read(), kept.lse.read()]);
  return session({ ...result, out, lse }, saved, async (dOut, dLse, run) => {
    checkGradients(call, false, dOut, dLse);
    return named(call, options, await backwardHost(call, resident, kept, dOut, dLse, run));
  });
}

/** What does not fit at once is sliced anew for each pass; the host tensors are kept, and must not change, until dispose. */
async function withGradsInParts(
  call: Call,
  saved: Arena,
  given: HostInputs,
  options: GradOptions,
): Promise<AttentionWithGrads<HostTensor, GradientChoice>> {
  const inputs = await sinkOnHost(given);
  const parts = await splitCall(call, backwardBytes, options.prefer);
  const result = await forwardInParts(call, parts, inputs, options);
  const { problem } = call.request;
  return session(result, saved, async (dOut, dLse, runOptions) => {
    checkGradients(call, false, dOut, dLse);
    const like = (t: HostTensor, wanted: boolean | undefined) => (wanted ? zeros(t.dtype, t.shape) : null);
    const sum = (shape: readonly number[], wanted: boolean | undefined) =>
      wanted ? zeros(rowDtype(problem), shape) : null;
    const total: Raw<HostTensor> = {
      dq: like(inputs.q, problem.grads?.q),
      dk: like(inputs.k, problem.grads?.k),
      dv: like(inputs.v, problem.grads?.v),
      dSink: sum([problem.Hq], problem.grads?.sink),
      dSides: problem.sides.map((side, i) => sum(side.shape, problem.grads?.sides[i])),
    };
    for (const [i, part] of parts.entries()) {
      const run = partOptions(runOptions, i, parts.length);
      const arena = new Arena(call.engine);
      try {
        const { q, k, v, sink } = sliceInputs(part, inputs);
        const resident = {
          q: arena.resident('q', q),
          k: arena.resident('k', k),
          v: arena.resident('v', v),
          ...residentSides(arena, part.call.request, sink),
        };
        const kept = {
          out: arena.resident('out', part.slice('out', result.out)),
          lse: arena.resident('lse', part.slice('lse', result.lse)),
        };
        const dLsePart = dLse === null ? null : part.slice('lse', dLse);
        gather(part, await backwardHost(part.call, resident, kept, part.slice('out', dOut), dLsePart, run), total);
      } finally {
        arena.release();
      }
    }
    return named(call, options, total);
  });
}

/** Rows into their places; what all parts share is added up, in their order. */
function gather(part: Part, raw: Raw<HostTensor>, total: Raw<HostTensor>): void {
  for (const [role, from, to] of [
    ['q', raw.dq, total.dq],
    ['k', raw.dk, total.dk],
    ['v', raw.dv, total.dv],
  ] as const)
    if (from !== null && to !== null) part.place(role, from, to);
  const add = (from: HostTensor | null, to: HostTensor | null, start: number): void =>
    from?.data.forEach((x, i) => {
      if (to !== null) to.data[start + i] += x;
    });
  add(raw.dSink, total.dSink, part.firstHead);
  for (const [i, from] of raw.dSides.entries()) add(from, total.dSides[i], 0);
}

/** Bytes that forward and backward of a call on host tensors hold in the engine at once. */
function backwardBytes({ request, plan }: Call): number {
  const { grads, sides, dtype } = request.problem;
  const summed = sides.reduce((sum, t, i) => sum + (grads?.sides[i] ? sizeOf(t.shape) : 0), 0);
  const workspace = Math.max(plan.forward.cost.workspace, plan.backward?.cost.workspace ?? 0);
  const held = bytesOfRoles(request, ['q', 'k', 'v', 'out', 'lse', 'q', 'k', 'v', 'out', 'lse']);
  return held + summed * (dtype === 'f64' ? 8 : 4) + workspace;
}

async function backwardHost(
  call: Call,
  inputs: Inputs,
  kept: { readonly out: EngineTensor; readonly lse: EngineTensor },
  dOut: HostTensor,
  dLse: HostTensor | null,
  run: RunOptions,
): Promise<Raw<HostTensor>> {
  const arena = new Arena(call.engine);
  try {
    const given = { dOut: arena.resident('dOut', dOut), dLse: dLse === null ? null : arena.resident('dLse', dLse) };
    const grads = await runBackward(call, inputs, { ...kept, ...given }, run);
    const all = [grads.dq, grads.dk, grads.dv, grads.dSink, ...grads.dSides];
    for (const t of all) if (t !== null) arena.own(t);
    const [dq, dk, dv, dSink, ...dSides] = await Promise.all(all.map((t) => (t === null ? null : t.read())));
    return { dq, dk, dv, dSink, dSides };
  } finally {
    arena.release();
  }
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
function named<T extends Tensor>(
  call: Call,
  { bias, alibi }: GradOptions,
  raw: Raw<T>,
): GradientsOf<T, GradientChoice> {
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

type Step<T extends Tensor> = (dOut: T, dLse: T | null, options: RunOptions) => Promise<GradientsOf<T, GradientChoice>>;

/** The result object: forward's results, backward, and the right to end it. Runs in flight keep what they use. */
function session<T extends Tensor>(
  result: AttentionResult<T>,
  saved: Arena,
  step: Step<T>,
): AttentionWithGrads<T, GradientChoice> {
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
