/** What a caller may say about a call. `request.ts` turns it into a Problem; nothing else reads options. */
import { ArgumentError } from '../core/errors.ts';
import type { TensorLike } from '../core/tensor.ts';
import type { Engine } from '../engine/contract.ts';
import type { Bool, F32, Mask, MaskContext, Mod, ScoreContext } from '../mods/expr.ts';
import type { Preferences } from '../plan/choose.ts';
import type { Layout } from '../problem/problem.ts';
import type { EngineWord } from './registry.ts';
import type { Tensor } from './tensors.ts';

/** A mask given as a function of expressions: true means attend. It is called again in every call. */
export type MaskFunction = (at: MaskContext) => Bool;
/** A score modifier given as a function of expressions. It is called again in every call. */
export type ScoreFunction = (at: ScoreContext) => F32;

/** Where the query and key diagonals meet when Sq != Sk: at the last positions or at the first. */
export type CausalAlign = 'bottom-right' | 'top-left';

/**
 * Which engine serves a call: one that the caller opened, a name (`'math'` is the reference engine), or an order of
 * preference. `'auto'` is the whole order: cuda, webgpu (on hardware), wasm, reference, as far as they can run here.
 */
export type EngineChoice = Engine | EngineWord | 'auto' | readonly (Engine | EngineWord)[];

/** Which gradients `backward` produces; every one by default. Those not asked for cost neither time nor memory. */
export interface GradientChoice {
  readonly q?: boolean | undefined;
  readonly k?: boolean | undefined;
  readonly v?: boolean | undefined;
  /** Of the float tensors that bias, alibi and mods read: all, none, or exactly these. */
  readonly sides?: boolean | readonly TensorLike[] | undefined;
  readonly sink?: boolean | undefined;
}

/** Dropout of probabilities after the softmax; what is kept is scaled by 1 / (1 - p). */
export interface DropoutOptions {
  /** Probability of dropping a probability, 0 <= p < 1; 0 means no dropout. */
  readonly p: number;
  /** 64 bits: a non-negative safe integer or a bigint. Random when absent; the result tells what it was. */
  readonly seed?: number | bigint | undefined;
  /** A further 32-bit word of the position counter, for callers that number their calls. */
  readonly offset?: number | undefined;
}

/** What decides the result, apart from the tensors q, k and v. */
export interface AttentionOptions {
  /** Axes of q, k, v and out. `bhnd` [B, H, S, D] is the default; `bnhd` is [B, S, H, D]. */
  readonly layout?: Layout | undefined;
  /** Multiplies q . k; 1 / sqrt(D) by default. */
  readonly scale?: number | undefined;
  /** `true` is 'bottom-right': the last query sees every key. */
  readonly causal?: boolean | CausalAlign | undefined;
  /**
   * Sliding window, aligned at the bottom right. A number keeps the n latest keys, the query's own included, and none
   * later; `[left, right]` keeps keys from `left` positions before the query's own to `right` after it (null: no limit).
   */
  readonly window?: number | readonly [left: number | null, right: number | null] | undefined;
  /** A mask, a function of expressions, or a u8 tensor that broadcasts to [B, Hq, Sq, Sk]; non-zero means attend. */
  readonly mask?: Mask | MaskFunction | Tensor | undefined;
  /** Blocks of `blockSize` x `blockSize` positions that attend where `layout` u8 [B|1, Hq|1, nQ, nK] is non-zero. */
  readonly blockSparse?: { readonly layout: Tensor; readonly blockSize: number } | undefined;
  /** Score modifiers, applied in order after softcap, alibi and bias. */
  readonly mod?: Mod | ScoreFunction | readonly (Mod | ScoreFunction)[] | undefined;
  /** Added to the scaled scores: a float tensor that broadcasts to [B, Hq, Sq, Sk]. */
  readonly bias?: Tensor | undefined;
  /** ALiBi slopes, float [Hq] or [B, Hq]. */
  readonly alibi?: Tensor | undefined;
  /** cap * tanh(score / cap), applied to the scaled score before anything else. */
  readonly softcap?: number | undefined;
  /** One more logit a query head, in the softmax's sum only: f32 [Hq] (f64 for f64 tensors). */
  readonly sink?: Tensor | undefined;
  /** A probability with a random seed, or the whole state. */
  readonly dropout?: number | DropoutOptions | undefined;
  /**
   * Packed sequences: q [1, Hq, totalQ, D] or [Hq, totalQ, D] (`bnhd`: [1, totalQ, Hq, D] or [totalQ, Hq, D]), k and v
   * likewise, sequence b being rows cuSeqlens.q[b] up to cuSeqlens.q[b + 1]. k's defaults to q's.
   */
  readonly cuSeqlens?:
    | {
        readonly q: Int32Array | readonly number[];
        readonly k?: Int32Array | readonly number[] | undefined;
      }
    | undefined;
  /** Engine tensors decide their engine. For host tensors: wasm, then reference, shared by all calls. */
  readonly engine?: EngineChoice | undefined;
  /** Stops the run within a row of blocks; the call rejects with the signal's reason and frees what it allocated. */
  readonly signal?: AbortSignal | undefined;
  /** The finished share of the run, 0 to 1, now and then. */
  readonly onProgress?: ((share: number) => void) | undefined;
  /** Narrows the plan to a kernel or configuration, for benches and tests. */
  readonly prefer?: Preferences | undefined;
}

/** Options of a call without gradients. */
export interface ForwardOptions<T extends Tensor = Tensor> extends AttentionOptions {
  /** Where results go, instead of new tensors: same dtype and shape, and in the same memory as q. Host tensors are written only on success. */
  readonly into?: { readonly out?: T | undefined; readonly lse?: T | undefined } | undefined;
}

/** Options of a call that keeps what backward needs. */
export interface GradOptions extends AttentionOptions {
  readonly grads?: GradientChoice | undefined;
}

const OPTION_NAMES: readonly (keyof ForwardOptions)[] = [
  'layout',
  'scale',
  'causal',
  'window',
  'mask',
  'blockSparse',
  'mod',
  'bias',
  'alibi',
  'softcap',
  'sink',
  'dropout',
  'cuSeqlens',
  'engine',
  'signal',
  'onProgress',
  'prefer',
  'into',
];

/** A misspelt option, one that this call has not, or null is an error and not a silent default. */
export function checkNames(options: object, without: readonly (keyof ForwardOptions)[] = []): void {
  for (const [name, value] of Object.entries(options)) {
    const known = OPTION_NAMES as readonly string[];
    if (!known.includes(name) || (without as readonly string[]).includes(name))
      throw new ArgumentError(
        'options',
        `any of ${known.filter((n) => !(without as readonly string[]).includes(n)).join(', ')}`,
        name,
      );
    if (value === null) throw new ArgumentError(name, 'a value, or undefined', null);
  }
}
