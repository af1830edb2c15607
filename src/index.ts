/// <reference lib="esnext.disposable" preserve="true" />
/** Tilewise: exact attention, tile by tile, on whatever the machine has. Public exports, nothing else. */
export { type AttentionResult, attention } from './api/attention.ts';
export { type AppendOptions, KvCache, type KvCacheOptions } from './api/cache.ts';
export { attentionDecode, type DecodeOptions } from './api/decode.ts';
export {
  type AttentionEncoder,
  attentionEncoder,
  type BackwardTensors,
  type EncoderOptions,
  type ForwardTensors,
} from './api/encoder.ts';
export { explain } from './api/explain.ts';
export {
  type AttentionWithGrads,
  attentionWithGrads,
  type BackwardOptions,
  type GradientsOf,
} from './api/grads.ts';
export type {
  AttentionOptions,
  CausalAlign,
  DropoutOptions,
  EngineChoice,
  ForwardOptions,
  GradientChoice,
  GradOptions,
  MaskFunction,
  ScoreFunction,
} from './api/options.ts';
export {
  closeSharedEngines,
  doctor,
  type EngineWord,
  type LoadableEngine,
  type Opened,
  type OpenOptions,
  openEngine,
  sharedEngine,
} from './api/registry.ts';
export { type BoundCalls, type SdpaOptions, scaledDotProductAttention, sdpaKernel } from './api/sdpa.ts';
export type { Tensor } from './api/tensors.ts';
export type { DType, FloatDType, HostArray } from './core/dtype.ts';
export {
  ArgumentError,
  DeviceError,
  DisposedError,
  type ErrorCode,
  ExpressionError,
  FormatError,
  MemoryError,
  type Refusal,
  TilewiseError,
  UnsupportedError,
} from './core/errors.ts';
export { cast, type HostTensor, type TensorLike, tensor, zeros } from './core/tensor.ts';
export type { Caps, Engine, EngineName, EngineTensor, Probe } from './engine/contract.ts';
export { formatNpy, parseNpy } from './interop/npy.ts';
export {
  type OnnxAttentionAttributes,
  type OnnxAttentionInputs,
  type OnnxAttentionOptions,
  type OnnxAttentionOutputs,
  onnxAttention,
} from './interop/onnx.ts';
export { formatSafetensors, readSafetensor } from './interop/safetensors.ts';
export * as expr from './mods/build.ts';
export type { Bool, Expr, F32, I32, Mask, MaskContext, Mod, ScoreContext } from './mods/expr.ts';
export * from './mods/library.ts';
export type { Explanation } from './plan/explain.ts';
export type { Plan } from './plan/plan.ts';
export type { Dropout, Layout } from './problem/problem.ts';
