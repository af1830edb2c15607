/** `torch.nn.functional.scaled_dot_product_attention`, by its own rules, and its way of choosing engines. */
import { isFloat } from '../core/dtype.ts';
import { ArgumentError } from '../core/errors.ts';
import type { HostTensor, TensorLike } from '../core/tensor.ts';
import type { EngineTensor } from '../engine/contract.ts';
import * as x from '../mods/build.ts';
import type { Expr, I32, MaskContext } from '../mods/expr.ts';
import { maskOf, modOf } from '../mods/library.ts';
import { attention, attentionOf } from './attention.ts';
import type { KvCache } from './cache.ts';
import { attentionDecode, type DecodeOptions } from './decode.ts';
import { explain } from './explain.ts';
import { attentionWithGrads } from './grads.ts';
import type { AttentionOptions, EngineChoice } from './options.ts';
import { choicesOf } from './prepare.ts';
import type { View } from './request.ts';
import { checkTensor, type Tensor } from './tensors.ts';

/** The arguments of PyTorch's function by their names, and which engine serves it. */
export interface SdpaOptions extends Pick<AttentionOptions, 'engine' | 'signal' | 'onProgress'> {
  /** Broadcasts to [..., Hq, L, S]. u8: non-zero takes part; float: added to the scaled scores. Not together with isCausal. */
  readonly attnMask?: Tensor | null;
  /** Applied whenever it is above 0, with a random seed. */
  readonly dropoutP?: number;
  /** Top-left aligned, as PyTorch's: query i sees keys 0 to i, whatever L and S are. */
  readonly isCausal?: boolean;
  /** 1 / sqrt(E) when null or absent. */
  readonly scale?: number | null;
  /** Only then may key and value have fewer heads than query. */
  readonly enableGqa?: boolean;
}

/**
 * query [..., Hq, L, E], key [..., H, S, E], value [..., H, S, Ev] -> [..., Hq, L, Ev], PyTorch's semantics throughout.
 *
 * Two leading axes or more, one ([N, L, E], each N a head of its own) or none. A row that may attend to nothing gives 0. For gradients:
 * `attentionWithGrads`, with `causal: 'top-left'` for `isCausal`.
 *
 * @throws ArgumentError as PyTorch would raise, naming the argument; otherwise as `attention`.
 * @example
 * const out = await scaledDotProductAttention(q, k, v, { isCausal: true, enableGqa: true });
 */
export async function scaledDotProductAttention(
  query: HostTensor,
  key: HostTensor,
  value: HostTensor,
  options?: SdpaOptions,
): Promise<HostTensor>;
export async function scaledDotProductAttention(
  query: EngineTensor,
  key: EngineTensor,
  value: EngineTensor,
  options?: SdpaOptions,
): Promise<EngineTensor>;
export async function scaledDotProductAttention<T extends Tensor>(
  query: T,
  key: T,
  value: T,
  options?: SdpaOptions,
): Promise<T>;
export async function scaledDotProductAttention(
  query: Tensor,
  key: Tensor,
  value: Tensor,
  options: SdpaOptions = {},
): Promise<Tensor> {
  const { attnMask, dropoutP = 0, isCausal = false, scale, enableGqa = false, ...rest } = options;
  const view = viewOf(query, key, value, enableGqa);
  if (isCausal && attnMask) throw new ArgumentError('attnMask', 'none when isCausal is set', attnMask);
  const call: { -readonly [K in keyof AttentionOptions]: AttentionOptions[K] } = rest;
  if (isCausal) call.causal = 'top-left';
  if (scale !== undefined && scale !== null) call.scale = scale;
  if (dropoutP !== 0) call.dropout = dropoutP;
  if (attnMask) Object.assign(call, maskOption(attnMask, query, key));
  const { out, lse } = await attentionOf(query, key, value, call, view);
  if ('engine' in lse) lse.dispose();
  return out;
}

/** Leading axes become batch and head: all but the last of them the batch. */
function viewOf(query: Tensor, key: Tensor, value: Tensor, enableGqa: boolean): View {
  for (const [name, t] of Object.entries({ query, key, value })) {
    checkTensor(name, t);
    if (t.shape.length < 2 || t.shape.length !== query.shape.length)
      throw new ArgumentError(name, `shape [..., L, E] of ${Math.max(query.shape.length, 2)} axes`, t);
  }
  const folded = ({ shape }: TensorLike): readonly number[] => {
    const leading = shape.slice(0, -2);
    const heads = leading.pop() ?? 1;
    return [leading.reduce((n, d) => n * d, 1), heads, ...shape.slice(-2)];
  };
  const free = enableGqa ? query.shape.length - 3 : -1;
  for (const [name, t] of [['key', key] as const, ['value', value] as const])
    t.shape.slice(0, -2).forEach((d, i) => {
      if (d !== query.shape[i] && i !== free)
        throw new ArgumentError(
          name,
          `leading axes [${query.shape.slice(0, -2).join(', ')}]${enableGqa ? '' : ' (enableGqa is off)'}`,
          t,
        );
    });
  const [q, k, v] = [folded(query), folded(key), folded(value)];
  return {
    q,
    k,
    v,
    out: [...query.shape.slice(0, -1), v[3]],
    lse: [q[0], q[1], q[2]],
  };
}

/** A boolean mask is a mask, a float one a bias; with more than two leading axes, positions in them are told from b. */
function maskOption(mask: Tensor, query: Tensor, key: Tensor): Pick<AttentionOptions, 'mask' | 'mod' | 'bias'> {
  checkTensor('attnMask', mask);
  const { dtype, shape } = mask;
  if (dtype !== 'u8' && !isFloat(dtype)) throw new ArgumentError('attnMask', 'u8 or float elements', mask);
  const rank = query.shape.length;
  const full = [...query.shape.slice(0, -1), key.shape[rank - 2]];
  const skip = rank - shape.length;
  if (skip < 0 || shape.some((d, i) => d !== 1 && d !== full[skip + i]))
    throw new ArgumentError('attnMask', `a shape that broadcasts to [${full.join(', ')}]`, mask);
  if (rank <= 4) return dtype === 'u8' ? { mask } : { bias: mask };
  const element = (at: MaskContext): Expr => {
    const positions: I32[] = [at.h, at.q, at.kv];
    let rest: I32 = at.b;
    for (let axis = rank - 4; axis >= 0; axis--) {
      positions.unshift(axis === 0 ? rest : x.mod(rest, full[axis]));
      rest = x.idiv(rest, full[axis]);
    }
    const zero = x.constant('i32', 0);
    return x.load(
      mask,
      shape.map((d, i) => (d === 1 ? zero : positions[skip + i])),
    );
  };
  return dtype === 'u8'
    ? { mask: maskOf((at) => element(at) as Expr<'bool'>, 'mask') }
    : { mod: modOf((at) => x.add(at.score, element(at) as Expr<'f32'>), 'bias') };
}

/** Calls on three tensors, whatever their options and results. */
type TensorCall = (q: never, k: never, v: never, options?: Pick<AttentionOptions, 'engine'>) => Promise<unknown>;

/** The library's calls with the choice of engines made. */
export interface BoundCalls {
  readonly attention: typeof attention;
  readonly attentionWithGrads: typeof attentionWithGrads;
  readonly attentionDecode: typeof attentionDecode;
  readonly scaledDotProductAttention: typeof scaledDotProductAttention;
  readonly explain: typeof explain;
}

/**
 * Forces or orders engines, as PyTorch's `sdpa_kernel`: the calls it gives try these engines, in this order, and no
 * other. There is no ambient state: what is forced is what is called through the result, or inside the function.
 *
 * @param order names (`'math'` is the reference engine) or opened engines; one, several, or `'auto'`.
 * @throws ArgumentError for an unknown name; the calls throw UnsupportedError when none of the engines serves them.
 * @example
 * const out = await sdpaKernel(['wasm', 'math'], (sdp) => sdp.scaledDotProductAttention(q, k, v));
 * const exact = sdpaKernel('math');
 * const { lse } = await exact.attention(q, k, v);
 */
export function sdpaKernel(order: EngineChoice): BoundCalls;
export function sdpaKernel<R>(order: EngineChoice, within: (calls: BoundCalls) => R): R;
export function sdpaKernel<R>(order: EngineChoice, within?: (calls: BoundCalls) => R): R | BoundCalls {
  choicesOf(order);
  const bind = <F extends TensorCall>(call: F): F =>
    ((q, k, v, options) => (call as TensorCall)(q, k, v, { ...options, engine: order })) as TensorCall as F;
  const decode = (q: Tensor, cache: KvCache, options?: DecodeOptions) =>
    attentionDecode(q, cache, { ...options, engine: order });
  const calls: BoundCalls = {
    attention: bind(attention),
    attentionWithGrads: bind(attentionWithGrads),
    attentionDecode: decode as typeof attentionDecode,
    scaledDotProductAttention: bind(scaledDotProductAttention),
    explain: bind(explain),
  };
  return within === undefined ? calls : within(calls);
}
