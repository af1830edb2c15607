/** Options that shape scores and need no file: shared by commands that compute and commands that only plan. */
import { type Command, Option } from 'commander';
import type { AttentionOptions } from '../api/options.ts';
import type { Mask } from '../mods/expr.ts';
import { prefix } from '../mods/library.ts';
import type { Layout } from '../problem/problem.ts';
import { alignment, type CausalFlag, integer, number, seed, windowPair } from './command.ts';

export interface ScoreFlags {
  readonly layout?: Layout;
  readonly scale?: number;
  readonly causal?: CausalFlag;
  readonly window?: number | [left: number | null, right: number | null];
  readonly prefix?: number;
  readonly softcap?: number;
  readonly dropout?: number;
  readonly seed?: bigint;
}

const LAYOUTS: readonly Layout[] = ['bhnd', 'bnhd'];

export const scoreOptions = (to: Command): Command =>
  to
    .option('--causal [align]', 'no query sees a later key; align: bottom-right (default) or top-left', alignment)
    .option('--window <left[,right]>', 'sliding window: keys within these distances; * is no limit', windowPair)
    .option('--prefix <n>', 'prefix LM: the first n keys are seen by all, later ones causally', integer(0))
    .option('--softcap <cap>', 'cap * tanh(score / cap), before all else', number)
    .option('--scale <x>', 'multiplies q.k; default 1 / sqrt(D)', number)
    .option('--dropout <p>', 'probability of dropping a probability', number)
    .option('--seed <n>', 'seed of the dropout; default random, and told', seed)
    .addOption(
      new Option('--layout <axes>', 'order of axes: [B, H, S, D], the default, or [B, S, H, D]').choices(LAYOUTS),
    );

/** What the library calls them. Masks that have no option of their own are returned apart, to be joined with others. */
export function scoreSettings(flags: ScoreFlags): { options: AttentionOptions; masks: Mask[] } {
  const { layout, scale, causal, window, softcap, dropout } = flags;
  const options = {
    ...(layout === undefined ? {} : { layout }),
    ...(scale === undefined ? {} : { scale }),
    ...(causal === undefined ? {} : { causal }),
    ...(window === undefined ? {} : { window }),
    ...(softcap === undefined ? {} : { softcap }),
    ...(dropout === undefined
      ? {}
      : { dropout: { p: dropout, ...(flags.seed === undefined ? {} : { seed: flags.seed }) } }),
  };
  return { options, masks: flags.prefix === undefined ? [] : [prefix(flags.prefix)] };
}
