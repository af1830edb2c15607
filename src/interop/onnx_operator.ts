/**
 * ONNX's `Attention` in its own arithmetic: every intermediate rounded to the operator's element type, in the order the
 * operator's definition names them. One row of scores at a time, so memory stays linear unless the scores are asked for.
 */
import { allocate, type FloatDType, fromFloat64, round, toFloat64 } from '../core/dtype.ts';
import { type HostTensor, sizeOf, tensor } from '../core/tensor.ts';
import { compileEvaluator, type Point } from '../mods/evaluate.ts';
import { CONTEXT, type Mask, type Mod } from '../mods/expr.ts';

/** What qk_matmul_output holds: scaled products, after softcap, after adding the mask, or probabilities. */
export type QkStage = 'raw' | 'softcapped' | 'biased' | 'softmax';

export interface OperatorCall {
  readonly scale: number;
  /** 0 means none. */
  readonly softcap: number;
  readonly mask: Mask | null;
  /** Adds the float mask to the score. */
  readonly bias: Mod | null;
  readonly softmaxType: FloatDType;
  /** Null when the scores are not asked for. */
  readonly stage: QkStage | null;
  readonly signal: AbortSignal | undefined;
}

/** Longest stretch without a look at the signal and at other tasks, ms. */
const STRETCH = 20;

/** Q [B, Hq, Sq, D], K [B, Hkv, Sk, D], V [B, Hkv, Sk, Dv] -> out [B, Hq, Sq, Dv], scores [B, Hq, Sq, Sk] when asked for. */
export async function operatorAttention(
  Q: HostTensor,
  K: HostTensor,
  V: HostTensor,
  call: OperatorCall,
): Promise<{ readonly out: HostTensor; readonly qk: HostTensor | null }> {
  const [B, Hq, Sq, D] = Q.shape;
  const [, Hkv, Sk] = K.shape;
  const Dv = V.shape[3];
  const dtype = Q.dtype as FloatDType;
  const r = (value: number): number => round(dtype, value);
  const root = r(Math.sqrt(call.scale));
  const scaled = (t: HostTensor): Float64Array => toFloat64(t.dtype, t.data).map((value) => r(value * root));
  const [q, k, v] = [scaled(Q), scaled(K), toFloat64(V.dtype, V.data)];
  const attends = call.mask === null ? null : compileEvaluator(call.mask.build(CONTEXT));
  const biased = call.bias === null ? null : compileEvaluator(call.bias.build(CONTEXT));
  const out = new Float64Array(B * Hq * Sq * Dv);
  const qkShape = [B, Hq, Sq, Sk];
  const qk = call.stage === null ? null : allocate(dtype, sizeOf(qkShape));
  const scores = new Float64Array(Sk);
  const at: Point = { score: 0, b: 0, h: 0, q: 0, kv: 0, lenQ: Sq, lenK: Sk };
  let looked = performance.now();

  for (let row = 0; row < B * Hq * Sq; row++) {
    if (performance.now() - looked > STRETCH) {
      await new Promise((resolve) => setTimeout(resolve));
      looked = performance.now();
    }
    call.signal?.throwIfAborted();
    at.q = row % Sq;
    at.h = Math.floor(row / Sq) % Hq;
    at.b = Math.floor(row / (Sq * Hq));
    const head = at.b * Hkv + Math.floor(at.h / (Hq / Hkv));
    const keep = (stage: QkStage): void => {
      if (call.stage === stage) qk?.set(fromFloat64(dtype, scores), row * Sk);
    };
    for (let j = 0; j < Sk; j++) scores[j] = r(dot(q, row * D, k, (head * Sk + j) * D, D));
    keep('raw');
    if (call.softcap > 0)
      for (let j = 0; j < Sk; j++) scores[j] = r(r(Math.tanh(r(scores[j] / r(call.softcap)))) * r(call.softcap));
    keep('softcapped');
    let most = Number.NEGATIVE_INFINITY;
    let any = false;
    for (let j = 0; j < Sk; j++) {
      at.kv = j;
      at.score = scores[j];
      const kept = attends === null || attends(at) !== 0;
      scores[j] = kept ? (biased === null ? scores[j] : r(biased(at))) : Number.NEGATIVE_INFINITY;
      any ||= kept;
      most = Math.max(most, scores[j]);
    }
    keep('biased');
    softmax(scores, any ? most : null, call.softmaxType);
    for (let j = 0; j < Sk; j++) scores[j] = r(scores[j]);
    keep('softmax');
    for (let j = 0; j < Sk; j++) {
      const p = scores[j];
      if (p !== 0) for (let d = 0; d < Dv; d++) out[row * Dv + d] += p * v[(head * Sk + j) * Dv + d];
    }
  }
  return {
    out: tensor(fromFloat64(dtype, out), [B, Hq, Sq, Dv], dtype),
    qk: qk === null ? null : tensor(qk, qkShape, dtype),
  };
}

function dot(a: Float64Array, i: number, b: Float64Array, j: number, n: number): number {
  let sum = 0;
  for (let d = 0; d < n; d++) sum += a[i + d] * b[j + d];
  return sum;
}

/** In place, each step rounded to `type`. `most` is the largest score, null when nothing attends: the row is then 0. */
function softmax(scores: Float64Array, most: number | null, type: FloatDType): void {
  if (most === null || most === Number.NEGATIVE_INFINITY) {
    scores.fill(0);
    return;
  }
  const top = round(type, most);
  let sum = 0;
  for (let j = 0; j < scores.length; j++) {
    scores[j] = round(type, Math.exp(round(type, round(type, scores[j]) - top)));
    // A sum of bf16 is bf16 after every term; the wider types carry at least f32 to the end.
    sum = type === 'bf16' ? round(type, sum + scores[j]) : sum + scores[j];
  }
  const total = round(type, sum);
  for (let j = 0; j < scores.length; j++) scores[j] = round(type, scores[j] / total);
}
