/**
 * Writes one PTX kernel: registers by type, parameters, shared memory with its sizes added up, guards, labels and loops.
 * An operand of the wrong type throws at the line that gave it. Instructions of whole warps live in tensor.ts and, for
 * Hopper, in a file beside it; both go through `emit`.
 */
import { type Inputs, OPS, type OpName, type Output, type Result, SPELLING } from './ops.ts';
import { AssemblerError, type Operand, PREFIX, type Reg, type RegType, spell, WIDTH } from './registers.ts';

export type Target = 'sm_80' | 'sm_90a';
export type Space = 'global' | 'shared' | 'local';
/** What memory holds: a register's own type, or bytes and halves widened into a b32. */
export type MemoryType = Exclude<RegType, 'pred'> | 'u8' | 'u16';
type Loaded<M extends MemoryType> = M extends 'u8' | 'u16' ? 'b32' : Extract<M, RegType>;

export interface KernelOptions {
  readonly name: string;
  readonly target: Target;
  /** Threads of a block. */
  readonly threads: number;
  /** Blocks that must fit on a multiprocessor together; bounds the registers of a thread. */
  readonly blocksPerSm?: number;
  /** Blocks of a cluster, neighbours in the grid's x: they run at one time and reach each other's shared memory. */
  readonly cluster?: number;
}

export interface Parameter {
  readonly name: string;
  /** Byte offset in the argument block. */
  readonly offset: number;
  readonly bytes: number;
  readonly type: Exclude<RegType, 'pred'> | 'bytes';
}

/** A finished kernel: text for the driver's compiler, and what a launch must know about it. */
export interface KernelText {
  readonly name: string;
  readonly text: string;
  readonly target: Target;
  readonly threads: number;
  readonly parameters: readonly Parameter[];
  /** Bytes of the argument block. */
  readonly parameterBytes: number;
  /** Bytes of dynamic shared memory. */
  readonly sharedBytes: number;
}

/** A piece of dynamic shared memory. */
export interface SharedRegion {
  readonly name: string;
  readonly offset: number;
  readonly bytes: number;
}

export interface Label {
  readonly name: string;
}

/** Where the argument block starts in memory, as far as alignment beyond 16 bytes needs it: the compiler aligns addresses, not offsets. */
const PARAMETER_BASE: Readonly<Record<Target, number>> = { sm_80: 0, sm_90a: 0x210 };
const ISA: Readonly<Record<Target, string>> = { sm_80: '7.4', sm_90a: '8.1' };

export class Assembler {
  readonly options: KernelOptions;
  private readonly counts = new Map<RegType, number>();
  private readonly lines: string[] = [];
  private readonly parameters: Parameter[] = [];
  private readonly notes: string[] = [];
  private parameterEnd = 0;
  private sharedEnd = 0;
  private labels = 0;
  private guard = '';

  constructor(options: KernelOptions) {
    this.options = options;
  }

  // registers and plain instructions

  /** A fresh register, unwritten. */
  reg<T extends RegType>(type: T): Reg<T> {
    const n = this.counts.get(type) ?? 0;
    this.counts.set(type, n + 1);
    return { type, name: `${PREFIX[type]}${n}` };
  }

  regs<T extends RegType>(type: T, count: number): Reg<T>[] {
    return Array.from({ length: count }, () => this.reg(type));
  }

  /** Emits an instruction of the table into a fresh register. */
  op<N extends OpName>(name: N, ...inputs: Inputs<N>): Output<N> {
    const out = this.reg(OPS[name][0] as Result<N>);
    this.set(out, name, ...inputs);
    return out;
  }

  /** Emits an instruction of the table into a register that already exists: loop variables and accumulators. */
  set<N extends OpName>(out: Output<N>, name: N, ...inputs: Inputs<N>): void {
    const [result, ...wanted] = OPS[name];
    const given = inputs as readonly Operand[];
    if (given.length !== wanted.length)
      throw new AssemblerError(`${name}: expected ${wanted.length} operands, got ${given.length}`);
    const text = wanted.map((type, i) => spell(name, i + 1, type, given[i]));
    this.emit(SPELLING[name] ?? name, spell(name, 0, result, out), ...text);
  }

  /** A register holding a number. */
  constant<T extends 'b32' | 'b64' | 'f32'>(type: T, value: number): Reg<T> {
    const out = this.reg(type);
    this.emit(`mov.${type}`, out.name, spell('mov', 1, type, value));
    return out;
  }

  /** A special register: `tid.x`, `ctaid.y`, `laneid`. */
  special(name: string): Reg<'b32'> {
    const out = this.reg('b32');
    this.emit('mov.u32', out.name, `%${name}`);
    return out;
  }

  /** One line of text under the current guard. For instructions with their own operand rules; checks nothing itself. */
  emit(mnemonic: string, ...operands: readonly string[]): void {
    this.lines.push(`    ${this.guard}${mnemonic}${operands.length > 0 ? ` ${operands.join(', ')}` : ''};`);
  }

  /** A comment that names the stage that follows. */
  stage(text: string): void {
    this.lines.push('', `    // ${text}`);
  }

  /** A comment at the head of the kernel. */
  note(text: string): void {
    this.notes.push(text);
  }

  // parameters and shared memory

  /** Declares the next parameter and reads it. */
  parameter<T extends Exclude<RegType, 'pred'>>(name: string, type: T): Reg<T> {
    const { offset } = this.addParameter(name, type, WIDTH[type], WIDTH[type]);
    const out = this.reg(type);
    this.emit(`ld.param.${type}`, out.name, `[${this.options.name}_${name}]`);
    if (offset < 0) throw new AssemblerError(`parameter ${name} has no place`);
    return out;
  }

  /** Declares a parameter of raw bytes (a tensor map) and gives its symbol. */
  parameterBytes(name: string, bytes: number, align: number): string {
    this.addParameter(name, 'bytes', bytes, align);
    return `${this.options.name}_${name}`;
  }

  private addParameter(name: string, type: Parameter['type'], bytes: number, align: number): Parameter {
    if (this.parameters.some((p) => p.name === name)) throw new AssemblerError(`parameter ${name} is declared twice`);
    const base = PARAMETER_BASE[this.options.target];
    const offset = Math.ceil((base + this.parameterEnd) / align) * align - base;
    const p: Parameter = { name, offset, bytes, type };
    this.parameters.push(p);
    this.parameterEnd = offset + bytes;
    return p;
  }

  /** Takes the next piece of dynamic shared memory. */
  shared(name: string, bytes: number, align = 128): SharedRegion {
    const offset = Math.ceil(this.sharedEnd / align) * align;
    this.sharedEnd = offset + bytes;
    this.note(`shared ${name}: ${bytes} bytes at ${offset}`);
    return { name, offset, bytes };
  }

  /** Lays a piece over one that is no longer needed. @throws AssemblerError when it is larger. */
  sharedOver(region: SharedRegion, name: string, bytes: number): SharedRegion {
    if (bytes > region.bytes) {
      if (region.offset + region.bytes !== this.sharedEnd)
        throw new AssemblerError(`shared ${name}: ${bytes} bytes over ${region.name} of ${region.bytes} bytes`);
      this.sharedEnd = region.offset + bytes;
    }
    this.note(`shared ${name}: ${bytes} bytes at ${region.offset}, over ${region.name}`);
    return { name, offset: region.offset, bytes };
  }

  /** The address of a piece in the shared window. */
  sharedAddress(region: SharedRegion): Reg<'b32'> {
    const base = this.reg('b32');
    this.emit('mov.u32', base.name, 'smem');
    return region.offset === 0 ? base : this.op('add.s32', base, region.offset);
  }

  // memory

  /** Loads one element. `cache` is a PTX cache operator or qualifier such as `nc`. */
  load<M extends MemoryType>(space: Space, type: M, address: Reg, offset = 0, cache = ''): Reg<Loaded<M>> {
    const out = this.reg((type === 'u8' || type === 'u16' ? 'b32' : type) as Loaded<M>);
    this.emit(`ld.${space}${dot(cache)}.${type}`, out.name, this.address(space, address, offset));
    return out;
  }

  /** Loads 2 or 4 neighbouring elements with one access. */
  loadVector<T extends 'b32' | 'f32' | 'b64'>(
    space: Space,
    type: T,
    count: 2 | 4,
    address: Reg,
    offset = 0,
    cache = '',
  ): Reg<T>[] {
    const out = this.regs(type, count);
    this.emit(
      `ld.${space}${dot(cache)}.v${count}.${type}`,
      `{${out.map((r) => r.name).join(', ')}}`,
      this.address(space, address, offset),
    );
    return out;
  }

  store(space: Space, type: MemoryType, address: Reg, value: Operand, offset = 0): void {
    const want = type === 'u8' || type === 'u16' ? 'b32' : type;
    this.emit(`st.${space}.${type}`, this.address(space, address, offset), spell('st', 1, want, value));
  }

  storeVector(space: Space, type: 'b32' | 'f32' | 'b64', address: Reg, values: readonly Reg[], offset = 0): void {
    if (values.length !== 2 && values.length !== 4)
      throw new AssemblerError(`st: expected 2 or 4 elements, got ${values.length}`);
    const list = values.map((v, i) => spell('st', i + 1, type, v));
    this.emit(`st.${space}.v${values.length}.${type}`, this.address(space, address, offset), `{${list.join(', ')}}`);
  }

  /** `[register + offset]`, checked for the width the space's addresses have. */
  address(space: Space, address: Reg, offset = 0): string {
    const base = spell(`address in ${space}`, 1, space === 'shared' ? 'b32' : 'b64', address);
    return offset === 0 ? `[${base}]` : `[${base}${offset < 0 ? '' : '+'}${offset}]`;
  }

  // control

  label(hint = 'L'): Label {
    return { name: `$${hint}_${this.labels++}` };
  }

  place(label: Label): void {
    this.lines.push(`${label.name}:`);
  }

  /** Jumps, where a guard is given only if it holds. `uniform` promises that all threads of a warp agree. */
  branch(label: Label, guard?: Reg<'pred'>, options: { negate?: boolean; uniform?: boolean } = {}): void {
    const jump = `bra${options.uniform === true ? '.uni' : ''}`;
    if (guard === undefined) this.emit(jump, label.name);
    else this.guarded(guard, options.negate === true, () => this.emit(jump, label.name));
  }

  /** Every instruction emitted by `body` runs only where the predicate holds. Guards do not nest. */
  when(guard: Reg<'pred'>, body: () => void): void {
    this.guarded(guard, false, body);
  }

  unless(guard: Reg<'pred'>, body: () => void): void {
    this.guarded(guard, true, body);
  }

  private guarded(guard: Reg<'pred'>, negate: boolean, body: () => void): void {
    if (this.guard !== '') throw new AssemblerError('guards do not nest');
    this.guard = `@${negate ? '!' : ''}${spell('guard', 0, 'pred', guard)} `;
    try {
      body();
    } finally {
      this.guard = '';
    }
  }

  /** Branches around the bodies: for code too long to guard. */
  if(condition: Reg<'pred'>, then: () => void, otherwise?: () => void): void {
    const other = this.label('else');
    this.branch(other, condition, { negate: true });
    then();
    if (otherwise === undefined) {
      this.place(other);
      return;
    }
    const end = this.label('end');
    this.branch(end);
    this.place(other);
    otherwise();
    this.place(end);
  }

  /** Waits for all threads of the block. */
  barrier(): void {
    this.emit('bar.sync', '0');
  }

  /** The finished text. */
  finish(): KernelText {
    const { name, target, threads, blocksPerSm, cluster } = this.options;
    const declarations = [...this.counts].map(([type, n]) => `    .reg .${type} ${PREFIX[type]}<${n}>;`);
    const parameters = this.parameters.map((p) =>
      p.type === 'bytes'
        ? `    .param .align 64 .b8 ${name}_${p.name}[${p.bytes}]`
        : `    .param .${p.type} ${name}_${p.name}`,
    );
    const text = [
      `.version ${ISA[target]}`,
      `.target ${target}`,
      '.address_size 64',
      '',
      ...this.notes.map((n) => `// ${n}`),
      '.extern .shared .align 1024 .b8 smem[];',
      '',
      `.visible .entry ${name}(`,
      parameters.join(',\n'),
      ')',
      `.maxntid ${threads}, 1, 1`,
      ...(blocksPerSm === undefined ? [] : [`.minnctapersm ${blocksPerSm}`]),
      ...(cluster === undefined ? [] : ['.explicitcluster', `.reqnctapercluster ${cluster}, 1, 1`]),
      '{',
      ...declarations,
      ...this.lines,
      '    ret;',
      '}',
      '',
    ].join('\n');
    return {
      name,
      text,
      target,
      threads,
      parameters: this.parameters,
      parameterBytes: this.parameterEnd,
      sharedBytes: this.sharedEnd,
    };
  }
}

const dot = (suffix: string): string => (suffix === '' ? '' : `.${suffix}`);
