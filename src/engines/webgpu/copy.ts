/** Copies equal pieces between two tensors: KV cache appends and copies of pages. One invocation moves one word. */
import { BYTES, type DType } from '../../core/dtype.ts';
import type { CopyRuns } from '../../engine/contract.ts';
import type { Launch } from './kernels/kernel.ts';
import { ModuleBuilder, type Shader } from './wgsl/module.ts';

const THREADS = 64;

/** How a copy is done: by whole words, or by elements smaller than one, which needs atomics as neighbours share words. */
export interface CopyShape {
  readonly dtype: DType;
  readonly words: boolean;
  /** Source and target are one buffer, which may be bound only once. */
  readonly same: boolean;
}

export function copyShape(dtype: DType, runs: CopyRuns, same: boolean, offsets: readonly number[]): CopyShape {
  const size = BYTES[dtype];
  const whole = (elements: number): boolean => (elements * size) % 4 === 0;
  const words = size >= 4 || (whole(runs.length) && runs.pairs.every(whole) && offsets.every((o) => o % 4 === 0));
  return { dtype, words, same };
}

export const copyKey = ({ dtype, words, same }: CopyShape): string =>
  `webgpu:copy:${words ? 'words' : BYTES[dtype]}:${same ? 'same' : ''}`;

export function copyShader({ dtype, words, same }: CopyShape): Shader {
  const m = new ModuleBuilder();
  const plain = words ? 'array<u32>' : 'array<atomic<u32>>';
  const target = m.storage('target_', plain, 'read_write');
  const source = same ? target : m.storage('source_', 'array<u32>');
  const table = m.storage('tables', 'array<i32>');
  const [pairs, length, per] = [m.param('pairs'), m.param('length'), m.param('perWord')];
  const read = (at: string): string => (same && !words ? `atomicLoad(&${source}[${at}])` : `${source}[${at}]`);
  const bits = BYTES[dtype] * 8;
  const lanes = 32 / bits;
  const move = words
    ? `${target}[to] = ${read('start')};`
    : `let value = (${read(`start / ${lanes}u`)} >> ((start % ${lanes}u) * ${bits}u)) & ${2 ** bits - 1}u;
let shift = (to % ${lanes}u) * ${bits}u;
atomicAnd(&${target}[to / ${lanes}u], ~(${2 ** bits - 1}u << shift));
atomicOr(&${target}[to / ${lanes}u], value << shift);`;
  const body = `let item = group.x * ${THREADS}u + local;
let pair = group.y + group.z * groups.y;
if (item >= ${length} || pair >= ${pairs}) { return; }
let start = u32(${table}[2u * pair]) * ${per} / 4u + item;
let to = u32(${table}[2u * pair + 1u]) * ${per} / 4u + item;
${move}`;
  return m.build({ name: 'copy', threads: THREADS, body });
}

/** `perWord` turns element offsets into units of the shader: bytes of an element for words, 4 for elements. */
export function copyLaunch({ dtype, words }: CopyShape, { pairs, length }: CopyRuns): Launch {
  const size = BYTES[dtype];
  const items = words ? (length * size) / 4 : length;
  const count = pairs.length / 2;
  const rows = Math.min(count, 32768);
  const values = { pairs: count, length: items, perWord: words ? size : 4 };
  return {
    dispatches: [
      {
        shader: 0,
        grid: count === 0 ? [0, 0, 0] : [Math.ceil(items / THREADS), rows, Math.ceil(count / rows)],
        params: values,
      },
    ],
    tables: pairs.length === 0 ? new Int32Array(4) : pairs,
    workspace: {},
    zeroed: [],
  };
}
