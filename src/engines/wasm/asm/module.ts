/** A module under construction: one imported memory, functions, exports; `bytes` for the engine, `text` for people. */
import { encodeFunction } from './encode.ts';
import { type Callable, FuncBuilder, type Local } from './func.ts';
import { unsigned } from './leb128.ts';
import type { ValType } from './opcodes.ts';
import { printFunction } from './text.ts';
import type { Val } from './values.ts';

const TYPE_BYTE: Readonly<Record<ValType, number>> = { i32: 0x7f, f32: 0x7d, v128: 0x7b };
const MAX_PAGES = 65536;

type Locals<P extends Readonly<Record<string, ValType>>> = { [K in keyof P]: Local<P[K]> };

export class ModuleBuilder {
  readonly #functions: { readonly f: FuncBuilder; readonly exported: boolean }[] = [];
  readonly #imports: Callable[] = [];
  readonly #shared: boolean;

  constructor(shared: boolean) {
    this.#shared = shared;
  }

  /** Declares the imported function `env.<name>`, without result. Imports come before definitions. */
  extern<const P extends readonly ValType[]>(name: string, params: P): Callable<P> {
    if (this.#functions.length > 0) throw new TypeError(`${name}: imports come before definitions`);
    const callable = { name, index: this.#imports.length, params };
    this.#imports.push(callable);
    return callable;
  }

  /**
   * Defines a function without result. `params` names them in order; `emit` fills the body at once, so a function calls
   * only those defined before it.
   */
  func<P extends Readonly<Record<string, ValType>>>(
    name: string,
    params: P,
    emit: (f: FuncBuilder, p: Locals<P>) => void,
    exported = false,
  ): Callable {
    const f = new FuncBuilder(name, this.#imports.length + this.#functions.length);
    const locals = Object.fromEntries(Object.entries(params).map(([key, type]) => [key, f.param(type, key)]));
    this.#functions.push({ f, exported });
    emit(f, locals as Locals<P>);
    return { name, index: f.index, params: Object.values(params) };
  }

  bytes(): Uint8Array<ArrayBuffer> {
    const out = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00];
    const functions = this.#functions.map(({ f }) => f);
    const signatures = [...new Set([...this.#imports, ...functions].map(signature))];
    section(1, out, (s) => {
      unsigned(signatures.length, s);
      for (const types of signatures) {
        const params = types === '' ? [] : (types.split(' ') as ValType[]);
        s.push(0x60);
        unsigned(params.length, s);
        for (const t of params) s.push(TYPE_BYTE[t]);
        s.push(0);
      }
    });
    section(2, out, (s) => {
      unsigned(1 + this.#imports.length, s);
      for (const callable of this.#imports) {
        text('env', s);
        text(callable.name, s);
        s.push(0x00);
        unsigned(signatures.indexOf(signature(callable)), s);
      }
      text('env', s);
      text('memory', s);
      s.push(0x02, this.#shared ? 0x03 : 0x00);
      unsigned(1, s);
      // Only a shared memory has to declare how far it may grow.
      if (this.#shared) unsigned(MAX_PAGES, s);
    });
    section(3, out, (s) => {
      unsigned(functions.length, s);
      for (const f of functions) unsigned(signatures.indexOf(signature(f)), s);
    });
    section(7, out, (s) => {
      const exported = this.#functions.filter((entry) => entry.exported);
      unsigned(exported.length, s);
      for (const { f } of exported) {
        text(f.name, s);
        s.push(0);
        unsigned(f.index, s);
      }
    });
    section(10, out, (s) => {
      unsigned(functions.length, s);
      for (const f of functions) vector(functionBody(f), s);
    });
    section(0, out, (s) => {
      text('name', s);
      const names: number[] = [];
      unsigned(functions.length, names);
      for (const f of functions) {
        unsigned(f.index, names);
        text(f.name, names);
      }
      s.push(1);
      vector(names, s);
    });
    return Uint8Array.from(out);
  }

  text(): string {
    const memory = `  (import "env" "memory" (memory 1${this.#shared ? ` ${MAX_PAGES} shared` : ''}))`;
    const imports = this.#imports.map(
      (c) => `  (import "env" "${c.name}" (func $${c.name} (param ${c.params.join(' ')})))`,
    );
    const functions = this.#functions.map(({ f, exported }) => printFunction(f, exported));
    return ['(module', memory, ...imports, ...functions, ')', ''].join('\n');
  }
}

const signature = ({ params }: FuncBuilder | Callable): string =>
  params.map((p: Val | ValType) => (typeof p === 'string' ? p : p.type)).join(' ');

/** Locals in runs of one type, then the code. */
function functionBody(f: FuncBuilder): number[] {
  const runs: { type: ValType; count: number }[] = [];
  for (const { type } of f.locals) {
    const last = runs.at(-1);
    if (last?.type === type) last.count++;
    else runs.push({ type, count: 1 });
  }
  const out: number[] = [];
  unsigned(runs.length, out);
  for (const { type, count } of runs) {
    unsigned(count, out);
    out.push(TYPE_BYTE[type]);
  }
  encodeFunction(f, out);
  return out;
}

function section(id: number, out: number[], fill: (bytes: number[]) => void): void {
  const bytes: number[] = [];
  fill(bytes);
  out.push(id);
  vector(bytes, out);
}

function vector(bytes: readonly number[], out: number[]): void {
  unsigned(bytes.length, out);
  for (const b of bytes) out.push(b);
}

const text = (s: string, out: number[]): void => vector([...new TextEncoder().encode(s)], out);
