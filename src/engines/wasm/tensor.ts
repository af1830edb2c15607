/** Tensors of this engine: blocks of its heap behind the engine contract. */
import type { DType, HostArray } from '../../core/dtype.ts';
import { DisposedError } from '../../core/errors.ts';
import { type HostTensor, sizeOf, tensor } from '../../core/tensor.ts';
import type { Engine, EngineTensor } from '../../engine/contract.ts';
import type { Runtime } from './runtime.ts';

const ARRAYS = {
  f64: Float64Array,
  f32: Float32Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  i32: Int32Array,
  u8: Uint8Array,
} as const satisfies Record<DType, unknown>;

export class WasmTensor implements EngineTensor {
  readonly engine: Engine;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly #runtime: Runtime;
  #address: number | null;

  constructor(engine: Engine, runtime: Runtime, dtype: DType, shape: readonly number[], address: number) {
    this.engine = engine;
    this.#runtime = runtime;
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.#address = address;
  }

  /** Byte address in the engine's memory. @throws DisposedError */
  get address(): number {
    this.#runtime.check();
    if (this.#address === null) throw new DisposedError('a tensor of the wasm engine');
    return this.#address;
  }

  /**
   * The elements in place, without a copy: writes through it are writes to the tensor. With one thread the array is
   * detached (its length becomes 0) when the engine's memory grows, so take it anew after an `allocate`, `upload` or run;
   * never use it while a run that was not awaited uses the tensor.
   *
   * @throws DisposedError
   */
  view(): HostArray {
    return this.viewer()();
  }

  /**
   * `view` for work that is queued: it stays valid after `dispose`, which frees the block only behind what was queued before.
   *
   * @throws DisposedError
   */
  viewer(): () => HostArray {
    const { address } = this;
    return () => new ARRAYS[this.dtype](this.#runtime.heap.memory.buffer, address, sizeOf(this.shape));
  }

  async read(): Promise<HostTensor> {
    const view = this.viewer();
    return this.#runtime.turn(() => {
      this.#runtime.check();
      return tensor(view().slice(), this.shape, this.dtype);
    });
  }

  /** Frees the block, once the runs queued before have ended. */
  dispose(): void {
    const address = this.#address;
    this.#address = null;
    if (address === null || this.#runtime.closed) return;
    if (this.#runtime.busy) void this.#runtime.turn(() => this.#runtime.heap.free(address));
    else this.#runtime.heap.free(address);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
