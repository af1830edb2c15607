/** Compiled code for one step, and how a run's operands become the arguments of its launches. */
import type { Config, Operands, Program, RunOptions } from '../../engine/contract.ts';
import type { Problem } from '../../problem/problem.ts';
import { Launch } from './driver/launch.ts';
import type { CudaEngine } from './engine.ts';
import type { CudaKernel } from './kernel.ts';
import { specOf } from './kernels/spec.ts';
import { addressOn } from './tensor.ts';

const OPTIONAL = ['sink', 'dOut', 'dLse', 'dq', 'dk', 'dv', 'dSink'] as const;

export class CudaProgram implements Program {
  readonly key: string;
  private readonly engine: CudaEngine;
  private readonly kernel: CudaKernel;
  private readonly config: Config;
  private readonly launches: readonly Launch[];

  constructor(engine: CudaEngine, kernel: CudaKernel, key: string, config: Config, problem: Problem) {
    this.engine = engine;
    this.kernel = kernel;
    this.key = key;
    this.config = config;
    this.launches = kernel
      .kernels(problem, config)
      .map((text) => new Launch(engine.device.driver, engine.modules.load(text)));
  }

  /** Queues the launches; resolves at once. */
  async run(problem: Problem, operands: Operands, options: RunOptions = {}): Promise<void> {
    const { engine } = this;
    engine.alive();
    options.signal?.throwIfAborted();
    if (problem.B === 0 || problem.Hq === 0) return;
    engine.device.use();
    const held: number[] = [];
    try {
      this.kernel.launch({
        problem,
        config: this.config,
        caps: engine.caps,
        launches: this.launches,
        stream: engine.stream,
        tables: engine.tables,
        addresses: this.addresses(problem, operands),
        scratch: (bytes) => {
          const address = engine.pool.allocate(bytes);
          held.push(address);
          return address;
        },
        clear: (address, bytes) => {
          if (bytes === 0) return;
          const status = engine.device.driver.cuMemsetD8Async(address, 0, bytes, engine.stream.handle);
          engine.device.check('clear', status);
        },
      });
    } finally {
      // The next user of this memory is queued behind this run.
      for (const address of held) engine.pool.release(address);
    }
    options.onProgress?.(1);
  }

  private addresses(problem: Problem, operands: Operands): Record<string, number> {
    const { engine } = this;
    const found: Record<string, number> = {
      q: addressOn(engine, 'q', operands.q),
      k: addressOn(engine, 'k', operands.k),
      v: addressOn(engine, 'v', operands.v),
      out: addressOn(engine, 'out', operands.out),
      lse: addressOn(engine, 'lse', operands.lse),
      sequences: specOf(problem).dense ? 0 : engine.tables.sequences(problem),
      pages: engine.tables.pages(problem),
    };
    for (const name of OPTIONAL) {
      const t = operands[name];
      if (t !== null && t !== undefined) found[name] = addressOn(engine, name, t);
    }
    operands.sides.forEach((t, i) => {
      found[`side${i}`] = addressOn(engine, `sides[${i}]`, t);
    });
    operands.dSides?.forEach((t, i) => {
      if (t !== null) found[`dSide${i}`] = addressOn(engine, `dSides[${i}]`, t);
    });
    return found;
  }
}
