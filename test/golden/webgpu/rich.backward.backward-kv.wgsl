struct Params {
  seedLo: u32,
  seedHi: u32,
  dropKeep: f32,
  dropOffset: u32,
  dropThreshold: u32,
  lse_s: u32,
  scale: f32,
  group: u32,
  k_s: u32,
  v_s: u32,
  q_s: u32,
  out_s: u32,
  firstHkv: u32,
  firstB: u32,
  k_b: u32,
  k_h: u32,
  k_from: u32,
  v_b: u32,
  v_h: u32,
  v_from: u32,
  Hq: u32,
  q_b: u32,
  q_h: u32,
  q_from: u32,
  out_b: u32,
  out_h: u32,
  out_from: u32,
  lse_b: u32,
  lse_h: u32,
  kvRowsAt: u32,
  kvRunsB: u32,
  kvRunsH: u32,
  kvRunsAt: u32,
}
@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read> side0: array<f32>;
@group(0) @binding(2) var<storage, read> rows: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> dk: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> dv: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> k: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read> q: array<vec2<u32>>;
@group(0) @binding(7) var<storage, read> v: array<vec2<u32>>;
@group(0) @binding(8) var<storage, read> dOut: array<vec2<u32>>;
@group(0) @binding(9) var<storage, read> tables: array<i32>;
var<private> atB: i32;
var<private> atH: i32;
var<private> atLenQ: i32;
var<private> atLenK: i32;
var<private> lseBase: u32;
var<workgroup> arena: array<vec4<f32>, 288>;
var<private> base_dk: u32;
var<private> base_dv: u32;
var<private> base_k: u32;
var<private> base_q: u32;
var<private> base_v: u32;
var<private> base_dOut: u32;
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
  for (var e = 0; e < 4 * min(atLenQ, 1); e++) { four[e] = mask1(0.0, atB, atH, min(q + e, atLenQ - 1), min(kv, atLenK - 1), atLenQ, atLenK); }
  return four;
}
fn inside4(q: i32, kv: i32) -> vec4<bool> {
  return (vec4<i32>(q) + vec4<i32>(0, 1, 2, 3) < vec4<i32>(atLenQ)) & vec4<bool>(kv < atLenK);
}
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
  for (var e = 0; e < 4 * min(atLenQ, 1); e++) { four[e] = mod1(s[e], atB, atH, min(q + e, atLenQ - 1), min(kv, atLenK - 1), atLenQ, atLenK); }
  return four;
}
fn slope1(score: f32, b: i32, h: i32, q: i32, kv: i32, lenQ: i32, lenK: i32) -> f32 {
  let t0 = (score * 0.05000000074505806f);
  let t1 = tw_tanh(t0);
  let t2 = (t1 * t1);
  let t3 = (1f - t2);
  let t4 = (t3 * 0.05000000074505806f);
  let t5 = (20f * t4);
  return t5;
}
fn slope4(s: vec4<f32>, q: i32, kv: i32) -> vec4<f32> {
  var four = vec4<f32>();
  for (var e = 0; e < 4 * min(atLenQ, 1); e++) { four[e] = slope1(s[e], atB, atH, min(q + e, atLenQ - 1), min(kv, atLenK - 1), atLenQ, atLenK); }
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
fn row_at(q: i32) -> vec2<f32> {
  if (q >= atLenQ) { return vec2<f32>(3.0e38, 0.0); }
  return rows[lseBase + u32(q) * P.lse_s];
}
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
fn st_dk(row: u32, quad: u32, x: vec4<f32>) {
  if (row >= u32(atLenK) || quad >= 4u) { return; }
  let at = base_dk + row * P.k_s;
  dk[(at >> 2u) + quad] = vec2<u32>(tw_to_f16(x.x) | (tw_to_f16(x.y) << 16u), tw_to_f16(x.z) | (tw_to_f16(x.w) << 16u));
}
fn st_dv(row: u32, quad: u32, x: vec4<f32>) {
  if (row >= u32(atLenK) || quad >= 4u) { return; }
  let at = base_dv + row * P.v_s;
  dv[(at >> 2u) + quad] = vec2<u32>(tw_to_f16(x.x) | (tw_to_f16(x.y) << 16u), tw_to_f16(x.z) | (tw_to_f16(x.w) << 16u));
}
fn rd_any_full_k(row_: u32, quad_: u32) -> vec2<u32> {
  let row = row_;
  let quad = quad_;
  let at = base_k + row * P.k_s;
  return k[(at >> 2u) + quad];
}
fn tw_f16(w: vec2<u32>) -> vec4<f32> { return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }
fn rd_any_full_k_f32(row: u32, quad: u32) -> vec4<f32> { return tw_f16(rd_any_full_k(row, quad)); }
fn rd_any_full_q(row_: u32, quad_: u32) -> vec2<u32> {
  let row = row_;
  let quad = quad_;
  let at = base_q + row * P.q_s;
  return q[(at >> 2u) + quad];
}
fn rd_any_full_q_f32(row: u32, quad: u32) -> vec4<f32> { return tw_f16(rd_any_full_q(row, quad)); }
fn rd_any_full_v(row_: u32, quad_: u32) -> vec2<u32> {
  let row = row_;
  let quad = quad_;
  let at = base_v + row * P.v_s;
  return v[(at >> 2u) + quad];
}
fn rd_any_full_v_f32(row: u32, quad: u32) -> vec4<f32> { return tw_f16(rd_any_full_v(row, quad)); }
fn rd_any_full_dOut(row_: u32, quad_: u32) -> vec2<u32> {
  let row = row_;
  let quad = quad_;
  let at = base_dOut + row * P.out_s;
  return dOut[(at >> 2u) + quad];
}
fn rd_any_full_dOut_f32(row: u32, quad: u32) -> vec4<f32> { return tw_f16(rd_any_full_dOut(row, quad)); }
fn rd_any_dOut(row_: u32, quad_: u32) -> vec2<u32> {
  let row = row_;
  let quad = min(quad_, 3u);
  let at = base_dOut + row * P.out_s;
  return select(vec2<u32>(), dOut[(at >> 2u) + quad], quad_ < 4u);
}
fn rd_any_dOut_f32(row: u32, quad: u32) -> vec4<f32> { return tw_f16(rd_any_dOut(row, quad)); }
fn rd_any_q(row_: u32, quad_: u32) -> vec2<u32> {
  let row = row_;
  let quad = min(quad_, 3u);
  let at = base_q + row * P.q_s;
  return select(vec2<u32>(), q[(at >> 2u) + quad], quad_ < 4u);
}
fn rd_any_q_f32(row: u32, quad: u32) -> vec4<f32> { return tw_f16(rd_any_q(row, quad)); }
@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let once = min(groups.z, 1u);
  let tid = local;
  let r = tid / 8u;
  let c = tid % 8u;
  let b = group.z + P.firstB;
  let hkv = group.x + P.firstHkv;
  let qStart = u32(tables[b * 4u]);
  let lenQ = u32(tables[b * 4u + 1u]);
  let kStart = u32(tables[b * 4u + 2u]);
  let lenK = u32(tables[b * 4u + 3u]);
  atB = i32(b);
  atLenQ = i32(lenQ);
  atLenK = i32(lenK);
  let k0 = group.y * 16u;
  if (k0 >= lenK) { return; }
  base_k = b * P.k_b + hkv * P.k_h + kStart * P.k_s - P.k_from;
  base_v = b * P.v_b + hkv * P.v_h + kStart * P.v_s - P.v_from;
  base_dk = b * P.k_b + hkv * P.k_h + kStart * P.k_s - P.k_from;
  base_dv = b * P.v_b + hkv * P.v_h + kStart * P.v_s - P.v_from;
  var dk_0_0 = vec4<f32>(0.0);
  var dk_1_0 = vec4<f32>(0.0);
  var dk_2_0 = vec4<f32>(0.0);
  var dk_3_0 = vec4<f32>(0.0);
  var dv_0_0 = vec4<f32>(0.0);
  var dv_1_0 = vec4<f32>(0.0);
  var dv_2_0 = vec4<f32>(0.0);
  var dv_3_0 = vec4<f32>(0.0);
  for (var h = hkv * P.group; h < (hkv + 1u) * P.group; h++) {
    let bh = b * P.Hq + h;
    atH = i32(h);
    base_q = b * P.q_b + h * P.q_h + qStart * P.q_s - P.q_from;
    base_dOut = b * P.out_b + h * P.out_h + qStart * P.out_s - P.out_from;
    lseBase = b * P.lse_b + h * P.lse_h + qStart * P.lse_s;
    {
      let runRow = P.kvRowsAt + b * P.kvRunsB + h * P.kvRunsH + k0 / 16u;
      let lastRun = u32(tables[runRow + 1u]);
      for (var run = u32(tables[runRow]); run < lastRun; run++) {
        let runAt = P.kvRunsAt + 3u * run;
        let partial = tables[runAt + 2u] != 0;
        let runEnd = u32(tables[runAt + 1u]);
        for (var block = u32(tables[runAt]); block < runEnd; block++) {
          let q0 = block * 32u;
          let qc_0 = i32(q0 + 4u * c + 0u);
          let row_0_0 = row_at(qc_0 + 0);
          let row_0_1 = row_at(qc_0 + 1);
          let row_0_2 = row_at(qc_0 + 2);
          let row_0_3 = row_at(qc_0 + 3);
          let lse_0 = vec4<f32>(row_0_0.x, row_0_1.x, row_0_2.x, row_0_3.x);
          let delta_0 = vec4<f32>(row_0_0.y, row_0_1.y, row_0_2.y, row_0_3.y);
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
            sa_0_0 = rd_any_full_k_f32(k0 + (min(tid, 15u) / 2u) % 4u * 4u + 0u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
            sa_0_1 = rd_any_full_k_f32(k0 + (min(tid, 15u) / 2u) % 4u * 4u + 1u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
            sa_0_2 = rd_any_full_k_f32(k0 + (min(tid, 15u) / 2u) % 4u * 4u + 2u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
            sa_0_3 = rd_any_full_k_f32(k0 + (min(tid, 15u) / 2u) % 4u * 4u + 3u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
            sb_0_0 = rd_any_full_q_f32(q0 + (tid / 2u) % 8u * 4u + 0u, start + (tid / 16u * 2u + tid % 2u));
            sb_0_1 = rd_any_full_q_f32(q0 + (tid / 2u) % 8u * 4u + 1u, start + (tid / 16u * 2u + tid % 2u));
            sb_0_2 = rd_any_full_q_f32(q0 + (tid / 2u) % 8u * 4u + 2u, start + (tid / 16u * 2u + tid % 2u));
            sb_0_3 = rd_any_full_q_f32(q0 + (tid / 2u) % 8u * 4u + 3u, start + (tid / 16u * 2u + tid % 2u));
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
          var t_0_0 = vec4<f32>(0.0);
          var t_1_0 = vec4<f32>(0.0);
          var t_2_0 = vec4<f32>(0.0);
          var t_3_0 = vec4<f32>(0.0);
          {
            var ta_0_0: vec4<f32>;
            var ta_0_1: vec4<f32>;
            var ta_0_2: vec4<f32>;
            var ta_0_3: vec4<f32>;
            var tb_0_0: vec4<f32>;
            var tb_0_1: vec4<f32>;
            var tb_0_2: vec4<f32>;
            var tb_0_3: vec4<f32>;
            let start = 0u;
            workgroupBarrier(); // what was read from this place before is done with
            ta_0_0 = rd_any_full_v_f32(k0 + (min(tid, 15u) / 2u) % 4u * 4u + 0u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
            ta_0_1 = rd_any_full_v_f32(k0 + (min(tid, 15u) / 2u) % 4u * 4u + 1u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
            ta_0_2 = rd_any_full_v_f32(k0 + (min(tid, 15u) / 2u) % 4u * 4u + 2u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
            ta_0_3 = rd_any_full_v_f32(k0 + (min(tid, 15u) / 2u) % 4u * 4u + 3u, start + (min(tid, 15u) / 8u * 2u + min(tid, 15u) % 2u));
            tb_0_0 = rd_any_full_dOut_f32(q0 + (tid / 2u) % 8u * 4u + 0u, start + (tid / 16u * 2u + tid % 2u));
            tb_0_1 = rd_any_full_dOut_f32(q0 + (tid / 2u) % 8u * 4u + 1u, start + (tid / 16u * 2u + tid % 2u));
            tb_0_2 = rd_any_full_dOut_f32(q0 + (tid / 2u) % 8u * 4u + 2u, start + (tid / 16u * 2u + tid % 2u));
            tb_0_3 = rd_any_full_dOut_f32(q0 + (tid / 2u) % 8u * 4u + 3u, start + (tid / 16u * 2u + tid % 2u));
            if (tid < 16u) {
              arena[(tid / 8u * 2u + tid % 2u) * 20u + (tid / 2u) % 4u + 144u] = vec4<f32>(ta_0_0.x, ta_0_1.x, ta_0_2.x, ta_0_3.x);
              arena[(tid / 8u * 2u + tid % 2u) * 20u + (tid / 2u) % 4u + 149u] = vec4<f32>(ta_0_0.y, ta_0_1.y, ta_0_2.y, ta_0_3.y);
              arena[(tid / 8u * 2u + tid % 2u) * 20u + (tid / 2u) % 4u + 154u] = vec4<f32>(ta_0_0.z, ta_0_1.z, ta_0_2.z, ta_0_3.z);
              arena[(tid / 8u * 2u + tid % 2u) * 20u + (tid / 2u) % 4u + 159u] = vec4<f32>(ta_0_0.w, ta_0_1.w, ta_0_2.w, ta_0_3.w);
            }
            arena[(tid / 16u * 2u + tid % 2u) * 36u + (tid / 2u) % 8u + 0u] = vec4<f32>(tb_0_0.x, tb_0_1.x, tb_0_2.x, tb_0_3.x);
            arena[(tid / 16u * 2u + tid % 2u) * 36u + (tid / 2u) % 8u + 9u] = vec4<f32>(tb_0_0.y, tb_0_1.y, tb_0_2.y, tb_0_3.y);
            arena[(tid / 16u * 2u + tid % 2u) * 36u + (tid / 2u) % 8u + 18u] = vec4<f32>(tb_0_0.z, tb_0_1.z, tb_0_2.z, tb_0_3.z);
            arena[(tid / 16u * 2u + tid % 2u) * 36u + (tid / 2u) % 8u + 27u] = vec4<f32>(tb_0_0.w, tb_0_1.w, tb_0_2.w, tb_0_3.w);
            workgroupBarrier(); // staged rows are visible
            for (var d = 0u; d < 4u * once; d++) {
              let fromA = r + 144u + d * 20u;
              let fromB = c + 0u + d * 36u;
              {
                let a_0 = arena[fromA + 0u];
                let b_0 = arena[fromB + 0u];
                t_0_0 = fma(vec4<f32>(a_0.x), b_0, t_0_0);
                t_1_0 = fma(vec4<f32>(a_0.y), b_0, t_1_0);
                t_2_0 = fma(vec4<f32>(a_0.z), b_0, t_2_0);
                t_3_0 = fma(vec4<f32>(a_0.w), b_0, t_3_0);
              }
              {
                let a_0 = arena[fromA + 5u];
                let b_0 = arena[fromB + 9u];
                t_0_0 = fma(vec4<f32>(a_0.x), b_0, t_0_0);
                t_1_0 = fma(vec4<f32>(a_0.y), b_0, t_1_0);
                t_2_0 = fma(vec4<f32>(a_0.z), b_0, t_2_0);
                t_3_0 = fma(vec4<f32>(a_0.w), b_0, t_3_0);
              }
              {
                let a_0 = arena[fromA + 10u];
                let b_0 = arena[fromB + 18u];
                t_0_0 = fma(vec4<f32>(a_0.x), b_0, t_0_0);
                t_1_0 = fma(vec4<f32>(a_0.y), b_0, t_1_0);
                t_2_0 = fma(vec4<f32>(a_0.z), b_0, t_2_0);
                t_3_0 = fma(vec4<f32>(a_0.w), b_0, t_3_0);
              }
              {
                let a_0 = arena[fromA + 15u];
                let b_0 = arena[fromB + 27u];
                t_0_0 = fma(vec4<f32>(a_0.x), b_0, t_0_0);
                t_1_0 = fma(vec4<f32>(a_0.y), b_0, t_1_0);
                t_2_0 = fma(vec4<f32>(a_0.z), b_0, t_2_0);
                t_3_0 = fma(vec4<f32>(a_0.w), b_0, t_3_0);
              }
            }
          }
          var dvx_0_0: vec4<f32>;
          var dvx_1_0: vec4<f32>;
          var dvx_2_0: vec4<f32>;
          var dvx_3_0: vec4<f32>;
          let raw_0_0 = s_0_0 * P.scale;
          s_0_0 = exp2(mod4(s_0_0 * P.scale, qc_0, i32(k0 + (4u * r + 0u))) * 1.4426950408889634 - lse_0);
          let raw_1_0 = s_1_0 * P.scale;
          s_1_0 = exp2(mod4(s_1_0 * P.scale, qc_0, i32(k0 + (4u * r + 1u))) * 1.4426950408889634 - lse_0);
          let raw_2_0 = s_2_0 * P.scale;
          s_2_0 = exp2(mod4(s_2_0 * P.scale, qc_0, i32(k0 + (4u * r + 2u))) * 1.4426950408889634 - lse_0);
          let raw_3_0 = s_3_0 * P.scale;
          s_3_0 = exp2(mod4(s_3_0 * P.scale, qc_0, i32(k0 + (4u * r + 3u))) * 1.4426950408889634 - lse_0);
          if (partial) {
            s_0_0 = select(vec4<f32>(0.0), s_0_0, (inside4(qc_0, i32(k0 + (4u * r + 0u))) & mask4(qc_0, i32(k0 + (4u * r + 0u)))));
            s_1_0 = select(vec4<f32>(0.0), s_1_0, (inside4(qc_0, i32(k0 + (4u * r + 1u))) & mask4(qc_0, i32(k0 + (4u * r + 1u)))));
            s_2_0 = select(vec4<f32>(0.0), s_2_0, (inside4(qc_0, i32(k0 + (4u * r + 2u))) & mask4(qc_0, i32(k0 + (4u * r + 2u)))));
            s_3_0 = select(vec4<f32>(0.0), s_3_0, (inside4(qc_0, i32(k0 + (4u * r + 3u))) & mask4(qc_0, i32(k0 + (4u * r + 3u)))));
          } else if (q0 + 32u > lenQ) {
            s_0_0 = select(vec4<f32>(0.0), s_0_0, inside4(qc_0, i32(k0 + (4u * r + 0u))));
            s_1_0 = select(vec4<f32>(0.0), s_1_0, inside4(qc_0, i32(k0 + (4u * r + 1u))));
            s_2_0 = select(vec4<f32>(0.0), s_2_0, inside4(qc_0, i32(k0 + (4u * r + 2u))));
            s_3_0 = select(vec4<f32>(0.0), s_3_0, inside4(qc_0, i32(k0 + (4u * r + 3u))));
          }
          {
            let z = vec4<f32>(tw_drop1(qc_0 + 0, i32(k0 + (4u * r + 0u)), i32(bh)), tw_drop1(qc_0 + 1, i32(k0 + (4u * r + 0u)), i32(bh)), tw_drop1(qc_0 + 2, i32(k0 + (4u * r + 0u)), i32(bh)), tw_drop1(qc_0 + 3, i32(k0 + (4u * r + 0u)), i32(bh)));
            t_0_0 = select(vec4<f32>(0.0), s_0_0 * (t_0_0 * z - delta_0) * slope4(raw_0_0, qc_0, i32(k0 + (4u * r + 0u))), s_0_0 != vec4<f32>(0.0));
            s_0_0 *= z;
          }
          {
            let z = vec4<f32>(tw_drop1(qc_0 + 0, i32(k0 + (4u * r + 1u)), i32(bh)), tw_drop1(qc_0 + 1, i32(k0 + (4u * r + 1u)), i32(bh)), tw_drop1(qc_0 + 2, i32(k0 + (4u * r + 1u)), i32(bh)), tw_drop1(qc_0 + 3, i32(k0 + (4u * r + 1u)), i32(bh)));
            t_1_0 = select(vec4<f32>(0.0), s_1_0 * (t_1_0 * z - delta_0) * slope4(raw_1_0, qc_0, i32(k0 + (4u * r + 1u))), s_1_0 != vec4<f32>(0.0));
            s_1_0 *= z;
          }
          {
            let z = vec4<f32>(tw_drop1(qc_0 + 0, i32(k0 + (4u * r + 2u)), i32(bh)), tw_drop1(qc_0 + 1, i32(k0 + (4u * r + 2u)), i32(bh)), tw_drop1(qc_0 + 2, i32(k0 + (4u * r + 2u)), i32(bh)), tw_drop1(qc_0 + 3, i32(k0 + (4u * r + 2u)), i32(bh)));
            t_2_0 = select(vec4<f32>(0.0), s_2_0 * (t_2_0 * z - delta_0) * slope4(raw_2_0, qc_0, i32(k0 + (4u * r + 2u))), s_2_0 != vec4<f32>(0.0));
            s_2_0 *= z;
          }
          {
            let z = vec4<f32>(tw_drop1(qc_0 + 0, i32(k0 + (4u * r + 3u)), i32(bh)), tw_drop1(qc_0 + 1, i32(k0 + (4u * r + 3u)), i32(bh)), tw_drop1(qc_0 + 2, i32(k0 + (4u * r + 3u)), i32(bh)), tw_drop1(qc_0 + 3, i32(k0 + (4u * r + 3u)), i32(bh)));
            t_3_0 = select(vec4<f32>(0.0), s_3_0 * (t_3_0 * z - delta_0) * slope4(raw_3_0, qc_0, i32(k0 + (4u * r + 3u))), s_3_0 != vec4<f32>(0.0));
            s_3_0 *= z;
          }
          for (var part = 0u; part < 2u * once; part++) {
            let from_ = part * 16u;
            let inPiece = from_;
            workgroupBarrier(); // the place's last readers are done
            dvx_0_0 = rd_any_dOut_f32(q0 + 0u + (inPiece + tid / 8u) % 8u * 4u + (inPiece + tid / 8u) / 8u, tid % 8u);
            dvx_1_0 = rd_any_dOut_f32(q0 + 0u + (inPiece + (tid + 32u) / 8u) % 8u * 4u + (inPiece + (tid + 32u) / 8u) / 8u, (tid + 32u) % 8u);
            dvx_2_0 = rd_any_dOut_f32(q0 + 0u + (inPiece + (tid + 64u) / 8u) % 8u * 4u + (inPiece + (tid + 64u) / 8u) / 8u, (tid + 64u) % 8u);
            dvx_3_0 = rd_any_dOut_f32(q0 + 0u + (inPiece + (tid + 96u) / 8u) % 8u * 4u + (inPiece + (tid + 96u) / 8u) / 8u, (tid + 96u) % 8u);
            if (inPiece == 0u) {
              arena[0u + (0u + c) * 5u + r + 0u] = vec4<f32>(s_0_0.x, s_1_0.x, s_2_0.x, s_3_0.x);
              arena[0u + (8u + c) * 5u + r + 0u] = vec4<f32>(s_0_0.y, s_1_0.y, s_2_0.y, s_3_0.y);
              arena[0u + (16u + c) * 5u + r + 0u] = vec4<f32>(s_0_0.z, s_1_0.z, s_2_0.z, s_3_0.z);
              arena[0u + (24u + c) * 5u + r + 0u] = vec4<f32>(s_0_0.w, s_1_0.w, s_2_0.w, s_3_0.w);
            }
            dvx_0_0 = select(vec4<f32>(0.0), dvx_0_0, q0 + 0u + (inPiece + tid / 8u) % 8u * 4u + (inPiece + tid / 8u) / 8u < lenQ);
            arena[160u + tid] = dvx_0_0;
            dvx_1_0 = select(vec4<f32>(0.0), dvx_1_0, q0 + 0u + (inPiece + (tid + 32u) / 8u) % 8u * 4u + (inPiece + (tid + 32u) / 8u) / 8u < lenQ);
            arena[160u + (tid + 32u)] = dvx_1_0;
            dvx_2_0 = select(vec4<f32>(0.0), dvx_2_0, q0 + 0u + (inPiece + (tid + 64u) / 8u) % 8u * 4u + (inPiece + (tid + 64u) / 8u) / 8u < lenQ);
            arena[160u + (tid + 64u)] = dvx_2_0;
            dvx_3_0 = select(vec4<f32>(0.0), dvx_3_0, q0 + 0u + (inPiece + (tid + 96u) / 8u) % 8u * 4u + (inPiece + (tid + 96u) / 8u) / 8u < lenQ);
            arena[160u + (tid + 96u)] = dvx_3_0;
            workgroupBarrier(); // P and the staged rows are visible
            for (var j = 0u; j < 4u * once; j++) {
              let fromP = r + 0u + (inPiece + j * 4u) * 5u;
              let fromX = c + 160u + j * 32u;
              {
                let p_0 = arena[fromP + 0u];
                let x_0 = arena[fromX + 0u];
                dv_0_0 = fma(vec4<f32>(p_0.x), x_0, dv_0_0);
                dv_1_0 = fma(vec4<f32>(p_0.y), x_0, dv_1_0);
                dv_2_0 = fma(vec4<f32>(p_0.z), x_0, dv_2_0);
                dv_3_0 = fma(vec4<f32>(p_0.w), x_0, dv_3_0);
              }
              {
                let p_0 = arena[fromP + 5u];
                let x_0 = arena[fromX + 8u];
                dv_0_0 = fma(vec4<f32>(p_0.x), x_0, dv_0_0);
                dv_1_0 = fma(vec4<f32>(p_0.y), x_0, dv_1_0);
                dv_2_0 = fma(vec4<f32>(p_0.z), x_0, dv_2_0);
                dv_3_0 = fma(vec4<f32>(p_0.w), x_0, dv_3_0);
              }
              {
                let p_0 = arena[fromP + 10u];
                let x_0 = arena[fromX + 16u];
                dv_0_0 = fma(vec4<f32>(p_0.x), x_0, dv_0_0);
                dv_1_0 = fma(vec4<f32>(p_0.y), x_0, dv_1_0);
                dv_2_0 = fma(vec4<f32>(p_0.z), x_0, dv_2_0);
                dv_3_0 = fma(vec4<f32>(p_0.w), x_0, dv_3_0);
              }
              {
                let p_0 = arena[fromP + 15u];
                let x_0 = arena[fromX + 24u];
                dv_0_0 = fma(vec4<f32>(p_0.x), x_0, dv_0_0);
                dv_1_0 = fma(vec4<f32>(p_0.y), x_0, dv_1_0);
                dv_2_0 = fma(vec4<f32>(p_0.z), x_0, dv_2_0);
                dv_3_0 = fma(vec4<f32>(p_0.w), x_0, dv_3_0);
              }
            }
          }
          var dkx_0_0: vec4<f32>;
          var dkx_1_0: vec4<f32>;
          var dkx_2_0: vec4<f32>;
          var dkx_3_0: vec4<f32>;
          for (var part = 0u; part < 2u * once; part++) {
            let from_ = part * 16u;
            let inPiece = from_;
            workgroupBarrier(); // the place's last readers are done
            dkx_0_0 = rd_any_q_f32(q0 + 0u + (inPiece + tid / 8u) % 8u * 4u + (inPiece + tid / 8u) / 8u, tid % 8u);
            dkx_1_0 = rd_any_q_f32(q0 + 0u + (inPiece + (tid + 32u) / 8u) % 8u * 4u + (inPiece + (tid + 32u) / 8u) / 8u, (tid + 32u) % 8u);
            dkx_2_0 = rd_any_q_f32(q0 + 0u + (inPiece + (tid + 64u) / 8u) % 8u * 4u + (inPiece + (tid + 64u) / 8u) / 8u, (tid + 64u) % 8u);
            dkx_3_0 = rd_any_q_f32(q0 + 0u + (inPiece + (tid + 96u) / 8u) % 8u * 4u + (inPiece + (tid + 96u) / 8u) / 8u, (tid + 96u) % 8u);
            if (inPiece == 0u) {
              arena[0u + (0u + c) * 5u + r + 0u] = vec4<f32>(t_0_0.x, t_1_0.x, t_2_0.x, t_3_0.x);
              arena[0u + (8u + c) * 5u + r + 0u] = vec4<f32>(t_0_0.y, t_1_0.y, t_2_0.y, t_3_0.y);
              arena[0u + (16u + c) * 5u + r + 0u] = vec4<f32>(t_0_0.z, t_1_0.z, t_2_0.z, t_3_0.z);
              arena[0u + (24u + c) * 5u + r + 0u] = vec4<f32>(t_0_0.w, t_1_0.w, t_2_0.w, t_3_0.w);
            }
            dkx_0_0 = select(vec4<f32>(0.0), dkx_0_0, q0 + 0u + (inPiece + tid / 8u) % 8u * 4u + (inPiece + tid / 8u) / 8u < lenQ);
            arena[160u + tid] = dkx_0_0;
            dkx_1_0 = select(vec4<f32>(0.0), dkx_1_0, q0 + 0u + (inPiece + (tid + 32u) / 8u) % 8u * 4u + (inPiece + (tid + 32u) / 8u) / 8u < lenQ);
            arena[160u + (tid + 32u)] = dkx_1_0;
            dkx_2_0 = select(vec4<f32>(0.0), dkx_2_0, q0 + 0u + (inPiece + (tid + 64u) / 8u) % 8u * 4u + (inPiece + (tid + 64u) / 8u) / 8u < lenQ);
            arena[160u + (tid + 64u)] = dkx_2_0;
            dkx_3_0 = select(vec4<f32>(0.0), dkx_3_0, q0 + 0u + (inPiece + (tid + 96u) / 8u) % 8u * 4u + (inPiece + (tid + 96u) / 8u) / 8u < lenQ);
            arena[160u + (tid + 96u)] = dkx_3_0;
            workgroupBarrier(); // P and the staged rows are visible
            for (var j = 0u; j < 4u * once; j++) {
              let fromP = r + 0u + (inPiece + j * 4u) * 5u;
              let fromX = c + 160u + j * 32u;
              {
                let p_0 = arena[fromP + 0u];
                let x_0 = arena[fromX + 0u];
                dk_0_0 = fma(vec4<f32>(p_0.x), x_0, dk_0_0);
                dk_1_0 = fma(vec4<f32>(p_0.y), x_0, dk_1_0);
                dk_2_0 = fma(vec4<f32>(p_0.z), x_0, dk_2_0);
                dk_3_0 = fma(vec4<f32>(p_0.w), x_0, dk_3_0);
              }
              {
                let p_0 = arena[fromP + 5u];
                let x_0 = arena[fromX + 8u];
                dk_0_0 = fma(vec4<f32>(p_0.x), x_0, dk_0_0);
                dk_1_0 = fma(vec4<f32>(p_0.y), x_0, dk_1_0);
                dk_2_0 = fma(vec4<f32>(p_0.z), x_0, dk_2_0);
                dk_3_0 = fma(vec4<f32>(p_0.w), x_0, dk_3_0);
              }
              {
                let p_0 = arena[fromP + 10u];
                let x_0 = arena[fromX + 16u];
                dk_0_0 = fma(vec4<f32>(p_0.x), x_0, dk_0_0);
                dk_1_0 = fma(vec4<f32>(p_0.y), x_0, dk_1_0);
                dk_2_0 = fma(vec4<f32>(p_0.z), x_0, dk_2_0);
                dk_3_0 = fma(vec4<f32>(p_0.w), x_0, dk_3_0);
              }
              {
                let p_0 = arena[fromP + 15u];
                let x_0 = arena[fromX + 24u];
                dk_0_0 = fma(vec4<f32>(p_0.x), x_0, dk_0_0);
                dk_1_0 = fma(vec4<f32>(p_0.y), x_0, dk_1_0);
                dk_2_0 = fma(vec4<f32>(p_0.z), x_0, dk_2_0);
                dk_3_0 = fma(vec4<f32>(p_0.w), x_0, dk_3_0);
              }
            }
          }
        }
      }
    }
  }
  st_dk(k0 + (4u * r + 0u), c + 0u, dk_0_0 * P.scale);
  st_dk(k0 + (4u * r + 1u), c + 0u, dk_1_0 * P.scale);
  st_dk(k0 + (4u * r + 2u), c + 0u, dk_2_0 * P.scale);
  st_dk(k0 + (4u * r + 3u), c + 0u, dk_3_0 * P.scale);
  st_dv(k0 + (4u * r + 0u), c + 0u, dv_0_0);
  st_dv(k0 + (4u * r + 1u), c + 0u, dv_1_0);
  st_dv(k0 + (4u * r + 2u), c + 0u, dv_2_0);
  st_dv(k0 + (4u * r + 3u), c + 0u, dv_3_0);
}
