/**
 * .safetensors files: a 64-bit header length, a JSON header of names, dtypes, shapes and byte ranges, then the bytes.
 * The ranges must tile the data exactly, without overlap or hole, so that no two names can alias and nothing is smuggled.
 */
import type { DType } from '../core/dtype.ts';
import { ArgumentError, FormatError } from '../core/errors.ts';
import { type HostTensor, sizeOf } from '../core/tensor.ts';
import { checkedShape, decodeElements, encodeElements, type StoredType, storedBytes } from './elements.ts';

/** One tensor's place in a file. `dtype` is the format's own word and may be one that cannot be read here. */
export interface SafetensorsEntry {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Byte range in the file, end exclusive. */
  readonly start: number;
  readonly end: number;
}

export interface SafetensorsHeader {
  readonly entries: ReadonlyMap<string, SafetensorsEntry>;
  readonly metadata: Readonly<Record<string, string>>;
}

/** The format's own bound on the header, in bytes. */
const MAX_HEADER = 100_000_000;

const TYPES: Readonly<Record<string, StoredType>> = {
  F64: 'f64',
  F32: 'f32',
  F16: 'f16',
  BF16: 'bf16',
  I64: 'i64',
  I32: 'i32',
  U8: 'u8',
  BOOL: 'bool',
};

const NAMES: Readonly<Record<DType, string>> = {
  f64: 'F64',
  f32: 'F32',
  f16: 'F16',
  bf16: 'BF16',
  i32: 'I32',
  u8: 'U8',
};

const typeOf = (dtype: string): StoredType | undefined => (Object.hasOwn(TYPES, dtype) ? TYPES[dtype] : undefined);

/**
 * Bytes of length word and header together, from a file's first 8 bytes: how much to read before `parseSafetensorsHeader`.
 *
 * @throws FormatError when the header would be larger than the file or the format's bound.
 */
export function safetensorsHeaderBytes(first: Uint8Array, fileSize: number, source = '.safetensors'): number {
  if (first.length < 8) throw new FormatError(source, 'at least 8 bytes', `${first.length} bytes`);
  const length = new DataView(first.buffer, first.byteOffset, 8).getBigUint64(0, true);
  const most = Math.min(MAX_HEADER, fileSize - 8);
  if (length > BigInt(most)) throw new FormatError(source, `a header of at most ${most} bytes`, String(length));
  return 8 + Number(length);
}

/**
 * Reads and checks the header of a file of `fileSize` bytes; `head` must hold at least the length word and the header.
 *
 * @param source Names the file in errors.
 * @throws FormatError for a header that is no JSON of the expected form, or ranges that do not tile the data exactly.
 */
export function parseSafetensorsHeader(head: Uint8Array, fileSize: number, source = '.safetensors'): SafetensorsHeader {
  const dataStart = safetensorsHeaderBytes(head, fileSize, source);
  if (head.length < dataStart) throw new FormatError(source, `${dataStart} bytes of header`, `${head.length} bytes`);
  const root = parseJson(head.subarray(8, dataStart), source);
  const entries = new Map<string, SafetensorsEntry>();
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(root)) {
    if (!isRecord(value)) throw new FormatError(source, `an object for ${JSON.stringify(name)}`, value);
    if (name === '__metadata__') metadata = stringMap(value, source);
    else entries.set(name, parseEntry(name, value, dataStart, source));
  }
  let end = dataStart;
  for (const e of [...entries.values()].sort((a, b) => a.start - b.start || a.end - b.end)) {
    if (e.start !== end)
      throw new FormatError(
        source,
        `${JSON.stringify(e.name)} to start at data byte ${end - dataStart}`,
        e.start - dataStart,
      );
    end = e.end;
  }
  if (end !== fileSize)
    throw new FormatError(source, `${end - dataStart} bytes of data`, `${fileSize - dataStart} bytes`);
  return { entries, metadata };
}

/** The entry of that name. @throws ArgumentError that lists names when there is none. */
export function findEntry(header: SafetensorsHeader, name: string, source = '.safetensors'): SafetensorsEntry {
  const entry = header.entries.get(name);
  if (entry !== undefined) return entry;
  const names = [...header.entries.keys()];
  const some = names.slice(0, 12).join(', ') + (names.length > 12 ? `, and ${names.length - 12} more` : '');
  throw new ArgumentError(source, `a tensor among ${some || '(none: the file is empty)'}`, name);
}

/**
 * The tensor of an entry whose bytes are exactly `bytes`. A view of them where alignment allows.
 *
 * @throws FormatError for a dtype that has no counterpart here (8-bit floats, small and unsigned integers).
 */
export function decodeEntry(entry: SafetensorsEntry, bytes: Uint8Array, source = '.safetensors'): HostTensor {
  const type = typeOf(entry.dtype);
  if (type === undefined)
    throw new FormatError(`${source}:${entry.name}`, `a dtype of ${Object.keys(TYPES).join(', ')}`, entry.dtype);
  return decodeElements(`${source}:${entry.name}`, type, entry.shape, bytes);
}

/**
 * Reads one tensor by name from a whole file's bytes. The tensor may view `bytes`.
 *
 * @throws FormatError for a malformed file, ArgumentError for an unknown name.
 * @example
 * const q = readSafetensor(await readFile('qkv.safetensors'), 'q');
 */
export function readSafetensor(bytes: Uint8Array, name: string, source = '.safetensors'): HostTensor {
  const entry = findEntry(parseSafetensorsHeader(bytes, bytes.length, source), name, source);
  return decodeEntry(entry, bytes.subarray(entry.start, entry.end), source);
}

/** A file of named tensors, widest elements first so that all are aligned; equal inputs give equal bytes. */
export function formatSafetensors(
  tensors: Readonly<Record<string, HostTensor>> | ReadonlyMap<string, HostTensor>,
  metadata?: Readonly<Record<string, string>>,
): Uint8Array {
  const list: [string, HostTensor][] = tensors instanceof Map ? [...tensors] : Object.entries(tensors);
  if (list.some(([name]) => name === '__metadata__')) throw new ArgumentError('tensors', 'other names', '__metadata__');
  list.sort(([a, s], [b, t]) => t.data.BYTES_PER_ELEMENT - s.data.BYTES_PER_ELEMENT || (a < b ? -1 : 1));
  const pairs: [string, unknown][] = metadata === undefined ? [] : [['__metadata__', metadata]];
  let size = 0;
  for (const [name, t] of list) {
    const end = size + t.data.byteLength;
    pairs.push([name, { dtype: NAMES[t.dtype], shape: t.shape, data_offsets: [size, end] }]);
    size = end;
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(pairs)));
  const dataStart = Math.ceil((8 + json.length) / 8) * 8;
  const out = new Uint8Array(dataStart + size).fill(0x20, 0, dataStart);
  new DataView(out.buffer).setBigUint64(0, BigInt(dataStart - 8), true);
  out.set(json, 8);
  let at = dataStart;
  for (const [, t] of list) {
    out.set(encodeElements(t.data), at);
    at += t.data.byteLength;
  }
  return out;
}

function parseEntry(
  name: string,
  value: Readonly<Record<string, unknown>>,
  dataStart: number,
  source: string,
): SafetensorsEntry {
  const where = `${source}:${name}`;
  const { dtype, data_offsets: range } = value;
  if (typeof dtype !== 'string') throw new FormatError(where, 'a dtype', dtype);
  const shape = checkedShape(where, value.shape);
  if (!Array.isArray(range) || range.length !== 2 || !range.every((x) => Number.isSafeInteger(x) && x >= 0))
    throw new FormatError(where, 'data_offsets of two integers >= 0', range);
  const [start, end] = range as [number, number];
  const type = typeOf(dtype);
  if (end < start || (type !== undefined && end - start !== sizeOf(shape) * storedBytes(type)))
    throw new FormatError(where, `data_offsets that span ${dtype} [${shape.join(', ')}]`, range);
  return { name, dtype, shape, start: dataStart + start, end: dataStart + end };
}

function parseJson(bytes: Uint8Array, source: string): Record<string, unknown> {
  let root: unknown;
  try {
    root = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new FormatError(source, 'a JSON header', cause instanceof Error ? cause.message : cause);
  }
  if (!isRecord(root)) throw new FormatError(source, 'a JSON object as header', root);
  return root;
}

function stringMap(value: Record<string, unknown>, source: string): Record<string, string> {
  for (const [key, v] of Object.entries(value))
    if (typeof v !== 'string') throw new FormatError(source, `a string for metadata ${JSON.stringify(key)}`, v);
  return value as Record<string, string>;
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  value !== null && typeof value === 'object' && !Array.isArray(value);
