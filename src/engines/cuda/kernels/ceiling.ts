/** Scores that keep to bounds need no running maximum: one number serves every row. */
import { LOG2E } from '../../../core/math.ts';
import { childrenOf, type Expr, type F32, nodesOf } from '../../../mods/expr.ts';
import { type Interval, OPS, unknownOf } from '../../../mods/ops.ts';

/** How far exponents of a row may be apart, and how far the least may lie below 0: f32 and bf16 hold all the powers. */
const MOST = 146;
const BELOW = 120;

/**
 * A number to subtract from the exponents of every row, in place of its maximum: for modifiers such as a soft cap, whose
 * values are so near each other that powers neither vanish nor overflow a sum. Null for all others.
 */
export function ceilingOf(mod: F32 | null): number | null {
  if (mod === null) return null;
  const { lo, hi } = boundsOf(mod);
  const width = (hi - lo) * LOG2E;
  return width <= MOST ? hi * LOG2E - Math.max(0, width - BELOW) : null;
}

/** Bounds of a value that is not NaN, whatever the score, the position and the data are. */
function boundsOf(root: F32): Interval {
  const known = new Map<Expr, Interval>();
  for (const e of nodesOf(root)) {
    const args = childrenOf(e).map((child) => known.get(child) as Interval);
    known.set(
      e,
      e.kind === 'const' ? { lo: e.value, hi: e.value } : e.kind === 'op' ? ranged(e.op, args) : unknownOf(e.type),
    );
  }
  return known.get(root) as Interval;
}

function ranged(op: keyof typeof OPS, args: readonly Interval[]): Interval {
  if (op === 'tanh') return { lo: -1, hi: 1 };
  const range = OPS[op].range as (...args: readonly Interval[]) => Interval;
  return range(...args);
}
