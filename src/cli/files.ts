/** Tensors in files: `x.npy`, or `x.safetensors:name`. Only the bytes of the tensor asked for are read. */
import { type FileHandle, open, rename, rm, stat, writeFile } from 'node:fs/promises';
import { type FloatDType, isFloat } from '../core/dtype.ts';
import { ArgumentError } from '../core/errors.ts';
import { cast, type HostTensor } from '../core/tensor.ts';
import { decodeNpy, formatNpy, parseNpyHeader } from '../interop/npy.ts';
import {
  decodeEntry,
  findEntry,
  formatSafetensors,
  parseSafetensorsHeader,
  safetensorsHeaderBytes,
} from '../interop/safetensors.ts';

/** More than any header that NumPy writes; files of larger headers are refused by the parser as cut short. */
const NPY_HEAD = 1 << 16;

interface Place {
  readonly path: string;
  /** The tensor's name in a .safetensors file; absent for .npy, and for the only tensor of a file. */
  readonly name?: string;
}

/** @throws ArgumentError naming the option for a path of another kind. */
function parsePlace(option: string, spec: string): Place {
  const named = /^(.*\.safetensors)(?::(.+))?$/i.exec(spec);
  if (named !== null) return { path: named[1], ...(named[2] === undefined ? {} : { name: named[2] }) };
  if (/\.npy$/i.test(spec)) return { path: spec };
  throw new ArgumentError(option, 'a .npy file, or FILE.safetensors:NAME', spec);
}

/**
 * Reads one tensor.
 *
 * @throws ArgumentError naming the option for a missing file or name, FormatError naming the file for a malformed one.
 */
export async function loadTensor(option: string, spec: string): Promise<HostTensor> {
  const { path, name } = parsePlace(option, spec);
  let file: FileHandle;
  try {
    file = await open(path);
  } catch (error) {
    throw new ArgumentError(option, 'a file that can be read', `${path} (${(error as NodeJS.ErrnoException).code})`);
  }
  try {
    const { size } = await file.stat();
    return /\.npy$/i.test(path) ? await loadNpy(file, size, path) : await loadSafetensor(file, size, path, name);
  } finally {
    await file.close();
  }
}

async function loadNpy(file: FileHandle, size: number, path: string): Promise<HostTensor> {
  const header = parseNpyHeader(await bytesAt(file, 0, Math.min(size, NPY_HEAD)), size, path);
  return decodeNpy(header, await bytesAt(file, header.offset, size), path);
}

async function loadSafetensor(file: FileHandle, size: number, path: string, name?: string): Promise<HostTensor> {
  const length = safetensorsHeaderBytes(await bytesAt(file, 0, Math.min(8, size)), size, path);
  const header = parseSafetensorsHeader(await bytesAt(file, 0, length), size, path);
  const only = header.entries.size === 1 ? [...header.entries.keys()][0] : undefined;
  const entry = findEntry(header, name ?? only ?? '(no name)', path);
  return decodeEntry(entry, await bytesAt(file, entry.start, entry.end), path);
}

/** Bytes start to end of a file, both inside it, in memory of their own. */
async function bytesAt(file: FileHandle, start: number, end: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(end - start);
  let done = 0;
  while (done < bytes.length) {
    const { bytesRead } = await file.read(bytes, done, Math.min(bytes.length - done, 1 << 30), start + done);
    if (bytesRead === 0)
      throw new ArgumentError('file', `${end} bytes`, `${start + done} (it shrank while being read)`);
    done += bytesRead;
  }
  return bytes;
}

/** A result and where it goes. */
export interface Saved {
  readonly option: string;
  readonly spec: string;
  readonly tensor: HostTensor;
}

/** Checks targets before the work is done, so that a typing error costs no computation. @throws ArgumentError */
export async function checkTargets(specs: readonly Pick<Saved, 'option' | 'spec'>[]): Promise<void> {
  for (const { option, spec } of specs) {
    const { path } = parsePlace(option, spec);
    const folder = path.replace(/[^/\\]*$/, '') || '.';
    const found = await stat(folder).catch(() => null);
    if (found === null || !found.isDirectory()) throw new ArgumentError(option, 'a file in a folder that exists', path);
  }
}

/** Writes results; those for one .safetensors file together. A file appears whole or not at all. */
export async function saveTensors(results: readonly Saved[]): Promise<void> {
  const grouped = new Map<string, Map<string, HostTensor>>();
  for (const { option, spec, tensor: t } of results) {
    const { path, name } = parsePlace(option, spec);
    if (/\.npy$/i.test(path)) await replace(path, formatNpy(t));
    else {
      const group = grouped.get(path) ?? new Map<string, HostTensor>();
      group.set(name ?? option.replace(/^-*/, ''), t);
      grouped.set(path, group);
    }
  }
  for (const [path, group] of grouped) await replace(path, formatSafetensors(group));
}

async function replace(path: string, bytes: Uint8Array): Promise<void> {
  const draft = `${path}.${process.pid}.part`;
  try {
    await writeFile(draft, bytes);
    await rename(draft, path);
  } catch (error) {
    await rm(draft, { force: true });
    throw error;
  }
}

/** Floats in another float type (a copy); what has it already, and integers, as they are. */
export function converted(t: HostTensor, dtype: FloatDType): HostTensor {
  return t.dtype === dtype || !isFloat(t.dtype) || !isFloat(dtype) ? t : cast(t, dtype);
}
