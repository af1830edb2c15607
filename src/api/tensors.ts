/** The tensors calls take: on the host or in an engine's memory. Checks what a caller may have got wrong about one. */
import { BYTES, type DType } from '../core/dtype.ts';
import { ArgumentError } from '../core/errors.ts';
import { type HostTensor, sizeOf, type TensorLike } from '../core/tensor.ts';
import type { Engine, EngineTensor } from '../engine/contract.ts';

/** A tensor a call may take. Host tensors give host results, engine tensors give results in the same engine. */
export type Tensor = HostTensor | EngineTensor;

export const isEngineTensor = (t: TensorLike): t is EngineTensor => 'engine' in t;

const ARRAYS: Readonly<Record<DType, readonly string[]>> = {
  f64: ['Float64Array'],
  f32: ['Float32Array'],
  f16: ['Uint16Array'],
  bf16: ['Uint16Array'],
  i32: ['Int32Array'],
  u8: ['Uint8Array', 'Uint8ClampedArray', 'Buffer'],
};

/**
 * Checks that a value is a tensor whose elements are all there. `shape` alone (a TensorLike) is enough to plan with.
 *
 * @throws ArgumentError naming `name` when it is no tensor, its array is of another type, too short, or detached.
 */
export function checkTensor(name: string, t: TensorLike, needsData = true): void {
  if (t === null || typeof t !== 'object' || !Array.isArray(t.shape) || !Object.hasOwn(BYTES, t.dtype))
    throw new ArgumentError(name, 'a tensor with dtype and shape', t);
  for (const d of t.shape)
    if (!Number.isInteger(d) || d < 0) throw new ArgumentError(`${name}.shape`, 'integers >= 0', [...t.shape]);
  if (isEngineTensor(t)) return;
  const data = (t as Partial<HostTensor>).data;
  if (data === undefined) {
    if (needsData) throw new ArgumentError(name, 'a host tensor with data, or an engine tensor', t);
    return;
  }
  if (!ArrayBuffer.isView(data) || !ARRAYS[t.dtype].includes(data.constructor.name))
    throw new ArgumentError(`${name}.data`, `a ${ARRAYS[t.dtype][0]} for dtype ${t.dtype}`, data);
  if (data.length === sizeOf(t.shape)) return;
  const elements = `${sizeOf(t.shape)} elements for shape [${t.shape.join(', ')}]`;
  const detached = data.length === 0 && data.byteLength === 0 && isDetached(data.buffer);
  throw new ArgumentError(`${name}.data`, elements, detached ? 'a detached buffer' : data.length);
}

/** A buffer that was transferred away has no bytes left and refuses a view. */
function isDetached(buffer: ArrayBufferLike): boolean {
  try {
    new Uint8Array(buffer);
    return false;
  } catch {
    return true;
  }
}

/** The engine that all engine tensors among these share; null when all are on the host. */
export function engineOf(named: Readonly<Record<string, TensorLike | null | undefined>>): Engine | null {
  let engine: Engine | null = null;
  for (const [name, t] of Object.entries(named)) {
    if (t === null || t === undefined || !isEngineTensor(t)) continue;
    if (engine !== null && t.engine !== engine)
      throw new ArgumentError(
        name,
        `a tensor of the same ${engine.name} engine`,
        `one of another ${t.engine.name} engine`,
      );
    engine = t.engine;
  }
  return engine;
}
