/**
 * The thread of a worker. It sleeps on its word of the control block, not in its event loop, so that waking it costs
 * microseconds; modules come as messages, which it reads when the block says that there is mail.
 */
import { nodeThreads } from './host.ts';
import { type Entry, exportsOf, leave, MAIL, programOf, wakeWord, work } from './job.ts';
import { bindRoutines, type NativeHost, openNative, type PlacedRoutines } from './native/host.ts';

/** What the pool tells a worker. */
export type Letter =
  | {
      readonly kind: 'start';
      readonly worker: number;
      readonly memory: WebAssembly.Memory;
      readonly control: Int32Array;
      /** Whether modules may import routines in machine code. */
      readonly native: boolean;
    }
  | {
      readonly kind: 'load';
      readonly program: number;
      readonly module: WebAssembly.Module;
      readonly routines: PlacedRoutines;
    }
  | { readonly kind: 'drop'; readonly program: number }
  /** Every letter up to number `mail` was posted: sleep and work until there is a later one. */
  | { readonly kind: 'park'; readonly mail: number };

/** What a worker tells the pool. `failed` comes before the `done` of the last thread of the job. */
export type Answer =
  | { readonly kind: 'ready' }
  | { readonly kind: 'loaded' }
  | { readonly kind: 'failed'; readonly message: string }
  | { readonly kind: 'done' };

interface State {
  readonly worker: number;
  readonly memory: WebAssembly.Memory;
  readonly control: Int32Array;
  readonly programs: Map<number, Entry[]>;
  readonly native: NativeHost | null;
  jobs: number;
}

/** Works until there is mail beyond number `mail`. */
function park(state: State, mail: number, answer: (answer: Answer) => void): void {
  const { control } = state;
  const word = wakeWord(state.worker);
  for (;;) {
    // In this order: whoever sees a job also sees the number of every letter that was posted before it.
    const jobs = Atomics.load(control, word);
    if (Atomics.load(control, MAIL) !== mail) return;
    if (jobs === state.jobs) {
      Atomics.wait(control, word, jobs);
      continue;
    }
    state.jobs++;
    const entries = state.programs.get(programOf(control)) ?? [];
    const share = work(control, entries, state.worker);
    let turn = share.next();
    while (!turn.done) turn = share.next();
    if (turn.value !== undefined) answer({ kind: 'failed', message: String(turn.value) });
    if (leave(control)) answer({ kind: 'done' });
  }
}

function reader(answer: (answer: Answer) => void): (letter: Letter) => void {
  let state: State | null = null;
  const start = async (letter: Extract<Letter, { kind: 'start' }>): Promise<void> => {
    const native = letter.native ? await openNative() : null;
    if (typeof native === 'string') throw new Error(native);
    state = { ...letter, native, programs: new Map(), jobs: 0 };
    answer({ kind: 'ready' });
  };
  return (letter) => {
    if (letter.kind === 'start') void start(letter);
    else if (state !== null) {
      if (letter.kind === 'load') {
        const { program, module, routines } = letter;
        const imports = bindRoutines(state.native, routines, state.memory);
        state.programs.set(program, [...exportsOf(module, state.memory, imports).values()]);
        answer({ kind: 'loaded' });
      } else if (letter.kind === 'drop') state.programs.delete(letter.program);
      else park(state, letter.mail, answer);
    }
  };
}

const port = nodeThreads()?.parentPort;
if (port) port.on('message', reader(port.postMessage.bind(port)));
else {
  const read = reader((answer) => globalThis.postMessage(answer));
  globalThis.addEventListener('message', (event: MessageEvent<Letter>) => read(event.data));
}
