/** Copies between strided storage and the contiguous float64 rows that the products work on. */
import type { HostArray } from '../../core/dtype.ts';
import type { RowAddress } from '../../problem/rows.ts';

/** Rows as a contiguous float64 matrix [rows, width]. */
export function gather(
  source: HostArray,
  decode: (x: number) => number,
  address: RowAddress,
  rows: number,
  width: number,
): Float64Array {
  const out = new Float64Array(rows * width);
  for (let i = 0, o = 0; i < rows; i++) for (let d = 0, a = address(i); d < width; d++) out[o++] = decode(source[a++]);
  return out;
}

/** Adds a contiguous [rows, width] matrix to rows of a whole tensor (pages may be shared between sequences). */
export function scatterAdd(matrix: Float64Array, target: Float64Array, address: RowAddress, width: number): void {
  for (let i = 0, m = 0; m < matrix.length; i++)
    for (let d = 0, a = address(i); d < width; d++) target[a++] += matrix[m++];
}
