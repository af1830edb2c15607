/** What attention must satisfy whatever the numbers are, through the public api, on the engines that run here. */
import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { random } from '../../src/conformance/random.ts';
import { floats } from '../../src/conformance/sides.ts';
import {
  type AttentionOptions,
  attention,
  attentionDecode,
  attentionWithGrads,
  closeSharedEngines,
  doctor,
  type HostTensor,
  KvCache,
  type LoadableEngine,
  sharedEngine,
  tensor,
} from '../../src/index.ts';
import { mergeInto } from '../../src/problem/merge.ts';
import { philox4x32 } from '../../src/problem/philox.ts';
import { tooSlow } from './table.ts';

test.after(closeSharedEngines);

interface Shape {
  readonly B: number;
  readonly Hq: number;
  readonly Hkv: number;
  readonly Sq: number;
  readonly Sk: number;
  readonly D: number;
  readonly Dv: number;
  readonly seed: number;
}

const shape = fc
  .record({
    B: fc.integer({ min: 1, max: 2 }),
    Hkv: fc.integer({ min: 1, max: 2 }),
    group: fc.integer({ min: 1, max: 3 }),
    Sq: fc.integer({ min: 1, max: 70 }),
    Sk: fc.integer({ min: 1, max: 70 }),
    D: fc.integer({ min: 1, max: 40 }),
    Dv: fc.integer({ min: 1, max: 40 }),
    seed: fc.integer(),
  })
  .map(({ group, ...s }): Shape => ({ ...s, Hq: s.Hkv * group }));

/** Runs of a property per engine. */
const RUNS = 25;

function inputs({ B, Hq, Hkv, Sq, Sk, D, Dv, seed }: Shape): Record<'q' | 'k' | 'v' | 'dOut', HostTensor> {
  const rng = random(seed);
  return {
    q: floats(rng, [B, Hq, Sq, D]),
    k: floats(rng, [B, Hkv, Sk, D]),
    v: floats(rng, [B, Hkv, Sk, Dv]),
    dOut: floats(rng, [B, Hq, Sq, Dv]),
  };
}

async function everything(s: Record<'q' | 'k' | 'v' | 'dOut', HostTensor>, options: AttentionOptions) {
  const { out, lse, backward } = await attentionWithGrads(s.q, s.k, s.v, options);
  const { dq, dk, dv } = await backward(s.dOut);
  return { out, lse, dq: dq!, dk: dk!, dv: dv! };
}

/** Equal up to a few roundings of the largest element. */
function assertClose(got: HostTensor, expected: HostTensor, what: string): void {
  assert.deepEqual(got.shape, expected.shape, what);
  let top = 1;
  for (const x of expected.data) if (Number.isFinite(x)) top = Math.max(top, Math.abs(x));
  for (let i = 0; i < expected.data.length; i++) {
    const [x, y] = [got.data[i], expected.data[i]];
    assert.ok(x === y || Math.abs(x - y) <= 2e-5 * top, `${what}[${i}]: ${x} and ${y}`);
  }
}

/** Rows (or, with `axis` 1, heads) of a [B, H, S, D] tensor picked by index. */
function pick(t: HostTensor, axis: 1 | 2, indices: readonly number[]): HostTensor {
  const [B, H, S, D] = t.shape;
  const dims = axis === 1 ? [B, indices.length, S, D] : [B, H, indices.length, D];
  const data = new Float32Array(dims[0] * dims[1] * dims[2] * D);
  let o = 0;
  for (let b = 0; b < dims[0]; b++)
    for (let h = 0; h < dims[1]; h++)
      for (let i = 0; i < dims[2]; i++) {
        const from = ((b * H + (axis === 1 ? indices[h] : h)) * S + (axis === 2 ? indices[i] : i)) * D;
        data.set((t.data as Float32Array).subarray(from, from + D), o);
        o += D;
      }
  return tensor(data, dims);
}

const upTo = (n: number): number[] => Array.from({ length: n }, (_, i) => i);
const mapped = (t: HostTensor, f: (x: number, i: number) => number): HostTensor =>
  tensor(
    Float32Array.from(t.data as Float32Array, (x, i) => f(x, i)),
    t.shape,
  );

/** Sums the heads of each group, in place of what repeating k and v would add up. */
function sumGroups(t: HostTensor, Hkv: number): HostTensor {
  const [B, H, S, D] = t.shape;
  const data = new Float64Array(B * Hkv * S * D);
  for (let i = 0; i < t.data.length; i++) {
    const head = Math.floor(i / (S * D));
    const to = Math.floor(head / H) * Hkv + Math.floor(((head % H) * Hkv) / H);
    data[to * S * D + (i % (S * D))] += t.data[i];
  }
  return tensor(Float32Array.from(data), [B, Hkv, S, D]);
}

type Property = (s: Shape, engine: LoadableEngine) => Promise<void>;

const PROPERTIES: Readonly<Record<string, Property>> = {
  async 'the order of keys does not matter'(s, engine) {
    const x = inputs(s);
    const rng = random(s.seed + 1);
    const order = upTo(s.Sk);
    for (let i = order.length - 1; i > 0; i--) {
      const j = rng.below(i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    const a = await everything(x, { engine });
    const b = await everything({ ...x, k: pick(x.k, 2, order), v: pick(x.v, 2, order) }, { engine });
    assertClose(b.out, a.out, 'out');
    assertClose(b.lse, a.lse, 'lse');
    assertClose(b.dq, a.dq, 'dq');
    assertClose(b.dk, pick(a.dk, 2, order), 'dk');
    assertClose(b.dv, pick(a.dv, 2, order), 'dv');
  },

  async 'causal is the boolean mask of the same triangle'(s, engine) {
    const x = inputs(s);
    for (const align of ['bottom-right', 'top-left'] as const) {
      const shift = align === 'bottom-right' ? s.Sk - s.Sq : 0;
      const triangle = Uint8Array.from(upTo(s.Sq * s.Sk), (i) => Number(i % s.Sk <= Math.floor(i / s.Sk) + shift));
      const a = await everything(x, { engine, causal: align });
      const b = await everything(x, { engine, mask: tensor(triangle, [s.Sq, s.Sk]) });
      for (const name of ['out', 'lse', 'dq', 'dk', 'dv'] as const) assertClose(a[name], b[name], `${align} ${name}`);
    }
  },

  async 'grouped heads are repeated heads'(s, engine) {
    const x = inputs(s);
    const heads = upTo(s.Hq).map((h) => Math.floor((h * s.Hkv) / s.Hq));
    const a = await everything(x, { engine });
    const b = await everything({ ...x, k: pick(x.k, 1, heads), v: pick(x.v, 1, heads) }, { engine });
    assertClose(a.out, b.out, 'out');
    assertClose(a.dq, b.dq, 'dq');
    assertClose(a.dk, sumGroups(b.dk, s.Hkv), 'dk');
    assertClose(a.dv, sumGroups(b.dv, s.Hkv), 'dv');
  },

  async 'parts of the keys merge to the whole'(s, engine) {
    const { q, k, v } = inputs(s);
    const cut = Math.floor(s.Sk / 3);
    const whole = await attention(q, k, v, { engine });
    const part = async (rows: number[]) => attention(q, pick(k, 2, rows), pick(v, 2, rows), { engine });
    const [first, second] = [await part(upTo(cut)), await part(upTo(s.Sk).slice(cut))];
    const wide = (t: HostTensor): Float64Array => Float64Array.from(t.data);
    const joined = { out: wide(first.out), lse: wide(first.lse) };
    mergeInto(joined, { out: wide(second.out), lse: wide(second.lse) });
    assertClose(whole.out, tensor(Float32Array.from(joined.out), whole.out.shape), 'out');
    assertClose(whole.lse, tensor(Float32Array.from(joined.lse), whole.lse.shape), 'lse');
  },

  async 'parts of the queries are rows of the whole'(s, engine) {
    const { q, k, v } = inputs(s);
    const rows = upTo(s.Sq).filter((i) => i % 3 !== 1);
    const whole = await attention(q, k, v, { engine });
    const some = await attention(pick(q, 2, rows), k, v, { engine });
    assertClose(some.out, pick(whole.out, 2, rows), 'out');
  },

  async 'packed sequences are separate calls'(s, engine) {
    const lengths = [s.Sq, 0, s.Sk, 1];
    const total = lengths.reduce((n, len) => n + len, 0);
    const x = inputs({ ...s, B: 1, Sq: total, Sk: total });
    const cu = upTo(lengths.length + 1).map((n) => lengths.slice(0, n).reduce((sum, len) => sum + len, 0));
    const packed = await everything(x, { engine, causal: true, cuSeqlens: { q: cu } });
    for (let i = 0; i < lengths.length; i++) {
      const rows = upTo(total).slice(cu[i], cu[i + 1]);
      if (rows.length === 0) continue;
      const one = { q: pick(x.q, 2, rows), k: pick(x.k, 2, rows), v: pick(x.v, 2, rows), dOut: pick(x.dOut, 2, rows) };
      const alone = await everything(one, { engine, causal: true });
      for (const name of ['out', 'dq', 'dk', 'dv'] as const)
        assertClose(pick(packed[name], 2, rows), alone[name], `sequence ${i} ${name}`);
    }
  },

  async 'out is linear in v, and lse does not look at it'(s, engine) {
    const x = inputs(s);
    const other = inputs({ ...s, seed: s.seed + 1 }).v;
    const sum = mapped(x.v, (y, i) => 2 * y + other.data[i]);
    const [a, b, c] = await Promise.all([x.v, other, sum].map((v) => attention(x.q, x.k, v, { engine })));
    assertClose(
      c.out,
      mapped(a.out, (y, i) => 2 * y + b.out.data[i]),
      'out',
    );
    assert.deepEqual(c.lse.data, a.lse.data);
  },

  async 'adding the same to every score changes lse alone'(s, engine) {
    const { q, k, v } = inputs(s);
    const a = await attention(q, k, v, { engine });
    const b = await attention(q, k, v, { engine, bias: tensor(Float32Array.of(3), [1, 1]) });
    assertClose(b.out, a.out, 'out');
    assertClose(
      b.lse,
      mapped(a.lse, (y) => y + 3),
      'lse',
    );
  },

  async 'a sequence in another layout is the same sequence'(s, engine) {
    const x = inputs(s);
    const turned = (t: HostTensor): HostTensor => {
      const [B, H, S, D] = t.shape;
      const at = (i: number): number => {
        const [d, h, r] = [i % D, Math.floor(i / D) % H, Math.floor(i / (D * H)) % S];
        return ((Math.floor(i / (D * H * S)) * H + h) * S + r) * D + d;
      };
      return tensor(
        Float32Array.from(upTo(t.data.length), (i) => t.data[at(i)]),
        [B, S, H, D],
      );
    };
    const a = await everything(x, { engine });
    const b = await everything(
      { q: turned(x.q), k: turned(x.k), v: turned(x.v), dOut: turned(x.dOut) },
      { engine, layout: 'bnhd' },
    );
    for (const name of ['out', 'dq', 'dk', 'dv'] as const) assertClose(b[name], turned(a[name]), name);
  },

  async 'decoding piece by piece is causal attention of the whole'(s, engine) {
    const S = Math.max(s.Sq, s.Sk);
    const { q, k, v } = inputs({ ...s, Sq: S, Sk: S });
    const { out, lse } = await attention(q, k, v, { engine, causal: true });
    const rng = random(s.seed + 2);
    const { B, Hkv, D, Dv } = s;
    for (const room of [{ capacity: S }, { paged: { pageSize: 8, pages: B * Math.ceil(S / 8) } }]) {
      const cache = KvCache.create(await sharedEngine(engine), { B, Hkv, D, Dv, ...room });
      for (let from = 0; from < S; ) {
        const rows = upTo(S).slice(from, from + 1 + rng.below(S - from));
        cache.append(pick(k, 2, rows), pick(v, 2, rows));
        const piece = await attentionDecode(pick(q, 2, rows), cache);
        assertClose(piece.out, pick(out, 2, rows), `out of rows ${from} and on`);
        const lseRows = pick(tensor(lse.data, [...lse.shape, 1]), 2, rows);
        assertClose(tensor(piece.lse.data, [...piece.lse.shape, 1]), lseRows, `lse of rows ${from} and on`);
        from += rows.length;
      }
      cache.dispose();
    }
  },

  async 'dropout keeps what a scalar Philox keeps'(s, engine) {
    // v is the identity: out[q, kv] is the probability after dropout, and every key has its own column.
    const { B, Hq, Hkv, Sq } = s;
    const Sk = Math.min(s.Sk, 64);
    const { q, k } = inputs({ ...s, Sk });
    const v = tensor(
      Float32Array.from(upTo(B * Hkv * Sk * Sk), (i) => Number(i % Sk === Math.floor(i / Sk) % Sk)),
      [B, Hkv, Sk, Sk],
    );
    const [p, seed, offset] = [0.3, 0x1234_5678_9abcn, 5];
    const { out } = await attention(q, k, v, { engine, dropout: { p, seed, offset } });
    const [low, high] = [Number(seed & 0xffff_ffffn), Number(seed >> 32n)];
    for (let i = 0; i < out.data.length; i++) {
      const [kv, row, bh] = [i % Sk, Math.floor(i / Sk) % Sq, Math.floor(i / (Sk * Sq))];
      const word = philox4x32(kv >> 2, row & ~8, bh, offset, low, high)[kv & 3];
      const kept = (row & 8 ? word >>> 16 : word & 0xffff) >= Math.round(p * 65536);
      assert.equal(out.data[i] !== 0, kept, `b * Hq + h = ${bh} of ${B * Hq}, q = ${row}, kv = ${kv}`);
    }
  },
};

for (const probe of await doctor()) {
  const engine = probe.engine as LoadableEngine;
  const skip = probe.available ? (tooSlow(await sharedEngine(engine)) ?? false) : probe.reason;
  for (const [title, property] of Object.entries(PROPERTIES))
    test(`${engine}: ${title}`, { skip }, () =>
      fc.assert(
        fc.asyncProperty(shape, (s) => property(s, engine)),
        { numRuns: RUNS, seed: 20 },
      ),
    );
}
