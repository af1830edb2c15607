/** Writes one-node ONNX models: just enough of protobuf for onnxruntime's attention operators. */

type Field = readonly number[];

function varint(value: number): number[] {
  const out: number[] = [];
  let rest = value;
  while (rest > 127) {
    out.push((rest % 128) + 128);
    rest = Math.floor(rest / 128);
  }
  out.push(rest);
  return out;
}

const number = (field: number, value: number): Field => [...varint(field * 8), ...varint(value)];
const bytes = (field: number, value: readonly number[]): Field => [
  ...varint(field * 8 + 2),
  ...varint(value.length),
  ...value,
];
const text = (field: number, value: string): Field => bytes(field, [...new TextEncoder().encode(value)]);
const message = (field: number, ...parts: readonly Field[]): Field => bytes(field, parts.flat());

/** Data and attribute types of onnx.proto. */
const FLOAT = 1;
const INT32 = 6;
const ATTRIBUTE_INT = 2;

const attribute = (name: string, value: number): Field =>
  message(5, text(1, name), number(3, value), number(20, ATTRIBUTE_INT));

function valueInfo(field: number, name: string, shape: readonly number[]): Field {
  const dims = shape.map((d) => message(1, number(1, d)));
  return message(field, text(1, name), message(2, message(1, number(1, FLOAT), message(2, ...dims))));
}

const int32 = (name: string, value: number): Field =>
  message(5, number(1, 1), number(2, INT32), bytes(5, varint(value)), text(8, name));

/** q, k, v -> o, each [1, N, H * D]: MultiHeadAttention, or GroupQueryAttention (which is always causal). */
export function attentionModel(
  op: 'MultiHeadAttention' | 'GroupQueryAttention',
  { H, N, D, causal }: { readonly H: number; readonly N: number; readonly D: number; readonly causal: boolean },
): Uint8Array {
  const grouped = op === 'GroupQueryAttention';
  const inputs = grouped ? ['q', 'k', 'v', '', '', 'last', 'total'] : ['q', 'k', 'v'];
  const outputs = grouped ? ['o', 'present_key', 'present_value'] : ['o'];
  const attributes = grouped
    ? [attribute('num_heads', H), attribute('kv_num_heads', H)]
    : [attribute('num_heads', H), ...(causal ? [attribute('unidirectional', 1)] : [])];
  const node = message(
    1,
    ...inputs.map((name) => text(1, name)),
    ...outputs.map((name) => text(2, name)),
    text(4, op),
    ...attributes,
    text(7, 'com.microsoft'),
  );
  const graph = message(
    7,
    node,
    text(2, 'attention'),
    ...(grouped ? [int32('last', N - 1), int32('total', N)] : []),
    ...['q', 'k', 'v'].map((name) => valueInfo(11, name, [1, N, H * D])),
    valueInfo(12, 'o', [1, N, H * D]),
  );
  const opsets = [message(8, text(1, ''), number(2, 17)), message(8, text(1, 'com.microsoft'), number(2, 1))];
  return Uint8Array.from([number(1, 8), graph, ...opsets].flat());
}
