enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
requires subgroup_id;
struct Params {
  scale: f32,
  lse_s: u32,
  k_s: u32,
  q_s: u32,
  out_s: u32,
  v_s: u32,
  scaleLog2: f32,
  kvRunsAt: u32,
  kvRowsAt: u32,
  kvRunsB: u32,
  kvRunsH: u32,
  q_b: u32,
  q_h: u32,
  q_from: u32,
  out_b: u32,
  out_h: u32,
  out_from: u32,
  lse_b: u32,
  lse_h: u32,
  group: u32,
  firstHkv: u32,
  firstB: u32,
  k_b: u32,
  k_h: u32,
  k_from: u32,
  v_b: u32,
  v_h: u32,
  v_from: u32,
  Hq: u32,
}
@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> q: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> dOut: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> v: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read_write> dv: array<vec2<u32>>;
@group(0) @binding(7) var<storage, read_write> dk: array<vec2<u32>>;
@group(0) @binding(8) var<storage, read> tables: array<i32>;
var<private> atB: i32;
var<private> atH: i32;
var<private> atLenQ: i32;
var<private> atLenK: i32;
var<private> lseBase: u32;
var<private> base_k: u32;
var<private> base_q: u32;
var<private> base_dOut: u32;
var<private> base_v: u32;
var<private> base_dv: u32;
var<private> base_dk: u32;
var<workgroup> w: Memory;
fn mask1(score: f32, b: i32, h: i32, q: i32, kv: i32, lenQ: i32, lenK: i32) -> bool {
  let t0 = (lenK - lenQ);
  let t1 = (q + t0);
  let t2 = (kv <= t1);
  return t2;
}
fn mask4(q: i32, kv: i32) -> vec4<bool> {
  return vec4<bool>(
    mask1(0.0, atB, atH, min(q + 0, atLenQ - 1), min(kv, atLenK - 1), atLenQ, atLenK),
    mask1(0.0, atB, atH, min(q + 1, atLenQ - 1), min(kv, atLenK - 1), atLenQ, atLenK),
    mask1(0.0, atB, atH, min(q + 2, atLenQ - 1), min(kv, atLenK - 1), atLenQ, atLenK),
    mask1(0.0, atB, atH, min(q + 3, atLenQ - 1), min(kv, atLenK - 1), atLenQ, atLenK));
}
fn inside4(q: i32, kv: i32) -> vec4<bool> {
  return (vec4<i32>(q) + vec4<i32>(0, 1, 2, 3) < vec4<i32>(atLenQ)) & vec4<bool>(kv < atLenK);
}
fn row_at(q: i32) -> vec2<f32> {
  if (q >= atLenQ) { return vec2<f32>(3.0e38, 0.0); }
  return rows[lseBase + u32(q) * P.lse_s];
}
fn ld8_k(row_: u32, part_: u32) -> vec4<u32> {
  let row = min(row_, u32(atLenK) - 1u);
  let part = part_;
  let at = base_k + row * P.k_s;
  return k[(at >> 3u) + part];
}
fn ld8_q(row_: u32, part_: u32) -> vec4<u32> {
  let row = min(row_, u32(atLenQ) - 1u);
  let part = part_;
  let at = base_q + row * P.q_s;
  return q[(at >> 3u) + part];
}
fn ld8_dOut(row_: u32, part_: u32) -> vec4<u32> {
  let row = min(row_, u32(atLenQ) - 1u);
  let part = part_;
  let at = base_dOut + row * P.out_s;
  return dOut[(at >> 3u) + part];
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
fn st_dv(row: u32, quad: u32, x: vec4<f32>) {
  if (row >= u32(atLenK) || quad >= 4u) { return; }
  let at = base_dv + row * P.v_s;
  dv[(at >> 2u) + quad] = vec2<u32>(tw_to_f16(x.x) | (tw_to_f16(x.y) << 16u), tw_to_f16(x.z) | (tw_to_f16(x.w) << 16u));
}
fn st_dk(row: u32, quad: u32, x: vec4<f32>) {
  if (row >= u32(atLenK) || quad >= 4u) { return; }
  let at = base_dk + row * P.k_s;
  dk[(at >> 2u) + quad] = vec2<u32>(tw_to_f16(x.x) | (tw_to_f16(x.y) << 16u), tw_to_f16(x.z) | (tw_to_f16(x.w) << 16u));
}
struct Memory {
@align(16) scores: array<f32, 1536>,
@align(16) second: array<f32, 1536>,
@align(16) shares: array<f16, 1536>,
@align(16) slopes: array<f16, 1536>,
@align(16) stagedS: array<f16, 384>,
@align(16) stagedT: array<f16, 384>,
@align(16) lses: array<f32, 16>,
@align(16) deltas: array<f32, 16>,
}
@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32, @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_size) subgroupSize: u32, @builtin(subgroup_invocation_id) lane: u32) {
  let b = group.z + P.firstB;
  let hkv = group.x + P.firstHkv;
  let qStart = u32(tables[b * 4u]);
  let lenQ = u32(tables[b * 4u + 1u]);
  let kStart = u32(tables[b * 4u + 2u]);
  let lenK = u32(tables[b * 4u + 3u]);
  atB = i32(b);
  atLenQ = i32(lenQ);
  atLenK = i32(lenK);
  let first = group.y * 64u;
  if (first >= lenK) { return; }
  let k0 = first;
  let sub = min(subgroup, 3u);
  let ln = min(lane, 31u);
  let tid = sub * 32u + ln;
  let part = ln % 2u * 4u;
  let own_0 = sub * 16u + 0u + ln / 2u;
  let cell_0 = own_0 * 24u + part;
  let half_0 = own_0 * 24u + part;
  // quads c, c + 2, ... of the columns are this lane's
  let c = part / 4u;
  base_k = b * P.k_b + hkv * P.k_h + kStart * P.k_s - P.k_from;
  base_v = b * P.v_b + hkv * P.v_h + kStart * P.v_s - P.v_from;
  base_dv = b * P.v_b + hkv * P.v_h + kStart * P.v_s - P.v_from;
  base_dk = b * P.k_b + hkv * P.k_h + kStart * P.k_s - P.k_from;
  {
    var ar_0: vec4<u32>;
    ar_0 = ld8_k(first + tid / 2u, tid % 2u);
    workgroupBarrier(); // the place's last readers are done
    {
      let at = tid / 2u * 24u + tid % 2u * 8u;
      let h_0 = bitcast<vec2<f16>>(ar_0[0]);
      w.shares[at + 0u] = h_0.x;
      w.shares[at + 1u] = h_0.y;
      let h_1 = bitcast<vec2<f16>>(ar_0[1]);
      w.shares[at + 2u] = h_1.x;
      w.shares[at + 3u] = h_1.y;
      let h_2 = bitcast<vec2<f16>>(ar_0[2]);
      w.shares[at + 4u] = h_2.x;
      w.shares[at + 5u] = h_2.y;
      let h_3 = bitcast<vec2<f16>>(ar_0[3]);
      w.shares[at + 6u] = h_3.x;
      w.shares[at + 7u] = h_3.y;
    }
  }
  workgroupBarrier(); // these columns are visible
  let a_0_0 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&w.shares, sub * 384u + 0u, 24u);
  {
    var br_0: vec4<u32>;
    br_0 = ld8_v(first + tid / 2u, tid % 2u);
    workgroupBarrier(); // the place's last readers are done
    {
      let at = tid / 2u * 24u + tid % 2u * 8u;
      let h_0 = bitcast<vec2<f16>>(br_0[0]);
      w.shares[at + 0u] = h_0.x;
      w.shares[at + 1u] = h_0.y;
      let h_1 = bitcast<vec2<f16>>(br_0[1]);
      w.shares[at + 2u] = h_1.x;
      w.shares[at + 3u] = h_1.y;
      let h_2 = bitcast<vec2<f16>>(br_0[2]);
      w.shares[at + 4u] = h_2.x;
      w.shares[at + 5u] = h_2.y;
      let h_3 = bitcast<vec2<f16>>(br_0[3]);
      w.shares[at + 6u] = h_3.x;
      w.shares[at + 7u] = h_3.y;
    }
  }
  workgroupBarrier(); // these columns are visible
  let b_0_0 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&w.shares, sub * 384u + 0u, 24u);
  var dv_0_0 = subgroup_matrix_result<f32, 16, 16>();
  var ds_0_0 = subgroup_matrix_result<f32, 16, 16>();
  for (var h = hkv * P.group; h < (hkv + 1u) * P.group; h++) {
    let bh = b * P.Hq + h;
    atH = i32(h);
    base_q = b * P.q_b + h * P.q_h + qStart * P.q_s - P.q_from;
    base_dOut = b * P.out_b + h * P.out_h + qStart * P.out_s - P.out_from;
    lseBase = b * P.lse_b + h * P.lse_h + qStart * P.lse_s;
    let runRow = P.kvRowsAt + b * P.kvRunsB + h * P.kvRunsH + first / 64u;
    let lastRun = u32(tables[runRow + 1u]);
    var run = u32(tables[runRow]);
    var next = 0u;
    var runEnd = 0u;
    var nextPartial = false;
    var more = run < lastRun;
    if (more) {
      let runAt = P.kvRunsAt + 3u * run;
      next = u32(tables[runAt]);
      runEnd = u32(tables[runAt + 1u]);
      nextPartial = tables[runAt + 2u] != 0;
    }
    if (more) {
      var sr_0: vec4<u32>;
      var tr_0: vec4<u32>;
      var stat: vec2<f32>;
      sr_0 = ld8_q(next * 16u + min(tid, 31u) / 2u, min(tid, 31u) % 2u);
      tr_0 = ld8_dOut(next * 16u + min(tid, 31u) / 2u, min(tid, 31u) % 2u);
      stat = rows[lseBase + min(next * 16u + min(tid, 15u), lenQ - 1u) * P.lse_s];
      for (;;) {
        let q0 = next * 16u;
        let partial = nextPartial;
        workgroupBarrier(); // the staged rows' last readers are done
        if (tid < 32u) {
          let at = min(tid, 31u) / 2u * 24u + min(tid, 31u) % 2u * 8u;
          let h_0 = bitcast<vec2<f16>>(sr_0[0]);
          w.stagedS[at + 0u] = h_0.x;
          w.stagedS[at + 1u] = h_0.y;
          let h_1 = bitcast<vec2<f16>>(sr_0[1]);
          w.stagedS[at + 2u] = h_1.x;
          w.stagedS[at + 3u] = h_1.y;
          let h_2 = bitcast<vec2<f16>>(sr_0[2]);
          w.stagedS[at + 4u] = h_2.x;
          w.stagedS[at + 5u] = h_2.y;
          let h_3 = bitcast<vec2<f16>>(sr_0[3]);
          w.stagedS[at + 6u] = h_3.x;
          w.stagedS[at + 7u] = h_3.y;
        }
        if (tid < 32u) {
          let at = min(tid, 31u) / 2u * 24u + min(tid, 31u) % 2u * 8u;
          let h_0 = bitcast<vec2<f16>>(tr_0[0]);
          w.stagedT[at + 0u] = h_0.x;
          w.stagedT[at + 1u] = h_0.y;
          let h_1 = bitcast<vec2<f16>>(tr_0[1]);
          w.stagedT[at + 2u] = h_1.x;
          w.stagedT[at + 3u] = h_1.y;
          let h_2 = bitcast<vec2<f16>>(tr_0[2]);
          w.stagedT[at + 4u] = h_2.x;
          w.stagedT[at + 5u] = h_2.y;
          let h_3 = bitcast<vec2<f16>>(tr_0[3]);
          w.stagedT[at + 6u] = h_3.x;
          w.stagedT[at + 7u] = h_3.y;
        }
        if (tid < 16u) {
          let at = min(tid, 15u);
          w.lses[at] = stat.x;
          w.deltas[at] = stat.y;
        }
        next++;
        while (more && next >= runEnd) {
          run++;
          more = run < lastRun;
          if (more) {
            let runAt = P.kvRunsAt + 3u * run;
            next = u32(tables[runAt]);
            runEnd = u32(tables[runAt + 1u]);
            nextPartial = tables[runAt + 2u] != 0;
          }
        }
        sr_0 = ld8_q(next * 16u + min(tid, 31u) / 2u, min(tid, 31u) % 2u);
        tr_0 = ld8_dOut(next * 16u + min(tid, 31u) / 2u, min(tid, 31u) % 2u);
        stat = rows[lseBase + min(next * 16u + min(tid, 15u), lenQ - 1u) * P.lse_s];
        workgroupBarrier(); // the staged rows are visible
        {
          var sm_0_0 = subgroup_matrix_result<f32, 16, 16>();
          {
            let a_0 = a_0_0;
            let b_0 = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, col_major>(&w.stagedS, 0u, 24u);
            sm_0_0 = subgroupMatrixMultiplyAccumulate(a_0, b_0, sm_0_0);
          }
          subgroupMatrixStore<row_major>(&w.scores, sub * 384u + 0u, sm_0_0, 24u);
          var tm_0_0 = subgroup_matrix_result<f32, 16, 16>();
          {
            let a_0 = b_0_0;
            let b_0 = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, col_major>(&w.stagedT, 0u, 24u);
            tm_0_0 = subgroupMatrixMultiplyAccumulate(a_0, b_0, tm_0_0);
          }
          subgroupMatrixStore<row_major>(&w.second, sub * 384u + 0u, tm_0_0, 24u);
        }
        workgroupBarrier(); // scores and dP are visible to the lanes that own their rows
        var s_0_0 = vec4<f32>(w.scores[cell_0 + 0u], w.scores[cell_0 + 1u], w.scores[cell_0 + 2u], w.scores[cell_0 + 3u]);
        var s_0_1 = vec4<f32>(w.scores[cell_0 + 8u], w.scores[cell_0 + 9u], w.scores[cell_0 + 10u], w.scores[cell_0 + 11u]);
        var t_0_0 = vec4<f32>(w.second[cell_0 + 0u], w.second[cell_0 + 1u], w.second[cell_0 + 2u], w.second[cell_0 + 3u]);
        var t_0_1 = vec4<f32>(w.second[cell_0 + 8u], w.second[cell_0 + 9u], w.second[cell_0 + 10u], w.second[cell_0 + 11u]);
        let qc_0 = i32(q0 + part + 0u);
        let lse_0 = vec4<f32>(w.lses[part + 0u + 0u], w.lses[part + 0u + 1u], w.lses[part + 0u + 2u], w.lses[part + 0u + 3u]);
        let delta_0 = vec4<f32>(w.deltas[part + 0u + 0u], w.deltas[part + 0u + 1u], w.deltas[part + 0u + 2u], w.deltas[part + 0u + 3u]);
        let qc_1 = i32(q0 + part + 8u);
        let lse_1 = vec4<f32>(w.lses[part + 8u + 0u], w.lses[part + 8u + 1u], w.lses[part + 8u + 2u], w.lses[part + 8u + 3u]);
        let delta_1 = vec4<f32>(w.deltas[part + 8u + 0u], w.deltas[part + 8u + 1u], w.deltas[part + 8u + 2u], w.deltas[part + 8u + 3u]);
        s_0_0 = exp2(s_0_0 * P.scaleLog2 - lse_0);
        s_0_1 = exp2(s_0_1 * P.scaleLog2 - lse_1);
        if (partial || q0 + 16u > lenQ) {
          s_0_0 = select(vec4<f32>(0.0), s_0_0, (inside4(qc_0, i32(k0 + own_0)) & mask4(qc_0, i32(k0 + own_0))));
          s_0_1 = select(vec4<f32>(0.0), s_0_1, (inside4(qc_1, i32(k0 + own_0)) & mask4(qc_1, i32(k0 + own_0))));
        }
        {
          t_0_0 = select(vec4<f32>(0.0), s_0_0 * (t_0_0 - delta_0), s_0_0 != vec4<f32>(0.0));
        }
        {
          t_0_1 = select(vec4<f32>(0.0), s_0_1 * (t_0_1 - delta_1), s_0_1 != vec4<f32>(0.0));
        }
        {
          let h = vec4<f16>(s_0_0);
          w.shares[half_0 + 0u] = h[0];
          w.shares[half_0 + 1u] = h[1];
          w.shares[half_0 + 2u] = h[2];
          w.shares[half_0 + 3u] = h[3];
        }
        {
          let h = vec4<f16>(s_0_1);
          w.shares[half_0 + 8u] = h[0];
          w.shares[half_0 + 9u] = h[1];
          w.shares[half_0 + 10u] = h[2];
          w.shares[half_0 + 11u] = h[3];
        }
        {
          let h = vec4<f16>(t_0_0);
          w.slopes[half_0 + 0u] = h[0];
          w.slopes[half_0 + 1u] = h[1];
          w.slopes[half_0 + 2u] = h[2];
          w.slopes[half_0 + 3u] = h[3];
        }
        {
          let h = vec4<f16>(t_0_1);
          w.slopes[half_0 + 8u] = h[0];
          w.slopes[half_0 + 9u] = h[1];
          w.slopes[half_0 + 10u] = h[2];
          w.slopes[half_0 + 11u] = h[3];
        }
        workgroupBarrier(); // probabilities and score gradients are visible
        {
          let a_0 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&w.shares, sub * 384u + 0u, 24u);
          let b_0 = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, row_major>(&w.stagedT, 0u, 24u);
          dv_0_0 = subgroupMatrixMultiplyAccumulate(a_0, b_0, dv_0_0);
        }
        {
          let a_0 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&w.slopes, sub * 384u + 0u, 24u);
          let b_0 = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, row_major>(&w.stagedS, 0u, 24u);
          ds_0_0 = subgroupMatrixMultiplyAccumulate(a_0, b_0, ds_0_0);
        }
        if (!more) { break; }
      }
    }
  }
  workgroupBarrier(); // the scores' place is free
  subgroupMatrixStore<row_major>(&w.scores, sub * 384u + 0u, dv_0_0, 24u);
  workgroupBarrier(); // the sums are visible to the lanes that own their rows
  {
    var x = vec4<f32>(w.scores[cell_0 + 0u], w.scores[cell_0 + 1u], w.scores[cell_0 + 2u], w.scores[cell_0 + 3u]);
    st_dv(first + own_0, (0u + part + 0u) / 4u, x);
  }
  {
    var x = vec4<f32>(w.scores[cell_0 + 8u], w.scores[cell_0 + 9u], w.scores[cell_0 + 10u], w.scores[cell_0 + 11u]);
    st_dv(first + own_0, (0u + part + 8u) / 4u, x);
  }
  workgroupBarrier(); // lanes are done with their rows
  subgroupMatrixStore<row_major>(&w.scores, sub * 384u + 0u, ds_0_0, 24u);
  workgroupBarrier(); // the sums are visible to the lanes that own their rows
  {
    var x = vec4<f32>(w.scores[cell_0 + 0u], w.scores[cell_0 + 1u], w.scores[cell_0 + 2u], w.scores[cell_0 + 3u]);
    st_dk(first + own_0, (0u + part + 0u) / 4u, x * P.scale);
  }
  {
    var x = vec4<f32>(w.scores[cell_0 + 8u], w.scores[cell_0 + 9u], w.scores[cell_0 + 10u], w.scores[cell_0 + 11u]);
    st_dk(first + own_0, (0u + part + 8u) / 4u, x * P.scale);
  }
  workgroupBarrier(); // lanes are done with their rows
}
