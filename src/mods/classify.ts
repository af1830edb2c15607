/** Does a block of the score matrix attend: nowhere, everywhere, or in part? Found from the mask's expression alone. */
import type { Bool } from './expr.ts';
import { type BoundsCache, compileInterval, type Domain } from './interval.ts';
import { simplify } from './simplify.ts';

/** `skip`: no position attends. `full`: every position does. `partial`: the rest, and what could not be decided. */
export type BlockClass = 'skip' | 'full' | 'partial';

/** A block of one (batch, head); `q` and `kv` are inclusive first and last positions. */
export interface Box {
  readonly b: number;
  readonly h: number;
  readonly lenQ: number;
  readonly lenK: number;
  readonly q: readonly [first: number, last: number];
  readonly kv: readonly [first: number, last: number];
}

/** Never wrong; `partial` may be too careful. Classify many blocks of one mask with `classifier` instead. */
export const classify = (mask: Bool, box: Box): BlockClass => classifier(mask)(box);

/** As `classify`, compiled. Keep it (and `cache`) no longer than the tensors the mask reads stay unchanged. */
export function classifier(mask: Bool, cache: BoundsCache = new Map()): (box: Box) => BlockClass {
  const interval = compileInterval(simplify(mask), cache);
  return (box) => {
    const domain: Domain = {
      b: { lo: box.b, hi: box.b },
      h: { lo: box.h, hi: box.h },
      q: { lo: box.q[0], hi: box.q[1] },
      kv: { lo: box.kv[0], hi: box.kv[1] },
      lenQ: { lo: box.lenQ, hi: box.lenQ },
      lenK: { lo: box.lenK, hi: box.lenK },
    };
    const { lo, hi } = interval(domain);
    return hi === 0 ? 'skip' : lo === 1 ? 'full' : 'partial';
  };
}
