/** Attention as commands in a caller's own GPUCommandEncoder: nothing is submitted and nothing waits. */
import { ArgumentError } from '../core/errors.ts';
import type { TensorLike } from '../core/tensor.ts';
import type { EngineTensor, Operands, Program } from '../engine/contract.ts';
import type { Plan } from '../plan/plan.ts';
import type { GradientChoice, GradOptions } from './options.ts';
import { prepareCall } from './prepare.ts';
import type { Opened } from './registry.ts';
import { isEmpty } from './request.ts';
import { Arena, checkInto, residentSides, resultsOf } from './run.ts';

type WebGpu = Opened<'webgpu'>;

/** Options of `attentionEncoder`: those of `attention`, for one engine. */
export interface EncoderOptions extends Omit<GradOptions, 'engine' | 'grads' | 'signal' | 'onProgress'> {
  /** The engine whose device the encoders are of. */
  readonly engine: WebGpu;
  /** Which gradients `backward` writes: all of them, unless told otherwise. Null, the default, is no backward at all. */
  readonly grads?: Pick<GradientChoice, 'q' | 'k' | 'v'> | null | undefined;
}

/** Tensors of the engine; results are written into those that are given. */
export interface ForwardTensors {
  readonly q: EngineTensor;
  readonly k: EngineTensor;
  readonly v: EngineTensor;
  readonly out: EngineTensor;
  readonly lse: EngineTensor;
}

/** Gradients are written where `grads` asked for them: dq, dk and dv, shaped like q, k and v. `dOut` is shaped like out, `dLse` like lse. */
export interface BackwardTensors extends ForwardTensors {
  readonly dOut: EngineTensor;
  readonly dLse?: EngineTensor | null;
  readonly dq?: EngineTensor | null;
  readonly dk?: EngineTensor | null;
  readonly dv?: EngineTensor | null;
}

/**
 * A call that is planned and compiled. Each method appends its commands and gives a function: call it once the encoder's commands have been
 * submitted, or dropped, and the scratch memory they use can serve again.
 */
export interface AttentionEncoder {
  readonly plan: Plan;
  /** What `out` and `lse` have to be. */
  readonly out: TensorLike;
  readonly lse: TensorLike;
  forward(encoder: GPUCommandEncoder, tensors: ForwardTensors): () => void;
  /** Reads what forward wrote into out and lse. @throws ArgumentError where `grads` did not ask for it. */
  backward(encoder: GPUCommandEncoder, tensors: BackwardTensors): () => void;
  /** Frees what masks, bias and sink hold in the engine. */
  dispose(): void;
}

/**
 * Plans and compiles attention for tensors of these dtypes and shapes, to be written into command encoders later, synchronously: between
 * commands of one's own, or inside `tf.customGrad`.
 *
 * @throws as `attention` does.
 * @example
 * const shape = { dtype: 'f32', shape: [1, 8, 512, 64] } as const;
 * const call = await attentionEncoder(shape, shape, shape, { engine, causal: true });
 * const encoder = engine.device.createCommandEncoder();
 * const release = call.forward(encoder, { q, k, v, out, lse });
 * engine.device.queue.submit([encoder.finish()]);
 * release();
 */
export async function attentionEncoder(
  q: TensorLike,
  k: TensorLike,
  v: TensorLike,
  { grads = null, sink, ...options }: EncoderOptions,
): Promise<AttentionEncoder> {
  const { engine } = options;
  if (engine?.name !== 'webgpu') throw new ArgumentError('engine', 'an open webgpu engine', engine);
  const all = { q: grads?.q, k: grads?.k, v: grads?.v, sides: false, sink: false };
  const given = sink === undefined ? options : { ...options, sink };
  const { request, plan, forward, backward } = await prepareCall(q, k, v, given, grads === null ? null : all);
  const { problem } = request;
  const { out, lse } = resultsOf(request);
  const kept = new Arena(engine);
  const inputs = residentSides(kept, request, sink);

  const check = (tensors: ForwardTensors): void => {
    const wanted = { q, k, v, out, lse };
    for (const [name, t] of Object.entries(wanted))
      checkInto(name, tensors[name as keyof typeof wanted], t.dtype, t.shape, engine);
  };
  const encode = (program: Program, encoder: GPUCommandEncoder, operands: Operands): (() => void) =>
    isEmpty(request) ? () => {} : (program as EncodedProgram).encode(encoder, problem, operands);

  return {
    plan,
    out,
    lse,
    forward(encoder, tensors) {
      check(tensors);
      return encode(forward, encoder, { ...inputs, ...pick(tensors, ['q', 'k', 'v', 'out', 'lse']) });
    },
    backward(encoder, tensors) {
      if (backward === null) throw new ArgumentError('grads', 'gradients to have been asked for', null);
      check(tensors);
      checkInto('dOut', tensors.dOut, out.dtype, out.shape, engine);
      if (tensors.dLse) checkInto('dLse', tensors.dLse, lse.dtype, lse.shape, engine);
      const wanted = {
        dq: problem.grads?.q ? q : null,
        dk: problem.grads?.k ? k : null,
        dv: problem.grads?.v ? v : null,
      };
      const results: Partial<Record<keyof typeof wanted, EngineTensor | null>> = {};
      for (const name of ['dq', 'dk', 'dv'] as const) {
        const like = wanted[name];
        if (like !== null) checkInto(name, tensors[name] as EngineTensor, like.dtype, like.shape, engine);
        results[name] = like === null ? null : (tensors[name] as EngineTensor);
      }
      const { dOut, dLse = null } = tensors;
      const operands = { ...inputs, ...pick(tensors, ['q', 'k', 'v', 'out', 'lse']), dOut, dLse, ...results };
      return encode(backward, encoder, { ...operands, dSink: null, dSides: problem.sides.map(() => null) });
    },
    dispose: () => kept.release(),
  };
}

/** What every program of this engine is. */
type EncodedProgram = Awaited<ReturnType<WebGpu['prepare']>>;

const pick = <T, K extends keyof T>(from: T, names: readonly K[]): Pick<T, K> =>
  Object.fromEntries(names.map((name) => [name, from[name]])) as Pick<T, K>;
