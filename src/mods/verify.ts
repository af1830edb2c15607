/** Checks an expression before anything is emitted from it. */
import { ExpressionError } from '../core/errors.ts';
import type { Expr } from './expr.ts';
import { compileInterval, type Domain } from './interval.ts';
import { printExpr } from './print.ts';

/**
 * Proves that every load stays inside its tensor, whatever values the indices take.
 *
 * An empty domain (an interval with hi < lo) evaluates nothing, so everything is inside it.
 *
 * @throws ExpressionError naming the tensor, the axis, the index and the interval it may take.
 */
export function verifyLoads(expr: Expr, domain: Domain): void {
  if (Object.values(domain).some(({ lo, hi }) => hi < lo)) return;
  compileInterval(expr, new Map(), (load, box) => {
    load.tensor.shape.forEach((size, axis) => {
      const { lo, hi } = box[axis];
      if (load.exact && load.indices[axis].kind === 'index' && size !== hi + 1)
        throw new ExpressionError(
          `load: expected ${hi + 1} or 1 along axis ${axis} of a tensor that broadcasts, got ` +
            `${load.tensor.dtype}[${load.tensor.shape.join(', ')}]`,
        );
      if (lo >= 0 && hi < size) return;
      throw new ExpressionError(
        `load: expected an index in 0 .. ${size - 1} for axis ${axis} of ${load.tensor.dtype}[${load.tensor.shape.join(', ')}], ` +
          `got ${shown(load.indices[axis])}, which may be ${lo} .. ${hi}; clamp it with min and max`,
      );
    });
  })(domain);
}

/** The index as text, without the loads inside it (their sides are not known here). */
function shown(index: Expr): string {
  try {
    return printExpr(index);
  } catch {
    return 'an index that is itself loaded';
  }
}
