/** A tensor in a GPUBuffer, from a byte offset on. */
import type { DType } from '../../core/dtype.ts';
import { ArgumentError, DisposedError } from '../../core/errors.ts';
import { bytesOf, type HostTensor } from '../../core/tensor.ts';
import type { Engine, EngineTensor } from '../../engine/contract.ts';

interface Owner {
  readonly engine: Engine;
  read(tensor: GpuTensor): Promise<HostTensor>;
  free(tensor: GpuTensor): void;
}

export class GpuTensor implements EngineTensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Bytes into `buffer`. */
  readonly offset: number;
  /** False for a caller's buffer, which the engine never destroys. */
  readonly owned: boolean;
  readonly #buffer: GPUBuffer;
  readonly #owner: Owner;
  #disposed = false;

  constructor(owner: Owner, dtype: DType, shape: readonly number[], buffer: GPUBuffer, offset: number, owned: boolean) {
    this.#owner = owner;
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.#buffer = buffer;
    this.offset = offset;
    this.owned = owned;
  }

  get engine(): Engine {
    return this.#owner.engine;
  }

  get bytes(): number {
    return bytesOf(this);
  }

  /** The memory itself, for other libraries on the same device. @throws DisposedError */
  get buffer(): GPUBuffer {
    if (this.#disposed) throw new DisposedError('the tensor');
    return this.#buffer;
  }

  read(): Promise<HostTensor> {
    return this.#owner.read(this);
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#owner.free(this);
    this.#disposed = true;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** @throws ArgumentError when the tensor belongs to another engine, DisposedError when it is gone. */
export function ownTensor(engine: Engine, t: EngineTensor, argument: string): GpuTensor {
  if (!(t instanceof GpuTensor) || t.engine !== engine)
    throw new ArgumentError(argument, 'a tensor of this engine', t.engine.name);
  void t.buffer;
  return t;
}
