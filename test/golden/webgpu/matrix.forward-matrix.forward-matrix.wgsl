enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
requires subgroup_id;
struct Params {
  q_s: u32,
  k_s: u32,
  v_s: u32,
  out_s: u32,
  scale: f32,
  scaleLog2: f32,
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
@group(0) @binding(1) var<storage, read> q: array<f16>;
@group(0) @binding(2) var<storage, read> k: array<f16>;
@group(0) @binding(3) var<storage, read> v: array<f16>;
@group(0) @binding(4) var<storage, read_write> out: array<f16>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
@group(0) @binding(6) var<storage, read> tables: array<i32>;
var<private> atB: i32;
var<private> atH: i32;
var<private> atLenQ: i32;
var<private> atLenK: i32;
var<workgroup> scores: array<f32, 1152>;
var<workgroup> shares: array<f16, 1280>;
var<workgroup> factors: array<f32, 32>;
var<workgroup> grown: u32;
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
@compute @workgroup_size(32)
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
  let first = (groups.y - 1u - group.y) * 32u;
  // The last tile starts earlier rather than reaching past the end; its first rows are another tile's to write.
  let q0 = min(first, lenQ - 32u);
  // Locals and not module variables: matrix loads want addresses that are seen to be uniform.
  let base_q = b * P.q_b + h * P.q_h + qStart * P.q_s - P.q_from;
  let base_out = b * P.out_b + h * P.out_h + qStart * P.out_s - P.out_from;
  let base_k = b * P.k_b + hkv * P.k_h + kStart * P.k_s - P.k_from;
  let base_v = b * P.v_b + hkv * P.v_h + kStart * P.v_s - P.v_from;
  let column = (lane % 1u) * 32u;
  var begun = false;
  let row_0 = lane / 1u;
  var m_0 = -1.0e30;
  var l_0 = 0.0;
  var o_0_0 = subgroup_matrix_result<f32, 16, 16>();
  var o_1_0 = subgroup_matrix_result<f32, 16, 16>();
  {
    let runRow = P.qRowsAt + b * P.qRunsB + h * P.qRunsH + first / 32u;
    let lastRun = u32(tables[runRow + 1u]);
    for (var run = u32(tables[runRow]); run < lastRun; run++) {
      let runAt = P.qRunsAt + 3u * run;
      let partial = tables[runAt + 2u] != 0;
      let runEnd = u32(tables[runAt + 1u]);
      for (var block = u32(tables[runAt]); block < runEnd; block++) {
        let k0 = block * 32u;
        let ragged = k0 + 32u > lenK;
        let doubtful = partial || ragged;
        if (ragged) {
          for (var j = 0u; j < 32u; j++) {
            let key = min(k0 + column + j, lenK - 1u);
            var sum = 0.0;
            for (var d = 0u; d < 16u; d++) { sum = fma(f32(q[base_q + (q0 + row_0) * P.q_s + d]), f32(k[base_k + key * P.k_s + d]), sum); }
            scores[row_0 * 36u + column + j] = sum;
          }
        } else {
          {
            var s_0_0 = subgroup_matrix_result<f32, 16, 16>();
            var s_0_1 = subgroup_matrix_result<f32, 16, 16>();
            var s_1_0 = subgroup_matrix_result<f32, 16, 16>();
            var s_1_1 = subgroup_matrix_result<f32, 16, 16>();
            for (var d = 0u; d < 16u; d += 16u) {
              let a_0 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&q, base_q + (q0 + 0u) * P.q_s + d, P.q_s);
              let a_1 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&q, base_q + (q0 + 16u) * P.q_s + d, P.q_s);
              let b_0 = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, col_major>(&k, base_k + (k0 + 0u) * P.k_s + d, P.k_s);
              s_0_0 = subgroupMatrixMultiplyAccumulate(a_0, b_0, s_0_0);
              s_1_0 = subgroupMatrixMultiplyAccumulate(a_1, b_0, s_1_0);
              let b_1 = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, col_major>(&k, base_k + (k0 + 16u) * P.k_s + d, P.k_s);
              s_0_1 = subgroupMatrixMultiplyAccumulate(a_0, b_1, s_0_1);
              s_1_1 = subgroupMatrixMultiplyAccumulate(a_1, b_1, s_1_1);
            }
            subgroupMatrixStore<row_major>(&scores, 0u, s_0_0, 36u);
            subgroupMatrixStore<row_major>(&scores, 16u, s_0_1, 36u);
            subgroupMatrixStore<row_major>(&scores, 576u, s_1_0, 36u);
            subgroupMatrixStore<row_major>(&scores, 592u, s_1_1, 36u);
          }
        }
        workgroupBarrier(); // the products are visible to the lanes that own their rows
        var x_0_0 = scores[row_0 * 36u + column + 0u] * P.scaleLog2;
        var x_0_1 = scores[row_0 * 36u + column + 1u] * P.scaleLog2;
        var x_0_2 = scores[row_0 * 36u + column + 2u] * P.scaleLog2;
        var x_0_3 = scores[row_0 * 36u + column + 3u] * P.scaleLog2;
        var x_0_4 = scores[row_0 * 36u + column + 4u] * P.scaleLog2;
        var x_0_5 = scores[row_0 * 36u + column + 5u] * P.scaleLog2;
        var x_0_6 = scores[row_0 * 36u + column + 6u] * P.scaleLog2;
        var x_0_7 = scores[row_0 * 36u + column + 7u] * P.scaleLog2;
        var x_0_8 = scores[row_0 * 36u + column + 8u] * P.scaleLog2;
        var x_0_9 = scores[row_0 * 36u + column + 9u] * P.scaleLog2;
        var x_0_10 = scores[row_0 * 36u + column + 10u] * P.scaleLog2;
        var x_0_11 = scores[row_0 * 36u + column + 11u] * P.scaleLog2;
        var x_0_12 = scores[row_0 * 36u + column + 12u] * P.scaleLog2;
        var x_0_13 = scores[row_0 * 36u + column + 13u] * P.scaleLog2;
        var x_0_14 = scores[row_0 * 36u + column + 14u] * P.scaleLog2;
        var x_0_15 = scores[row_0 * 36u + column + 15u] * P.scaleLog2;
        var x_0_16 = scores[row_0 * 36u + column + 16u] * P.scaleLog2;
        var x_0_17 = scores[row_0 * 36u + column + 17u] * P.scaleLog2;
        var x_0_18 = scores[row_0 * 36u + column + 18u] * P.scaleLog2;
        var x_0_19 = scores[row_0 * 36u + column + 19u] * P.scaleLog2;
        var x_0_20 = scores[row_0 * 36u + column + 20u] * P.scaleLog2;
        var x_0_21 = scores[row_0 * 36u + column + 21u] * P.scaleLog2;
        var x_0_22 = scores[row_0 * 36u + column + 22u] * P.scaleLog2;
        var x_0_23 = scores[row_0 * 36u + column + 23u] * P.scaleLog2;
        var x_0_24 = scores[row_0 * 36u + column + 24u] * P.scaleLog2;
        var x_0_25 = scores[row_0 * 36u + column + 25u] * P.scaleLog2;
        var x_0_26 = scores[row_0 * 36u + column + 26u] * P.scaleLog2;
        var x_0_27 = scores[row_0 * 36u + column + 27u] * P.scaleLog2;
        var x_0_28 = scores[row_0 * 36u + column + 28u] * P.scaleLog2;
        var x_0_29 = scores[row_0 * 36u + column + 29u] * P.scaleLog2;
        var x_0_30 = scores[row_0 * 36u + column + 30u] * P.scaleLog2;
        var x_0_31 = scores[row_0 * 36u + column + 31u] * P.scaleLog2;
        if (doubtful) {
          x_0_0 = select(-3.0e38, x_0_0, k0 + column + 0u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 0u, lenK - 1u)), atLenQ, atLenK)));
          x_0_1 = select(-3.0e38, x_0_1, k0 + column + 1u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 1u, lenK - 1u)), atLenQ, atLenK)));
          x_0_2 = select(-3.0e38, x_0_2, k0 + column + 2u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 2u, lenK - 1u)), atLenQ, atLenK)));
          x_0_3 = select(-3.0e38, x_0_3, k0 + column + 3u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 3u, lenK - 1u)), atLenQ, atLenK)));
          x_0_4 = select(-3.0e38, x_0_4, k0 + column + 4u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 4u, lenK - 1u)), atLenQ, atLenK)));
          x_0_5 = select(-3.0e38, x_0_5, k0 + column + 5u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 5u, lenK - 1u)), atLenQ, atLenK)));
          x_0_6 = select(-3.0e38, x_0_6, k0 + column + 6u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 6u, lenK - 1u)), atLenQ, atLenK)));
          x_0_7 = select(-3.0e38, x_0_7, k0 + column + 7u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 7u, lenK - 1u)), atLenQ, atLenK)));
          x_0_8 = select(-3.0e38, x_0_8, k0 + column + 8u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 8u, lenK - 1u)), atLenQ, atLenK)));
          x_0_9 = select(-3.0e38, x_0_9, k0 + column + 9u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 9u, lenK - 1u)), atLenQ, atLenK)));
          x_0_10 = select(-3.0e38, x_0_10, k0 + column + 10u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 10u, lenK - 1u)), atLenQ, atLenK)));
          x_0_11 = select(-3.0e38, x_0_11, k0 + column + 11u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 11u, lenK - 1u)), atLenQ, atLenK)));
          x_0_12 = select(-3.0e38, x_0_12, k0 + column + 12u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 12u, lenK - 1u)), atLenQ, atLenK)));
          x_0_13 = select(-3.0e38, x_0_13, k0 + column + 13u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 13u, lenK - 1u)), atLenQ, atLenK)));
          x_0_14 = select(-3.0e38, x_0_14, k0 + column + 14u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 14u, lenK - 1u)), atLenQ, atLenK)));
          x_0_15 = select(-3.0e38, x_0_15, k0 + column + 15u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 15u, lenK - 1u)), atLenQ, atLenK)));
          x_0_16 = select(-3.0e38, x_0_16, k0 + column + 16u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 16u, lenK - 1u)), atLenQ, atLenK)));
          x_0_17 = select(-3.0e38, x_0_17, k0 + column + 17u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 17u, lenK - 1u)), atLenQ, atLenK)));
          x_0_18 = select(-3.0e38, x_0_18, k0 + column + 18u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 18u, lenK - 1u)), atLenQ, atLenK)));
          x_0_19 = select(-3.0e38, x_0_19, k0 + column + 19u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 19u, lenK - 1u)), atLenQ, atLenK)));
          x_0_20 = select(-3.0e38, x_0_20, k0 + column + 20u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 20u, lenK - 1u)), atLenQ, atLenK)));
          x_0_21 = select(-3.0e38, x_0_21, k0 + column + 21u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 21u, lenK - 1u)), atLenQ, atLenK)));
          x_0_22 = select(-3.0e38, x_0_22, k0 + column + 22u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 22u, lenK - 1u)), atLenQ, atLenK)));
          x_0_23 = select(-3.0e38, x_0_23, k0 + column + 23u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 23u, lenK - 1u)), atLenQ, atLenK)));
          x_0_24 = select(-3.0e38, x_0_24, k0 + column + 24u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 24u, lenK - 1u)), atLenQ, atLenK)));
          x_0_25 = select(-3.0e38, x_0_25, k0 + column + 25u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 25u, lenK - 1u)), atLenQ, atLenK)));
          x_0_26 = select(-3.0e38, x_0_26, k0 + column + 26u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 26u, lenK - 1u)), atLenQ, atLenK)));
          x_0_27 = select(-3.0e38, x_0_27, k0 + column + 27u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 27u, lenK - 1u)), atLenQ, atLenK)));
          x_0_28 = select(-3.0e38, x_0_28, k0 + column + 28u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 28u, lenK - 1u)), atLenQ, atLenK)));
          x_0_29 = select(-3.0e38, x_0_29, k0 + column + 29u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 29u, lenK - 1u)), atLenQ, atLenK)));
          x_0_30 = select(-3.0e38, x_0_30, k0 + column + 30u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 30u, lenK - 1u)), atLenQ, atLenK)));
          x_0_31 = select(-3.0e38, x_0_31, k0 + column + 31u < lenK && (!partial || mask1(0.0, atB, atH, i32(q0 + row_0), i32(min(k0 + column + 31u, lenK - 1u)), atLenQ, atLenK)));
        }
        var n_0 = -1.0e30;
        n_0 = max(n_0, x_0_0);
        n_0 = max(n_0, x_0_1);
        n_0 = max(n_0, x_0_2);
        n_0 = max(n_0, x_0_3);
        n_0 = max(n_0, x_0_4);
        n_0 = max(n_0, x_0_5);
        n_0 = max(n_0, x_0_6);
        n_0 = max(n_0, x_0_7);
        n_0 = max(n_0, x_0_8);
        n_0 = max(n_0, x_0_9);
        n_0 = max(n_0, x_0_10);
        n_0 = max(n_0, x_0_11);
        n_0 = max(n_0, x_0_12);
        n_0 = max(n_0, x_0_13);
        n_0 = max(n_0, x_0_14);
        n_0 = max(n_0, x_0_15);
        n_0 = max(n_0, x_0_16);
        n_0 = max(n_0, x_0_17);
        n_0 = max(n_0, x_0_18);
        n_0 = max(n_0, x_0_19);
        n_0 = max(n_0, x_0_20);
        n_0 = max(n_0, x_0_21);
        n_0 = max(n_0, x_0_22);
        n_0 = max(n_0, x_0_23);
        n_0 = max(n_0, x_0_24);
        n_0 = max(n_0, x_0_25);
        n_0 = max(n_0, x_0_26);
        n_0 = max(n_0, x_0_27);
        n_0 = max(n_0, x_0_28);
        n_0 = max(n_0, x_0_29);
        n_0 = max(n_0, x_0_30);
        n_0 = max(n_0, x_0_31);
        let anyGrew = subgroupAny(n_0 > m_0 + 8.0);
        if (lane == 0u) { grown = select(0u, 1u, anyGrew); }
        if (workgroupUniformLoad(&grown) != 0u) {
          {
            let top = max(m_0, n_0);
            let factor = exp2(m_0 - top);
            factors[row_0] = factor;
            l_0 *= factor;
            m_0 = top;
          }
          workgroupBarrier(); // factors are visible
          if (begun) {
            subgroupMatrixStore<row_major>(&scores, 0u, o_0_0, 36u);
            subgroupMatrixStore<row_major>(&scores, 576u, o_1_0, 36u);
            workgroupBarrier(); // the output's rows are visible to the lanes that own them
            for (var j = 0u; j < 16u; j++) {
              let col = (lane % 1u) * 16u + j;
              let cell = row_0 * 36u + col;
              scores[cell] *= factors[row_0];
            }
            workgroupBarrier(); // rows are done with
            o_0_0 = subgroupMatrixLoad<subgroup_matrix_result<f32, 16, 16>, row_major>(&scores, 0u, 36u);
            o_1_0 = subgroupMatrixLoad<subgroup_matrix_result<f32, 16, 16>, row_major>(&scores, 576u, 36u);
            workgroupBarrier(); // the place is free again
          }
        }
        begun = true;
        x_0_0 = exp2(x_0_0 - m_0);
        l_0 += x_0_0;
        x_0_1 = exp2(x_0_1 - m_0);
        l_0 += x_0_1;
        x_0_2 = exp2(x_0_2 - m_0);
        l_0 += x_0_2;
        x_0_3 = exp2(x_0_3 - m_0);
        l_0 += x_0_3;
        x_0_4 = exp2(x_0_4 - m_0);
        l_0 += x_0_4;
        x_0_5 = exp2(x_0_5 - m_0);
        l_0 += x_0_5;
        x_0_6 = exp2(x_0_6 - m_0);
        l_0 += x_0_6;
        x_0_7 = exp2(x_0_7 - m_0);
        l_0 += x_0_7;
        x_0_8 = exp2(x_0_8 - m_0);
        l_0 += x_0_8;
        x_0_9 = exp2(x_0_9 - m_0);
        l_0 += x_0_9;
        x_0_10 = exp2(x_0_10 - m_0);
        l_0 += x_0_10;
        x_0_11 = exp2(x_0_11 - m_0);
        l_0 += x_0_11;
        x_0_12 = exp2(x_0_12 - m_0);
        l_0 += x_0_12;
        x_0_13 = exp2(x_0_13 - m_0);
        l_0 += x_0_13;
        x_0_14 = exp2(x_0_14 - m_0);
        l_0 += x_0_14;
        x_0_15 = exp2(x_0_15 - m_0);
        l_0 += x_0_15;
        x_0_16 = exp2(x_0_16 - m_0);
        l_0 += x_0_16;
        x_0_17 = exp2(x_0_17 - m_0);
        l_0 += x_0_17;
        x_0_18 = exp2(x_0_18 - m_0);
        l_0 += x_0_18;
        x_0_19 = exp2(x_0_19 - m_0);
        l_0 += x_0_19;
        x_0_20 = exp2(x_0_20 - m_0);
        l_0 += x_0_20;
        x_0_21 = exp2(x_0_21 - m_0);
        l_0 += x_0_21;
        x_0_22 = exp2(x_0_22 - m_0);
        l_0 += x_0_22;
        x_0_23 = exp2(x_0_23 - m_0);
        l_0 += x_0_23;
        x_0_24 = exp2(x_0_24 - m_0);
        l_0 += x_0_24;
        x_0_25 = exp2(x_0_25 - m_0);
        l_0 += x_0_25;
        x_0_26 = exp2(x_0_26 - m_0);
        l_0 += x_0_26;
        x_0_27 = exp2(x_0_27 - m_0);
        l_0 += x_0_27;
        x_0_28 = exp2(x_0_28 - m_0);
        l_0 += x_0_28;
        x_0_29 = exp2(x_0_29 - m_0);
        l_0 += x_0_29;
        x_0_30 = exp2(x_0_30 - m_0);
        l_0 += x_0_30;
        x_0_31 = exp2(x_0_31 - m_0);
        l_0 += x_0_31;
        shares[row_0 * 40u + column + 0u] = f16(x_0_0);
        shares[row_0 * 40u + column + 1u] = f16(x_0_1);
        shares[row_0 * 40u + column + 2u] = f16(x_0_2);
        shares[row_0 * 40u + column + 3u] = f16(x_0_3);
        shares[row_0 * 40u + column + 4u] = f16(x_0_4);
        shares[row_0 * 40u + column + 5u] = f16(x_0_5);
        shares[row_0 * 40u + column + 6u] = f16(x_0_6);
        shares[row_0 * 40u + column + 7u] = f16(x_0_7);
        shares[row_0 * 40u + column + 8u] = f16(x_0_8);
        shares[row_0 * 40u + column + 9u] = f16(x_0_9);
        shares[row_0 * 40u + column + 10u] = f16(x_0_10);
        shares[row_0 * 40u + column + 11u] = f16(x_0_11);
        shares[row_0 * 40u + column + 12u] = f16(x_0_12);
        shares[row_0 * 40u + column + 13u] = f16(x_0_13);
        shares[row_0 * 40u + column + 14u] = f16(x_0_14);
        shares[row_0 * 40u + column + 15u] = f16(x_0_15);
        shares[row_0 * 40u + column + 16u] = f16(x_0_16);
        shares[row_0 * 40u + column + 17u] = f16(x_0_17);
        shares[row_0 * 40u + column + 18u] = f16(x_0_18);
        shares[row_0 * 40u + column + 19u] = f16(x_0_19);
        shares[row_0 * 40u + column + 20u] = f16(x_0_20);
        shares[row_0 * 40u + column + 21u] = f16(x_0_21);
        shares[row_0 * 40u + column + 22u] = f16(x_0_22);
        shares[row_0 * 40u + column + 23u] = f16(x_0_23);
        shares[row_0 * 40u + column + 24u] = f16(x_0_24);
        shares[row_0 * 40u + column + 25u] = f16(x_0_25);
        shares[row_0 * 40u + column + 26u] = f16(x_0_26);
        shares[row_0 * 40u + column + 27u] = f16(x_0_27);
        shares[row_0 * 40u + column + 28u] = f16(x_0_28);
        shares[row_0 * 40u + column + 29u] = f16(x_0_29);
        shares[row_0 * 40u + column + 30u] = f16(x_0_30);
        shares[row_0 * 40u + column + 31u] = f16(x_0_31);
        workgroupBarrier(); // the probabilities are visible
        if (doubtful) {
          subgroupMatrixStore<row_major>(&scores, 0u, o_0_0, 36u);
          subgroupMatrixStore<row_major>(&scores, 576u, o_1_0, 36u);
          workgroupBarrier(); // the output's rows are visible to the lanes that own them
          for (var j = 0u; j < 16u; j++) {
            let col = (lane % 1u) * 16u + j;
            let cell = row_0 * 36u + col;
            var sum = scores[cell];
            for (var key = 0u; key < 32u; key++) {
              let p = f32(shares[row_0 * 40u + key]);
              if (p != 0.0) { sum = fma(p, f32(v[base_v + (k0 + key) * P.v_s + 0u + col]), sum); }
            }
            scores[cell] = sum;
          }
          workgroupBarrier(); // rows are done with
          o_0_0 = subgroupMatrixLoad<subgroup_matrix_result<f32, 16, 16>, row_major>(&scores, 0u, 36u);
          o_1_0 = subgroupMatrixLoad<subgroup_matrix_result<f32, 16, 16>, row_major>(&scores, 576u, 36u);
          workgroupBarrier(); // the place is free again
        } else {
          for (var key = 0u; key < 32u; key += 16u) {
            let p_0 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&shares, 0u + key, 40u);
            let p_1 = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(&shares, 640u + key, 40u);
            {
              let x = subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, row_major>(&v, base_v + (k0 + key) * P.v_s + 0u, P.v_s);
              o_0_0 = subgroupMatrixMultiplyAccumulate(p_0, x, o_0_0);
              o_1_0 = subgroupMatrixMultiplyAccumulate(p_1, x, o_1_0);
            }
          }
        }
      }
    }
  }
  {
    let attended = m_0 > -1.0e30;
    var share = 1.0;
    factors[row_0] = select(0.0, share / l_0, attended);
    if (lane % 1u == 0u && q0 + row_0 >= first) {
      lse[b * P.lse_b + h * P.lse_h + (qStart + q0 + row_0) * P.lse_s] = select(P.negInf, (m_0 + log2(l_0)) * 0.6931471805599453, attended);
    }
  }
  workgroupBarrier(); // factors are visible
  subgroupMatrixStore<row_major>(&scores, 0u, o_0_0, 36u);
  subgroupMatrixStore<row_major>(&scores, 576u, o_1_0, 36u);
  workgroupBarrier(); // the output's rows are visible to the lanes that own them
  for (var j = 0u; j < 16u; j++) {
    let col = (lane % 1u) * 16u + j;
    let cell = row_0 * 36u + col;
    if (q0 + row_0 >= first) { out[base_out + (q0 + row_0) * P.out_s + 0u + col] = f16(scores[cell] * factors[row_0]); }
  }
  workgroupBarrier(); // rows are done with
  workgroupBarrier(); // the place is free again
}
