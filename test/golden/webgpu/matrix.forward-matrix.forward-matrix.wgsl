enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
requires subgroup_id;
struct Params {
  q_s: u32,
  k_s: u32,
  v_s: u32,
  out_s: u32,
  scaleLog2: f32,
  qRunsAt: u32,
  qRowsAt: u32,
  qRunsB: u32,
  qRunsH: u32,
  lse_b: u32,
  lse_h: u32,
  lse_s: u32,
  negInf: f32,
  firstH: u32,
  group: u32,
  Hq: u32,
  firstB: u32,
  q_b: u32,
  q_h: u32,
  q_from: u32,
  out_b: u32,
  out_h: u32,
  out_from: u32,
  k_b: u32,
  k_h: u32,
  k_from: u32,
  v_b: u32,
  v_h: u32,
  v_from: u32,
}
@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
@group(0) @binding(6) var<storage, read> tables: array<i32>;
var<private> atB: i32;
var<private> atH: i32;
var<private> atLenQ: i32;
var<private> atLenK: i32;
var<private> base_q: u32;
var<private> base_k: u32;
var<private> base_v: u32;
var<private> base_out: u32;
var<workgroup> w: Memory;
fn mask1(score: f32, b: i32, h: i32, q: i32, kv: i32, lenQ: i32, lenK: i32) -> bool {
  let t0 = (lenK - lenQ);
  let t1 = (q + t0);
  let t2 = (kv <= t1);
  return t2;
}
fn mask4(q: i32, kv: i32) -> vec4<bool> {
  return vec4<bool>(
    mask1(0.0, atB, atH, min(q, atLenQ - 1), min(kv + 0, atLenK - 1), atLenQ, atLenK),
    mask1(0.0, atB, atH, min(q, atLenQ - 1), min(kv + 1, atLenK - 1), atLenQ, atLenK),
    mask1(0.0, atB, atH, min(q, atLenQ - 1), min(kv + 2, atLenK - 1), atLenQ, atLenK),
    mask1(0.0, atB, atH, min(q, atLenQ - 1), min(kv + 3, atLenK - 1), atLenQ, atLenK));
}
fn inside4(q: i32, kv: i32) -> vec4<bool> { return vec4<i32>(kv) + vec4<i32>(0, 1, 2, 3) < vec4<i32>(atLenK); }
fn ld8_q(row_: u32, part_: u32) -> vec4<u32> {
  let row = min(row_, u32(atLenQ) - 1u);
  let part = part_;
  let at = base_q + row * P.q_s;
  return q[(at >> 3u) + part];
}
fn ld8_k(row_: u32, part_: u32) -> vec4<u32> {
  let row = min(row_, u32(atLenK) - 1u);
  let part = part_;
  let at = base_k + row * P.k_s;
  return k[(at >> 3u) + part];
}
fn ld8_v(row_: u32, part_: u32) -> vec4<u32> {
  let row = min(row_, u32(atLenK) - 1u);
  let part = part_;
  let at = base_v + row * P.v_s;
  return v[(at >> 3u) + part];
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
fn st_out(row: u32, quad: u32, x: vec4<f32>) {
  if (row >= u32(atLenQ) || quad >= 4u) { return; }
  let at = base_out + row * P.out_s;
  out[(at >> 2u) + quad] = vec2<u32>(tw_to_f16(x.x) | (tw_to_f16(x.y) << 16u), tw_to_f16(x.z) | (tw_to_f16(x.w) << 16u));
}
fn strays(q: i32, quad: u32) -> vec4<f32> {
  var sum = vec4<f32>(0.0);
  for (var kv = 0; kv < atLenK; kv++) {
    let eight = ld8_v(u32(kv), quad / 2u);
    let four = select(eight.xy, eight.zw, quad % 2u == 1u);
    let odd = ((four & vec2<u32>(0x7fff7fffu)) + vec2<u32>(0x04000400u)) & vec2<u32>(0x80008000u);
    if (any(odd != vec2<u32>(0u)) && mask1(0.0, atB, atH, min(q, atLenQ - 1), kv, atLenQ, atLenK)) {
      let kept = four & ((odd >> vec2<u32>(15u)) * 0xffffu);
      sum += vec4<f32>(vec4<f16>(bitcast<vec2<f16>>(kept.x), bitcast<vec2<f16>>(kept.y)));
    }
  }
  return sum;
}
struct Memory {
@align(16) scores: array<f32, 3072>,
@align(16) shares: array<f16, 3072>,
@align(16) keys: array<f16, 384>,
@align(16) values: array<f16, 384>,
@align(16) grown: atomic<u32>,
@align(16) stray: atomic<u32>,
}
@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32, @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_size) subgroupSize: u32, @builtin(subgroup_invocation_id) lane: u32) {
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
  let q0 = (groups.y - 1u - group.y) * 128u;
  if (q0 >= lenQ) { return; }
  let sub = min(subgroup, 3u);
  let ln = min(lane, 31u);
  let tid = sub * 32u + ln;
  let part = ln % 2u * 4u;
  let own_0 = sub * 32u + 0u + ln / 2u;
  let cell_0 = own_0 * 24u + part;
  let half_0 = own_0 * 24u + part;
  let own_1 = sub * 32u + 16u + ln / 2u;
  let cell_1 = own_1 * 24u + part;
  let half_1 = own_1 * 24u + part;
  base_q = b * P.q_b + h * P.q_h + qStart * P.q_s - P.q_from;
  base_out = b * P.out_b + h * P.out_h + qStart * P.out_s - P.out_from;
  base_k = b * P.k_b + hkv * P.k_h + kStart * P.k_s - P.k_from;
  base_v = b * P.v_b + hkv * P.v_h + kStart * P.v_s - P.v_from;
  {
    var qr_0: vec4<u32>;
    var qr_1: vec4<u32>;
    qr_0 = ld8_q(q0 + tid / 2u, tid % 2u);
    qr_1 = ld8_q(q0 + (tid + 128u) / 2u, (tid + 128u) % 2u);
    workgroupBarrier(); // the place's last readers are done
    {
      let at = tid / 2u * 24u + tid % 2u * 8u;
      let h_0 = bitcast<vec2<f16>>(qr_0[0]);
      w.shares[at + 0u] = h_0.x;
      w.shares[at + 1u] = h_0.y;
      let h_1 = bitcast<vec2<f16>>(qr_0[1]);
      w.shares[at + 2u] = h_1.x;
      w.shares[at + 3u] = h_1.y;
      let h_2 = bitcast<vec2<f16>>(qr_0[2]);
      w.shares[at + 4u] = h_2.x;
      w.shares[at + 5u] = h_2.y;
      let h_3 = bitcast<vec2<f16>>(qr_0[3]);
      w.shares[at + 6u] = h_3.x;
      w.shares[at + 7u] = h_3.y;
    }
    {
      let at = (tid + 128u) / 2u * 24u + (tid + 128u) % 2u * 8u;
      let h_0 = bitcast<vec2<f16>>(qr_1[0]);
      w.shares[at + 0u] = h_0.x;
      w.shares[at + 1u] = h_0.y;
      let h_1 = bitcast<vec2<f16>>(qr_1[1]);
      w.shares[at + 2u] = h_1.x;
      w.shares[at + 3u] = h_1.y;
      let h_2 = bitcast<vec2<f16>>(qr_1[2]);
      w.shares[at + 4u] = h_2.x;
      w.shares[at + 5u] = h_2.y;
      let h_3 = bitcast<vec2<f16>>(qr_1[3]);
      w.shares[at + 6u] = h_3.x;
      w.shares[at + 7u] = h_3.y;
    }
  }
  workgroupBarrier(); // these columns are visible
  let q_0_0 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&w.shares, sub * 768u + 0u, 24u);
  let q_1_0 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&w.shares, sub * 768u + 384u, 24u);
  var m_0 = -1.0e30;
  var l_0 = 0.0;
  var m_1 = -1.0e30;
  var l_1 = 0.0;
  var o_0_0 = subgroup_matrix_result<f32, 16, 16>();
  var o_1_0 = subgroup_matrix_result<f32, 16, 16>();
  let runRow = P.qRowsAt + b * P.qRunsB + h * P.qRunsH + q0 / 128u;
  let lastRun = u32(tables[runRow + 1u]);
  var run = u32(tables[runRow]);
  var next = 0u;
  var runEnd = 0u;
  var nextPartial = false;
  var more = run < lastRun;
  if (more) {
    let runAt = P.qRunsAt + 3u * run;
    next = u32(tables[runAt]);
    runEnd = u32(tables[runAt + 1u]);
    nextPartial = tables[runAt + 2u] != 0;
  }
  if (more) {
    var block = next;
    var partial = nextPartial;
    var seen = 0u;
    var kr_0: vec4<u32>;
    var vr_0: vec4<u32>;
    kr_0 = ld8_k(block * 16u + min(tid, 31u) / 2u, min(tid, 31u) % 2u);
    vr_0 = ld8_v(block * 16u + min(tid, 31u) / 2u, min(tid, 31u) % 2u);
    workgroupBarrier(); // Q's last readers are done
    if (tid < 32u) {
      let at = min(tid, 31u) / 2u * 24u + min(tid, 31u) % 2u * 8u;
      let h_0 = bitcast<vec2<f16>>(kr_0[0]);
      w.keys[at + 0u] = h_0.x;
      w.keys[at + 1u] = h_0.y;
      let h_1 = bitcast<vec2<f16>>(kr_0[1]);
      w.keys[at + 2u] = h_1.x;
      w.keys[at + 3u] = h_1.y;
      let h_2 = bitcast<vec2<f16>>(kr_0[2]);
      w.keys[at + 4u] = h_2.x;
      w.keys[at + 5u] = h_2.y;
      let h_3 = bitcast<vec2<f16>>(kr_0[3]);
      w.keys[at + 6u] = h_3.x;
      w.keys[at + 7u] = h_3.y;
    }
    next++;
    if (next >= runEnd) {
      run++;
      more = run < lastRun;
      if (more) {
        let runAt = P.qRunsAt + 3u * run;
        next = u32(tables[runAt]);
        runEnd = u32(tables[runAt + 1u]);
        nextPartial = tables[runAt + 2u] != 0;
      }
    }
    var following = next;
    var followingPartial = nextPartial;
    var last = !more;
    kr_0 = ld8_k(following * 16u + min(tid, 31u) / 2u, min(tid, 31u) % 2u);
    next++;
    if (next >= runEnd) {
      run++;
      more = run < lastRun;
      if (more) {
        let runAt = P.qRunsAt + 3u * run;
        next = u32(tables[runAt]);
        runEnd = u32(tables[runAt + 1u]);
        nextPartial = tables[runAt + 2u] != 0;
      }
    }
    workgroupBarrier(); // the first keys are visible
    for (var step = 1u; ; step++) {
      var rescaling = false;
      var factor_0 = 1.0;
      var factor_1 = 1.0;
      for (;; step++) {
        let k0 = block * 16u;
        var s_0_0 = subgroup_matrix_result<f32, 16, 16>();
        var s_1_0 = subgroup_matrix_result<f32, 16, 16>();
        {
          let a_0 = q_0_0;
          let a_1 = q_1_0;
          let b_0 = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, col_major>(&w.keys, 0u, 24u);
          s_0_0 = subgroupMatrixMultiplyAccumulate(a_0, b_0, s_0_0);
          s_1_0 = subgroupMatrixMultiplyAccumulate(a_1, b_0, s_1_0);
        }
        subgroupMatrixStore<row_major>(&w.scores, sub * 768u + 0u, s_0_0, 24u);
        subgroupMatrixStore<row_major>(&w.scores, sub * 768u + 384u, s_1_0, 24u);
        workgroupBarrier(); // the scores are visible to the lanes that own their rows; the keys and the last values are done with
        {
          let odd = ((vr_0 & vec4<u32>(0x7fff7fffu)) + vec4<u32>(0x04000400u)) & vec4<u32>(0x80008000u);
          vr_0 &= ~(odd >> vec4<u32>(5u));
          seen |= (odd.x | odd.y) | (odd.z | odd.w);
        }
        if (tid < 32u) {
          let at = min(tid, 31u) / 2u * 24u + min(tid, 31u) % 2u * 8u;
          let h_0 = bitcast<vec2<f16>>(vr_0[0]);
          w.values[at + 0u] = h_0.x;
          w.values[at + 1u] = h_0.y;
          let h_1 = bitcast<vec2<f16>>(vr_0[1]);
          w.values[at + 2u] = h_1.x;
          w.values[at + 3u] = h_1.y;
          let h_2 = bitcast<vec2<f16>>(vr_0[2]);
          w.values[at + 4u] = h_2.x;
          w.values[at + 5u] = h_2.y;
          let h_3 = bitcast<vec2<f16>>(vr_0[3]);
          w.values[at + 6u] = h_3.x;
          w.values[at + 7u] = h_3.y;
        }
        if (tid < 32u) {
          let at = min(tid, 31u) / 2u * 24u + min(tid, 31u) % 2u * 8u;
          let h_0 = bitcast<vec2<f16>>(kr_0[0]);
          w.keys[at + 0u] = h_0.x;
          w.keys[at + 1u] = h_0.y;
          let h_1 = bitcast<vec2<f16>>(kr_0[1]);
          w.keys[at + 2u] = h_1.x;
          w.keys[at + 3u] = h_1.y;
          let h_2 = bitcast<vec2<f16>>(kr_0[2]);
          w.keys[at + 4u] = h_2.x;
          w.keys[at + 5u] = h_2.y;
          let h_3 = bitcast<vec2<f16>>(kr_0[3]);
          w.keys[at + 6u] = h_3.x;
          w.keys[at + 7u] = h_3.y;
        }
        var x_0_0 = vec4<f32>(w.scores[cell_0 + 0u], w.scores[cell_0 + 1u], w.scores[cell_0 + 2u], w.scores[cell_0 + 3u]);
        var x_0_1 = vec4<f32>(w.scores[cell_0 + 8u], w.scores[cell_0 + 9u], w.scores[cell_0 + 10u], w.scores[cell_0 + 11u]);
        var x_1_0 = vec4<f32>(w.scores[cell_1 + 0u], w.scores[cell_1 + 1u], w.scores[cell_1 + 2u], w.scores[cell_1 + 3u]);
        var x_1_1 = vec4<f32>(w.scores[cell_1 + 8u], w.scores[cell_1 + 9u], w.scores[cell_1 + 10u], w.scores[cell_1 + 11u]);
        x_0_0 = x_0_0 * P.scaleLog2;
        x_0_1 = x_0_1 * P.scaleLog2;
        x_1_0 = x_1_0 * P.scaleLog2;
        x_1_1 = x_1_1 * P.scaleLog2;
        if (partial || k0 + 16u > lenK) {
          x_0_0 = select(vec4<f32>(-3.0e38), x_0_0, (inside4(i32(q0 + own_0), i32(k0 + part + 0u)) & mask4(i32(q0 + own_0), i32(k0 + part + 0u))));
          x_0_1 = select(vec4<f32>(-3.0e38), x_0_1, (inside4(i32(q0 + own_0), i32(k0 + part + 8u)) & mask4(i32(q0 + own_0), i32(k0 + part + 8u))));
          x_1_0 = select(vec4<f32>(-3.0e38), x_1_0, (inside4(i32(q0 + own_1), i32(k0 + part + 0u)) & mask4(i32(q0 + own_1), i32(k0 + part + 0u))));
          x_1_1 = select(vec4<f32>(-3.0e38), x_1_1, (inside4(i32(q0 + own_1), i32(k0 + part + 8u)) & mask4(i32(q0 + own_1), i32(k0 + part + 8u))));
        }
        let w_0 = max(x_0_0, x_0_1);
        var n_0 = max(max(w_0.x, w_0.y), max(w_0.z, w_0.w));
        n_0 = max(n_0, subgroupShuffleXor(n_0, 1u));
        let grew_0 = n_0 > m_0 + 8.0;
        let top_0 = select(m_0, n_0, grew_0);
        factor_0 = exp2(m_0 - top_0);
        m_0 = top_0;
        l_0 *= factor_0;
        let w_1 = max(x_1_0, x_1_1);
        var n_1 = max(max(w_1.x, w_1.y), max(w_1.z, w_1.w));
        n_1 = max(n_1, subgroupShuffleXor(n_1, 1u));
        let grew_1 = n_1 > m_1 + 8.0;
        let top_1 = select(m_1, n_1, grew_1);
        factor_1 = exp2(m_1 - top_1);
        m_1 = top_1;
        l_1 *= factor_1;
        if (grew_0 || grew_1) { atomicMax(&w.grown, step); }
        x_0_0 = exp2(x_0_0 - vec4<f32>(m_0));
        l_0 += (x_0_0.x + x_0_0.y) + (x_0_0.z + x_0_0.w);
        {
          let h = vec4<f16>(x_0_0);
          w.shares[half_0 + 0u] = h[0];
          w.shares[half_0 + 1u] = h[1];
          w.shares[half_0 + 2u] = h[2];
          w.shares[half_0 + 3u] = h[3];
        }
        x_0_1 = exp2(x_0_1 - vec4<f32>(m_0));
        l_0 += (x_0_1.x + x_0_1.y) + (x_0_1.z + x_0_1.w);
        {
          let h = vec4<f16>(x_0_1);
          w.shares[half_0 + 8u] = h[0];
          w.shares[half_0 + 9u] = h[1];
          w.shares[half_0 + 10u] = h[2];
          w.shares[half_0 + 11u] = h[3];
        }
        x_1_0 = exp2(x_1_0 - vec4<f32>(m_1));
        l_1 += (x_1_0.x + x_1_0.y) + (x_1_0.z + x_1_0.w);
        {
          let h = vec4<f16>(x_1_0);
          w.shares[half_1 + 0u] = h[0];
          w.shares[half_1 + 1u] = h[1];
          w.shares[half_1 + 2u] = h[2];
          w.shares[half_1 + 3u] = h[3];
        }
        x_1_1 = exp2(x_1_1 - vec4<f32>(m_1));
        l_1 += (x_1_1.x + x_1_1.y) + (x_1_1.z + x_1_1.w);
        {
          let h = vec4<f16>(x_1_1);
          w.shares[half_1 + 8u] = h[0];
          w.shares[half_1 + 9u] = h[1];
          w.shares[half_1 + 10u] = h[2];
          w.shares[half_1 + 11u] = h[3];
        }
        vr_0 = ld8_v(following * 16u + min(tid, 31u) / 2u, min(tid, 31u) % 2u);
        kr_0 = ld8_k(next * 16u + min(tid, 31u) / 2u, min(tid, 31u) % 2u);
        // Also the barrier that makes probabilities, keys and values visible.
        rescaling = workgroupUniformLoad(&w.grown) == step;
        if (rescaling) { break; }
        {
          let a_0 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&w.shares, sub * 768u + 0u, 24u);
          let a_1 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&w.shares, sub * 768u + 384u, 24u);
          let b_0 = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, row_major>(&w.values, 0u, 24u);
          o_0_0 = subgroupMatrixMultiplyAccumulate(a_0, b_0, o_0_0);
          o_1_0 = subgroupMatrixMultiplyAccumulate(a_1, b_0, o_1_0);
        }
        if (last) { break; }
        block = following;
        partial = followingPartial;
        following = next;
        followingPartial = nextPartial;
        last = !more;
        next++;
        if (next >= runEnd) {
          run++;
          more = run < lastRun;
          if (more) {
            let runAt = P.qRunsAt + 3u * run;
            next = u32(tables[runAt]);
            runEnd = u32(tables[runAt + 1u]);
            nextPartial = tables[runAt + 2u] != 0;
          }
        }
      }
      if (!rescaling) { break; }
      if (step > 1u) {
        subgroupMatrixStore<row_major>(&w.scores, sub * 768u + 0u, o_0_0, 24u);
        subgroupMatrixStore<row_major>(&w.scores, sub * 768u + 384u, o_1_0, 24u);
        workgroupBarrier(); // the sums are visible to the lanes that own their rows
        {
          var x = vec4<f32>(w.scores[cell_0 + 0u], w.scores[cell_0 + 1u], w.scores[cell_0 + 2u], w.scores[cell_0 + 3u]);
          x *= factor_0;
          w.scores[cell_0 + 0u] = x[0];
          w.scores[cell_0 + 1u] = x[1];
          w.scores[cell_0 + 2u] = x[2];
          w.scores[cell_0 + 3u] = x[3];
        }
        {
          var x = vec4<f32>(w.scores[cell_0 + 8u], w.scores[cell_0 + 9u], w.scores[cell_0 + 10u], w.scores[cell_0 + 11u]);
          x *= factor_0;
          w.scores[cell_0 + 8u] = x[0];
          w.scores[cell_0 + 9u] = x[1];
          w.scores[cell_0 + 10u] = x[2];
          w.scores[cell_0 + 11u] = x[3];
        }
        {
          var x = vec4<f32>(w.scores[cell_1 + 0u], w.scores[cell_1 + 1u], w.scores[cell_1 + 2u], w.scores[cell_1 + 3u]);
          x *= factor_1;
          w.scores[cell_1 + 0u] = x[0];
          w.scores[cell_1 + 1u] = x[1];
          w.scores[cell_1 + 2u] = x[2];
          w.scores[cell_1 + 3u] = x[3];
        }
        {
          var x = vec4<f32>(w.scores[cell_1 + 8u], w.scores[cell_1 + 9u], w.scores[cell_1 + 10u], w.scores[cell_1 + 11u]);
          x *= factor_1;
          w.scores[cell_1 + 8u] = x[0];
          w.scores[cell_1 + 9u] = x[1];
          w.scores[cell_1 + 10u] = x[2];
          w.scores[cell_1 + 11u] = x[3];
        }
        workgroupBarrier(); // lanes are done with their rows
        o_0_0 = subgroupMatrixLoad<subgroup_matrix_result<f32, 16, 16>, row_major>(&w.scores, sub * 768u + 0u, 24u);
        o_1_0 = subgroupMatrixLoad<subgroup_matrix_result<f32, 16, 16>, row_major>(&w.scores, sub * 768u + 384u, 24u);
        workgroupBarrier(); // and so are the matrices
      }
      {
        let a_0 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&w.shares, sub * 768u + 0u, 24u);
        let a_1 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&w.shares, sub * 768u + 384u, 24u);
        let b_0 = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, row_major>(&w.values, 0u, 24u);
        o_0_0 = subgroupMatrixMultiplyAccumulate(a_0, b_0, o_0_0);
        o_1_0 = subgroupMatrixMultiplyAccumulate(a_1, b_0, o_1_0);
      }
      if (last) { break; }
      block = following;
      partial = followingPartial;
      following = next;
      followingPartial = nextPartial;
      last = !more;
      next++;
      if (next >= runEnd) {
        run++;
        more = run < lastRun;
        if (more) {
          let runAt = P.qRunsAt + 3u * run;
          next = u32(tables[runAt]);
          runEnd = u32(tables[runAt + 1u]);
          nextPartial = tables[runAt + 2u] != 0;
        }
      }
    }
    if (seen != 0u) { atomicStore(&w.stray, 1u); }
  }
  l_0 = l_0 + subgroupShuffleXor(l_0, 1u);
  let attended_0 = m_0 > -1.0e30;
  var share_0 = 1.0;
  share_0 = select(0.0, share_0 / l_0, attended_0);
  if (part == 0u && q0 + own_0 < lenQ) {
    lse[b * P.lse_b + h * P.lse_h + (qStart + q0 + own_0) * P.lse_s] = select(P.negInf, (m_0 + log2(l_0)) * 0.6931471805599453, attended_0);
  }
  l_1 = l_1 + subgroupShuffleXor(l_1, 1u);
  let attended_1 = m_1 > -1.0e30;
  var share_1 = 1.0;
  share_1 = select(0.0, share_1 / l_1, attended_1);
  if (part == 0u && q0 + own_1 < lenQ) {
    lse[b * P.lse_b + h * P.lse_h + (qStart + q0 + own_1) * P.lse_s] = select(P.negInf, (m_1 + log2(l_1)) * 0.6931471805599453, attended_1);
  }
  workgroupBarrier(); // the scores' place is free
  subgroupMatrixStore<row_major>(&w.scores, sub * 768u + 0u, o_0_0, 24u);
  subgroupMatrixStore<row_major>(&w.scores, sub * 768u + 384u, o_1_0, 24u);
  workgroupBarrier(); // the sums are visible to the lanes that own their rows
  {
    var x = vec4<f32>(w.scores[cell_0 + 0u], w.scores[cell_0 + 1u], w.scores[cell_0 + 2u], w.scores[cell_0 + 3u]);
    if (atomicLoad(&w.stray) != 0u) { x += strays(i32(q0 + own_0), (0u + part + 0u) / 4u); }
    st_out(q0 + own_0, (0u + part + 0u) / 4u, select(vec4<f32>(0.0), x * share_0, attended_0));
  }
  {
    var x = vec4<f32>(w.scores[cell_0 + 8u], w.scores[cell_0 + 9u], w.scores[cell_0 + 10u], w.scores[cell_0 + 11u]);
    if (atomicLoad(&w.stray) != 0u) { x += strays(i32(q0 + own_0), (0u + part + 8u) / 4u); }
    st_out(q0 + own_0, (0u + part + 8u) / 4u, select(vec4<f32>(0.0), x * share_0, attended_0));
  }
  {
    var x = vec4<f32>(w.scores[cell_1 + 0u], w.scores[cell_1 + 1u], w.scores[cell_1 + 2u], w.scores[cell_1 + 3u]);
    if (atomicLoad(&w.stray) != 0u) { x += strays(i32(q0 + own_1), (0u + part + 0u) / 4u); }
    st_out(q0 + own_1, (0u + part + 0u) / 4u, select(vec4<f32>(0.0), x * share_1, attended_1));
  }
  {
    var x = vec4<f32>(w.scores[cell_1 + 8u], w.scores[cell_1 + 9u], w.scores[cell_1 + 10u], w.scores[cell_1 + 11u]);
    if (atomicLoad(&w.stray) != 0u) { x += strays(i32(q0 + own_1), (0u + part + 8u) / 4u); }
    st_out(q0 + own_1, (0u + part + 8u) / 4u, select(vec4<f32>(0.0), x * share_1, attended_1));
  }
  workgroupBarrier(); // lanes are done with their rows
}
