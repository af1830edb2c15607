/** The machine code routines a module may import, by kind and by name. */
import { emitGemm, type GemmStart } from './gemm.ts';
import { emitMaximum, emitSoftmax } from './softmax.ts';

/** A routine for rows of N floats. */
export interface RoutineKind {
  /** A product, by how C is entered (gemm.ts), or a pass of the softmax (softmax.ts). */
  readonly routine: GemmStart | 'maximum' | 'softmax';
  readonly N: number;
}

/** What a routine is called where it is imported. */
export const routineName = ({ routine, N }: RoutineKind): string => `${routine}_${N}`;

/** @param width bytes of a vector, 32 or 64. */
export function emitRoutine(width: 32 | 64, { routine, N }: RoutineKind): Uint8Array {
  if (routine === 'maximum') return emitMaximum(width, N);
  if (routine === 'softmax') return emitSoftmax(width, N);
  return emitGemm(width, N, routine);
}
