/** Philox4x32-7 in WGSL: the same bits as problem/philox.ts, with 64-bit products built from 16-bit halves. */
import { PHILOX as ROUNDS } from '../../../problem/philox.ts';
import type { ModuleBuilder } from './module.ts';

const MULHI = `fn tw_mulhi(a: u32, b: u32) -> u32 {
  let al = a & 0xffffu;
  let ah = a >> 16u;
  let bl = b & 0xffffu;
  let bh = b >> 16u;
  let mid = ah * bl + ((al * bl) >> 16u);
  return ah * bh + (mid >> 16u) + ((al * bh + (mid & 0xffffu)) >> 16u);
}`;

const PHILOX = `fn tw_philox(counter: vec4<u32>, seed: vec2<u32>) -> vec4<u32> {
  var c = counter;
  var k = seed;
  for (var round = 0u; round < ${ROUNDS.rounds}u; round++) {
    let p0 = 0xd2511f53u * c.x;
    let p1 = 0xcd9e8d57u * c.z;
    c = vec4<u32>(tw_mulhi(0xcd9e8d57u, c.z) ^ c.y ^ k.x, p1, tw_mulhi(0xd2511f53u, c.x) ^ c.w ^ k.y, p0);
    k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
  }
  return c;
}`;

/**
 * Declares `tw_drop4(q, kv, bh) -> vec4<f32>`: what dropout multiplies the probabilities of keys kv .. kv + 3 by (kv a
 * multiple of 4), and `tw_drop1(q, kv, bh) -> f32` for a single key.
 */
export function declareDropout(m: ModuleBuilder): void {
  m.fn('tw_mulhi', MULHI);
  m.fn('tw_philox', PHILOX);
  const seed = `vec2<u32>(${m.param('seedLo')}, ${m.param('seedHi')})`;
  const kept = m.param('dropKeep', 'f32');
  const bits = `tw_philox(vec4<u32>(u32(kv) >> 2u, u32(q) & ~8u, u32(bh), ${m.param('dropOffset')}), ${seed})`;
  const half = '(u32(~q) & 8u) << 1u';
  const threshold = m.param('dropThreshold');
  m.fn(
    'tw_drop4',
    `fn tw_drop4(q: i32, kv: i32, bh: i32) -> vec4<f32> {
  return select(vec4<f32>(0.0), vec4<f32>(${kept}), (${bits} << vec4<u32>(${half})) >= vec4<u32>(${threshold}));
}`,
  );
  m.fn(
    'tw_drop1',
    `fn tw_drop1(q: i32, kv: i32, bh: i32) -> f32 {
  return select(0.0, ${kept}, (${bits}[u32(kv) & 3u] << (${half})) >= ${threshold});
}`,
  );
}
