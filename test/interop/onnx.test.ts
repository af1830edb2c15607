import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { gunzipSync } from 'node:zlib';
import { type DType, fromFloat64, toFloat64 } from '../../src/core/dtype.ts';
import { ArgumentError } from '../../src/core/errors.ts';
import { type HostTensor, sizeOf, tensor } from '../../src/core/tensor.ts';
import { type OnnxAttentionAttributes, type OnnxAttentionInputs, onnxAttention } from '../../src/interop/onnx.ts';

interface Stored {
  readonly dtype: 'float32' | 'float16' | 'bfloat16' | 'bool' | 'int64';
  readonly shape: readonly number[];
  readonly b64: string;
}
interface Case {
  readonly name: string;
  readonly opset: 23 | 24 | 25;
  readonly rtol: number;
  readonly atol: number;
  readonly attrs: OnnxAttentionAttributes;
  readonly input_names: readonly string[];
  readonly output_names: readonly string[];
  readonly inputs: readonly Stored[];
  readonly outputs: readonly Stored[];
}

const DTYPES: Readonly<Record<Stored['dtype'], DType>> = {
  float32: 'f32',
  float16: 'f16',
  bfloat16: 'bf16',
  bool: 'u8',
  int64: 'i32',
};

function decode({ dtype, shape, b64 }: Stored): HostTensor {
  const { buffer, byteOffset, byteLength } = Buffer.from(b64, 'base64');
  const bytes = buffer.slice(byteOffset, byteOffset + byteLength);
  switch (dtype) {
    case 'float32':
      return tensor(new Float32Array(bytes), shape);
    case 'int64':
      return tensor(Int32Array.from(new BigInt64Array(bytes), Number), shape);
    case 'bool':
      return tensor(new Uint8Array(bytes), shape);
    default:
      return tensor(new Uint16Array(bytes), shape, DTYPES[dtype]);
  }
}

const fixture = new URL(
  `${import.meta.url.includes('.build') ? '../../../' : '../../'}test/fixtures/onnx_attention.json.gz`,
  import.meta.url,
);
const cases = JSON.parse(gunzipSync(readFileSync(fixture)).toString('utf8')) as readonly Case[];

/** Inputs by name: absent ones are '' in the node, and have no tensor. */
function inputsOf({ input_names, inputs }: Case): OnnxAttentionInputs {
  const tensors = inputs.map(decode);
  const names = input_names.filter((name) => name !== '');
  return Object.fromEntries(names.map((name, i) => [name, tensors[i]])) as unknown as OnnxAttentionInputs;
}

/** Every element within atol + rtol * |wanted|, infinities and NaN equal. */
function assertClose(name: string, got: HostTensor, wanted: HostTensor, rtol: number, atol: number): void {
  assert.deepEqual([got.dtype, ...got.shape], [wanted.dtype, ...wanted.shape], `${name}: dtype and shape`);
  const [a, b] = [toFloat64(got.dtype, got.data), toFloat64(wanted.dtype, wanted.data)];
  for (let i = 0; i < a.length; i++) {
    if (Object.is(a[i], b[i]) || a[i] === b[i]) continue;
    assert.ok(Math.abs(a[i] - b[i]) <= atol + rtol * Math.abs(b[i]), `${name}[${i}]: ${a[i]}, expected ${b[i]}`);
  }
}

for (const c of cases)
  for (const engine of ['math', 'wasm'] as const)
    test(`${c.name}, opset ${c.opset}, ${engine}`, async () => {
      const options = { opset: c.opset, qkMatmulOutput: c.output_names.includes('qk_matmul_output'), engine };
      const result = await onnxAttention(inputsOf(c), c.attrs, options);
      const names = c.output_names.filter((name) => name !== '');
      names.forEach((name, i) => {
        const got = result[name as keyof typeof result];
        assert.ok(got, name);
        assertClose(name, got, decode(c.outputs[i]), c.rtol, c.atol);
      });
    });

/** Values that repeat from run to run, within -1 .. 1. */
function values(dtype: DType, ...shape: number[]): HostTensor {
  const data = Float64Array.from({ length: sizeOf(shape) }, (_, i) => Math.sin(i * 12.9898 + shape.length) % 1);
  return tensor(fromFloat64(dtype as 'f32', data), shape, dtype);
}

test('16-bit inputs on an engine stay within a few roundings of the operator', async () => {
  for (const dtype of ['f16', 'bf16'] as const) {
    const inputs = { Q: values(dtype, 2, 4, 5, 16), K: values(dtype, 2, 2, 7, 16), V: values(dtype, 2, 2, 7, 16) };
    const operator = await onnxAttention(inputs, { is_causal: 1 });
    const fused = await onnxAttention(inputs, { is_causal: 1 }, { arithmetic: 'fused', engine: 'math' });
    const ulp = dtype === 'f16' ? 2 ** -10 : 2 ** -7;
    assertClose('Y', fused.Y, operator.Y, 4 * ulp, ulp);
  }
});

test('the operator in its own arithmetic agrees with an engine on f32', async () => {
  const inputs = {
    Q: values('f32', 2, 5, 12),
    K: values('f32', 2, 6, 4),
    V: values('f32', 2, 6, 6),
    attn_mask: values('f32', 5, 9),
    past_key: values('f32', 2, 1, 3, 4),
    past_value: values('f32', 2, 1, 3, 6),
  };
  const attributes = { q_num_heads: 3, kv_num_heads: 1, softcap: 2, left_window_size: 4, right_window_size: 1 };
  const a = await onnxAttention(inputs, attributes, { arithmetic: 'operator' });
  const b = await onnxAttention(inputs, attributes, { arithmetic: 'fused', engine: 'math' });
  assertClose('Y', a.Y, b.Y, 1e-5, 1e-6);
  assert.deepEqual(a.Y.shape, [2, 5, 18]);
  assert.deepEqual(a.present_key.shape, [2, 1, 9, 4]);
});

test('what breaks the operator is refused by name', async () => {
  const Q = values('f32', 1, 2, 3, 4);
  const good = { Q, K: Q, V: Q };
  const flat = values('f32', 1, 3, 8);
  const bad: [argument: string, OnnxAttentionInputs, OnnxAttentionAttributes, { opset?: 23 | 24 | 25 }?][] = [
    ['qk_matmul_output_mode', good, { qk_matmul_output_mode: 4 }],
    ['softmax_precision', good, { softmax_precision: 7 }],
    ['left_window_size', good, { left_window_size: -2 }],
    ['right_window_size', good, { right_window_size: 1 }, { opset: 24 }],
    ['nonpad_kv_seqlen', { ...good, nonpad_kv_seqlen: [3] }, {}, { opset: 23 }],
    ['nonpad_kv_seqlen', { ...good, nonpad_kv_seqlen: [3, 3] }, {}],
    ['past_value', { ...good, past_key: Q }, {}],
    ['past_value', { ...good, past_key: Q, past_value: values('f32', 1, 1, 3, 4) }, {}],
    ['attn_mask', { ...good, attn_mask: values('f32', 2, 3) }, {}],
    ['q_num_heads', good, { q_num_heads: 2 }],
    ['q_num_heads', { Q: flat, K: flat, V: flat }, {}],
    ['Q', { Q: flat, K: flat, V: flat }, { q_num_heads: 3, kv_num_heads: 2 }],
    ['K', { ...good, K: values('f16', 1, 2, 3, 4) }, {}],
    ['K', { ...good, K: values('f32', 1, 3, 3, 4), V: values('f32', 1, 3, 3, 4) }, {}],
    ['K', { ...good, K: values('f32', 1, 2, 3, 5) }, {}],
    ['V', { ...good, V: values('f32', 1, 2, 2, 4) }, {}],
    ['V', { ...good, V: values('f32', 1, 1, 3, 4) }, {}],
    ['nonpad_kv_seqlen', { ...good, nonpad_kv_seqlen: [4] }, {}],
    ['scale', good, { scale: Number.NaN }],
  ];
  for (const [argument, inputs, attributes, options] of bad)
    for (const arithmetic of ['fused', 'operator'] as const)
      await assert.rejects(onnxAttention(inputs, attributes, { ...options, arithmetic }), (error) => {
        assert.ok(error instanceof ArgumentError, String(error));
        assert.equal(error.argument, argument, error.message);
        return true;
      });
});
