/** Small modules for tests: emit a function over an array, run it, read the memory. */
import type { FuncBuilder, Local } from '../../src/engines/wasm/asm/func.ts';
import { ModuleBuilder } from '../../src/engines/wasm/asm/module.ts';
import { i32Const } from '../../src/engines/wasm/asm/values.ts';
import { ConstantTable, type Shape, type Vec, Vectors } from '../../src/engines/wasm/tile.ts';

export const SHAPE: Shape = { lanes: 8, rows: 4, unroll: 1, relaxed: false, native: false };

/** Where data starts; the table of constants lies before it. */
export const BASE = 1024;
const PAGES = 256;

export type Loop = (f: FuncBuilder, v: Vectors, at: Local<'i32'>, count: Local<'i32'>) => void;

/** Emits a function of (address of the data, count), and runs it on a memory that `fill` has filled from BASE on. */
export function run(emit: Loop, fill: (memory: ArrayBuffer) => void, count: number, shape: Shape = SHAPE): ArrayBuffer {
  const m = new ModuleBuilder(false);
  const table = new ConstantTable();
  const loop = m.func('loop', { table: 'i32', at: 'i32', count: 'i32' }, (f, p) =>
    emit(f, new Vectors(f, shape, { table, at: p.table }), p.at, p.count),
  );
  m.func(
    'run',
    { count: 'i32' },
    (f, p) => {
      table.fill(f, i32Const(64));
      f.call(loop, 64, BASE, p.count);
    },
    true,
  );
  const memory = new WebAssembly.Memory({ initial: PAGES });
  fill(memory.buffer);
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(m.bytes()), { env: { memory } });
  (exports.run as (count: number) => void)(count);
  return memory.buffer;
}

/** Applies a function of whole Vecs to floats. */
export function mapFloats(apply: (v: Vectors, x: Vec) => Vec, xs: Float32Array, shape: Shape = SHAPE): Float32Array {
  if (BASE + 4 * (xs.length + 16) > PAGES * 65536) throw new RangeError(`${xs.length} floats do not fit`);
  const buffer = run(
    (f, v, at, count) =>
      f.for(0, count, 1, () => {
        v.store(at, apply(v, v.load(at)));
        f.bump(at, v.bytes);
      }),
    (memory) => new Float32Array(memory).set(xs, BASE / 4),
    Math.ceil(xs.length / shape.lanes),
    shape,
  );
  return new Float32Array(buffer, BASE, xs.length).slice();
}

/** Distance of two floats in units in the last place of the exact value. */
export function ulps(got: number, exact: number): number {
  if (Object.is(got, Math.fround(exact))) return 0;
  if (!Number.isFinite(got) || !Number.isFinite(exact)) return Number.POSITIVE_INFINITY;
  const size = Math.max(Math.abs(exact), 2 ** -126);
  return Math.abs(got - exact) / 2 ** (Math.floor(Math.log2(size)) - 23);
}
