/** Keeps a long computation on the main thread interruptible: abort, progress and a turn for everybody else. */
import type { RunOptions } from '../../engine/contract.ts';

export interface HostRunOptions extends RunOptions {
  /** Aborted when the engine closes. */
  readonly closing: AbortSignal;
}

/** Milliseconds of work between two turns of the event loop; an abort is seen after at most this and one row. */
const TURN = 25;

const nextTurn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));

export class Pace {
  readonly #options: HostRunOptions;
  readonly #total: number;
  #done = 0;
  #last = performance.now();

  /** `total` rows will be reported through `row`. */
  constructor(total: number, options: HostRunOptions) {
    this.#total = total;
    this.#options = options;
    this.#check();
  }

  /** Counts a finished row; the promise is to be awaited when there is one. */
  row(): Promise<void> | undefined {
    this.#done++;
    if (performance.now() - this.#last < TURN) return undefined;
    return this.#turn();
  }

  async #turn(): Promise<void> {
    this.#options.onProgress?.(this.#done / this.#total);
    await nextTurn();
    this.#check();
    this.#last = performance.now();
  }

  #check(): void {
    this.#options.closing.throwIfAborted();
    this.#options.signal?.throwIfAborted();
  }

  finish(): void {
    this.#options.onProgress?.(1);
  }
}
