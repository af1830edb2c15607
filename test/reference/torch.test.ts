import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { gunzipSync } from 'node:zlib';
import { instantiate, type Spec } from '../../src/conformance/spec.ts';
import { type HostTensor, tensor } from '../../src/core/tensor.ts';
import { causal, softcap } from '../../src/mods/library.ts';
import { results } from './support.ts';

interface Stored {
  readonly dtype: 'float32';
  readonly shape: readonly number[];
  readonly b64: string;
}
interface TorchCase {
  readonly name: string;
  readonly B: number;
  readonly Hq: number;
  readonly Hkv: number;
  readonly Sq: number;
  readonly Sk: number;
  readonly D: number;
  readonly Dv: number;
  readonly scale: number;
  readonly causal: false | 'topleft' | 'bottomright';
  readonly softcap: number | null;
  readonly [tensorName: string]: unknown;
}

const CASES = JSON.parse(
  gunzipSync(readFileSync('test/fixtures/torch_sdpa.json.gz')).toString(),
) as readonly TorchCase[];

function decode(c: TorchCase, name: string): HostTensor {
  const { shape, b64 } = c[name] as Stored;
  const bytes = Uint8Array.from(Buffer.from(b64, 'base64'));
  return tensor(Float64Array.from(new Float32Array(bytes.buffer)), shape);
}

/** The vectors were rounded to float32 when they were stored. */
function assertStoredAs(name: string, got: HostTensor, stored: HostTensor): void {
  assert.deepEqual(got.shape, stored.shape, name);
  let top = 0;
  for (const x of stored.data) if (Number.isFinite(x)) top = Math.max(top, Math.abs(x));
  for (let i = 0; i < stored.data.length; i++) {
    const x = stored.data[i];
    const y = got.data[i];
    if (!Number.isFinite(x)) assert.equal(y, x, `${name}[${i}]`);
    else assert.ok(Math.abs(y - x) <= Math.abs(x) * 2 ** -24 + top * 1e-12, `${name}[${i}]: expected ${x}, got ${y}`);
  }
}

for (const c of CASES)
  test(`PyTorch: ${c.name}`, async () => {
    const { B, Hq, Hkv, Sq, Sk, D, Dv, scale } = c;
    const align = c.causal === 'topleft' ? 'top-left' : 'bottom-right';
    const cap = c.softcap;
    const spec: Spec = {
      dtype: 'f64',
      ...{ B, Hq, Hkv, Sq, Sk, D, Dv, scale },
      ...(c.causal !== false && { mask: () => causal({ align }) }),
      ...(cap !== null && { mod: () => softcap(cap) }),
    };
    const { problem, inputs } = instantiate(c.name, spec);
    const given = { ...inputs, q: decode(c, 'q'), k: decode(c, 'k'), v: decode(c, 'v'), dOut: decode(c, 'dout') };
    const got = await results(problem, given, spec);
    for (const name of ['out', 'lse', 'dq', 'dk', 'dv']) assertStoredAs(name, got.get(name)!, decode(c, name));
  });

test('the vectors cover plain, causal, grouped and capped attention', () => {
  assert.ok(CASES.length >= 8);
  assert.ok(CASES.some((c) => c.causal === 'topleft') && CASES.some((c) => c.causal === 'bottomright'));
  assert.ok(CASES.some((c) => c.Hq !== c.Hkv) && CASES.some((c) => c.softcap !== null));
});
