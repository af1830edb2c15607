/** The pool: worker threads on one shared memory, asleep between jobs. */
import { DeviceError, DisposedError } from '../../core/errors.ts';
import { nodeThreads } from './host.ts';
import { CALLS, controlWords, type Job, MAIL, STOP, STOP_ABORT, STOP_TRAP, wakeWord, writeJob } from './job.ts';
import type { PlacedRoutines } from './native/host.ts';
import { instantiating } from './quiet.ts';
import type { Answer, Letter } from './worker.ts';

/** A worker thread of Node or of the web, as the pool sees it. */
interface Thread {
  post(letter: Letter): void;
  /** While held, a Node process does not end. */
  hold(held: boolean): void;
  terminate(): Promise<unknown>;
}

interface Crew {
  readonly threads: readonly Thread[];
  readonly control: Int32Array;
  mail: number;
  jobs: Int32Array;
  /** Modules given to the workers, and how many times a worker said that it has one. */
  loads: number;
  loaded: number;
  /** Called when everybody has every module, or nobody will. */
  settle: (() => void) | null;
}

/** The job at hand: how to end it, and what is known so far. */
interface Waiter {
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
  left: boolean;
  failure: Error | null;
}

export class Pool {
  readonly size: number;
  readonly #memory: WebAssembly.Memory;
  readonly #native: boolean;
  readonly #modules = new Map<number, { readonly module: WebAssembly.Module; readonly routines: PlacedRoutines }>();
  /** Null after a death, until the next job. */
  #crew: Crew | null = null;
  #waiter: Waiter | null = null;
  #closed = false;

  private constructor(memory: WebAssembly.Memory, size: number, native: boolean) {
    this.#memory = memory;
    this.#native = native;
    this.size = size;
  }

  /** Starts `size` workers on a shared memory. @throws DeviceError when the host starts none. */
  static async open(memory: WebAssembly.Memory, size: number, native: boolean): Promise<Pool> {
    const pool = new Pool(memory, size, native);
    pool.#crew = await instantiating(pool.#muster());
    return pool;
  }

  /** Makes a module known to all workers under an id. */
  load(program: number, module: WebAssembly.Module, routines: PlacedRoutines): void {
    this.#modules.set(program, { module, routines });
    if (this.#crew !== null) give(this.#crew, { kind: 'load', program, module, routines });
  }

  drop(program: number): void {
    this.#modules.delete(program);
    if (this.#crew !== null) tell(this.#crew, { kind: 'drop', program });
  }

  /**
   * Runs a job; one at a time. `watch` gets the share of calls made now and then.
   *
   * @returns false when it stopped early because of `signal`.
   * @throws DeviceError when a call trapped or a worker died, and what `watch` throws. No thread touches the memory any more
   * then.
   */
  async run(job: Job, signal?: AbortSignal, watch?: (calls: number) => void): Promise<boolean> {
    this.#crew ??= await instantiating(this.#muster());
    const { control, threads, jobs } = this.#crew;
    writeJob(control, job);
    const abort = (): void => this.abort();
    const finished = new Promise<void>((resolve, reject) => {
      this.#waiter = { resolve, reject, left: false, failure: null };
    });
    const faults: unknown[] = [];
    const timer =
      watch &&
      setInterval(() => {
        try {
          watch(Atomics.load(control, CALLS));
        } catch (error) {
          faults.push(error);
          this.abort();
        }
      }, 50);
    signal?.addEventListener('abort', abort);
    threads[0].hold(true);
    try {
      for (let w = 0; w < job.team; w++) {
        Atomics.store(control, wakeWord(w), ++jobs[w]);
        Atomics.notify(control, wakeWord(w));
      }
      if (signal?.aborted) abort();
      await finished;
      if (faults.length > 0) throw faults[0];
      return Atomics.load(control, STOP) === 0;
    } finally {
      clearInterval(timer);
      signal?.removeEventListener('abort', abort);
      threads[0].hold(false);
      this.#waiter = null;
    }
  }

  /** Stops the job at hand after the calls that are being made. */
  abort(): void {
    if (this.#crew !== null) Atomics.compareExchange(this.#crew.control, STOP, 0, STOP_ABORT);
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#dismiss(new DisposedError('a wasm engine'));
  }

  async #muster(): Promise<Crew> {
    if (this.#closed) throw new DisposedError('a wasm engine');
    const control = new Int32Array(new SharedArrayBuffer(4 * controlWords(this.size)));
    const threads: Thread[] = [];
    const jobs = new Int32Array(this.size);
    const crew: Crew = { threads, control, mail: 0, jobs, loads: 0, loaded: 0, settle: null };
    try {
      const ready = Array.from({ length: this.size }, (_, worker) => {
        return new Promise<void>((resolve, reject) => {
          const thread = spawn(
            (answer) => {
              if (answer.kind === 'ready') resolve();
              else if (answer.kind === 'loaded') took(crew);
              else this.#hear(answer);
            },
            (cause) => {
              const error = new DeviceError('wasm', `worker ${worker} died: ${describe(cause)}`, { cause });
              reject(error);
              if (this.#crew === crew) void this.#dismiss(error);
            },
          );
          threads.push(thread);
          thread.post({ kind: 'start', worker, memory: this.#memory, control, native: this.#native });
        });
      });
      await Promise.all(ready);
    } catch (error) {
      await Promise.all(threads.map((t) => t.terminate()));
      throw error;
    }
    if (this.#closed) {
      await Promise.all(threads.map((t) => t.terminate()));
      throw new DisposedError('a wasm engine');
    }
    for (const thread of threads) thread.hold(false);
    for (const [program, loaded] of this.#modules) give(crew, { kind: 'load', program, ...loaded });
    return crew;
  }

  /** `done` of one worker may overtake `failed` of another. */
  #hear(answer: Answer): void {
    const waiter = this.#waiter;
    if (waiter === null || this.#crew === null) return;
    if (answer.kind === 'failed') waiter.failure = new DeviceError('wasm', `a kernel stopped: ${answer.message}`);
    else waiter.left = true;
    if (!waiter.left) return;
    if (waiter.failure !== null) waiter.reject(waiter.failure);
    else if (Atomics.load(this.#crew.control, STOP) !== STOP_TRAP) waiter.resolve();
  }

  /** Ends all workers, then fails the job at hand: nobody writes to the memory after that. */
  async #dismiss(reason: Error): Promise<void> {
    const crew = this.#crew;
    // The next crew may have a job before these threads have ended.
    const waiter = this.#waiter;
    this.#crew = null;
    if (crew === null) return;
    await Promise.all(crew.threads.map((t) => t.terminate()));
    crew.settle?.();
    waiter?.reject(reason);
  }
}

/**
 * Posts a letter to everybody, and the order to sleep again after it. The number is stored first: a worker that read the
 * order before the store would see another number, not go to sleep on its word, and be deaf to jobs.
 */
function tell(crew: Crew, letter: Letter): void {
  crew.mail++;
  Atomics.store(crew.control, MAIL, crew.mail);
  for (const thread of crew.threads) {
    thread.post(letter);
    thread.post({ kind: 'park', mail: crew.mail });
  }
}

/** Milliseconds between reminders: a worker may fall asleep between its look for mail and the first of them. */
const REMIND = 5;

/** Gives everybody a module, and announces that they instantiate it until all have said so. */
function give(crew: Crew, letter: Extract<Letter, { kind: 'load' }>): void {
  crew.loads++;
  tell(crew, letter);
  if (crew.settle !== null) return;
  const wake = (): void => {
    crew.threads.forEach((_, w) => {
      Atomics.notify(crew.control, wakeWord(w));
    });
  };
  wake();
  const reminders = setInterval(wake, REMIND);
  void instantiating(
    new Promise<void>((resolve) => {
      crew.settle = () => {
        clearInterval(reminders);
        crew.settle = null;
        resolve();
      };
    }),
  );
}

/** A worker has one more module. */
function took(crew: Crew): void {
  crew.loaded++;
  if (crew.loaded === crew.loads * crew.threads.length) crew.settle?.();
}

const describe = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause));

function spawn(hear: (answer: Answer) => void, died: (cause: unknown) => void): Thread {
  const node = nodeThreads();
  if (node === undefined) {
    // Spelled out, so that bundlers for browsers find the file.
    const worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module', name: 'tilewise' });
    worker.addEventListener('message', (event: MessageEvent<Answer>) => hear(event.data));
    worker.addEventListener('error', (event) => died(event.message || 'the worker script did not load'));
    return { post: (letter) => worker.postMessage(letter), hold: () => {}, terminate: async () => worker.terminate() };
  }
  // In a variable, so that bundlers do not try to resolve the URL.
  const here = import.meta.url;
  const file = here.endsWith('.ts') ? './worker.ts' : './worker.js';
  // Flags of the main thread such as --input-type would stop a worker from starting.
  const worker = new node.Worker(new URL(file, here), { execArgv: [], name: 'tilewise' });
  worker.on('message', hear);
  worker.on('error', died);
  worker.on('exit', (code) => died(`exit code ${code}`));
  return {
    post: (letter) => worker.postMessage(letter),
    hold: (held) => (held ? worker.ref() : worker.unref()),
    terminate: () => worker.terminate(),
  };
}
