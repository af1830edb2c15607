/**
 * A job as words of a control block that all threads of a team share, and the loop by which each of them takes work from
 * it. On the main thread alone the block is an ordinary Int32Array. The hot words have cache lines of their own.
 */

/** 0 while the job goes on, else a reason to stop. */
export const STOP = 0;
export const STOP_ABORT = 1;
export const STOP_TRAP = 2;
/** The next item of the phase. */
const NEXT = 16;
/** Threads that reached the barrier, and how many barriers were passed. */
const ARRIVED = 32;
const PASSED = 48;
/** Calls made so far in all phases, for progress. */
export const CALLS = 64;
/** Threads that left the job. */
const LEFT = 80;
/** Number of the newest letter: a worker that has not read it goes to its message queue before it works. */
export const MAIL = 96;
/** The job: program, threads, params, scratch of thread 0, scratch bytes a thread, phases, then 3 words a phase. */
const JOB = 112;
const PHASE = JOB + 6;
const MAX_PHASES = 32;
/** A word a worker that counts the jobs given to it; it sleeps on it. */
const WAKE = PHASE + 3 * MAX_PHASES;

export const wakeWord = (worker: number): number => WAKE + 16 * (worker + 1);
export const controlWords = (workers: number): number => wakeWord(workers);

/** An exported phase: see kernel.ts. */
export type Entry = (params: number, item: number, step: number, scratch: number) => void;

/** Functions a module imports beside the memory. */
export type Imports = Readonly<Record<string, (descriptor: number) => void>>;

/** The functions a module exports, in its own order. */
export function exportsOf(
  module: WebAssembly.Module,
  memory: WebAssembly.Memory,
  imports: Imports = {},
): Map<string, Entry> {
  const { exports } = new WebAssembly.Instance(module, { env: { memory, ...imports } });
  return new Map(Object.entries(exports).filter((e): e is [string, Entry] => typeof e[1] === 'function'));
}

export interface Job {
  /** Id under which the program's module was loaded. */
  readonly program: number;
  /** Threads that take part. */
  readonly team: number;
  /** Byte addresses: parameters; scratch of thread 0 and the distance to the next thread's. */
  readonly params: number;
  readonly scratch: number;
  readonly scratchBytes: number;
  /** `entry` is an index into the module's exported functions. */
  readonly phases: readonly { readonly entry: number; readonly items: number; readonly steps: number }[];
}

/** Calls of all phases. */
export const callsOf = (job: Job): number => job.phases.reduce((sum, { items, steps }) => sum + items * steps, 0);

/** @throws RangeError when the job has more phases than the block has room for. */
export function writeJob(control: Int32Array, job: Job): void {
  if (job.phases.length > MAX_PHASES)
    throw new RangeError(`a job of ${job.phases.length} phases, at most ${MAX_PHASES}`);
  for (const word of [STOP, NEXT, ARRIVED, CALLS, LEFT]) Atomics.store(control, word, 0);
  control.set([job.program, job.team, job.params, job.scratch, job.scratchBytes, job.phases.length], JOB);
  job.phases.forEach(({ entry, items, steps }, i) => {
    control.set([entry, items, steps], PHASE + 3 * i);
  });
}

export const programOf = (control: Int32Array): number => control[JOB];

/**
 * One thread's share of the job in the block. Yields after every call, so that the main thread can let events through.
 * Returns what a call threw, if one did; the other threads then stop as well.
 */
export function* work(control: Int32Array, entries: readonly Entry[], thread: number): Generator<undefined, unknown> {
  const [, team, params, scratch, scratchBytes, phases] = control.subarray(JOB, PHASE);
  const own = scratch + thread * scratchBytes;
  let failure: unknown;
  for (let p = 0; p < phases; p++) {
    const [entry, items, steps] = control.subarray(PHASE + 3 * p, PHASE + 3 * p + 3);
    const call = entries[entry];
    for (;;) {
      const item = Atomics.add(control, NEXT, 1);
      if (item >= items) break;
      for (let step = 0; step < steps && Atomics.load(control, STOP) === 0; step++) {
        try {
          call(params, item, step, own);
        } catch (error) {
          failure = error;
          Atomics.store(control, STOP, STOP_TRAP);
        }
        Atomics.add(control, CALLS, 1);
        yield;
      }
    }
    if (p < phases - 1) meet(control, team);
  }
  return failure;
}

/** Counts a thread out of the job; true for the last one. */
export const leave = (control: Int32Array): boolean => Atomics.add(control, LEFT, 1) === control[JOB + 1] - 1;

/** Waits for the whole team; the last to come opens the next phase. */
function meet(control: Int32Array, team: number): void {
  const passed = Atomics.load(control, PASSED);
  if (Atomics.add(control, ARRIVED, 1) === team - 1) {
    Atomics.store(control, ARRIVED, 0);
    Atomics.store(control, NEXT, 0);
    Atomics.store(control, PASSED, passed + 1);
    if (team > 1) Atomics.notify(control, PASSED);
    return;
  }
  // Threads of a balanced phase end within microseconds of each other: look for a while before going to sleep.
  for (let i = 0; i < 2000; i++) if (Atomics.load(control, PASSED) !== passed) return;
  while (Atomics.load(control, PASSED) === passed) Atomics.wait(control, PASSED, passed);
}
