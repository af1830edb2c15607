/** Integers of the binary format: little-endian groups of 7 bits, the high bit meaning "more follows". */
export function unsigned(value: number, out: number[]): void {
  let rest = value >>> 0;
  while (rest > 0x7f) {
    out.push((rest & 0x7f) | 0x80);
    rest >>>= 7;
  }
  out.push(rest);
}

/** A signed 32-bit integer. */
export function signed(value: number, out: number[]): void {
  let rest = value | 0;
  while (rest < -64 || rest > 63) {
    out.push((rest & 0x7f) | 0x80);
    rest >>= 7;
  }
  out.push(rest & 0x7f);
}
