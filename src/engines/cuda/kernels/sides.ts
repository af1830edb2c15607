/**
 * Gradients of the tensors a modifier reads. Any number of positions may read one element, in any pattern, so contributions
 * are added atomically; as 64-bit integers, because integer sums have the same bits in any order. A first phase finds the
 * largest contribution, from which the second takes its unit, and a last program turns integers into floats.
 */
import type { TensorLike } from '../../../core/tensor.ts';
import type { F32, I32 } from '../../../mods/expr.ts';
import { nodesOf } from '../../../mods/expr.ts';
import { lowerAll } from '../../../mods/lower.ts';
import type { Value } from '../math.ts';
import { Assembler, type KernelText } from '../ptx/assembler.ts';
import type { Reg } from '../ptx/registers.ts';
import { shuffleXor } from '../ptx/tensor.ts';
import type { Tile } from './fragments.ts';
import { take } from './parameters.ts';
import type { Grid, Scorer } from './scores.ts';

/** One load of a side tensor in the modifier, and the modifier's derivative by what it loads. */
export interface SideGradient {
  readonly tensor: TensorLike;
  readonly indices: readonly I32[];
  readonly slope: F32;
}

export interface SideSums {
  /** Takes in a tile: gradient of the modified score times slope, at each position. */
  add(dModified: Tile[][], slope: Tile[][], scorer: Scorer, grid: Grid, edge: boolean): void;
  /** Emitted once, after the last tile. */
  finish(): void;
}

/** Integers keep this many bits for the sum of all contributions to an element. */
const SUM_BITS = 62;
const THREADS = 256;

/** Parameters: `sideState` is the largest contribution's bits (u64), then one integer an element; `phase` 0 or 1. */
export function sideSums(asm: Assembler, side: SideGradient): SideSums {
  const { sideState, phase, splits } = take(asm, 'sideState', 'phase', 'splits');
  // Loads that look at neither q nor kv hit one element in a whole block: summed in registers first.
  const shared = !nodesOf(...side.indices).some((e) => e.kind === 'index' && (e.name === 'q' || e.name === 'kv'));
  const measuring = asm.op('setp.eq.s32', phase, 0);
  const largest = asm.constant('f32', 0);
  const total = asm.constant('f32', 0);
  const unit = unitOf(asm, asm.load('global', 'b32', sideState), splits);
  let where: Reg<'b64'> | null = null;
  const home = asm.reg('b64');

  const addInteger = (at: Reg<'b64'>, x: Reg<'f32'>): void => {
    const scaled = asm.op('mul.f64', asm.op('cvt.f64.f32', x), unit.perOne);
    const integer = asm.op('cvt.rni.s64.f64', scaled);
    const wanted = asm.op('setp.ne.s64', integer, 0);
    asm.when(wanted, () => asm.emit('red.global.add.u64', asm.address('global', at, 8), integer.name));
  };
  const addressOf = (scorer: Scorer, grid: Grid, m: number, n: number, e: number): Reg<'b64'> => {
    const point = scorer.point(grid, m, n, e, null);
    const indices = lowerAll<Value>(side.indices, scorer.scope.at(point));
    const element = scorer.scope.element(side.tensor, indices);
    const bytes =
      element.type === 'b64' ? asm.op('mul.lo.s64', element, 8) : asm.op('mul.wide.s32', element as Reg<'b32'>, 8);
    return asm.op('add.s64', sideState, bytes);
  };
  const eachValue = (
    dModified: Tile[][],
    slope: Tile[][],
    visit: (x: Reg<'f32'>, m: number, n: number, e: number) => void,
  ): void => {
    dModified.forEach((row, m) => {
      row.forEach((tile, n) => {
        tile.forEach((d, e) => {
          // A masked position adds nothing, whatever the slope is there.
          const none = asm.op('setp.eq.f32', d, 0);
          visit(asm.op('selp.f32', 0, asm.op('mul.f32', d, slope[m][n][e]), none), m, n, e);
        });
      });
    });
  };

  return {
    add(dModified, slope, scorer, grid) {
      if (shared) {
        eachValue(dModified, slope, (x) => asm.set(total, 'add.f32', total, x));
        asm.set(home, 'mov.b64', addressOf(scorer, grid, 0, 0, 0));
        where = home;
        return;
      }
      const values: [Reg<'f32'>, number, number, number][] = [];
      eachValue(dModified, slope, (x, m, n, e) => values.push([x, m, n, e]));
      for (const [x] of values) asm.set(largest, 'max.NaN.f32', largest, asm.op('abs.f32', x));
      const skip = asm.label('measured');
      const places = values.map(([, m, n, e]) => addressOf(scorer, grid, m, n, e));
      asm.branch(skip, measuring, { uniform: true });
      values.forEach(([x], i) => {
        addInteger(places[i], x);
      });
      asm.place(skip);
    },
    finish() {
      if (where !== null) {
        for (const mask of [16, 8, 4, 2, 1]) asm.set(total, 'add.f32', total, shuffleXor(asm, total, mask));
        asm.set(largest, 'abs.f32', total);
      }
      const skip = asm.label('summed');
      const end = asm.label('counted');
      asm.branch(skip, measuring, { negate: true, uniform: true });
      // Bits of non-negative floats are ordered like the floats, NaN above all.
      asm.emit('red.global.max.u32', asm.address('global', sideState), asm.op('mov.b32.f32', largest).name);
      asm.branch(end);
      asm.place(skip);
      if (where !== null) {
        const lane = asm.op('and.b32', asm.special('tid.x'), 31);
        const first = asm.op('setp.eq.s32', lane, 0);
        const later = asm.label('lane');
        asm.branch(later, first, { negate: true });
        addInteger(where, total);
        asm.place(later);
      }
      asm.place(end);
    },
  };
}

/** Integers in 1.0 and the reverse, so that `2^terms` contributions of the largest size fit. */
function unitOf(
  asm: Assembler,
  largestBits: Reg<'b32'>,
  terms: Reg<'b32'>,
): { perOne: Reg<'f64'>; one: Reg<'f64'>; wild: Reg<'pred'> } {
  // Every contribution is below 2^(exponent + 1 - 127).
  const exponent = asm.op('sub.s32', asm.op('shr.u32', largestBits, 23), 126);
  const shift = asm.op('sub.s32', asm.op('sub.s32', SUM_BITS, terms), exponent);
  const power = (n: Reg<'b32'>): Reg<'f64'> => {
    const bits = asm.op('shl.b64', asm.op('cvt.s64.s32', asm.op('add.s32', n, 1023)), 52);
    const out = asm.reg('f64');
    asm.emit('mov.b64', out.name, bits.name);
    return out;
  };
  return {
    perOne: power(shift),
    one: power(asm.op('neg.s32', shift)),
    wild: asm.op('setp.ge.u32', largestBits, 0x7f800000),
  };
}

/** Turns the integer sums into the gradient: one thread an element. */
export function emitSideFinish(): KernelText {
  const asm = new Assembler({ name: 'backward_side_finish', target: 'sm_80', threads: THREADS });
  const { sideState, dSide, count, splits } = take(asm, 'sideState', 'dSide', 'count', 'splits');
  const index = asm.op('mad.lo.s32', asm.special('ctaid.x'), THREADS, asm.special('tid.x'));
  const end = asm.label('end');
  asm.branch(end, asm.op('setp.lt.s32', index, count), { negate: true });
  const { one, wild } = unitOf(asm, asm.load('global', 'b32', sideState), splits);
  const at = asm.op('add.s64', sideState, asm.op('mul.wide.s32', index, 8));
  const sum = asm.op('mul.f64', asm.op('cvt.rn.f64.s64', asm.load('global', 'b64', at, 8)), one);
  const nan = asm.op('mov.f32.b32', asm.constant('b32', 0x7fc00000));
  const value = asm.op('selp.f32', nan, asm.op('cvt.rn.f32.f64', sum), wild);
  asm.store('global', 'f32', asm.op('add.s64', dSide, asm.op('mul.wide.s32', index, 4)), value);
  asm.place(end);
  return asm.finish();
}

export const SIDE_FINISH_THREADS: number = THREADS;
