/**
 * NumPy's .npy files, versions 1 to 3: a magic word, a Python literal that describes the array, the elements.
 * Bytes come from anywhere, so a header is believed only as far as the file's length bears it out.
 */
import type { DType } from '../core/dtype.ts';
import { FormatError } from '../core/errors.ts';
import { type HostTensor, sizeOf, tensor } from '../core/tensor.ts';
import { checkedShape, decodeElements, encodeElements, type StoredType, storedBytes } from './elements.ts';

/** What a .npy header says. */
export interface NpyHeader {
  readonly type: StoredType;
  readonly shape: readonly number[];
  /** First axis contiguous instead of the last. */
  readonly fortran: boolean;
  readonly bigEndian: boolean;
  /** Where the elements start, in bytes. */
  readonly offset: number;
}

const MAGIC = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];

/** dtype codes without their byte order. bfloat16 is a 2-byte void, as ml_dtypes saves it. */
const TYPES: Readonly<Record<string, StoredType>> = {
  f2: 'f16',
  f4: 'f32',
  f8: 'f64',
  V2: 'bf16',
  i4: 'i32',
  i8: 'i64',
  u1: 'u8',
  b1: 'bool',
};

const CODES: Readonly<Record<DType, string>> = {
  f16: '<f2',
  f32: '<f4',
  f64: '<f8',
  bf16: '<V2',
  i32: '<i4',
  u8: '|u1',
};

/**
 * Reads a header from the first bytes of a file of `fileSize` bytes; `head` must hold the whole header (64 KiB always do for
 * files NumPy writes).
 *
 * @param source Names the file in errors.
 * @throws FormatError when it is no .npy, is cut short, has an element type without a dtype here, or promises another size.
 */
export function parseNpyHeader(head: Uint8Array, fileSize: number, source = '.npy'): NpyHeader {
  if (head.length < 10 || MAGIC.some((byte, i) => head[i] !== byte))
    throw new FormatError(source, 'a file that starts with the .npy magic word', `${head.length} other bytes`);
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const major = head[6];
  if (major < 1 || major > 3) throw new FormatError(source, 'version 1, 2 or 3', major);
  const start = major === 1 ? 10 : 12;
  if (head.length < start) throw new FormatError(source, 'a complete header', `${head.length} bytes`);
  const length = major === 1 ? view.getUint16(8, true) : view.getUint32(8, true);
  const offset = start + length;
  if (offset > head.length)
    throw new FormatError(source, `a header of ${length} bytes`, `${head.length - start} bytes`);
  const text = new TextDecoder(major === 3 ? 'utf-8' : 'latin1').decode(head.subarray(start, offset));
  const fields = new Literal(text, source).dict();

  const descr = fields.get('descr');
  if (typeof descr !== 'string') throw new FormatError(source, 'one element type (no fields)', descr);
  const type = Object.hasOwn(TYPES, descr.slice(1)) ? TYPES[descr.slice(1)] : undefined;
  if (type === undefined || !'<>|='.includes(descr[0]))
    throw new FormatError(source, `an element type of ${Object.keys(TYPES).join(', ')}`, descr);
  const fortran = fields.get('fortran_order');
  if (typeof fortran !== 'boolean') throw new FormatError(source, 'fortran_order True or False', fortran);
  const shape = checkedShape(source, fields.get('shape'));
  const bytes = sizeOf(shape) * storedBytes(type);
  if (bytes !== fileSize - offset)
    throw new FormatError(source, `${bytes} bytes of elements for shape (${shape.join(', ')})`, fileSize - offset);
  return { type, shape, fortran, bigEndian: descr[0] === '>', offset };
}

/** The tensor whose elements (all bytes after the header) are `bytes`. A view of them where alignment and order allow. */
export function decodeNpy(header: NpyHeader, bytes: Uint8Array, source = '.npy'): HostTensor {
  const { type, shape, fortran, bigEndian } = header;
  if (!fortran || shape.length < 2) return decodeElements(source, type, shape, bytes, bigEndian);
  return transposed(decodeElements(source, type, [...shape].reverse(), bytes, bigEndian));
}

/**
 * Reads a whole .npy file: f2, f4, f8, i4, i8 (values must fit 32 bits), u1, bool, and bfloat16 as 2-byte voids; C or Fortran
 * order, either byte order. The tensor may view `bytes`.
 *
 * @throws FormatError
 * @example
 * const q = parseNpy(await readFile('q.npy'));
 */
export function parseNpy(bytes: Uint8Array, source = '.npy'): HostTensor {
  const header = parseNpyHeader(bytes, bytes.length, source);
  return decodeNpy(header, bytes.subarray(header.offset), source);
}

/** A .npy file (version 1, C order, little-endian; elements start on a 64-byte boundary). bf16 is written as `<V2`. */
export function formatNpy(t: HostTensor): Uint8Array {
  const shape = t.shape.length === 1 ? `${t.shape[0]},` : t.shape.join(', ');
  const text = `{'descr': '${CODES[t.dtype]}', 'fortran_order': False, 'shape': (${shape}), }`;
  const offset = Math.ceil((10 + text.length + 1) / 64) * 64;
  const data = encodeElements(t.data);
  const out = new Uint8Array(offset + data.length);
  out.set([...MAGIC, 1, 0]);
  new DataView(out.buffer).setUint16(8, offset - 10, true);
  out.set(new TextEncoder().encode(`${text.padEnd(offset - 11)}\n`), 10);
  out.set(data, offset);
  return out;
}

/** C order of the reversed axes: what Fortran order means. */
function transposed(t: HostTensor): HostTensor {
  const shape = [...t.shape].reverse();
  const source = t.data;
  const out = source.slice();
  // steps[a]: distance in the source between neighbours along axis a of the result.
  const steps = shape.map((_, a) => shape.slice(0, a).reduce((n, d) => n * d, 1));
  const at = new Array<number>(shape.length).fill(0);
  let from = 0;
  for (let i = 0; i < out.length; i++) {
    out[i] = source[from];
    for (let a = shape.length - 1; a >= 0; a--) {
      from += steps[a];
      if (++at[a] < shape[a]) break;
      from -= steps[a] * shape[a];
      at[a] = 0;
    }
  }
  return tensor(out, shape, t.dtype);
}

type Value = string | boolean | number | Value[];

/** The part of Python's literal syntax that headers use: a dict of strings to strings, booleans, integers, tuples, lists. */
class Literal {
  readonly #text: string;
  readonly #source: string;
  #at = 0;

  constructor(text: string, source: string) {
    this.#text = text;
    this.#source = source;
  }

  dict(): Map<string, Value> {
    const out = new Map<string, Value>();
    this.#expect('{');
    while (!this.#take('}')) {
      const key = this.#value(0);
      if (typeof key !== 'string' || out.has(key)) throw this.#bad('distinct names');
      this.#expect(':');
      out.set(key, this.#value(0));
      if (!this.#take(',')) {
        this.#expect('}');
        break;
      }
    }
    this.#skip();
    if (this.#at !== this.#text.length) throw this.#bad('the end of the header');
    return out;
  }

  #value(depth: number): Value {
    // A header nests twice at most; the bound keeps hostile ones from exhausting the stack.
    if (depth > 8) throw this.#bad('shallow nesting');
    this.#skip();
    const close = this.#take('(') ? ')' : this.#take('[') ? ']' : null;
    if (close !== null) return this.#items(close, depth);
    const word = /[^\s,:(){}[\]'"]+|'[^'\\]*'|"[^"\\]*"/y;
    word.lastIndex = this.#at;
    const token = word.exec(this.#text)?.[0];
    if (token === undefined) throw this.#bad('a value');
    this.#at += token.length;
    if (token[0] === "'" || token[0] === '"') return token.slice(1, -1);
    if (token === 'True' || token === 'False') return token === 'True';
    // Python 2 wrote long integers with an L.
    if (/^\d+L?$/.test(token)) return Number.parseInt(token, 10);
    throw this.#bad('a string, boolean, integer or tuple');
  }

  #items(close: string, depth: number): Value[] {
    const out: Value[] = [];
    while (!this.#take(close)) {
      out.push(this.#value(depth + 1));
      if (!this.#take(',')) {
        this.#expect(close);
        break;
      }
    }
    return out;
  }

  #skip(): void {
    while (/\s/.test(this.#text.charAt(this.#at))) this.#at++;
  }

  #take(char: string): boolean {
    this.#skip();
    if (this.#text[this.#at] !== char) return false;
    this.#at++;
    return true;
  }

  #expect(char: string): void {
    if (!this.#take(char)) throw this.#bad(`'${char}'`);
  }

  #bad(expected: string): FormatError {
    return new FormatError(
      this.#source,
      `${expected} at ${this.#at} of the header`,
      this.#text.slice(this.#at, this.#at + 24),
    );
  }
}
