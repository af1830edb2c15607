/** Calls of machine code from emitted functions: see native/gemm.ts and native/softmax.ts for what they compute. */
import type { Callable, FuncBuilder } from '../asm/func.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { type F32, f32, type I32, i32 } from '../asm/values.ts';
import { DESCRIPTOR, type GemmStart } from '../native/gemm.ts';
import { type RoutineKind, routineName } from '../native/routines.ts';
import { SOFTMAX } from '../native/softmax.ts';

/** A matrix in memory: byte address and row stride. */
export interface Matrix {
  readonly at: I32;
  readonly row: number;
}

/** The operands of one product; A's elements of a row are `column` bytes apart, `M` and `K` count rows and terms. */
export interface Product {
  readonly a: Matrix & { readonly column: number };
  readonly b: Matrix;
  readonly c: Matrix;
  /** Row of N floats, for `rescale`. */
  readonly factor?: I32;
  readonly M: I32 | number;
  readonly K: I32 | number;
}

/** The operands of a softmax pass: addresses as SOFTMAX names them, `rows` of scores. */
export interface Block {
  readonly p: I32;
  readonly rows: I32;
  readonly max: I32;
}

/** Bytes of scratch that a call's descriptor takes. */
export const DESCRIPTOR_BYTES: number = Math.max(DESCRIPTOR.bytes, SOFTMAX.bytes);

/** The routines a module imports, all for rows of N floats. Declare them before its functions. */
export class Routines {
  readonly #N: number;
  readonly #callables: ReadonlyMap<string, Callable<readonly ['i32']>>;

  constructor(m: ModuleBuilder, kinds: readonly RoutineKind[]) {
    this.#N = kinds[0].N;
    this.#callables = new Map(kinds.map((kind) => [kind.routine, m.extern(routineName(kind), ['i32'])]));
  }

  /** Emits a product. `descriptor` is the address of DESCRIPTOR_BYTES of this thread's scratch. */
  product(f: FuncBuilder, start: GemmStart, descriptor: I32, p: Product): void {
    this.#call(f, start, descriptor, (put) => {
      put(DESCRIPTOR.a, p.a.at);
      put(DESCRIPTOR.aRow, p.a.row);
      put(DESCRIPTOR.aColumn, p.a.column);
      put(DESCRIPTOR.b, p.b.at);
      put(DESCRIPTOR.bRow, p.b.row);
      put(DESCRIPTOR.c, p.c.at);
      put(DESCRIPTOR.cRow, p.c.row);
      if (p.factor !== undefined) put(DESCRIPTOR.factor, p.factor);
      put(DESCRIPTOR.M, p.M);
      put(DESCRIPTOR.K, p.K);
    });
  }

  /** max = the largest of max and the scores, lane by lane. */
  maximum(f: FuncBuilder, descriptor: I32, { p, rows, max }: Block): void {
    this.#call(f, 'maximum', descriptor, (put) => {
      put(SOFTMAX.p, p);
      put(SOFTMAX.rows, rows);
      put(SOFTMAX.max, max);
    });
  }

  /** Weights in place of scores; before, sum and alpha brought up to date. */
  softmax(
    f: FuncBuilder,
    descriptor: I32,
    { p, rows, max, before, sum, alpha, slope }: Block & { before: I32; sum: I32; alpha: I32; slope: F32 },
  ): void {
    this.#call(f, 'softmax', descriptor, (put) => {
      put(SOFTMAX.p, p);
      put(SOFTMAX.rows, rows);
      put(SOFTMAX.max, max);
      put(SOFTMAX.before, before);
      put(SOFTMAX.sum, sum);
      put(SOFTMAX.alpha, alpha);
      f.do(f32.store(descriptor, slope, SOFTMAX.slope));
    });
  }

  #call(
    f: FuncBuilder,
    routine: RoutineKind['routine'],
    descriptor: I32,
    fill: (put: (field: number, value: I32 | number) => void) => void,
  ): void {
    const callable = this.#callables.get(routine);
    if (callable === undefined) throw new TypeError(`${routineName({ routine, N: this.#N })} was not declared`);
    const at = f.let(descriptor, 'descriptor');
    fill((field, value) => f.do(i32.store(at, value, field)));
    f.call(callable, at);
  }
}
