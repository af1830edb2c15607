import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import type { DType } from '../../src/core/dtype.ts';
import { FormatError } from '../../src/core/errors.ts';
import { type HostTensor, sizeOf, zeros } from '../../src/core/tensor.ts';
import { formatNpy, parseNpy, parseNpyHeader } from '../../src/interop/npy.ts';

const ascii = (text: string): Uint8Array => new TextEncoder().encode(text);

/** A file written by hand: version, header text, element bytes. */
function file(header: string, data: Uint8Array, major = 1): Uint8Array {
  const text = ascii(header);
  const out = new Uint8Array((major === 1 ? 10 : 12) + text.length + data.length);
  out.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, major, 0]);
  const view = new DataView(out.buffer);
  if (major === 1) view.setUint16(8, text.length, true);
  else view.setUint32(8, text.length, true);
  out.set(text, out.length - text.length - data.length);
  out.set(data, out.length - data.length);
  return out;
}

const header = (descr: string, shape: string, fortran = 'False'): string =>
  `{'descr': '${descr}', 'fortran_order': ${fortran}, 'shape': ${shape}, }\n`;

const bytesOf = (view: ArrayBufferView): Uint8Array => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

/** Any small tensor, any bits. */
const tensors: fc.Arbitrary<HostTensor> = fc
  .tuple(
    fc.constantFrom<DType>('f64', 'f32', 'f16', 'bf16', 'i32', 'u8'),
    fc.array(fc.nat(4), { maxLength: 4 }),
    fc.infiniteStream(fc.nat(255)),
  )
  .map(([dtype, shape, bits]) => {
    const t = zeros(dtype, shape);
    const raw = bytesOf(t.data);
    for (let i = 0; i < raw.length; i++) raw[i] = bits.next().value;
    return t;
  });

test('what is written is read back, bit for bit', () => {
  fc.assert(
    fc.property(tensors, (t) => {
      const bytes = formatNpy(t);
      const back = parseNpy(bytes);
      assert.equal(back.dtype, t.dtype);
      assert.deepEqual(back.shape, t.shape);
      assert.deepEqual(bytesOf(back.data), bytesOf(t.data));
    }),
  );
});

test('elements start on a 64-byte boundary after a newline', () => {
  const bytes = formatNpy(zeros('f32', [3]));
  const { offset } = parseNpyHeader(bytes, bytes.length);
  assert.equal(offset % 64, 0);
  assert.equal(bytes[offset - 1], 10);
});

test('versions 2 and 3 carry a wider header length', () => {
  const data = bytesOf(Float32Array.of(1, 2, 3));
  for (const major of [1, 2, 3])
    assert.deepEqual([...parseNpy(file(header('<f4', '(3,)'), data, major)).data], [1, 2, 3]);
});

test('Fortran order becomes C order', () => {
  const data = bytesOf(Int32Array.of(1, 4, 2, 5, 3, 6));
  const t = parseNpy(file(header('<i4', '(2, 3)', 'True'), data));
  assert.deepEqual([...t.data], [1, 2, 3, 4, 5, 6]);
  fc.assert(
    fc.property(fc.array(fc.nat(4), { minLength: 2, maxLength: 4 }), (shape) => {
      const n = sizeOf(shape);
      const fortran = new Int32Array(n);
      // The value at C index i goes where its coordinates lie with the first axis fastest.
      for (let i = 0; i < n; i++) {
        let rest = i;
        let at = 0;
        for (let a = shape.length - 1; a >= 0; a--) {
          at += (rest % shape[a]) * sizeOf(shape.slice(0, a));
          rest = Math.floor(rest / shape[a]);
        }
        fortran[at] = i;
      }
      const t = parseNpy(file(header('<i4', `(${shape.join(', ')})`, 'True'), bytesOf(fortran)));
      assert.deepEqual(
        [...t.data],
        Array.from({ length: n }, (_, i) => i),
      );
    }),
  );
});

test('big-endian, bool, int64 and bfloat16 elements', () => {
  assert.deepEqual([...parseNpy(file(header('>f4', '(1,)'), Uint8Array.of(0x3f, 0x80, 0, 0))).data], [1]);
  assert.equal(parseNpy(file(header('|b1', '(2,)'), Uint8Array.of(0, 1))).dtype, 'u8');
  const wide = parseNpy(file(header('<i8', '(2,)'), bytesOf(BigInt64Array.of(-5n, 7n))));
  assert.deepEqual([wide.dtype, ...wide.data], ['i32', -5, 7]);
  const half = parseNpy(file(header('<V2', '(1,)'), Uint8Array.of(0x80, 0x3f)));
  assert.deepEqual([half.dtype, half.data[0]], ['bf16', 0x3f80]);
  assert.equal(parseNpy(file(header('|V2', '(1,)'), Uint8Array.of(0x80, 0x3f))).dtype, 'bf16');
});

test('unaligned bytes are copied, aligned ones are viewed', () => {
  const bytes = formatNpy(zeros('f32', [2]));
  assert.equal(parseNpy(bytes).data.buffer, bytes.buffer);
  const shifted = new Uint8Array(bytes.length + 1);
  shifted.set(bytes, 1);
  assert.deepEqual([...parseNpy(shifted.subarray(1)).data], [0, 0]);
});

test('hostile and broken headers are format errors', () => {
  const data = new Uint8Array(4);
  const cases: [string, Uint8Array][] = [
    ['empty', new Uint8Array()],
    ['magic', ascii('NUMPY but not really')],
    ['version', file(header('<f4', '(1,)'), data, 4)],
    ['header past the end', file(header('<f4', '(1,)'), data).subarray(0, 40)],
    ['elements missing', file(header('<f4', '(2,)'), data)],
    ['elements left over', file(header('<f4', '()'), new Uint8Array(8))],
    ['shape of exabytes', file(header('<f4', '(4611686018427387904, 4)'), data)],
    ['product wraps to the right size', file(header('<f4', '(9007199254740992, 9007199254740992, 0)'), data)],
    ['negative', file(header('<f4', '(-1,)'), data)],
    ['fields', file("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", data)],
    ['object', file(header('|O', '(1,)'), data)],
    ['complex', file(header('<c8', '(1,)'), data)],
    ['prototype name', file(header('<constructor', '(1,)'), data)],
    ['duplicate keys', file("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", data)],
    ['code', file("{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,)}", data)],
    ['nesting', file(`{'descr': ${'('.repeat(5000)}`, data)],
    ['int64 too wide', file(header('<i8', '(1,)'), bytesOf(BigInt64Array.of(2n ** 40n)))],
  ];
  for (const [name, bytes] of cases) assert.throws(() => parseNpy(bytes, 'x.npy'), FormatError, name);
  assert.throws(() => parseNpy(file(header('<f4', '(2,)'), data), 'x.npy'), {
    message: 'x.npy: expected 8 bytes of elements for shape (2), got 4',
  });
});

test('no damage to a file makes anything but a tensor or a format error', () => {
  const bytes = formatNpy(zeros('f32', [2, 3]));
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(127), fc.nat(255)), { maxLength: 6 }), fc.nat(bytes.length), (edits, cut) => {
      const broken = bytes.slice(0, bytes.length - (cut % 3 === 0 ? cut : 0));
      for (const [at, value] of edits) if (at < broken.length) broken[at] = value;
      try {
        const t = parseNpy(broken);
        assert.equal(t.data.length, sizeOf(t.shape));
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }),
    { numRuns: 2000 },
  );
});
