/** A problem's mask and modifier as closures over the operands' values. */
import { type HostTensor, type TensorLike, tensor } from '../../core/tensor.ts';
import type { Operands } from '../../engine/contract.ts';
import { derive } from '../../mods/derive.ts';
import { compileEvaluator, type Point } from '../../mods/evaluate.ts';
import type { Expr } from '../../mods/expr.ts';
import type { Problem } from '../../problem/problem.ts';
import { dataOf } from './memory.ts';

export type Evaluator = (at: Readonly<Point>) => number;

/** One load of the modifier: the gradient of the element it reads grows by ds * partial. */
export interface LoadGradient {
  /** Index of problem.sides. */
  readonly side: number;
  /** The element read, in elements from the side's first. */
  readonly address: Evaluator;
  readonly partial: Evaluator;
}

export interface Expressions {
  readonly mask: Evaluator | null;
  readonly mod: Evaluator | null;
  /** Derivative of the modified by the scaled score; null without a modifier, or in forward. */
  readonly dScore: Evaluator | null;
  /** Loads whose side gradient is asked. */
  readonly loads: readonly LoadGradient[];
}

export function compileExpressions(problem: Problem, operands: Operands, gradients: boolean): Expressions {
  const { mask, mod, sides, grads } = problem;
  const data = new Map<TensorLike, HostTensor>();
  operands.sides.forEach((side, i) => {
    data.set(sides[i], tensor(dataOf(side), side.shape, side.dtype));
  });
  const compile = (expr: Expr): Evaluator => compileEvaluator(expr, data);
  const wanted = sides.filter((_, i) => grads?.sides[i]);
  const derived = gradients && mod !== null ? derive(mod.expr, (t) => wanted.includes(t)) : null;
  const loads = [...(derived?.dLoads ?? [])].map(([node, partial]) => ({
    side: sides.indexOf(node.tensor),
    address: addressOf(node.tensor.shape, node.indices.map(compile)),
    partial: compile(partial),
  }));
  return {
    mask: mask === null ? null : compile(mask.expr),
    mod: mod === null ? null : compile(mod.expr),
    dScore: derived === null ? null : compile(derived.dScore),
    loads,
  };
}

function addressOf(shape: readonly number[], indices: readonly Evaluator[]): Evaluator {
  return (at) => indices.reduce((sum, index, axis) => sum * shape[axis] + index(at), 0);
}
