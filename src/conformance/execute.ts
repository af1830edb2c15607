/** Runs one case on one engine, with poison where results go and a sentinel where nothing may be written. */
import { type FloatDType, fromFloat64, toFloat64 } from '../core/dtype.ts';
import { type HostTensor, sizeOf, tensor } from '../core/tensor.ts';
import type { Engine, EngineTensor, Operands, Pass, Step } from '../engine/contract.ts';
import type { Problem } from '../problem/problem.ts';
import type { Inputs, Output } from './spec.ts';

export type Outputs = { readonly [P in Pass]: ReadonlyMap<string, Output> };
export type Results = ReadonlyMap<string, HostTensor>;

/** An element that no result equals by accident, exact in every float type. */
const SENTINEL = -1536;

/** What an output holds before a run: NaN where results must come, the sentinel elsewhere. */
function poison({ dtype, shape, covered }: Output): HostTensor {
  const values = new Float64Array(covered.length);
  for (let i = 0; i < values.length; i++) values[i] = covered[i] === 1 ? Number.NaN : SENTINEL;
  return tensor(fromFloat64(dtype as FloatDType, values), shape, dtype);
}

/** The operands of a case on an engine, until `dispose`. */
export class Run {
  readonly #engine: Engine;
  readonly #problem: Problem;
  readonly #outputs: Outputs;
  readonly #operands: Operands;
  readonly #live: EngineTensor[] = [];
  readonly #targets = new Map<string, EngineTensor>();

  constructor(engine: Engine, problem: Problem, inputs: Inputs, outputs: Outputs) {
    this.#engine = engine;
    this.#problem = problem;
    this.#outputs = outputs;
    try {
      this.#operands = this.#allocate(inputs);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  #allocate(inputs: Inputs): Operands {
    const keep = (t: EngineTensor): EngineTensor => {
      this.#live.push(t);
      return t;
    };
    const upload = (t: HostTensor): EngineTensor => keep(this.#engine.upload(t));
    const maybe = (t: HostTensor | null): EngineTensor | null => t && upload(t);
    for (const [name, output] of [...this.#outputs.forward, ...this.#outputs.backward])
      this.#targets.set(name, upload(poison(output)));
    const target = (name: string): EngineTensor | null => this.#targets.get(name) ?? null;
    const forward: Operands = {
      q: upload(inputs.q),
      k: upload(inputs.k),
      v: upload(inputs.v),
      out: this.#targets.get('out')!,
      lse: this.#targets.get('lse')!,
      sides: inputs.sides.map(upload),
      sink: maybe(inputs.sink),
    };
    if (inputs.dOut === null) return forward;
    return {
      ...forward,
      dOut: upload(inputs.dOut),
      dLse: maybe(inputs.dLse),
      dq: target('dq'),
      dk: target('dk'),
      dv: target('dv'),
      dSides: this.#problem.sides.map((_, i) => target(`dSide${i}`)),
      dSink: target('dSink'),
    };
  }

  /** Poisons the outputs of the pass, runs it, and reads them. Backward uses what forward left behind. */
  async pass(step: Step): Promise<{ results: Results; seconds: number }> {
    for (const [name, output] of this.#outputs[step.pass]) this.#engine.write(this.#targets.get(name)!, poison(output));
    const program = await this.#engine.prepare(this.#problem, step);
    await this.#engine.synchronize();
    const start = performance.now();
    await program.run(this.#problem, this.#operands);
    await this.#engine.synchronize();
    const seconds = (performance.now() - start) / 1000;
    const results = new Map<string, HostTensor>();
    for (const name of this.#outputs[step.pass].keys()) results.set(name, await this.#targets.get(name)!.read());
    return { results, seconds };
  }

  dispose(): void {
    for (const t of this.#live.splice(0)) t.dispose();
  }
}

/** What was written where no result belongs, or null. */
export function checkUntouched(name: string, { covered }: Output, got: HostTensor): string | null {
  const values = toFloat64(got.dtype, got.data);
  const empty = name === 'lse' ? Number.NEGATIVE_INFINITY : 0;
  const at = values.findIndex((x, i) => covered[i] === 0 && x !== SENTINEL && x !== empty);
  return at < 0
    ? null
    : `${name}: element ${at} is a guard or belongs to no sequence, and was overwritten with ${values[at]}`;
}

/** Where two runs differ in any bit, or null. */
export function checkSameBits(first: Results, second: Results): string | null {
  for (const [name, t] of first) {
    const a = bytes(t);
    const b = bytes(second.get(name)!);
    const at = a.findIndex((byte, i) => byte !== b[i]);
    if (at >= 0) return `${name}: two runs differ at byte ${at} of ${sizeOf(t.shape)} elements`;
  }
  return null;
}

const bytes = ({ data }: HostTensor): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
