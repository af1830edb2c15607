import assert from 'node:assert/strict';
import test from 'node:test';
import { loaderOf, strided } from '../../src/engines/cuda/kernels/loader.ts';
import { Assembler } from '../../src/engines/cuda/ptx/assembler.ts';
import { assemble, ptxasMissing } from './ptxas.ts';

/** A program that loads one tile of 16 rows of f32, `columns` wide. */
function loading(columns: number, threads: number): ReturnType<Assembler['finish']> {
  const asm = new Assembler({ name: 'loading', target: 'sm_80', threads });
  const tile = asm.sharedAddress(asm.shared('tile', 16 * (columns * 4 + 16), 1024));
  const rows = strided(asm, asm.parameter('from', 'b64'), asm.parameter('stride', 'b64'));
  const shape = { storage: 'f32', rows: 16, columns, padded: columns, grain: 16 } as const;
  const reader = loaderOf(asm, shape, threads, asm.special('tid.x')).reader(rows);
  reader.load(tile, asm.constant('b32', 0), asm.constant('b32', 16));
  return asm.finish();
}

test('rows of more chunks than threads are copied whole', { skip: ptxasMissing }, () => {
  for (const [columns, threads, expected] of [
    [256, 32, 32],
    [192, 32, 32],
    [256, 64, 16],
    [64, 32, 8],
  ]) {
    const kernel = loading(columns, threads);
    assemble(kernel);
    assert.equal(kernel.text.match(/cp\.async\.cg/g)?.length, expected, `${columns} columns, ${threads} threads`);
  }
});
