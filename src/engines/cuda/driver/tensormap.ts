/** Tensor maps: how Hopper's copy engine sees a tensor, encoded by the driver into 128 opaque bytes of a launch's arguments. */
import { DeviceError } from '../../../core/errors.ts';
import type { Driver } from './api.ts';

/** CUtensorMapDataType, CUtensorMapSwizzle and CUtensorMapL2promotion numbers. */
const TYPE = { f16: 6, f32: 7, bf16: 9 } as const;
const SWIZZLE = { none: 0, '128B': 3 } as const;
const PROMOTE_256B = 3;
const BYTES = 128;
const ALIGN = 64;

export interface TensorMapOptions {
  readonly type: keyof typeof TYPE;
  /** Device address, a multiple of 16. */
  readonly address: number;
  /** Extents, innermost axis first; elements outside read as zeros and are not written. */
  readonly dims: readonly number[];
  /** Elements between neighbours along every axis but the innermost, multiples of 16 bytes. Unused where the extent is 1. */
  readonly strides: readonly number[];
  /** Extents of the box one copy moves, each at most 256. */
  readonly box: readonly number[];
  readonly swizzle: keyof typeof SWIZZLE;
}

/** @throws DeviceError when the driver refuses: a stride or the address breaks the rules above. */
export function encodeTensorMap(driver: Driver, options: TensorMapOptions): Uint8Array {
  const { type, address, dims, strides, box, swizzle } = options;
  const size = type === 'f32' ? 4 : 2;
  // The driver wants the map itself aligned.
  const room = new ArrayBuffer(BYTES + ALIGN);
  const start = driver.addressOf(new Uint8Array(room));
  const map = new Uint8Array(room, (ALIGN - (start % ALIGN)) % ALIGN, BYTES);
  const bytes = strides.map((s, i) => BigInt(dims[i + 1] === 1 ? 16 : s * size));
  const status = driver.cuTensorMapEncodeTiled(
    map,
    TYPE[type],
    dims.length,
    address,
    BigUint64Array.from(dims, BigInt),
    BigUint64Array.from(bytes),
    Uint32Array.from(box),
    Uint32Array.from(dims, () => 1),
    0,
    SWIZZLE[swizzle],
    PROMOTE_256B,
    0,
  );
  if (status !== 0) {
    const shape = `${dims.join(' x ')} elements, strides ${bytes.join(', ')} bytes, box ${box.join(' x ')}`;
    throw new DeviceError('cuda', `cuTensorMapEncodeTiled refused (CUresult ${status}) a tensor of ${shape}`);
  }
  return map;
}
