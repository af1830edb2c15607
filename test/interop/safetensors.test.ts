import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import type { DType } from '../../src/core/dtype.ts';
import { ArgumentError, FormatError } from '../../src/core/errors.ts';
import { type HostTensor, sizeOf, tensor, zeros } from '../../src/core/tensor.ts';
import { formatSafetensors, parseSafetensorsHeader, readSafetensor } from '../../src/interop/safetensors.ts';

/** A file written by hand from a header (object or text), data bytes, and a length word of one's choice. */
function file(header: unknown, data = 0, length?: bigint): Uint8Array {
  const json = new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header));
  const out = new Uint8Array(8 + json.length + data);
  new DataView(out.buffer).setBigUint64(0, length ?? BigInt(json.length), true);
  out.set(json, 8);
  return out;
}

const entry = (dtype: string, shape: unknown, start: unknown, end: unknown): object => ({
  dtype,
  shape,
  data_offsets: [start, end],
});

const raw = (t: HostTensor): Uint8Array => new Uint8Array(t.data.buffer, t.data.byteOffset, t.data.byteLength);

test('named tensors of every dtype come back', () => {
  const dtype = fc.constantFrom<DType>('f64', 'f32', 'f16', 'bf16', 'i32', 'u8');
  const spec = fc.tuple(dtype, fc.array(fc.nat(3), { maxLength: 4 }), fc.nat(255));
  const name = fc.string({ minLength: 1 }).filter((s) => s !== '__metadata__');
  fc.assert(
    fc.property(fc.uniqueArray(fc.tuple(name, spec), { selector: ([n]) => n, maxLength: 5 }), (list) => {
      const tensors = new Map(
        list.map(([n, [type, shape, fill]]) => {
          const t = zeros(type, shape);
          raw(t).fill(fill);
          return [n, t];
        }),
      );
      const bytes = formatSafetensors(tensors, { made: 'here' });
      assert.equal(parseSafetensorsHeader(bytes, bytes.length).metadata.made, 'here');
      for (const [n, t] of tensors) {
        const back = readSafetensor(bytes, n);
        assert.deepEqual([back.dtype, back.shape, raw(back)], [t.dtype, t.shape, raw(t)]);
      }
    }),
  );
});

test('the written bytes are the format', () => {
  const bytes = formatSafetensors({ a: tensor([1, 2], [2]) });
  const text = new TextDecoder().decode(bytes.subarray(8, bytes.length - 8));
  assert.equal(text.trimEnd(), '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}');
  assert.equal((bytes.length - 8) % 8, 0);
});

test('I64 narrows, BOOL is u8, other dtypes are listed but not read', () => {
  const bytes = file(
    { n: entry('I64', [1], 0, 8), b: entry('BOOL', [2], 8, 10), e: entry('F8_E4M3', [2], 10, 12) },
    12,
  );
  new DataView(bytes.buffer).setBigInt64(bytes.length - 12, -3n, true);
  bytes[bytes.length - 3] = 1;
  assert.deepEqual([...readSafetensor(bytes, 'n').data], [-3]);
  assert.deepEqual([...readSafetensor(bytes, 'b').data], [0, 1]);
  assert.throws(() => readSafetensor(bytes, 'e', 'x'), { name: 'FormatError', message: /^x:e: expected a dtype of/ });
});

test('an unknown name is an argument error that lists what there is', () => {
  const bytes = formatSafetensors({ q: zeros('f32', [1]), k: zeros('f32', [1]) });
  assert.throws(() => readSafetensor(bytes, 'v'), ArgumentError);
  assert.throws(() => readSafetensor(bytes, 'v'), /k, q, got "v"/);
});

test('hostile and broken files are format errors', () => {
  const whole = entry('F32', [2], 0, 8);
  const cases: [string, Uint8Array][] = [
    ['empty', new Uint8Array()],
    ['header of 2^63 bytes', file({ a: whole }, 8, 2n ** 63n)],
    ['header past the end', file({ a: whole }, 8, 1000n)],
    ['no JSON', file('{"a":', 0)],
    ['no UTF-8', file(new TextDecoder('latin1').decode(Uint8Array.of(0xff)), 0, 1n)],
    ['an array', file('[]')],
    ['an entry that is no object', file({ a: 3 })],
    ['metadata of numbers', file({ __metadata__: { a: 1 } })],
    ['past the end', file({ a: entry('F32', [4], 0, 16) }, 8)],
    ['before the data', file({ a: entry('F32', [2], -8, 0) }, 8)],
    ['end before start', file({ a: entry('F32', [0], 8, 0) }, 8)],
    ['size disagrees', file({ a: entry('F32', [3], 0, 8) }, 8)],
    ['overlap', file({ a: whole, b: entry('F32', [1], 4, 8) }, 8)],
    ['same bytes twice', file({ a: whole, b: whole }, 8)],
    ['hole', file({ a: entry('F32', [1], 0, 4), b: entry('F32', [1], 8, 12) }, 12)],
    ['left over', file({ a: whole }, 9)],
    ['shape of exabytes', file({ a: entry('F32', [2 ** 52, 2 ** 52], 0, 8) }, 8)],
    ['zero hides it', file({ a: entry('F32', [2 ** 52, 2 ** 52, 0], 0, 0) }, 0)],
    ['fraction', file({ a: entry('F32', [2.5], 0, 10) }, 10)],
    ['text for a shape', file({ a: entry('F32', '2', 0, 8) }, 8)],
    ['no offsets', file({ a: { dtype: 'F32', shape: [2] } }, 8)],
  ];
  for (const [name, bytes] of cases) assert.throws(() => readSafetensor(bytes, 'a'), FormatError, name);
});

test('names like __proto__ are only names', () => {
  const bytes = file('{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1);
  assert.deepEqual([...readSafetensor(bytes, '__proto__').data], [0]);
});

test('no damage to a file makes anything but a tensor or a typed error', () => {
  const bytes = formatSafetensors({ a: zeros('f32', [2, 3]), b: zeros('u8', [5]) });
  const edits = fc.array(fc.tuple(fc.nat(bytes.length - 1), fc.nat(255)), { maxLength: 5 });
  fc.assert(
    fc.property(edits, fc.option(fc.nat(bytes.length)), (list, cut) => {
      const broken = bytes.slice(0, cut ?? bytes.length);
      for (const [at, value] of list) if (at < broken.length) broken[at] = value;
      try {
        const t = readSafetensor(broken, 'a');
        assert.equal(t.data.length, sizeOf(t.shape));
      } catch (error) {
        assert.ok(error instanceof FormatError || error instanceof ArgumentError, String(error));
      }
    }),
    { numRuns: 2000 },
  );
});
