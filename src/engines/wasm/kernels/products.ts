/** Calls of products in machine code from emitted functions: see native/gemm.ts for what they compute. */
import type { Callable, FuncBuilder } from '../asm/func.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { type I32, i32 } from '../asm/values.ts';
import { DESCRIPTOR, type GemmKind, type GemmStart, productName } from '../native/gemm.ts';

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

/** The products a module imports. Declare them before its functions. */
export class Products {
  readonly kinds: readonly GemmKind[];
  readonly #callables: ReadonlyMap<string, Callable<readonly ['i32']>>;

  constructor(m: ModuleBuilder, kinds: readonly GemmKind[]) {
    const distinct = new Map(kinds.map((kind) => [productName(kind), kind]));
    this.kinds = [...distinct.values()];
    this.#callables = new Map([...distinct.keys()].map((name) => [name, m.extern(name, ['i32'])]));
  }

  /** Emits the call. `descriptor` is the address of DESCRIPTOR.bytes of this thread's scratch. */
  call(f: FuncBuilder, N: number, start: GemmStart, descriptor: I32, p: Product): void {
    const callable = this.#callables.get(productName({ N, start }));
    if (callable === undefined) throw new TypeError(`${productName({ N, start })} was not declared`);
    const at = f.let(descriptor, 'descriptor');
    const put = (field: Exclude<keyof typeof DESCRIPTOR, 'bytes'>, value: I32 | number): void =>
      f.do(i32.store(at, value, DESCRIPTOR[field]));
    put('a', p.a.at);
    put('aRow', p.a.row);
    put('aColumn', p.a.column);
    put('b', p.b.at);
    put('bRow', p.b.row);
    put('c', p.c.at);
    put('cRow', p.c.row);
    if (p.factor !== undefined) put('factor', p.factor);
    put('M', p.M);
    put('K', p.K);
    f.call(callable, at);
  }
}
