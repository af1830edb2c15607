/** Who is timed: our kernels in this process, other libraries in processes of their own, one at a time on one GPU, in turns. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { Pass } from '../../src/engine/contract.ts';
import { Event } from '../../src/engines/cuda/driver/stream.ts';
import type { CudaEngine } from '../../src/engines/cuda/index.ts';
import { median } from './setup.ts';

/** Milliseconds of `reps` repetitions. */
export interface Contender {
  readonly who: string;
  time(reps: number): Promise<number[]>;
}

export interface Timing {
  /** Milliseconds. */
  readonly median: number;
  readonly best: number;
  readonly reps: number;
  /** Why there are no times. */
  readonly error?: string;
}

/** What one round of one contender should take at least, and at most this many repetitions. */
const ROUND_MS = 12;
const MOST = 20;

/** Times by contender. Every round gives each a turn, and starts with another one. */
export async function inTurns(contenders: readonly Contender[], rounds: number): Promise<Map<string, Timing>> {
  const times = new Map<string, number[]>(contenders.map(({ who }) => [who, []]));
  const errors = new Map<string, string>();
  const reps = new Map<string, number>();
  for (let round = 0; round < rounds; round++)
    for (const i of contenders.keys()) {
      const { who, time } = contenders[(i + round) % contenders.length];
      if (errors.has(who)) continue;
      try {
        if (!reps.has(who)) {
          const [first] = await time(1);
          reps.set(who, Math.max(2, Math.min(MOST, Math.round(ROUND_MS / first))));
        }
        times.get(who)?.push(...(await time(reps.get(who) ?? 1)));
      } catch (error) {
        errors.set(who, error instanceof Error ? error.message : String(error));
      }
    }
  return new Map(
    [...times].map(([who, ms]): [string, Timing] => {
      const error = errors.get(who);
      if (error !== undefined || ms.length === 0)
        return [who, { median: Number.NaN, best: Number.NaN, reps: 0, error: error ?? 'not timed' }];
      return [who, { median: median(ms), best: Math.min(...ms), reps: ms.length }];
    }),
  );
}

const FLUSH_BYTES = 256 << 20;

/** Device time by events, the L2 cache flushed before every repetition. */
export class Stopwatch {
  private readonly engine: CudaEngine;
  private readonly flush: number;
  private readonly events: [Event, Event][] = [];

  constructor(engine: CudaEngine) {
    this.engine = engine;
    this.flush = engine.allocate('u8', [FLUSH_BYTES]).address;
  }

  async time(run: () => Promise<void>, reps: number): Promise<number[]> {
    const { device, stream } = this.engine;
    while (this.events.length < reps) this.events.push([new Event(device, true), new Event(device, true)]);
    for (let i = 0; i < reps; i++) {
      const [start, end] = this.events[i];
      device.use();
      device.check('flush', device.driver.cuMemsetD8Async(this.flush, 0, FLUSH_BYTES, stream.handle));
      start.record(stream);
      await run();
      end.record(stream);
    }
    await this.engine.synchronize();
    return this.events.slice(0, reps).map(([start, end]) => start.millisecondsTo(end));
  }

  /** A contender whose first turn warms up. */
  contender(who: string, run: () => Promise<void>): Contender {
    let warm = false;
    return {
      who,
      time: async (reps) => {
        if (!warm) await this.time(run, 2);
        warm = true;
        return this.time(run, reps);
      },
    };
  }
}

/** What peers.py understands. */
export interface Ask {
  readonly do: 'sdpa' | 'flex' | 'copy' | 'matmul' | 'hello';
  readonly be?: 'fa2' | 'cudnn' | 'efficient' | 'math';
  readonly case?: string;
  readonly pass?: Pass;
  readonly q?: readonly number[];
  readonly k?: readonly number[];
  readonly causal?: boolean;
  readonly dtype?: 'bf16' | 'f32';
  readonly p?: number;
}

/** A process of peers.py. Its questions are answered one after the other. */
export class Peers {
  private readonly child: ChildProcess;
  private readonly waiting: { resolve(line: string): void; reject(error: Error): void }[] = [];
  private errors = '';
  private over: Error | null = null;

  constructor() {
    const script = fileURLToPath(new URL('./peers.py', import.meta.url));
    this.child = spawn('python3', [script], { stdio: ['pipe', 'pipe', 'pipe'] });
    createInterface({ input: this.child.stdout! }).on('line', (line) => {
      if (line.startsWith('{')) this.waiting.shift()?.resolve(line);
    });
    this.child.stderr?.on('data', (part) => {
      this.errors = `${this.errors}${part}`.slice(-2000);
    });
    const ended = (why: unknown): void => {
      this.over ??= new Error(`peers.py ended (${why}): ${this.errors}`);
      for (const { reject } of this.waiting.splice(0)) reject(this.over);
    };
    this.child.on('error', ended);
    this.child.on('close', ended);
    this.child.stdin?.on('error', ended);
  }

  /** @throws Error when the peer cannot do it, or takes longer than `seconds`. */
  async ask(what: Ask & { readonly reps?: number }, seconds = 60): Promise<Record<string, unknown> & { ms: number[] }> {
    if (this.over !== null) throw this.over;
    const line = await new Promise<string>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.close();
        reject(new Error(`no answer in ${seconds} s`));
      }, seconds * 1000);
      const done = (): void => clearTimeout(timer);
      this.waiting.push({
        resolve: (text) => {
          done();
          resolve(text);
        },
        reject: (error) => {
          done();
          reject(error);
        },
      });
      this.child.stdin?.write(`${JSON.stringify(what)}\n`);
    });
    const answer = JSON.parse(line) as { error?: string; ms: number[] };
    if (answer.error !== undefined) throw new Error(answer.error);
    return answer;
  }

  contender(who: string, what: Ask): Contender {
    return { who, time: async (reps) => (await this.ask({ ...what, reps })).ms };
  }

  close(): void {
    this.child.kill();
  }
}
