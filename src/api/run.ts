/** The tensors of one run: what is uploaded for it, what it allocates, and what is freed when it ends, well or badly. */
import { allocate, type DType } from '../core/dtype.ts';
import { ArgumentError } from '../core/errors.ts';
import { type HostTensor, sameShape, sizeOf, type TensorLike, tensor } from '../core/tensor.ts';
import type { Engine, EngineTensor, Operands } from '../engine/contract.ts';
import type { Problem } from '../problem/problem.ts';
import type { Request } from './request.ts';
import { checkTensor, isEngineTensor, type Tensor } from './tensors.ts';

/** Engine tensors that live until `release`, which may be called twice. */
export class Arena {
  readonly engine: Engine;
  readonly #owned: EngineTensor[] = [];

  constructor(engine: Engine) {
    this.engine = engine;
  }

  allocate(dtype: DType, shape: readonly number[]): EngineTensor {
    return this.own(this.engine.allocate(dtype, shape));
  }

  /** An engine tensor as it is, which stays its owner's; a copy of a host tensor. */
  resident(name: string, t: TensorLike): EngineTensor {
    if (isEngineTensor(t)) {
      if (t.engine !== this.engine)
        throw new ArgumentError(name, `a host tensor, or one of the ${this.engine.name} engine`, t.engine.name);
      return t;
    }
    checkTensor(name, t);
    return this.own(this.engine.upload(t as HostTensor));
  }

  /**
   * An output: the caller's own tensor, or a new one. `fill` is what rows that belong to no sequence hold, which engines
   * leave alone; null when there are none.
   */
  output(given: Tensor | undefined, dtype: DType, shape: readonly number[], fill: number | null): EngineTensor {
    if (given === undefined) return fill === null ? this.allocate(dtype, shape) : this.filled(dtype, shape, fill);
    if (fill !== null) this.engine.write(given as EngineTensor, filled(dtype, shape, fill));
    return given as EngineTensor;
  }

  filled(dtype: DType, shape: readonly number[], value: number): EngineTensor {
    return this.own(this.engine.upload(filled(dtype, shape, value)));
  }

  own(t: EngineTensor): EngineTensor {
    this.#owned.push(t);
    return t;
  }

  /** Hands everything over to the caller: nothing is freed any more. */
  keep(): void {
    this.#owned.length = 0;
  }

  release(): void {
    for (const t of this.#owned.splice(0)) t.dispose();
  }
}

/** lse, its gradient, sinks and side gradients are f32, or f64 throughout. */
export const rowDtype = ({ dtype }: Problem): 'f32' | 'f64' => (dtype === 'f64' ? 'f64' : 'f32');

/** The operands a run reads. */
export type Inputs = Pick<Operands, 'q' | 'k' | 'v' | 'sides' | 'sink'>;

/** The tensors behind the problem's expressions and its sink, in the engine. */
export function residentSides(
  arena: Arena,
  { problem }: Request,
  sink: TensorLike | undefined,
): Pick<Inputs, 'sides' | 'sink'> {
  return {
    sides: problem.sides.map((side) => arena.resident('tensor read by mask or mod', side)),
    sink: sink === undefined ? null : arena.resident('sink', sink),
  };
}

/** What forward produces. */
export const resultsOf = ({ problem, outShape, lseShape }: Request) => ({
  out: { dtype: problem.dtype, shape: outShape },
  lse: { dtype: rowDtype(problem), shape: lseShape },
});

/** A host tensor of one value: zeros, or -inf for lse. */
function filled(dtype: DType, shape: readonly number[], value: number): HostTensor {
  const data = allocate(dtype, sizeOf(shape));
  if (value !== 0) data.fill(value);
  return tensor(data, shape, dtype);
}

/** A caller's own output tensor, checked: dtype, shape, and that it lives where the results are. */
export function checkInto(
  name: string,
  t: Tensor,
  dtype: DType,
  shape: readonly number[],
  engine: Engine | null,
): void {
  checkTensor(name, t);
  if (t.dtype !== dtype || !sameShape(t.shape, shape))
    throw new ArgumentError(name, `${dtype}[${shape.join(', ')}]`, t);
  const home = isEngineTensor(t) ? t.engine : null;
  if (home !== engine)
    throw new ArgumentError(
      name,
      engine === null ? 'a host tensor, as q is' : `a tensor of the ${engine.name} engine, as q is`,
      t,
    );
}

/** What a call on host tensors reads, besides the sides its expressions hold. */
export interface HostInputs {
  readonly q: HostTensor;
  readonly k: HostTensor;
  readonly v: HostTensor;
  readonly sink: Tensor | undefined;
}

export function checkHost({ q, k, v }: HostInputs): void {
  for (const [name, t] of Object.entries({ q, k, v })) checkTensor(name, t);
}

export const freeBytes = (engine: Engine): number => Math.max(engine.caps.memory - engine.bytesInUse, 0);

/** Into the caller's own array when one was given. */
export function deliver(result: HostTensor, into: Tensor | undefined): HostTensor {
  if (into === undefined) return result;
  (into as HostTensor).data.set(result.data);
  return into as HostTensor;
}
