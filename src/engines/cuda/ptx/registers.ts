/** Virtual registers: typed handles on names that the driver's compiler maps to the machine's own. */
import { TilewiseError } from '../../../core/errors.ts';

/** Bits say how wide a register is; `f` registers feed float instructions, `pred` registers guard them. */
export type RegType = 'pred' | 'b16' | 'b32' | 'b64' | 'f32' | 'f64';

export interface Reg<T extends RegType = RegType> {
  readonly type: T;
  readonly name: string;
}

/** A register, or a number that becomes an immediate of the type the instruction wants. */
export type Operand<T extends RegType = RegType> = Reg<T> | number;

/** Name prefix of each type; the declaration block counts them. */
export const PREFIX: Readonly<Record<RegType, string>> = {
  pred: '%p',
  b16: '%h',
  b32: '%r',
  b64: '%rd',
  f32: '%f',
  f64: '%fd',
};

/** Bytes of a register in memory or among a kernel's parameters. */
export const WIDTH: Readonly<Record<Exclude<RegType, 'pred'>, number>> = { b16: 2, b32: 4, b64: 8, f32: 4, f64: 8 };

/** A mistake in code that writes PTX: thrown where the wrong operand was given. */
export class AssemblerError extends TilewiseError {
  constructor(message: string) {
    super('DEVICE', `ptx: ${message}`);
  }
}

const words = new DataView(new ArrayBuffer(8));

/** An immediate in PTX's spelling: floats as exact hexadecimal bits, integers in decimal. */
export function immediate(type: RegType, value: number): string {
  switch (type) {
    case 'f32':
      words.setFloat32(0, value);
      return `0f${hex(words.getUint32(0))}`;
    case 'f64':
      words.setFloat64(0, value);
      return `0d${hex(words.getUint32(0))}${hex(words.getUint32(4))}`;
    case 'b16':
    case 'b32':
    case 'b64': {
      const bits = { b16: 16, b32: 32, b64: 53 }[type];
      if (!Number.isInteger(value) || value < -(2 ** (bits - 1)) || value >= 2 ** bits)
        throw new AssemblerError(`expected an integer of ${bits} bits, got ${value}`);
      return String(value);
    }
    case 'pred':
      throw new AssemblerError(`expected a predicate register, got ${value}`);
    default:
      throw type satisfies never;
  }
}

const hex = (u: number): string => u.toString(16).toUpperCase().padStart(8, '0');

/** Checks an operand against the type an instruction wants and spells it. */
export function spell(instruction: string, position: number, want: RegType, operand: Operand | undefined): string {
  if (operand === undefined) throw new AssemblerError(`${instruction}: operand ${position} is missing`);
  if (typeof operand === 'number') return immediate(want, operand);
  if (operand.type !== want)
    throw new AssemblerError(
      `${instruction}: expected operand ${position} of type ${want}, got ${operand.type} (${operand.name})`,
    );
  return operand.name;
}
