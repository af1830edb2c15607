/**
 * Puts machine code into executable memory and makes it callable, through the optional package koffi. Pages are written
 * first and made executable afterwards, never both. Linux on x86-64 only: other systems differ in calling convention or in
 * how memory becomes executable, and the WASM code serves them.
 */
import { optionalPackage } from '../../../core/optional.ts';
import { nodeFs } from '../host.ts';
import { emitRoutine, type RoutineKind, routineName } from './routines.ts';

/** `base` and `descriptor` as in gemm.ts and softmax.ts; both in bytes. */
export type RoutineFunction = (base: bigint, descriptor: number) => void;

/** What of koffi is used here. */
interface Koffi {
  load(path: string): { func(prototype: string): (...args: unknown[]) => unknown };
  proto(definition: string): unknown;
  decode(pointer: bigint, type: unknown): RoutineFunction;
  view(pointer: bigint, length: number): ArrayBuffer;
  address(value: ArrayBufferView): bigint;
}

const READ_WRITE = 3;
const READ_EXECUTE = 5;
const PRIVATE_ANONYMOUS = 0x22;
const PAGE = 4096;

export class NativeHost {
  /** Bytes of a float vector: 64 with AVX-512, 32 with AVX2 and FMA. */
  readonly width: 32 | 64;
  private readonly koffi: Koffi;
  private readonly prototype: unknown;
  private readonly map: (...args: unknown[]) => unknown;
  private readonly protect: (...args: unknown[]) => unknown;
  private readonly unmap: (...args: unknown[]) => unknown;
  private readonly pages: { readonly at: bigint; readonly bytes: number }[] = [];
  private readonly placed = new Map<string, bigint>();

  constructor(koffi: Koffi, width: 32 | 64) {
    this.koffi = koffi;
    this.width = width;
    this.prototype = koffi.proto('void (void *, int64_t)');
    const libc = koffi.load('libc.so.6');
    this.map = libc.func('void *mmap(void *, size_t, int, int, int, int64_t)');
    this.protect = libc.func('int mprotect(void *, size_t, int)');
    this.unmap = libc.func('int munmap(void *, size_t)');
  }

  /** Address of the routine for `kind`, emitted once. @throws Error when the system refuses executable memory. */
  place(kind: RoutineKind): bigint {
    const key = routineName(kind);
    const found = this.placed.get(key);
    if (found !== undefined) return found;
    const code = emitRoutine(this.width, kind);
    const bytes = Math.ceil(code.length / PAGE) * PAGE;
    const at = this.map(null, bytes, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0);
    if (typeof at !== 'bigint' || at === 0xffff_ffff_ffff_ffffn) throw new Error('mmap gave no memory');
    new Uint8Array(this.koffi.view(at, bytes)).set(code);
    if (this.protect(at, bytes, READ_EXECUTE) !== 0) throw new Error('mprotect refused executable memory');
    this.pages.push({ at, bytes });
    this.placed.set(key, at);
    return at;
  }

  /** A function of this thread for code placed by any thread of the process. */
  bind(at: bigint): RoutineFunction {
    return this.koffi.decode(at, this.prototype);
  }

  /** Where byte 0 of a WebAssembly memory is. It stays there when the memory grows: V8 reserves the address range. */
  baseOf(memory: WebAssembly.Memory): bigint {
    return this.koffi.address(new Uint8Array(memory.buffer));
  }

  /** Frees the code; nothing bound may be called afterwards. */
  close(): void {
    for (const { at, bytes } of this.pages) this.unmap(at, bytes);
    this.pages.length = 0;
    this.placed.clear();
  }
}

/** Addresses of the routines a module imports, by import name. */
export type PlacedRoutines = readonly (readonly [name: string, at: bigint])[];

/** The imports of a module on this thread. */
export function bindRoutines(
  host: NativeHost | null,
  routines: PlacedRoutines,
  memory: WebAssembly.Memory,
): Record<string, (descriptor: number) => void> {
  if (host === null || routines.length === 0) return {};
  const base = host.baseOf(memory);
  return Object.fromEntries(
    routines.map(([name, at]) => {
      const call = host.bind(at);
      return [name, (descriptor: number) => call(base, descriptor >>> 0)];
    }),
  );
}

/** Opens the host, or says in a sentence why it cannot be. */
export async function openNative(): Promise<NativeHost | string> {
  const { process } = globalThis as { process?: { platform?: string; arch?: string } };
  const fs = nodeFs();
  if (process?.platform !== 'linux' || process.arch !== 'x64' || fs === undefined)
    return 'machine code is for Linux on x86-64';
  try {
    const flags = new Set(/^flags\s*: (.*)$/m.exec(fs.readFileSync('/proc/cpuinfo', 'utf8'))?.[1].split(' '));
    if (!flags.has('avx2') || !flags.has('fma')) return 'the processor has no AVX2 with FMA';
    const module = (await optionalPackage('koffi')) as { default: Koffi };
    return new NativeHost(module.default, flags.has('avx512f') ? 64 : 32);
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    return code === 'ERR_MODULE_NOT_FOUND' ? 'the optional package koffi is not installed' : message;
  }
}
