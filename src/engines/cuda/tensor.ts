/** Tensors in a GPU's memory: pieces of the engine's pool, or somebody else's memory by its address. */
import { allocate, type DType } from '../../core/dtype.ts';
import { ArgumentError, DisposedError } from '../../core/errors.ts';
import { type HostTensor, sizeOf, type TensorLike, tensor } from '../../core/tensor.ts';
import type { EngineTensor } from '../../engine/contract.ts';
import type { CudaEngine } from './engine.ts';

export class CudaTensor implements EngineTensor {
  readonly engine: CudaEngine;
  readonly dtype: DType;
  readonly shape: readonly number[];
  private readonly at: number;
  private readonly owned: boolean;
  private disposed = false;

  constructor(engine: CudaEngine, dtype: DType, shape: readonly number[], address: number, owned: boolean) {
    this.engine = engine;
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.at = address;
    this.owned = owned;
  }

  /** The device address of the first element. */
  get address(): number {
    if (this.disposed) throw new DisposedError(`a ${this.dtype}[${this.shape.join(', ')}] tensor`);
    return this.at;
  }

  async read(): Promise<HostTensor> {
    this.engine.alive();
    const data = allocate(this.dtype, sizeOf(this.shape));
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    await this.engine.transfers.download(bytes, this.address);
    return tensor(data, this.shape, this.dtype);
  }

  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    if (this.owned) this.engine.pool.release(this.at);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The tensor's address, after checking that it belongs to the engine. */
export function addressOn(engine: CudaEngine, name: string, t: TensorLike): number {
  if (t instanceof CudaTensor && t.engine === engine) return t.address;
  throw new ArgumentError(name, 'a tensor of this CUDA engine', t);
}
