/**
 * Values are trees of instructions, checked as they are built: an operand of the wrong type throws at the line that passed
 * it. A tree is emitted where a statement uses it, each time it is used; bind with `FuncBuilder.let` to compute once.
 */
import { type Immediate, OPCODES, type Opcode, type OpcodeName, type ValType } from './opcodes.ts';

export interface Node {
  /** Instruction name as printed: a key of OPCODES, or local.get, block, call, ... */
  readonly name: string;
  readonly type: ValType | null;
  readonly args: readonly Node[];
  readonly imm: readonly number[];
  /** Structured control: one body, or two for if/else. */
  readonly bodies?: readonly (readonly Node[])[];
  /** What a local, label or function is called in the listing. */
  readonly label?: string;
}

export interface Val<T extends ValType = ValType> extends Node {
  readonly type: T;
}
/** An instruction run for its effect. */
export interface Effect extends Node {
  readonly type: null;
}

export type I32 = Val<'i32'>;
export type F32 = Val<'f32'>;
export type V128 = Val<'v128'>;

const leaf = <T extends ValType>(name: string, type: T, imm: readonly number[]): Val<T> => ({
  name,
  type,
  args: [],
  imm,
});

export const i32Const = (value: number): I32 => leaf('i32.const', 'i32', [value | 0]);
export const f32Const = (value: number): F32 => leaf('f32.const', 'f32', [value]);
/** Four 32-bit words, lane 0 first. */
export const v128Const = (words: readonly [number, number, number, number]): V128 => leaf('v128.const', 'v128', words);

/** Numbers stand for constants where a scalar is expected. */
type Operand<T extends ValType> = T extends 'i32' ? I32 | number : T extends 'f32' ? F32 | number : Val<T>;
type Operands<A extends readonly ValType[]> = { [K in keyof A]: Operand<A[K]> };
type Trailing<I extends Immediate> = I extends 'memory'
  ? [offset?: number]
  : I extends 'lane'
    ? [lane: number]
    : I extends 'memory-lane'
      ? [lane: number, offset?: number]
      : I extends 'shuffle'
        ? [lanes: readonly number[]]
        : [];
type Result<R extends ValType | null> = R extends ValType ? Val<R> : Effect;
type Maker<N extends OpcodeName> = (
  ...args: [...Operands<(typeof OPCODES)[N]['args']>, ...Trailing<(typeof OPCODES)[N]['imm']>]
) => Result<(typeof OPCODES)[N]['result']>;

function lift(type: ValType, value: unknown): Node {
  if (typeof value !== 'number') return value as Node;
  return type === 'f32' ? f32Const(value) : i32Const(value);
}

function immediates(op: Opcode, rest: readonly unknown[]): number[] {
  switch (op.imm) {
    case 'none':
      return [];
    case 'memory':
      return [(rest[0] as number | undefined) ?? 0];
    case 'lane':
      return [rest[0] as number];
    case 'memory-lane':
      return [(rest[1] as number | undefined) ?? 0, rest[0] as number];
    case 'shuffle':
      return [...(rest[0] as readonly number[])];
    default:
      throw op.imm satisfies never;
  }
}

function maker(name: OpcodeName): (...args: unknown[]) => Node {
  const op: Opcode = OPCODES[name];
  const count = op.args.length;
  return (...operands) => {
    const args = op.args.map((type, i) => lift(type, operands[i]));
    for (const [i, type] of op.args.entries())
      if (args[i]?.type !== type)
        throw new TypeError(`${name}: expected operand ${i} of type ${type}, got ${String(args[i]?.type)}`);
    return { name, type: op.result, args, imm: immediates(op, operands.slice(count)) };
  };
}

type Family<P extends string> = {
  readonly [N in OpcodeName as N extends `${P}.${infer R}` ? R : never]: Maker<N>;
};

/** The instructions whose name starts with `prefix.`, as functions: i32.add(a, 4), v128.load(address, 16). */
function family<P extends string>(prefix: P): Family<P> {
  const names = (Object.keys(OPCODES) as OpcodeName[]).filter((name) => name.startsWith(`${prefix}.`));
  const makers: unknown = Object.fromEntries(names.map((name) => [name.slice(prefix.length + 1), maker(name)]));
  return makers as Family<P>;
}

export const i32 = family('i32');
export const f32 = family('f32');
export const v128 = family('v128');
export const i8x16 = family('i8x16');
export const i16x8 = family('i16x8');
export const i32x4 = family('i32x4');
export const i64x2 = family('i64x2');
export const f32x4 = family('f32x4');

/** condition ? a : b, both evaluated. */
export function select<T extends ValType>(condition: I32, a: Val<T>, b: Val<T>): Val<T> {
  if (a.type !== b.type) throw new TypeError(`select: expected operands of one type, got ${a.type} and ${b.type}`);
  if (condition.type !== 'i32') throw new TypeError(`select: expected an i32 condition, got ${condition.type}`);
  return { name: 'select', type: a.type, args: [a, b, condition], imm: [] };
}
