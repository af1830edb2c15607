/** Small pure numbers used by every room. */
export const ceilDiv = (a: number, b: number): number => Math.ceil(a / b);
export const alignTo = (n: number, multiple: number): number => Math.ceil(n / multiple) * multiple;
/** Kernels work in base 2: exp(x) = exp2(x * LOG2E), and lse = ln 2 * (m + log2 l). */
export const LOG2E: number = Math.LOG2E;
export const LN2: number = Math.LN2;
