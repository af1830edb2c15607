/** A function under construction: typed parameters and locals, statements in order, structured control flow. */
import type { ValType } from './opcodes.ts';
import { type Effect, type I32, i32, i32Const, type Node, type Val } from './values.ts';

export interface Local<T extends ValType = ValType> extends Val<T> {
  readonly label: string;
}

/** What callers know of a function. */
export interface Callable<P extends readonly ValType[] = readonly ValType[]> {
  readonly name: string;
  readonly index: number;
  readonly params: P;
}

/** The target of a branch: the end of a block or the start of a loop. */
export interface Label {
  readonly name: string;
  readonly depth: number;
}

type Arguments<P extends readonly ValType[]> = { [K in keyof P]: Val<P[K]> | ('i32' extends P[K] ? number : never) };

export class FuncBuilder {
  readonly name: string;
  readonly index: number;
  readonly params: Local[] = [];
  readonly locals: Local[] = [];
  readonly body: Node[] = [];
  #list: Node[] = this.body;
  #depth = 0;

  constructor(name: string, index: number) {
    this.name = name;
    this.index = index;
  }

  param<T extends ValType>(type: T, name: string): Local<T> {
    if (this.locals.length > 0) throw new TypeError(`${this.name}: parameters come before locals`);
    const local = this.#slot(type, name);
    this.params.push(local);
    return local;
  }

  /** A local that starts as zero. */
  local<T extends ValType>(type: T, name: string): Local<T> {
    const local = this.#slot(type, name);
    this.locals.push(local);
    return local;
  }

  /** Computes a value once, here, and names it. */
  let<T extends ValType>(value: Val<T>, name = 't'): Local<T> {
    const local = this.local(value.type, name);
    this.set(local, value);
    return local;
  }

  set<T extends ValType>(local: Local<T>, value: Val<T>): void {
    if (local.type !== value.type)
      throw new TypeError(`${this.name}: expected ${local.type} for ${local.label}, got ${value.type}`);
    this.#list.push({ name: 'local.set', type: null, args: [value], imm: local.imm, label: local.label });
  }

  /** local += amount */
  bump(local: Local<'i32'>, amount: I32 | number): void {
    this.set(local, i32.add(local, amount));
  }

  do(effect: Effect): void {
    this.#list.push(effect);
  }

  call<P extends readonly ValType[]>(target: Callable<P>, ...args: Arguments<P>): void {
    const nodes = args.map((a) => (typeof a === 'number' ? i32Const(a) : a)) as Node[];
    target.params.forEach((type, i) => {
      if (nodes[i]?.type !== type)
        throw new TypeError(`${this.name}: ${target.name} expects ${type} as argument ${i}, got ${nodes[i]?.type}`);
    });
    this.#list.push({ name: 'call', type: null, args: nodes, imm: [target.index], label: target.name });
  }

  if(condition: I32, then: () => void, otherwise?: () => void): void {
    if (condition.type !== 'i32') throw new TypeError(`${this.name}: expected an i32 condition, got ${condition.type}`);
    const bodies = [this.#nest(then)];
    if (otherwise) bodies.push(this.#nest(otherwise));
    this.#list.push({ name: 'if', type: null, args: [condition], imm: [], bodies });
  }

  /** `branch` to the label leaves the block. */
  block(body: (label: Label) => void): void {
    this.#structured('block', body);
  }

  /** `branch` to the label starts the next round; falling off the end leaves the loop. */
  loop(body: (label: Label) => void): void {
    this.#structured('loop', body);
  }

  branch(label: Label, condition?: I32): void {
    const depth = this.#depth - label.depth;
    this.#list.push({
      name: condition ? 'br_if' : 'br',
      type: null,
      args: condition ? [condition] : [],
      imm: [depth],
      label: label.name,
    });
  }

  /** for (i = from; i < to; i += step), signed; `to` is evaluated every round, so pass a constant or a local. */
  for(from: I32 | number, to: I32 | number, step: number, body: (i: Local<'i32'>) => void, name = 'i'): void {
    const i = this.let(typeof from === 'number' ? i32Const(from) : from, name);
    if (typeof from === 'number' && typeof to === 'number') {
      if (from < to) this.#rounds(i, step, () => i32.lt_s(i, to), body);
    } else this.if(i32.lt_s(i, to), () => this.#rounds(i, step, () => i32.lt_s(i, to), body));
  }

  /** The same over addresses, which compare unsigned. */
  sweep(from: I32, to: Local<'i32'>, step: number, body: (address: Local<'i32'>) => void, name = 'at'): void {
    const at = this.let(from, name);
    this.if(i32.lt_u(at, to), () => this.#rounds(at, step, () => i32.lt_u(at, to), body));
  }

  #rounds(i: Local<'i32'>, step: number, more: () => I32, body: (i: Local<'i32'>) => void): void {
    this.loop((again) => {
      body(i);
      this.bump(i, step);
      this.branch(again, more());
    });
  }

  return(): void {
    this.#list.push({ name: 'return', type: null, args: [], imm: [] });
  }

  #slot<T extends ValType>(type: T, name: string): Local<T> {
    const index = this.params.length + this.locals.length;
    return { name: 'local.get', type, args: [], imm: [index], label: `${name}.${index}` };
  }

  #structured(name: 'block' | 'loop', body: (label: Label) => void): void {
    const label = { name: `${name}.${this.#depth + 1}`, depth: this.#depth + 1 };
    const inner = this.#nest(() => body(label));
    this.#list.push({ name, type: null, args: [], imm: [], bodies: [inner], label: label.name });
  }

  #nest(fill: () => void): Node[] {
    const outer = this.#list;
    const inner: Node[] = [];
    this.#list = inner;
    this.#depth++;
    try {
      fill();
    } finally {
      this.#list = outer;
      this.#depth--;
    }
    return inner;
  }
}
