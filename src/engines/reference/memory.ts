/** Tensors of the reference engine: host arrays behind the engine contract. */
import { type DType, fromBf16, fromF16, type HostArray, toBf16, toF16 } from '../../core/dtype.ts';
import { ArgumentError, DisposedError } from '../../core/errors.ts';
import { bytesOf, type HostTensor, tensor } from '../../core/tensor.ts';
import type { Engine, EngineTensor } from '../../engine/contract.ts';

export class ReferenceTensor implements EngineTensor {
  readonly engine: Engine;
  readonly dtype: DType;
  readonly shape: readonly number[];
  #data: HostArray | null;
  readonly #onDispose: (bytes: number) => void;

  constructor(engine: Engine, host: HostTensor, onDispose: (bytes: number) => void) {
    this.engine = engine;
    this.dtype = host.dtype;
    this.shape = host.shape;
    this.#data = host.data;
    this.#onDispose = onDispose;
  }

  /** The elements themselves, not a copy. @throws DisposedError */
  get data(): HostArray {
    if (this.#data === null) throw new DisposedError('a tensor of the reference engine');
    return this.#data;
  }

  async read(): Promise<HostTensor> {
    const { data } = this;
    await this.engine.synchronize();
    return tensor(data.slice(), this.shape, this.dtype);
  }

  dispose(): void {
    if (this.#data === null) return;
    this.#data = null;
    this.#onDispose(bytesOf(this));
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The host array behind an operand. @throws ArgumentError when the tensor belongs to another engine. */
export function dataOf(operand: EngineTensor): HostArray {
  if (!(operand instanceof ReferenceTensor))
    throw new ArgumentError('operand', 'a tensor of the reference engine', operand.engine?.name ?? operand);
  return operand.data;
}

const same = (x: number): number => x;

/** Stored element to number, and number to the nearest stored element. */
export const DECODE: Readonly<Record<DType, (x: number) => number>> = {
  f64: same,
  f32: same,
  f16: fromF16,
  bf16: fromBf16,
  i32: same,
  u8: same,
};
const ENCODE: Readonly<Record<DType, (x: number) => number>> = {
  f64: same,
  f32: same,
  f16: toF16,
  bf16: toBf16,
  i32: same,
  u8: same,
};

/** Rounds float64 results into an output operand of as many elements. */
export function store(values: Float64Array, target: EngineTensor): void {
  const data = dataOf(target);
  const encode = ENCODE[target.dtype];
  for (let i = 0; i < values.length; i++) data[i] = encode(values[i]);
}
