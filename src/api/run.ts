/** The tensors of one run: what is uploaded for it, what it allocates, and what is freed when it ends, well or badly. */
import { allocate, type DType } from '../core/dtype.ts';
import { ArgumentError, MemoryError } from '../core/errors.ts';
import { bytesOf, type HostTensor, sameShape, sizeOf, type TensorLike, tensor } from '../core/tensor.ts';
import type { Engine, EngineTensor } from '../engine/contract.ts';
import type { Problem } from '../problem/problem.ts';
import type { Call } from './prepare.ts';
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

/** The tensors behind the problem's expressions and its sink, in the engine. */
export function residentSides(arena: Arena, { problem }: Call['request'], sink: TensorLike | undefined) {
  return {
    sides: problem.sides.map((side, i) => arena.resident(sideName(problem, i), side)),
    sink: sink === undefined ? null : arena.resident('sink', sink),
  };
}

const sideName = (problem: Problem, i: number): string => `side ${i} (${problem.sides[i].shape.join(' x ')})`;

/** An output filled in advance where rows belong to no sequence. */
export function allocateFilled(
  arena: Arena,
  dtype: DType,
  shape: readonly number[],
  fill: number | null,
): EngineTensor {
  if (fill === null) return arena.allocate(dtype, shape);
  return arena.own(arena.engine.upload(filled(dtype, shape, fill)));
}

/** Zeros, or -inf for lse. */
export function filled(dtype: DType, shape: readonly number[], fill: number): HostTensor {
  const data = allocate(dtype, sizeOf(shape));
  if (fill !== 0) data.fill(fill);
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

/** Bytes that a call on host tensors will hold in the engine at once, scratch included. */
export function bytesNeeded(call: Call, tensors: readonly TensorLike[], pass: 'forward' | 'backward'): number {
  const step = pass === 'forward' ? call.plan.forward : call.plan.backward;
  return tensors.reduce((sum, t) => sum + bytesOf(t), step?.cost.workspace ?? 0);
}

/** @throws MemoryError before anything is allocated. */
export function checkRoom(call: Call, bytes: number): void {
  const free = freeBytes(call.engine);
  if (bytes > free) throw new MemoryError(call.engine.name, bytes, free);
}

export const freeBytes = (engine: Engine): number => Math.max(engine.caps.memory - engine.bytesInUse, 0);
