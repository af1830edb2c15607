/**
 * The ONNX operator `Attention`, opsets 23 to 25, over `attention`: all attributes, inputs and outputs, on host tensors.
 * https://onnx.ai/onnx/operators/onnx__Attention.html
 */
import { attention } from '../api/attention.ts';
import type { AttentionOptions } from '../api/options.ts';
import { checkTensor } from '../api/tensors.ts';
import { allocate, type FloatDType, isFloat } from '../core/dtype.ts';
import { ArgumentError } from '../core/errors.ts';
import { type HostTensor, sizeOf, tensor } from '../core/tensor.ts';
import * as x from '../mods/build.ts';
import type { Expr, I32, Mask, MaskContext, Mod } from '../mods/expr.ts';
import { and, maskOf, modOf } from '../mods/library.ts';
import { operatorAttention, type QkStage } from './onnx_operator.ts';

/** Inputs by their names in the operator. Booleans are u8 tensors. */
export interface OnnxAttentionInputs {
  /** [B, q_num_heads, Sq, D], or [B, Sq, q_num_heads * D]; K and V have as many axes. */
  readonly Q: HostTensor;
  readonly K: HostTensor;
  readonly V: HostTensor;
  /** Broadcasts to [B, q_num_heads, Sq, total Sk]; its last axis may be shorter, the rest is then masked. u8 or float. */
  readonly attn_mask?: HostTensor | undefined;
  /** [B, kv_num_heads, P, D] and [B, kv_num_heads, P, Dv], both or neither. */
  readonly past_key?: HostTensor | undefined;
  readonly past_value?: HostTensor | undefined;
  /** Keys that count, a batch (opset 24). */
  readonly nonpad_kv_seqlen?: HostTensor | readonly number[] | BigInt64Array | undefined;
}

/** Attributes by their names in the operator, with its defaults. */
export interface OnnxAttentionAttributes {
  readonly is_causal?: number;
  readonly kv_num_heads?: number;
  readonly q_num_heads?: number;
  readonly qk_matmul_output_mode?: number;
  readonly scale?: number;
  readonly softcap?: number;
  /** ONNX data types: 1 float, 10 float16, 11 double, 16 bfloat16. */
  readonly softmax_precision?: number;
  readonly left_window_size?: number;
  readonly right_window_size?: number;
}

/** What is not an attribute of the operator: its version, and how it is computed. */
export interface OnnxAttentionOptions extends Pick<AttentionOptions, 'engine' | 'signal' | 'onProgress'> {
  readonly opset?: 23 | 24 | 25;
  /** Also compute the fourth output, which is Sq x Sk by definition. */
  readonly qkMatmulOutput?: boolean;
  /**
   * `operator` rounds every intermediate to the type of Q as the operator's definition does, row by row on the host: the
   * only way to its own 16-bit results, and the default for f16 and bf16. `fused` runs on an engine with f32 accumulation,
   * closer to the exact result and much faster; the default for f32 and f64.
   */
  readonly arithmetic?: 'fused' | 'operator';
}

/** The operator's outputs by their names, in the type of Q. */
export interface OnnxAttentionOutputs {
  /** Shaped like Q, with V's head size. */
  readonly Y: HostTensor;
  /** [B, kv_num_heads, P + Sk, D]: past_key and K joined. */
  readonly present_key: HostTensor;
  readonly present_value: HostTensor;
  /** [B, q_num_heads, Sq, P + Sk] at the stage qk_matmul_output_mode names; null unless asked for. */
  readonly qk_matmul_output: HostTensor | null;
}

const STAGES: readonly QkStage[] = ['raw', 'softcapped', 'biased', 'softmax'];
const PRECISIONS: Readonly<Record<number, FloatDType>> = { 1: 'f32', 10: 'f16', 11: 'f64', 16: 'bf16' };

/**
 * Runs the operator.
 *
 * @throws ArgumentError naming the input or attribute that breaks the operator's rules; otherwise as `attention`.
 * @example
 * const { Y } = await onnxAttention({ Q, K, V }, { is_causal: 1 });
 */
export async function onnxAttention(
  inputs: OnnxAttentionInputs,
  attributes: OnnxAttentionAttributes = {},
  options: OnnxAttentionOptions = {},
): Promise<OnnxAttentionOutputs> {
  const { opset = 25, qkMatmulOutput = false, engine, signal, onProgress } = options;
  const { Q, K, V, past } = readTensors(inputs, attributes, opset);
  const { is_causal = 0, softcap = 0, qk_matmul_output_mode: mode = 0, softmax_precision: precision } = attributes;
  const stage = STAGES[mode];
  if (stage === undefined) throw new ArgumentError('qk_matmul_output_mode', '0, 1, 2 or 3', mode);
  if (precision !== undefined && PRECISIONS[precision] === undefined)
    throw new ArgumentError('softmax_precision', '1, 10, 11 or 16', precision);
  const dtype = Q.dtype as FloatDType;
  const shape = { B: Q.shape[0], Hq: Q.shape[1], Sq: Q.shape[2], Sk: K.shape[2] };
  const nonpad = readLengths(inputs, shape, opset);
  const offset: Offset = nonpad === null ? () => past : (at) => x.sub(x.load<'i32'>(nonpad, [at.b]), shape.Sq);
  const bias = readMask(inputs.attn_mask, shape);
  const masks: Mask[] = [...bias.masks];
  if (is_causal !== 0) masks.push(maskOf((at) => x.le(at.kv, x.add(at.q, offset(at))), 'causal'));
  masks.push(...windows(attributes, offset, opset));
  if (nonpad !== null) masks.push(maskOf((at) => x.lt(at.kv, x.load<'i32'>(nonpad, [at.b])), 'nonpad'));
  const mask = masks.length === 0 ? null : masks.length === 1 ? masks[0] : and(...masks);
  const scale = attributes.scale ?? 1 / Math.sqrt(Q.shape[3]);
  if (!Number.isFinite(scale)) throw new ArgumentError('scale', 'a finite number', scale);
  const arithmetic = options.arithmetic ?? (dtype === 'f16' || dtype === 'bf16' ? 'operator' : 'fused');

  let out: HostTensor | null = null;
  let qk: HostTensor | null = null;
  if (arithmetic === 'operator' || qkMatmulOutput) {
    const softmaxType = precision === undefined ? dtype : PRECISIONS[precision];
    const call = { scale, softcap, mask, bias: bias.mod, softmaxType, stage: qkMatmulOutput ? stage : null, signal };
    ({ out, qk } = await operatorAttention(Q, K, V, call));
  }
  if (arithmetic === 'fused') {
    const call: { -readonly [N in keyof AttentionOptions]: AttentionOptions[N] } = { scale };
    if (softcap > 0) call.softcap = softcap;
    if (mask !== null) call.mask = mask;
    if (bias.mod !== null) call.mod = bias.mod;
    if (engine !== undefined) call.engine = engine;
    if (signal !== undefined) call.signal = signal;
    if (onProgress !== undefined) call.onProgress = onProgress;
    ({ out } = await attention(Q, K, V, call));
  }
  const Y = out as HostTensor;
  return {
    Y: inputs.Q.shape.length === 3 ? joinHeads(Y) : Y,
    present_key: K,
    present_value: V,
    qk_matmul_output: qk,
  };
}

/** Q, K and V as [B, H, S, D], past rows in front of K and V, all of Q's dtype. */
function readTensors(inputs: OnnxAttentionInputs, attributes: OnnxAttentionAttributes, opset: number) {
  const { q_num_heads: Hq, kv_num_heads: Hkv } = attributes;
  const rank = inputs.Q?.shape?.length;
  const given = { Q: inputs.Q, K: inputs.K, V: inputs.V };
  for (const [name, t] of Object.entries(given)) {
    checkTensor(name, t);
    if (!isFloat(t.dtype) || t.dtype !== inputs.Q.dtype) throw new ArgumentError(name, `floats of one type`, t);
    if (t.shape.length !== rank || (rank !== 3 && rank !== 4))
      throw new ArgumentError(name, '3 or 4 axes, as Q has', t);
    if (t.shape[0] !== inputs.Q.shape[0]) throw new ArgumentError(name, `a batch of ${inputs.Q.shape[0]}`, t);
  }
  let [Q, K, V] = [inputs.Q, inputs.K, inputs.V];
  if (rank === 3) {
    Q = splitHeads('Q', Q, 'q_num_heads', Hq);
    K = splitHeads('K', K, 'kv_num_heads', Hkv);
    V = splitHeads('V', V, 'kv_num_heads', Hkv);
  } else {
    for (const [name, n, t] of [['q_num_heads', Hq, Q] as const, ['kv_num_heads', Hkv, K] as const])
      if (n !== undefined && (opset >= 25 || n !== t.shape[1]))
        throw new ArgumentError(name, opset >= 25 ? 'nothing for inputs of 4 axes' : `${t.shape[1]}`, n);
  }
  checkHeads(Q, K, V);
  const { past_key, past_value } = inputs;
  if ((past_key === undefined) !== (past_value === undefined))
    throw new ArgumentError(
      past_key === undefined ? 'past_key' : 'past_value',
      'past_key and past_value together',
      undefined,
    );
  if (past_key === undefined || past_value === undefined) return { Q, K, V, past: 0 };
  if (inputs.nonpad_kv_seqlen !== undefined)
    throw new ArgumentError('nonpad_kv_seqlen', 'nothing together with past_key', inputs.nonpad_kv_seqlen);
  K = joinRows('past_key', past_key, K);
  V = joinRows('past_value', past_value, V);
  return { Q, K, V, past: past_key.shape[2] };
}

/** All of them [B, H, S, D]: rounding as the operator does reads them without an engine's checks. */
function checkHeads(Q: HostTensor, K: HostTensor, V: HostTensor): void {
  const [, Hq, , D] = Q.shape;
  const [B, Hkv, Sk] = K.shape;
  if (Hkv === 0 ? Hq !== 0 : Hq % Hkv !== 0) throw new ArgumentError('K', `heads that divide the ${Hq} of Q`, K);
  if (K.shape[3] !== D) throw new ArgumentError('K', `a head size of ${D}, as Q has`, K);
  if (V.shape[1] !== Hkv || V.shape[2] !== Sk) throw new ArgumentError('V', `shape [${B}, ${Hkv}, ${Sk}, Dv]`, V);
}

/** How many keys stand before the queries' own block. */
type Offset = (at: MaskContext) => I32 | number;

function windows(attributes: OnnxAttentionAttributes, offset: Offset, opset: number): Mask[] {
  const { left_window_size: left = -1, right_window_size: right = -1 } = attributes;
  for (const [name, n] of [['left_window_size', left] as const, ['right_window_size', right] as const]) {
    if (!Number.isInteger(n) || n < -1) throw new ArgumentError(name, '-1 or an integer >= 0', n);
    if (n >= 0 && opset < 25) throw new ArgumentError(name, `an attribute of opset 25, not ${opset}`, n);
  }
  const masks: Mask[] = [];
  const place = (at: MaskContext): I32 => x.add(at.q, offset(at));
  if (left >= 0) masks.push(maskOf((at) => x.ge(at.kv, x.sub(place(at), left)), `left${left}`));
  if (right >= 0) masks.push(maskOf((at) => x.le(at.kv, x.add(place(at), right)), `right${right}`));
  return masks;
}

function readLengths(inputs: OnnxAttentionInputs, { B, Sk }: ScoreShape, opset: number): HostTensor | null {
  const given = inputs.nonpad_kv_seqlen;
  if (given === undefined) return null;
  if (opset < 24) throw new ArgumentError('nonpad_kv_seqlen', `an input of opset 24, not ${opset}`, given);
  const values = 'dtype' in given ? given.data : given;
  const lengths = Int32Array.from(values as ArrayLike<number | bigint>, Number);
  if (lengths.length !== B || lengths.some((n) => n < 0 || n > Sk))
    throw new ArgumentError('nonpad_kv_seqlen', `${B} lengths from 0 to ${Sk}`, [...lengths]);
  return tensor(lengths, [B]);
}

interface ScoreShape {
  readonly B: number;
  readonly Hq: number;
  readonly Sq: number;
  readonly Sk: number;
}

/** attn_mask as a mask (boolean), or as an addition to scores whose -inf are masked too, so that no NaN gets past them. */
function readMask(given: HostTensor | undefined, { B, Hq, Sq, Sk }: ScoreShape): { masks: Mask[]; mod: Mod | null } {
  if (given === undefined) return { masks: [], mod: null };
  checkTensor('attn_mask', given);
  const { shape, dtype } = given;
  const full = [B, Hq, Sq, Sk];
  const skip = 4 - shape.length;
  const keys = shape[shape.length - 1];
  const fits =
    shape.length >= 1 && skip >= 0 && keys <= Sk && shape.slice(0, -1).every((d, i) => d === 1 || d === full[skip + i]);
  if (!fits) throw new ArgumentError('attn_mask', `a shape that broadcasts to [${full.join(', ')}]`, given);
  if (dtype === 'i32') throw new ArgumentError('attn_mask', 'u8 or floats', given);
  const element = (at: MaskContext): Expr => {
    // Keys past a shorter mask are masked; they read its last element.
    const positions = [at.b, at.h, at.q, keys < Sk ? x.min(at.kv, keys - 1) : at.kv];
    return x.load(
      given,
      shape.map((d, i) => (d === 1 ? 0 : positions[skip + i])),
    );
  };
  const masks = keys < Sk ? [maskOf((at) => x.lt(at.kv, keys), 'padding')] : [];
  if (keys === 0) return { masks, mod: null };
  if (dtype === 'u8') return { masks: [...masks, maskOf((at) => element(at) as Expr<'bool'>, 'mask')], mod: null };
  const value = (at: MaskContext) => element(at) as Expr<'f32'>;
  const lowest = -3.4028234663852886e38;
  return {
    masks: [...masks, maskOf((at) => x.not(x.lt(value(at), lowest)), 'mask')],
    mod: modOf((at) => x.add(at.score, value(at)), 'bias'),
  };
}

/** [B, S, H * D] -> [B, H, S, D] */
function splitHeads(name: string, t: HostTensor, attribute: string, heads: number | undefined): HostTensor {
  if (heads === undefined || !Number.isInteger(heads) || heads < 1)
    throw new ArgumentError(attribute, 'an integer >= 1 for inputs of 3 axes', heads);
  const [B, S, hidden] = t.shape;
  if (hidden % heads !== 0) throw new ArgumentError(name, `a last axis that ${heads} heads divide`, t);
  return swapAxes(t, B, S, heads, hidden / heads, [B, heads, S, hidden / heads]);
}

/** [B, H, S, D] -> [B, S, H * D] */
const joinHeads = (t: HostTensor): HostTensor => {
  const [B, H, S, D] = t.shape;
  return swapAxes(t, B, H, S, D, [B, S, H * D]);
};

/** Swaps the middle axes of [n, first, second, width]. */
function swapAxes(t: HostTensor, n: number, first: number, second: number, width: number, shape: number[]): HostTensor {
  const data = allocate(t.dtype, sizeOf(shape));
  for (let i = 0, from = 0; i < n; i++)
    for (let a = 0; a < first; a++)
      for (let b = 0; b < second; b++, from += width)
        data.set(t.data.subarray(from, from + width), ((i * second + b) * first + a) * width);
  return tensor(data, shape, t.dtype);
}

/** Past rows, then new ones, along the sequence axis. */
function joinRows(name: string, past: HostTensor, rows: HostTensor): HostTensor {
  checkTensor(name, past);
  const [B, H, S, D] = rows.shape;
  const [, , P] = past.shape;
  if (
    past.dtype !== rows.dtype ||
    past.shape.length !== 4 ||
    past.shape[0] !== B ||
    past.shape[1] !== H ||
    past.shape[3] !== D
  )
    throw new ArgumentError(name, `${rows.dtype}[${B}, ${H}, P, ${D}]`, past);
  const data = allocate(rows.dtype, B * H * (P + S) * D);
  for (let i = 0; i < B * H; i++) {
    data.set(past.data.subarray(i * P * D, (i + 1) * P * D), i * (P + S) * D);
    data.set(rows.data.subarray(i * S * D, (i + 1) * S * D), (i * (P + S) + P) * D);
  }
  return tensor(data, [B, H, P + S, D], rows.dtype);
}
