struct Params {
  seedLo: u32,
  seedHi: u32,
  dropKeep: f32,
  dropOffset: u32,
  dropThreshold: u32,
  q_s: u32,
  k_s: u32,
  v_s: u32,
  out_s: u32,
  scale: f32,
  firstH: u32,
  group: u32,
  Hq: u32,
  firstB: u32,
  q_b: u32,
  q_h: u32,
  q_from: u32,
  k_b: u32,
  k_h: u32,
  k_from: u32,
  v_b: u32,
  v_h: u32,
  v_from: u32,
  out_b: u32,
  out_h: u32,
  out_from: u32,
  qRowsAt: u32,
  qRunsB: u32,
  qRunsH: u32,
  qRunsAt: u32,
  lse_b: u32,
  lse_h: u32,
  lse_s: u32,
  negInf: f32,
}
@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read> side0: array<f32>;
@group(0) @binding(2) var<storage, read> q: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> k: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> v: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;
@group(0) @binding(7) var<storage, read> tables: array<i32>;
@group(0) @binding(8) var<storage, read> sink: array<f32>;
var<private> atB: i32;
var<private> atH: i32;
var<private> atLenQ: i32;
var<private> atLenK: i32;
var<private> base_q: u32;
var<private> base_k: u32;
var<private> base_v: u32;
var<private> base_out: u32;
var<workgroup> arena: array<vec4<f32>, 288>;
var<workgroup> poison: atomic<u32>;
fn mask1(score: f32, b: i32, h: i32, q: i32, kv: i32, lenQ: i32, lenK: i32) -> bool {
  let t0 = (lenK - lenQ);
  let t1 = (q + t0);
  let t2 = (kv <= t1);
  let t3 = (t1 - kv);
  let t4 = (t3 <= 19);
  let t5 = (t2 && t4);
  return t5;
}
fn mask4(q: i32, kv: i32) -> vec4<bool> {
  var four = vec4<bool>();
  for (var e = 0; e < 4 * min(atLenQ, 1); e++) { four[e] = mask1(0.0, atB, atH, min(q, atLenQ - 1), min(kv + e, atLenK - 1), atLenQ, atLenK); }
  return four;
}
fn inside4(q: i32, kv: i32) -> vec4<bool> { return vec4<i32>(kv) + vec4<i32>(0, 1, 2, 3) < vec4<i32>(atLenK); }
fn tw_tanh(x: f32) -> f32 {
  let a = abs(x);
  let y = x * x;
  let near = x * (1.0 + y * (-0.33333333 + y * (0.13333334 + y * (-0.053968254 + y * (0.021869488 + y * -0.0088632356)))));
  let far = 1.0 - 2.0 / (exp(2.0 * min(a, 12.0)) + 1.0);
  return select(sign(x) * far, near, a < 0.35);
}
fn mod1(score: f32, b: i32, h: i32, q: i32, kv: i32, lenQ: i32, lenK: i32) -> f32 {
  let t0 = (score * 0.05000000074505806f);
  let t1 = tw_tanh(t0);
  let t2 = (t1 * 20f);
  let t3 = u32(h);
  let t4 = side0[t3];
  let t5 = (lenK - lenQ);
  let t6 = (q + t5);
  let t7 = (t6 - kv);
  let t8 = abs(t7);
  let t9 = f32(t8);
  let t10 = (t4 * t9);
  let t11 = (t2 - t10);
  return t11;
}
fn mod4(s: vec4<f32>, q: i32, kv: i32) -> vec4<f32> {
  var four = vec4<f32>();
  for (var e = 0; e < 4 * min(atLenQ, 1); e++) { four[e] = mod1(s[e], atB, atH, min(q, atLenQ - 1), min(kv + e, atLenK - 1), atLenQ, atLenK); }
  return four;
}
fn tw_mulhi(a: u32, b: u32) -> u32 {
  let al = a & 0xffffu;
  let ah = a >> 16u;
  let bl = b & 0xffffu;
  let bh = b >> 16u;
  let mid = ah * bl + ((al * bl) >> 16u);
  return ah * bh + (mid >> 16u) + ((al * bh + (mid & 0xffffu)) >> 16u);
}
fn tw_philox(counter: vec4<u32>, seed: vec2<u32>) -> vec4<u32> {
  var c = counter;
  var k = seed;
  for (var round = 0u; round < 7u; round++) {
    let p0 = 0xd2511f53u * c.x;
    let p1 = 0xcd9e8d57u * c.z;
    c = vec4<u32>(tw_mulhi(0xcd9e8d57u, c.z) ^ c.y ^ k.x, p1, tw_mulhi(0xd2511f53u, c.x) ^ c.w ^ k.y, p0);
    k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
  }
  return c;
}
fn tw_drop4(q: i32, kv: i32, bh: i32) -> vec4<f32> {
  return select(vec4<f32>(0.0), vec4<f32>(P.dropKeep), (tw_philox(vec4<u32>(u32(kv) >> 2u, u32(q) & ~8u, u32(bh), P.dropOffset), vec2<u32>(P.seedLo, P.seedHi)) << vec4<u32>((u32(~q) & 8u) << 1u)) >= vec4<u32>(P.dropThreshold));
}
fn tw_drop1(q: i32, kv: i32, bh: i32) -> f32 {
  return select(0.0, P.dropKeep, (tw_philox(vec4<u32>(u32(kv) >> 2u, u32(q) & ~8u, u32(bh), P.dropOffset), vec2<u32>(P.seedLo, P.seedHi))[u32(kv) & 3u] << ((u32(~q) & 8u) << 1u)) >= P.dropThreshold);
}
fn rd_any_full_q(row_: u32, quad_: u32) -> vec2<u32> {
  let row = row_;
  let quad = quad_;
  let at = base_q + row * P.q_s;
  return q[(at >> 2u) + quad];
}
fn tw_f16(w: vec2<u32>) -> vec4<f32> { return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }
fn rd_any_full_q_f32(row: u32, quad: u32) -> vec4<f32> { return tw_f16(rd_any_full_q(row, quad)); }
fn rd_any_full_k(row_: u32, quad_: u32) -> vec2<u32> {
  let row = row_;
  let quad = quad_;
  let at = base_k + row * P.k_s;
  return k[(at >> 2u) + quad];
}
fn rd_any_full_k_f32(row: u32, quad: u32) -> vec4<f32> { return tw_f16(rd_any_full_k(row, quad)); }
fn rd_any_v(row_: u32, quad_: u32) -> vec2<u32> {
  let row = row_;
  let quad = min(quad_, 3u);
  let at = base_v + row * P.v_s;
  return select(vec2<u32>(), v[(at >> 2u) + quad], quad_ < 4u);
}
fn rd_any_v_f32(row: u32, quad: u32) -> vec4<f32> { return tw_f16(rd_any_v(row, quad)); }
fn tw_to_f16(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  let sign = (u >> 16u) & 0x8000u;
  let a = u & 0x7fffffffu;
  if (a > 0x7f800000u) { return sign | 0x7e00u; }
  if (a >= 0x477ff000u) { return sign | 0x7c00u; }
  if (a < 0x38800000u) {
    let shift = min(126u - (a >> 23u), 31u);
    let m = (a & 0x7fffffu) | 0x800000u;
    let half = m >> shift;
    let rest = m & ((1u << shift) - 1u);
    let tie = 1u << (shift - 1u);
    return sign | (half + select(0u, 1u, rest > tie || (rest == tie && (half & 1u) == 1u)));
  }
  return sign | ((a - 0x38000000u + 0xfffu + ((a >> 13u) & 1u)) >> 13u);
}
fn st_out(row: u32, quad: u32, x: vec4<f32>) {
  if (row >= u32(atLenQ) || quad >= 4u) { return; }
  let at = base_out + row * P.out_s;
  out[(at >> 2u) + quad] = vec2<u32>(tw_to_f16(x.x) | (tw_to_f16(x.y) << 16u), tw_to_f16(x.z) | (tw_to_f16(x.w) << 16u));
}
fn log2OrNan(x: f32) -> f32 {
  let bits = bitcast<u32>(x);
  return select(log2(x), bitcast<f32>(bits | 0x7fc00000u), (bits & 0x7f800000u) == 0x7f800000u);
}
@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let once = min(groups.z, 1u);
  let tid = local;
  let r = tid / 8u;
  let c = tid % 8u;
  let b = group.z + P.firstB;
  let h = group.x + P.firstH;
  let hkv = h / P.group;
  let bh = b * P.Hq + h;
  atH = i32(h);
  let qStart = u32(tables[b * 4u]);
  let lenQ = u32(tables[b * 4u + 1u]);
  let kStart = u32(tables[b * 4u + 2u]);
  let lenK = u32(tables[b * 4u + 3u]);
  atB = i32(b);
  atLenQ = i32(lenQ);
  atLenK = i32(lenK);
  let q0 = (groups.y - 1u - group.y) * 16u;
  if (q0 >= lenQ) { return; }
  base_q = b * P.q_b + h * P.q_h + qStart * P.q_s - P.q_from;
  base_k = b * P.k_b + hkv * P.k_h + kStart * P.k_s - P.k_from;
  base_v = b * P.v_b + hkv * P.v_h + kStart * P.v_s - P.v_from;
  base_out = b * P.out_b + h * P.out_h + qStart * P.out_s - P.out_from;
  let q_0 = i32(q0 + (4u * r + 0u));
  var m_0 = -1.0e30;
  var l_0 = 0.0;
  let q_1 = i32(q0 + (4u * r + 1u));
  var m_1 = -1.0e30;
  var l_1 = 0.0;
  let q_2 = i32(q0 + (4u * r + 2u));
  var m_2 = -1.0e30;
  var l_2 = 0.0;
  let q_3 = i32(q0 + (4u * r + 3u));
  var m_3 = -1.0e30;
  var l_3 = 0.0;
  var o_0_0 = vec4<f32>(0.0);
  var o_1_0 = vec4<f32>(0.0);
  var o_2_0 = vec4<f32>(0.0);
  var o_3_0 = vec4<f32>(0.0);
  {
    let runRow = P.qRowsAt + b * P.qRunsB + h * P.qRunsH + q0 / 16u;
    let lastRun = u32(tables[runRow + 1u]);
    for (var run = u32(tables[runRow]); run < lastRun; run++) {
      let runAt = P.qRunsAt + 3u * run;
      let partial = tables[runAt + 2u] != 0;
      let runEnd = u32(tables[runAt + 1u]);
      for (var block = u32(tables[runAt]); block < runEnd; block++) {
        let k0 = block * 32u;
        var s_0_0 = vec4<f32>(0.0);
        var s_1_0 = vec4<f32>(0.0);
        var s_2_0 = vec4<f32>(0.0);
        var s_3_0 = vec4<f32>(0.0);
        {
          var sa_0_0: vec4<f32>;
          var sa_0_1: vec4<f32>;
          var sa_0_2: vec4<f32>;
          var sa_0_3: vec4<f32>;
          var sb_0_0: vec4<f32>;
          var sb_0_1: vec4<f32>;
          var sb_0_2: vec4<f32>;
          var sb_0_3: vec4<f32>;
          let start = 0u;
          workgroupBarrier(); // what was read from this place before is done with
          sa_0_0 = rd_any_full_q_f32(q0 + (min(tid, 15u) / 2u) % 4u * 4u + 0u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
          sa_0_1 = rd_any_full_q_f32(q0 + (min(tid, 15u) / 2u) % 4u * 4u + 1u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
          sa_0_2 = rd_any_full_q_f32(q0 + (min(tid, 15u) / 2u) % 4u * 4u + 2u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
          sa_0_3 = rd_any_full_q_f32(q0 + (min(tid, 15u) / 2u) % 4u * 4u + 3u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
          sb_0_0 = rd_any_full_k_f32(k0 + (tid / 2u) % 8u * 4u + 0u, start + (tid / 16u * 2u + tid % 2u));
          sb_0_1 = rd_any_full_k_f32(k0 + (tid / 2u) % 8u * 4u + 1u, start + (tid / 16u * 2u + tid % 2u));
          sb_0_2 = rd_any_full_k_f32(k0 + (tid / 2u) % 8u * 4u + 2u, start + (tid / 16u * 2u + tid % 2u));
          sb_0_3 = rd_any_full_k_f32(k0 + (tid / 2u) % 8u * 4u + 3u, start + (tid / 16u * 2u + tid % 2u));
          if (tid < 16u) {
            arena[(tid / 8u * 2u + tid % 2u) * 20u + (tid / 2u) % 4u + 144u] = vec4<f32>(sa_0_0.x, sa_0_1.x, sa_0_2.x, sa_0_3.x);
            arena[(tid / 8u * 2u + tid % 2u) * 20u + (tid / 2u) % 4u + 149u] = vec4<f32>(sa_0_0.y, sa_0_1.y, sa_0_2.y, sa_0_3.y);
            arena[(tid / 8u * 2u + tid % 2u) * 20u + (tid / 2u) % 4u + 154u] = vec4<f32>(sa_0_0.z, sa_0_1.z, sa_0_2.z, sa_0_3.z);
            arena[(tid / 8u * 2u + tid % 2u) * 20u + (tid / 2u) % 4u + 159u] = vec4<f32>(sa_0_0.w, sa_0_1.w, sa_0_2.w, sa_0_3.w);
          }
          arena[(tid / 16u * 2u + tid % 2u) * 36u + (tid / 2u) % 8u + 0u] = vec4<f32>(sb_0_0.x, sb_0_1.x, sb_0_2.x, sb_0_3.x);
          arena[(tid / 16u * 2u + tid % 2u) * 36u + (tid / 2u) % 8u + 9u] = vec4<f32>(sb_0_0.y, sb_0_1.y, sb_0_2.y, sb_0_3.y);
          arena[(tid / 16u * 2u + tid % 2u) * 36u + (tid / 2u) % 8u + 18u] = vec4<f32>(sb_0_0.z, sb_0_1.z, sb_0_2.z, sb_0_3.z);
          arena[(tid / 16u * 2u + tid % 2u) * 36u + (tid / 2u) % 8u + 27u] = vec4<f32>(sb_0_0.w, sb_0_1.w, sb_0_2.w, sb_0_3.w);
          workgroupBarrier(); // staged rows are visible
          for (var d = 0u; d < 4u * once; d++) {
            let fromA = r + 144u + d * 20u;
            let fromB = c + 0u + d * 36u;
            {
              let a_0 = arena[fromA + 0u];
              let b_0 = arena[fromB + 0u];
              s_0_0 = fma(vec4<f32>(a_0.x), b_0, s_0_0);
              s_1_0 = fma(vec4<f32>(a_0.y), b_0, s_1_0);
              s_2_0 = fma(vec4<f32>(a_0.z), b_0, s_2_0);
              s_3_0 = fma(vec4<f32>(a_0.w), b_0, s_3_0);
            }
            {
              let a_0 = arena[fromA + 5u];
              let b_0 = arena[fromB + 9u];
              s_0_0 = fma(vec4<f32>(a_0.x), b_0, s_0_0);
              s_1_0 = fma(vec4<f32>(a_0.y), b_0, s_1_0);
              s_2_0 = fma(vec4<f32>(a_0.z), b_0, s_2_0);
              s_3_0 = fma(vec4<f32>(a_0.w), b_0, s_3_0);
            }
            {
              let a_0 = arena[fromA + 10u];
              let b_0 = arena[fromB + 18u];
              s_0_0 = fma(vec4<f32>(a_0.x), b_0, s_0_0);
              s_1_0 = fma(vec4<f32>(a_0.y), b_0, s_1_0);
              s_2_0 = fma(vec4<f32>(a_0.z), b_0, s_2_0);
              s_3_0 = fma(vec4<f32>(a_0.w), b_0, s_3_0);
            }
            {
              let a_0 = arena[fromA + 15u];
              let b_0 = arena[fromB + 27u];
              s_0_0 = fma(vec4<f32>(a_0.x), b_0, s_0_0);
              s_1_0 = fma(vec4<f32>(a_0.y), b_0, s_1_0);
              s_2_0 = fma(vec4<f32>(a_0.z), b_0, s_2_0);
              s_3_0 = fma(vec4<f32>(a_0.w), b_0, s_3_0);
            }
          }
        }
        var ox_0_0: vec4<f32>;
        var ox_1_0: vec4<f32>;
        var ox_2_0: vec4<f32>;
        var ox_3_0: vec4<f32>;
        s_0_0 = mod4(s_0_0 * P.scale, q_0, i32(k0 + 4u * c + 0u)) * 1.4426950408889634;
        s_1_0 = mod4(s_1_0 * P.scale, q_1, i32(k0 + 4u * c + 0u)) * 1.4426950408889634;
        s_2_0 = mod4(s_2_0 * P.scale, q_2, i32(k0 + 4u * c + 0u)) * 1.4426950408889634;
        s_3_0 = mod4(s_3_0 * P.scale, q_3, i32(k0 + 4u * c + 0u)) * 1.4426950408889634;
        if (partial) {
          s_0_0 = select(vec4<f32>(-3.0e38), s_0_0, (inside4(q_0, i32(k0 + 4u * c + 0u)) & mask4(q_0, i32(k0 + 4u * c + 0u))));
          s_1_0 = select(vec4<f32>(-3.0e38), s_1_0, (inside4(q_1, i32(k0 + 4u * c + 0u)) & mask4(q_1, i32(k0 + 4u * c + 0u))));
          s_2_0 = select(vec4<f32>(-3.0e38), s_2_0, (inside4(q_2, i32(k0 + 4u * c + 0u)) & mask4(q_2, i32(k0 + 4u * c + 0u))));
          s_3_0 = select(vec4<f32>(-3.0e38), s_3_0, (inside4(q_3, i32(k0 + 4u * c + 0u)) & mask4(q_3, i32(k0 + 4u * c + 0u))));
        } else if (k0 + 32u > lenK) {
          s_0_0 = select(vec4<f32>(-3.0e38), s_0_0, inside4(q_0, i32(k0 + 4u * c + 0u)));
          s_1_0 = select(vec4<f32>(-3.0e38), s_1_0, inside4(q_1, i32(k0 + 4u * c + 0u)));
          s_2_0 = select(vec4<f32>(-3.0e38), s_2_0, inside4(q_2, i32(k0 + 4u * c + 0u)));
          s_3_0 = select(vec4<f32>(-3.0e38), s_3_0, inside4(q_3, i32(k0 + 4u * c + 0u)));
        }
        let w_0 = s_0_0;
        var n_0 = max(max(w_0.x, w_0.y), max(w_0.z, w_0.w));
        let w_1 = s_1_0;
        var n_1 = max(max(w_1.x, w_1.y), max(w_1.z, w_1.w));
        let w_2 = s_2_0;
        var n_2 = max(max(w_2.x, w_2.y), max(w_2.z, w_2.w));
        let w_3 = s_3_0;
        var n_3 = max(max(w_3.x, w_3.y), max(w_3.z, w_3.w));
        workgroupBarrier(); // the products' last readers are done with the place
        arena[(r + 0u) * 9u + c] = vec4<f32>(n_0, n_1, n_2, n_3);
        workgroupBarrier(); // the maxima of a row's invocations are visible
        var top_0 = arena[(r + 0u) * 9u + 0u];
        for (var j = 1u; j < 8u * once; j++) { top_0 = max(top_0, arena[(r + 0u) * 9u + j]); }
        n_0 = top_0.x;
        n_1 = top_0.y;
        n_2 = top_0.z;
        n_3 = top_0.w;
        n_0 = max(n_0, m_0);
        n_1 = max(n_1, m_1);
        n_2 = max(n_2, m_2);
        n_3 = max(n_3, m_3);
        {
          let alpha = exp2(m_0 - n_0);
          m_0 = n_0;
          l_0 *= alpha;
          o_0_0 *= alpha;
          s_0_0 = exp2(s_0_0 - vec4<f32>(m_0));
          l_0 += (s_0_0.x + s_0_0.y) + (s_0_0.z + s_0_0.w);
          s_0_0 *= tw_drop4(q_0, i32(k0 + 4u * c + 0u), i32(bh));
        }
        {
          let alpha = exp2(m_1 - n_1);
          m_1 = n_1;
          l_1 *= alpha;
          o_1_0 *= alpha;
          s_1_0 = exp2(s_1_0 - vec4<f32>(m_1));
          l_1 += (s_1_0.x + s_1_0.y) + (s_1_0.z + s_1_0.w);
          s_1_0 *= tw_drop4(q_1, i32(k0 + 4u * c + 0u), i32(bh));
        }
        {
          let alpha = exp2(m_2 - n_2);
          m_2 = n_2;
          l_2 *= alpha;
          o_2_0 *= alpha;
          s_2_0 = exp2(s_2_0 - vec4<f32>(m_2));
          l_2 += (s_2_0.x + s_2_0.y) + (s_2_0.z + s_2_0.w);
          s_2_0 *= tw_drop4(q_2, i32(k0 + 4u * c + 0u), i32(bh));
        }
        {
          let alpha = exp2(m_3 - n_3);
          m_3 = n_3;
          l_3 *= alpha;
          o_3_0 *= alpha;
          s_3_0 = exp2(s_3_0 - vec4<f32>(m_3));
          l_3 += (s_3_0.x + s_3_0.y) + (s_3_0.z + s_3_0.w);
          s_3_0 *= tw_drop4(q_3, i32(k0 + 4u * c + 0u), i32(bh));
        }
        for (var part = 0u; part < 2u * once; part++) {
          let from_ = part * 16u;
          let inPiece = from_;
          workgroupBarrier(); // the place's last readers are done
          ox_0_0 = rd_any_v_f32(k0 + 0u + (inPiece + tid / 8u) % 8u * 4u + (inPiece + tid / 8u) / 8u, tid % 8u);
          ox_1_0 = rd_any_v_f32(k0 + 0u + (inPiece + (tid + 32u) / 8u) % 8u * 4u + (inPiece + (tid + 32u) / 8u) / 8u, (tid + 32u) % 8u);
          ox_2_0 = rd_any_v_f32(k0 + 0u + (inPiece + (tid + 64u) / 8u) % 8u * 4u + (inPiece + (tid + 64u) / 8u) / 8u, (tid + 64u) % 8u);
          ox_3_0 = rd_any_v_f32(k0 + 0u + (inPiece + (tid + 96u) / 8u) % 8u * 4u + (inPiece + (tid + 96u) / 8u) / 8u, (tid + 96u) % 8u);
          if (inPiece == 0u) {
            arena[0u + (0u + c) * 5u + r + 0u] = vec4<f32>(s_0_0.x, s_1_0.x, s_2_0.x, s_3_0.x);
            arena[0u + (8u + c) * 5u + r + 0u] = vec4<f32>(s_0_0.y, s_1_0.y, s_2_0.y, s_3_0.y);
            arena[0u + (16u + c) * 5u + r + 0u] = vec4<f32>(s_0_0.z, s_1_0.z, s_2_0.z, s_3_0.z);
            arena[0u + (24u + c) * 5u + r + 0u] = vec4<f32>(s_0_0.w, s_1_0.w, s_2_0.w, s_3_0.w);
          }
          ox_0_0 = select(vec4<f32>(0.0), ox_0_0, k0 + 0u + (inPiece + tid / 8u) % 8u * 4u + (inPiece + tid / 8u) / 8u < lenK);
          arena[160u + tid] = ox_0_0;
          atomicOr(&poison, u32(partial & any((bitcast<vec4<u32>>(ox_0_0) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u))));
          ox_1_0 = select(vec4<f32>(0.0), ox_1_0, k0 + 0u + (inPiece + (tid + 32u) / 8u) % 8u * 4u + (inPiece + (tid + 32u) / 8u) / 8u < lenK);
          arena[160u + (tid + 32u)] = ox_1_0;
          atomicOr(&poison, u32(partial & any((bitcast<vec4<u32>>(ox_1_0) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u))));
          ox_2_0 = select(vec4<f32>(0.0), ox_2_0, k0 + 0u + (inPiece + (tid + 64u) / 8u) % 8u * 4u + (inPiece + (tid + 64u) / 8u) / 8u < lenK);
          arena[160u + (tid + 64u)] = ox_2_0;
          atomicOr(&poison, u32(partial & any((bitcast<vec4<u32>>(ox_2_0) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u))));
          ox_3_0 = select(vec4<f32>(0.0), ox_3_0, k0 + 0u + (inPiece + (tid + 96u) / 8u) % 8u * 4u + (inPiece + (tid + 96u) / 8u) / 8u < lenK);
          arena[160u + (tid + 96u)] = ox_3_0;
          atomicOr(&poison, u32(partial & any((bitcast<vec4<u32>>(ox_3_0) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u))));
          workgroupBarrier(); // P and the staged rows are visible
          if (atomicLoad(&poison) != 0u) {
            for (var j = 0u; j < 16u * once; j++) {
              let p_0 = arena[r + 0u + (inPiece + j) * 5u + 0u];
              let x_0 = arena[c + 160u + j * 8u + 0u];
              if (p_0.x != 0.0) {
                o_0_0 = fma(vec4<f32>(p_0.x), x_0, o_0_0);
              }
              if (p_0.y != 0.0) {
                o_1_0 = fma(vec4<f32>(p_0.y), x_0, o_1_0);
              }
              if (p_0.z != 0.0) {
                o_2_0 = fma(vec4<f32>(p_0.z), x_0, o_2_0);
              }
              if (p_0.w != 0.0) {
                o_3_0 = fma(vec4<f32>(p_0.w), x_0, o_3_0);
              }
            }
          } else {
            for (var j = 0u; j < 4u * once; j++) {
              let fromP = r + 0u + (inPiece + j * 4u) * 5u;
              let fromX = c + 160u + j * 32u;
              {
                let p_0 = arena[fromP + 0u];
                let x_0 = arena[fromX + 0u];
                o_0_0 = fma(vec4<f32>(p_0.x), x_0, o_0_0);
                o_1_0 = fma(vec4<f32>(p_0.y), x_0, o_1_0);
                o_2_0 = fma(vec4<f32>(p_0.z), x_0, o_2_0);
                o_3_0 = fma(vec4<f32>(p_0.w), x_0, o_3_0);
              }
              {
                let p_0 = arena[fromP + 5u];
                let x_0 = arena[fromX + 8u];
                o_0_0 = fma(vec4<f32>(p_0.x), x_0, o_0_0);
                o_1_0 = fma(vec4<f32>(p_0.y), x_0, o_1_0);
                o_2_0 = fma(vec4<f32>(p_0.z), x_0, o_2_0);
                o_3_0 = fma(vec4<f32>(p_0.w), x_0, o_3_0);
              }
              {
                let p_0 = arena[fromP + 10u];
                let x_0 = arena[fromX + 16u];
                o_0_0 = fma(vec4<f32>(p_0.x), x_0, o_0_0);
                o_1_0 = fma(vec4<f32>(p_0.y), x_0, o_1_0);
                o_2_0 = fma(vec4<f32>(p_0.z), x_0, o_2_0);
                o_3_0 = fma(vec4<f32>(p_0.w), x_0, o_3_0);
              }
              {
                let p_0 = arena[fromP + 15u];
                let x_0 = arena[fromX + 24u];
                o_0_0 = fma(vec4<f32>(p_0.x), x_0, o_0_0);
                o_1_0 = fma(vec4<f32>(p_0.y), x_0, o_1_0);
                o_2_0 = fma(vec4<f32>(p_0.z), x_0, o_2_0);
                o_3_0 = fma(vec4<f32>(p_0.w), x_0, o_3_0);
              }
            }
          }
        }
      }
    }
  }
  workgroupBarrier(); // P's last readers are done with the place
  arena[(r + 0u) * 9u + c] = vec4<f32>(l_0, l_1, l_2, l_3);
  workgroupBarrier(); // partial sums are visible
  var total_0 = vec4<f32>(0.0);
  for (var j = 0u; j < 8u * once; j++) { total_0 += arena[(r + 0u) * 9u + j]; }
  {
    var sum = total_0.x;
    let attended = m_0 > -1.0e30;
    var factor = 1.0;
    let sink = sink[h] * 1.4426950408889634;
    let top = max(m_0, sink);
    sum = sum * exp2(m_0 - top) + exp2(sink - top);
    factor = exp2(m_0 - top);
    m_0 = top;
    let share = select(0.0, factor / sum, attended);
    st_out(u32(q_0), c + 0u, select(vec4<f32>(0.0), o_0_0 * share, attended));
    if (c == 0u && u32(q_0) < lenQ) {
      lse[b * P.lse_b + h * P.lse_h + (qStart + u32(q_0)) * P.lse_s] = select(P.negInf, (m_0 + log2OrNan(sum)) * 0.6931471805599453, attended);
    }
  }
  {
    var sum = total_0.y;
    let attended = m_1 > -1.0e30;
    var factor = 1.0;
    let sink = sink[h] * 1.4426950408889634;
    let top = max(m_1, sink);
    sum = sum * exp2(m_1 - top) + exp2(sink - top);
    factor = exp2(m_1 - top);
    m_1 = top;
    let share = select(0.0, factor / sum, attended);
    st_out(u32(q_1), c + 0u, select(vec4<f32>(0.0), o_1_0 * share, attended));
    if (c == 0u && u32(q_1) < lenQ) {
      lse[b * P.lse_b + h * P.lse_h + (qStart + u32(q_1)) * P.lse_s] = select(P.negInf, (m_1 + log2OrNan(sum)) * 0.6931471805599453, attended);
    }
  }
  {
    var sum = total_0.z;
    let attended = m_2 > -1.0e30;
    var factor = 1.0;
    let sink = sink[h] * 1.4426950408889634;
    let top = max(m_2, sink);
    sum = sum * exp2(m_2 - top) + exp2(sink - top);
    factor = exp2(m_2 - top);
    m_2 = top;
    let share = select(0.0, factor / sum, attended);
    st_out(u32(q_2), c + 0u, select(vec4<f32>(0.0), o_2_0 * share, attended));
    if (c == 0u && u32(q_2) < lenQ) {
      lse[b * P.lse_b + h * P.lse_h + (qStart + u32(q_2)) * P.lse_s] = select(P.negInf, (m_2 + log2OrNan(sum)) * 0.6931471805599453, attended);
    }
  }
  {
    var sum = total_0.w;
    let attended = m_3 > -1.0e30;
    var factor = 1.0;
    let sink = sink[h] * 1.4426950408889634;
    let top = max(m_3, sink);
    sum = sum * exp2(m_3 - top) + exp2(sink - top);
    factor = exp2(m_3 - top);
    m_3 = top;
    let share = select(0.0, factor / sum, attended);
    st_out(u32(q_3), c + 0u, select(vec4<f32>(0.0), o_3_0 * share, attended));
    if (c == 0u && u32(q_3) < lenQ) {
      lse[b * P.lse_b + h * P.lse_h + (qStart + u32(q_3)) * P.lse_s] = select(P.negInf, (m_3 + log2OrNan(sum)) * 0.6931471805599453, attended);
    }
  }
}
