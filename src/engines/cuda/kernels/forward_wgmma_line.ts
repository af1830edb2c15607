/**
 * Modifiers that add a line along the keys (mods/linear.ts), one multiply-add a score: a straight piece is its value at the
 * thread's first key of the block, the same for a whole row, and its slope times numbers known when the code is written.
 */
import type { Expr } from '../../../mods/expr.ts';
import type { LinearBias } from '../../../mods/linear.ts';
import { lowerAll } from '../../../mods/lower.ts';
import type { Point, Value } from '../math.ts';
import type { Assembler } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import type { Place } from './place.ts';
import { type Grid, scorerOf } from './scores.ts';
import type { Spec } from './spec.ts';

export interface Line {
  readonly place: Place;
  readonly line: LinearBias;
  /** Parts of the modifier that are known already. */
  readonly fixed: ReadonlyMap<Expr, Reg>;
  /** 1 / scale. */
  readonly inverse: Reg<'f32'>;
  /** Positions of the warp's first row, and of the block's first key. */
  readonly first: { readonly q: Reg<'b32'>; readonly kv: Reg<'b32'> };
  readonly blockK: number;
}

const WARP_ROWS = 16;

/** Adds the bias, divided by the scale, to unscaled scores (16x8 tiles one after the other); what rows lack goes to `lifts`. */
export function addLine(
  asm: Assembler,
  spec: Spec,
  { place, line, fixed, inverse, first, blockK }: Line,
  grid: Grid,
  scores: readonly Reg<'f32'>[],
  lifts: readonly Reg<'f32'>[],
): void {
  const evaluator = (): { value: (e: Expr, p: Point) => Reg; at: (g: Grid, n: number, e: number) => Point } => {
    const { scope, point } = scorerOf(asm, spec, place, fixed);
    return {
      value: (e, p) => scope.reg(lowerAll<Value>([e], scope.at(p), new Map(fixed))[0]),
      at: (g, n, e) => point(g, 0, n, e, null),
    };
  };
  const bent = asm.label('bent');
  const added = asm.label('added');
  const { value, at } = evaluator();
  const corners = [first.q, asm.op('add.s32', first.q, WARP_ROWS - 1)].flatMap((q) =>
    [first.kv, asm.op('add.s32', first.kv, blockK - 1)].map((kv) => at({ ...grid, rows: [q], columns: [kv] }, 0, 0)),
  );
  for (const turn of line.turns) {
    const signs = corners.map((p) => asm.op('shr.u32', value(turn, p) as Reg<'b32'>, 31));
    const below = signs.reduce((x, y) => asm.op('add.s32', x, y));
    // None or all four.
    const straight = asm.op('setp.eq.s32', asm.op('and.b32', below, 3), 0);
    asm.branch(bent, straight, { negate: true, uniform: true });
  }
  const step = asm.op('mul.f32', value(line.slope, at(grid, 0, 0)) as Reg<'f32'>, inverse);
  lifts.forEach((lift, r) => {
    asm.set(lift, 'mul.f32', value(line.bias, at(grid, 0, 2 * r)) as Reg<'f32'>, Math.LOG2E);
  });
  scores.forEach((x, i) => {
    const distance = (i >> 2) * 8 + (i & 1);
    if (distance > 0) asm.set(x, 'fma.rn.f32', step, distance, x);
  });
  asm.branch(added);

  asm.place(bent);
  const apart = evaluator();
  scores.forEach((x, i) => {
    const bias = apart.value(line.bias, apart.at(grid, i >> 2, i & 3)) as Reg<'f32'>;
    asm.set(x, 'fma.rn.f32', bias, inverse, x);
  });
  for (const lift of lifts) asm.set(lift, 'mov.f32', 0);
  asm.place(added);
}
