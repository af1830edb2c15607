/**
 * Runs launches one after the other: long ones on the pool, so that the caller's event loop stays free; short ones, and
 * all where there is no pool, on the calling thread.
 */

import { DeviceError, DisposedError } from '../../core/errors.ts';
import { alignTo } from '../../core/math.ts';
import type { RunOptions } from '../../engine/contract.ts';
import { type WasmHeap, Workspace } from './heap.ts';
import {
  CALLS,
  callsOf,
  controlWords,
  type Entry,
  exportsOf,
  type Job,
  STOP,
  STOP_ABORT,
  work,
  writeJob,
} from './job.ts';
import type { Heap, Launch } from './kernel.ts';
import { bindRoutines, type NativeHost, type PlacedRoutines } from './native/host.ts';
import type { Pool } from './workers.ts';

/** Predicted single-thread seconds from which waking the workers (20 to 60 us) pays. */
const POOL_FROM = 150e-6;
/** Milliseconds of work on the calling thread between two turns of its event loop. */
const TURN = 15;
/** Programs kept compiled; the one used longest ago goes first. */
const PROGRAMS = 256;

/** What compiling gives: see `Compiled` in kernel.ts. */
export interface Built {
  readonly module: WebAssembly.Module;
  readonly scratch: number;
  readonly routines: PlacedRoutines;
}

/** A compiled module with its instance on the calling thread. */
export interface Loaded {
  readonly id: number;
  readonly entries: readonly Entry[];
  /** Index of an exported function. */
  readonly indexOf: ReadonlyMap<string, number>;
  /** Scratch bytes a thread. */
  readonly scratch: number;
}

export class Runtime {
  readonly heap: WasmHeap;
  readonly native: NativeHost | null;
  readonly #pool: Pool | null;
  readonly #programs = new Map<string, Promise<Loaded>>();
  readonly #control = new Int32Array(controlWords(0));
  #ids = 0;
  /** Resolves when the last queued task has ended; null when nothing runs. */
  #tail: Promise<void> | null = null;
  #closed = false;

  constructor(heap: WasmHeap, pool: Pool | null, native: NativeHost | null) {
    this.heap = heap;
    this.native = native;
    this.#pool = pool;
  }

  get busy(): boolean {
    return this.#tail !== null;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** The program of a key, compiled by `compile` when it is not known yet. */
  program(key: string, compile: () => Promise<Built>): Promise<Loaded> {
    const known = this.#programs.get(key);
    const found = known ?? this.#load(compile);
    // Insertion order is order of use.
    this.#programs.delete(key);
    this.#programs.set(key, found);
    if (known === undefined) {
      found.catch(() => this.#programs.delete(key));
      this.#evict();
    }
    return found;
  }

  /** Runs `task` after everything queued before it; at once when nothing is. */
  async turn<T>(task: () => T | Promise<T>): Promise<T> {
    const before = this.#tail;
    let end = (): void => {};
    const tail = new Promise<void>((resolve) => {
      end = resolve;
    });
    this.#tail = tail;
    try {
      if (before !== null) await before;
      return await task();
    } finally {
      if (this.#tail === tail) this.#tail = null;
      end();
    }
  }

  /**
   * Prepares a launch and runs it. Its workspace is freed whatever happens.
   *
   * @param seconds predicted time on one thread.
   * @throws DeviceError, MemoryError, DisposedError when the engine is closed, or the signal's reason.
   */
  async run(program: Loaded, launch: (heap: Heap) => Launch, seconds: number, options: RunOptions): Promise<void> {
    this.check();
    options.signal?.throwIfAborted();
    const workspace = new Workspace(this.heap);
    try {
      const { params, phases } = launch(workspace);
      const items = phases.reduce((most, phase) => Math.max(most, phase.items), 0);
      const pool = seconds > POOL_FROM ? this.#pool : null;
      const team = pool === null ? 1 : Math.max(1, Math.min(pool.size, items));
      const scratchBytes = alignTo(program.scratch, 64);
      const scratch = workspace.allocate(scratchBytes * team);
      const job: Job = {
        program: program.id,
        team,
        params,
        scratch,
        scratchBytes,
        phases: phases.map(indexed(program)),
      };
      const total = callsOf(job);
      const watch = options.onProgress && ((calls: number): void => options.onProgress?.(calls / total));
      const whole = pool
        ? await pool.run(job, options.signal, watch)
        : await this.#runHere(job, program.entries, options.signal, watch);
      if (!whole) this.check();
      if (!whole) options.signal?.throwIfAborted();
      options.onProgress?.(1);
    } finally {
      workspace.release();
    }
  }

  /** @throws DisposedError once the engine is closed. */
  check(): void {
    if (this.#closed) throw new DisposedError('a wasm engine');
  }

  /** Stops what runs, waits for it, and ends the workers. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#control[STOP] = STOP_ABORT;
    this.#pool?.abort();
    while (this.#tail !== null) await this.#tail;
    await this.#pool?.close();
    this.native?.close();
    this.#programs.clear();
  }

  async #load(compile: () => Promise<Built>): Promise<Loaded> {
    const { module, scratch, routines } = await compile();
    this.check();
    const entries = exportsOf(module, this.heap.memory, bindRoutines(this.native, routines, this.heap.memory));
    const id = this.#ids++;
    this.#pool?.load(id, module, routines);
    return {
      id,
      entries: [...entries.values()],
      indexOf: new Map([...entries.keys()].map((name, i) => [name, i])),
      scratch,
    };
  }

  #evict(): void {
    for (const [key, program] of this.#programs) {
      if (this.#programs.size <= PROGRAMS) return;
      this.#programs.delete(key);
      program.then(
        ({ id }) => this.turn(() => this.#pool?.drop(id)),
        () => undefined,
      );
    }
  }

  /** Resolves to false when it stopped early. */
  async #runHere(
    job: Job,
    entries: readonly Entry[],
    signal: AbortSignal | undefined,
    watch: ((calls: number) => void) | undefined,
  ): Promise<boolean> {
    const control = this.#control;
    writeJob(control, job);
    const share = work(control, entries, 0);
    let last = performance.now();
    let turn = share.next();
    while (!turn.done) {
      if (performance.now() - last > TURN) {
        watch?.(control[CALLS]);
        await eventLoop();
        if (signal?.aborted || this.#closed) control[STOP] = STOP_ABORT;
        last = performance.now();
      }
      turn = share.next();
    }
    if (turn.value !== undefined)
      throw new DeviceError('wasm', `a kernel stopped: ${String(turn.value)}`, { cause: turn.value });
    return control[STOP] === 0;
  }
}

/** @throws DeviceError when the module lacks the phase. */
const indexed =
  (program: Loaded) =>
  ({ entry, items, steps }: Launch['phases'][number]): Job['phases'][number] => {
    const index = program.indexOf.get(entry);
    if (index === undefined) throw new DeviceError('wasm', `the program has no phase '${entry}'`);
    return { entry: index, items, steps };
  };

/** Lets everything that waits in the event loop have its turn: faster than setTimeout, which browsers delay by 4 ms. */
const eventLoop: () => Promise<void> =
  typeof setImmediate === 'function'
    ? () => new Promise((resolve) => setImmediate(resolve))
    : () =>
        new Promise((resolve) => {
          const { port1, port2 } = new MessageChannel();
          port1.onmessage = () => {
            port1.close();
            resolve();
          };
          port2.postMessage(0);
        });
