/** What `explain`, `dump` and `bench` share: a call described by flags alone, with shapes instead of tensors. */
import type { Command } from 'commander';
import type { AttentionOptions, GradientChoice } from '../api/options.ts';
import type { TensorLike } from '../core/tensor.ts';
import { alibiSlopes } from '../mods/library.ts';
import { type EngineFlags, engineOptions } from './engines.ts';
import { type ScoreFlags, scoreOptions, scoreSettings } from './scores.ts';
import { type ShapeFlags, shapeOptions, shapesOf } from './shapes.ts';

export interface PlannedFlags extends ShapeFlags, ScoreFlags, EngineFlags {
  readonly alibi?: boolean;
  readonly grad?: boolean;
}

export const plannedOptions = (to: Command): Command =>
  engineOptions(scoreOptions(shapeOptions(to)))
    .option('--alibi', "ALiBi with its paper's slopes")
    .option('--grad', 'backward too');

export interface PlannedCall {
  readonly q: TensorLike;
  readonly k: TensorLike;
  readonly v: TensorLike;
  readonly options: AttentionOptions;
  /** Null for forward alone. */
  readonly grads: GradientChoice | null;
}

export function plannedCall(flags: PlannedFlags): PlannedCall {
  const { options, masks } = scoreSettings(flags);
  return {
    ...shapesOf(flags, flags.layout),
    options: {
      ...options,
      ...(masks.length > 0 ? { mask: masks[0] } : {}),
      ...(flags.alibi ? { alibi: alibiSlopes(flags.heads) } : {}),
    },
    grads: flags.grad ? {} : null,
  };
}
