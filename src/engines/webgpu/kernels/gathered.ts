/**
 * Side tensors in one storage buffer, on devices that bind too few for a buffer each: before a kernel's own dispatches every side is
 * copied, word by word, to its place there.
 */
import { ceilDiv } from '../../../core/math.ts';
import { bytesOf } from '../../../core/tensor.ts';
import type { Problem } from '../../../problem/problem.ts';
import { GATHERED, sideName } from '../wgsl/expressions.ts';
import { ModuleBuilder, type Shader } from '../wgsl/module.ts';
import type { Dispatch, WebGpuCaps } from './kernel.ts';

/** A field of a configuration. */
export interface Gathered {
  readonly gathered?: true;
}

const THREADS = 64;
const wordsOf = (problem: Problem): number[] => problem.sides.map((t) => ceilDiv(bytesOf(t), 4));

/** First word of each side. */
function placesOf(problem: Problem): number[] {
  let end = 0;
  return wordsOf(problem).map((words) => {
    end += words;
    return end - words;
  });
}

const bytesTogether = (problem: Problem): number => 4 * wordsOf(problem).reduce((a, b) => a + b, 0);

/** What a configuration says of sides, for a kernel that binds `others` buffers besides them. */
export const gathering = (problem: Problem, others: number, caps: WebGpuCaps): Gathered =>
  others + problem.sides.length > caps.storageBuffers ? { gathered: true } : {};

/** Why a kernel that binds `others` buffers besides sides, and may gather those, cannot be bound, or null. */
export function refuseBuffers(problem: Problem, others: number, caps: WebGpuCaps, gather: boolean): string | null {
  const buffers = others + problem.sides.length;
  if (buffers <= caps.storageBuffers) return null;
  if (!gather || others + 1 > caps.storageBuffers)
    return `${gather ? others + 1 : buffers} storage buffers, the device binds ${caps.storageBuffers}`;
  const bytes = bytesTogether(problem);
  return bytes > caps.bindingSize
    ? `sides of ${bytes} bytes in one storage buffer, as ${buffers} are too many; the device binds ${caps.bindingSize}`
    : null;
}

/** A module whose expressions read sides where the configuration has them. */
export const moduleFor = (problem: Problem, { gathered }: Gathered): ModuleBuilder =>
  new ModuleBuilder(gathered === true ? placesOf(problem) : null);

/** One shader a side. */
export const gatherShaders = (problem: Problem, { gathered }: Gathered): Shader[] =>
  gathered !== true ? [] : placesOf(problem).map((at, k) => gatherShader(k, at, wordsOf(problem)[k]));

function gatherShader(k: number, at: number, words: number): Shader {
  const m = new ModuleBuilder();
  const from = m.storage(sideName(k), 'array<u32>');
  const to = m.storage(GATHERED, 'array<u32>', 'read_write');
  const body = `for (var i = group.x * ${THREADS}u + local; i < ${words}u; i += groups.x * ${THREADS}u) {
${to}[i + ${at}u] = ${from}[i];
}`;
  return m.build({ name: `gather-${sideName(k)}`, threads: THREADS, body });
}

/** Their dispatches, when they are the shaders from `first` on. */
export const gatherDispatches = (problem: Problem, { gathered }: Gathered, first: number): Dispatch[] =>
  gathered !== true
    ? []
    : wordsOf(problem).map((words, k) => ({
        shader: first + k,
        grid: [Math.min(ceilDiv(words, THREADS), 32768), 1, 1],
        params: {},
      }));

/** Scratch of the one buffer. */
export const gatherSpace = (problem: Problem, { gathered }: Gathered): Record<string, number> =>
  gathered === true ? { [GATHERED]: bytesTogether(problem) } : {};
