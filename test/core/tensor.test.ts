import assert from 'node:assert/strict';
import test from 'node:test';
import { fromFloat64 } from '../../src/core/dtype.ts';
import { cast, tensor } from '../../src/core/tensor.ts';

const VALUES = [0, -0, 1, 1 / 3, -2.5, 65504, 1e-7, 1e30, Number.POSITIVE_INFINITY, Number.NaN];

test('plain numbers are rounded into any storage type', () => {
  for (const dtype of ['f64', 'f32', 'f16', 'bf16'] as const)
    assert.deepEqual(tensor(VALUES, [10], dtype).data, fromFloat64(dtype, Float64Array.from(VALUES)), dtype);
  assert.deepEqual(tensor([1, 0, 1], [3], 'u8').data, new Uint8Array([1, 0, 1]));
  assert.deepEqual(tensor([1, -2], [2]).data, new Float32Array([1, -2]));
});

test('cast rounds once, in an array of its own', () => {
  const x = tensor(VALUES, [2, 5], 'f64');
  for (const dtype of ['f64', 'f32', 'f16', 'bf16'] as const) {
    const y = cast(x, dtype);
    assert.deepEqual(y, tensor(VALUES, [2, 5], dtype));
    assert.notEqual(y.data, x.data);
    assert.deepEqual(cast(cast(y, 'f64'), dtype), y, 'every value of a storage type is a float64');
  }
});

test('cast refuses by name what is no tensor of floats, and types that are none', () => {
  assert.throws(() => cast(tensor([1, 2], [2], 'i32'), 'f32'), /tensor/);
  assert.throws(() => cast(tensor([1, 2], [2]), 'u8' as 'f32'), /dtype/);
  assert.throws(() => cast(tensor([1, 2], [2]), 'f8' as 'f32'), /dtype/);
});
