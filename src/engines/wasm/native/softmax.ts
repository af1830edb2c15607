/**
 * The two passes of the online softmax over a block of scores P[rows][N], queries as lanes, in x86-64 machine code: the
 * maximum of every lane, then weights in place of scores with sum, alpha and maximum brought up to date. Operation for
 * operation what kernels/softmax.ts emits as WASM, so the results are the same bits.
 *
 * Called as `void f(void* base, int64 descriptor)`: see gemm.ts.
 */
import { EXP2, EXP2_MAGIC, EXP2_UNDERFLOW } from '../functions.ts';
import { type Address, Assembler, R } from './assembler.ts';

/** Byte offsets of the descriptor's fields: addresses are offsets from base; `slope` is an f32. */
export const SOFTMAX = {
  /** Scores, then weights: rows of N floats. */
  p: 0,
  rows: 4,
  /** [N] in and out for `maximum`; in for `softmax`, where it is no smaller than `before`. */
  max: 8,
  /** [N], the maximum so far; `softmax` writes the new one over it. */
  before: 12,
  /** [N], the sum so far; rescaled and added to. */
  sum: 16,
  /** [N], written: what outputs so far have to be multiplied by. */
  alpha: 20,
  /** Weights are 2^(slope * (score - max)). */
  slope: 24,
  bytes: 28,
} as const;

const { rax, rcx, rdx, rbx, rsi, rdi, r8, r9, r10 } = R;

/** max[lane] = the largest of max[lane] and the lane's scores. */
export function emitMaximum(width: 32 | 64, N: number): Uint8Array {
  const a = new Assembler(width);
  const [max] = [0];
  a.push(rbx);
  pointers(a, [
    [rdx, SOFTMAX.p],
    [r8, SOFTMAX.max],
  ]);
  for (let lane = 0; lane < N * 4; lane += width) {
    a.load(max, { base: r8, disp: lane });
    overRows(a, `lane${lane}`, N, (row) => a.maximum(max, max, { base: row, disp: lane }));
    a.store({ base: r8, disp: lane }, max);
  }
  a.pop(rbx);
  a.return();
  return a.bytes();
}

export function emitSoftmax(width: 32 | 64, N: number): Uint8Array {
  const a = new Assembler(width);
  const [weight, whole, power, sum, shift, slope, next] = [0, 1, 2, 3, 4, 5, 6];
  const [magic, underflow, ...coefficients] = Array.from({ length: 2 + EXP2.length }, (_, i) => 7 + i);
  a.push(rbx);
  pointers(a, [
    [rdx, SOFTMAX.p],
    [r8, SOFTMAX.max],
    [r9, SOFTMAX.before],
    [r10, SOFTMAX.sum],
    [rdi, SOFTMAX.alpha],
  ]);
  a.broadcast(slope, { base: rsi, disp: SOFTMAX.slope });
  a.broadcast(magic, a.constant(EXP2_MAGIC));
  a.broadcast(underflow, a.constant(EXP2_UNDERFLOW));
  for (const [i, c] of EXP2.entries()) a.broadcast(coefficients[i], a.constant(c));

  /** weight = 2^weight for weight <= 0: functions.ts, exp2Negative. */
  const exp2 = (): void => {
    a.maximum(weight, underflow, weight);
    a.addVectors(power, weight, magic);
    a.subtract(whole, power, magic);
    a.subtract(whole, weight, whole);
    a.copy(weight, coefficients[coefficients.length - 1]);
    for (const c of coefficients.slice(0, -1).reverse()) a.multiplyThenAdd(weight, whole, c);
    a.shiftLeft(power, power, 23);
    a.multiply(weight, weight, power);
  };

  for (let lane = 0; lane < N * 4; lane += width) {
    const at = (base: number): Address => ({ base, disp: lane });
    a.load(next, at(r8));
    // shift = -(max * slope)
    a.zero(shift);
    a.multiply(weight, next, slope);
    a.subtract(shift, shift, weight);
    a.load(weight, at(r9));
    a.subtract(weight, weight, next);
    a.multiply(weight, weight, slope);
    exp2();
    a.store(at(rdi), weight);
    a.store(at(r9), next);
    a.load(sum, at(r10));
    a.multiply(sum, sum, weight);
    overRows(a, `lane${lane}`, N, (row) => {
      a.load(weight, at(row));
      a.multiplyThenAdd(weight, slope, shift);
      exp2();
      a.store(at(row), weight);
      a.addVectors(sum, sum, weight);
    });
    a.store(at(r10), sum);
  }
  a.pop(rbx);
  a.return();
  return a.bytes();
}

/** rdi = base, rsi = descriptor offset -> the fields' addresses in registers, rsi = descriptor address. */
function pointers(a: Assembler, fields: readonly (readonly [register: number, field: number])[]): void {
  a.add(rsi, rdi);
  for (const [register, field] of fields) {
    a.load32(rax, { base: rsi, disp: field });
    a.add(rax, rdi);
    a.move(register, rax);
  }
}

/** Goes over the rows of P with the row's address in rbx; rows >= 1. */
function overRows(a: Assembler, name: string, N: number, body: (row: number) => void): void {
  a.move(rbx, rdx);
  a.load32(rcx, { base: rsi, disp: SOFTMAX.rows });
  a.label(name);
  body(rbx);
  a.addImmediate(rbx, N * 4);
  a.decrement(rcx);
  a.jumpIf('notZero', name);
}
