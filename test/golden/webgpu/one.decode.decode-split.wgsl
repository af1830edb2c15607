struct Params {
  q_s: u32,
  k_s: u32,
  Sq: u32,
  group: u32,
  tiles: u32,
  splits: u32,
  each: u32,
  scale: f32,
  v_s: u32,
  firstHkv: u32,
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
  Hkv: u32,
}
@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> sums: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> tables: array<i32>;
var<private> atB: i32;
var<private> atH: i32;
var<private> atLenQ: i32;
var<private> atLenK: i32;
var<private> base_q: u32;
var<private> base_k: u32;
var<workgroup> partial_: array<vec4<f32>, 288>;
var<workgroup> scores: array<vec4<f32>, 64>;
var<workgroup> reduce: array<vec4<f32>, 80>;
var<private> base_v: u32;
fn inside4(q: i32, kv: i32) -> vec4<bool> { return vec4<i32>(kv) + vec4<i32>(0, 1, 2, 3) < vec4<i32>(atLenK); }
fn rd_q(row_: u32, quad_: u32) -> vec4<f32> {
  let row = min(row_, u32(atLenQ) - 1u);
  let quad = min(quad_, 3u);
  let at = base_q + row * P.q_s;
  return select(vec4<f32>(), q[(at >> 2u) + quad], row_ < u32(atLenQ) && quad_ < 4u);
}
fn rd_any_k(row_: u32, quad_: u32) -> vec4<f32> {
  let row = row_;
  let quad = min(quad_, 3u);
  let at = base_k + row * P.k_s;
  return select(vec4<f32>(), k[(at >> 2u) + quad], quad_ < 4u);
}
fn rd_any_v(row_: u32, quad_: u32) -> vec4<f32> {
  let row = row_;
  let quad = min(quad_, 3u);
  let at = base_v + row * P.v_s;
  return select(vec4<f32>(), v[(at >> 2u) + quad], quad_ < 4u);
}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let once = min(groups.z, 1u);
  let tid = local;
  let lane = tid % 8u;
  let owner = tid / 8u;
  let column = tid % 8u;
  let keyGroup = tid / 8u;
  let hkv = group.x / P.tiles + P.firstHkv;
  let tile = group.x % P.tiles;
  let b = group.z + P.firstB;
  let qStart = u32(tables[b * 4u]);
  let lenQ = u32(tables[b * 4u + 1u]);
  let kStart = u32(tables[b * 4u + 2u]);
  let lenK = u32(tables[b * 4u + 3u]);
  atB = i32(b);
  atLenQ = i32(lenQ);
  atLenK = i32(lenK);
  let firstBlock = group.y * P.each;
  let lastBlock = firstBlock + P.each;
  if (lenQ == 0u) { return; }
  let row_0 = min(tile * 4u + 0u, P.group * P.Sq - 1u);
  let h_0 = hkv * P.group + row_0 / P.Sq;
  let q_0 = min(row_0 % P.Sq, lenQ - 1u);
  base_q = b * P.q_b + h_0 * P.q_h + qStart * P.q_s - P.q_from;
  let q_0_0 = rd_q(q_0, lane + 0u);
  let row_1 = min(tile * 4u + 1u, P.group * P.Sq - 1u);
  let h_1 = hkv * P.group + row_1 / P.Sq;
  let q_1 = min(row_1 % P.Sq, lenQ - 1u);
  base_q = b * P.q_b + h_1 * P.q_h + qStart * P.q_s - P.q_from;
  let q_1_0 = rd_q(q_1, lane + 0u);
  let row_2 = min(tile * 4u + 2u, P.group * P.Sq - 1u);
  let h_2 = hkv * P.group + row_2 / P.Sq;
  let q_2 = min(row_2 % P.Sq, lenQ - 1u);
  base_q = b * P.q_b + h_2 * P.q_h + qStart * P.q_s - P.q_from;
  let q_2_0 = rd_q(q_2, lane + 0u);
  let row_3 = min(tile * 4u + 3u, P.group * P.Sq - 1u);
  let h_3 = hkv * P.group + row_3 / P.Sq;
  let q_3 = min(row_3 % P.Sq, lenQ - 1u);
  base_q = b * P.q_b + h_3 * P.q_h + qStart * P.q_s - P.q_from;
  let q_3_0 = rd_q(q_3, lane + 0u);
  base_k = b * P.k_b + hkv * P.k_h + kStart * P.k_s - P.k_from;
  base_v = b * P.v_b + hkv * P.v_h + kStart * P.v_s - P.v_from;
  var m_0 = vec4<f32>(-1.0e30);
  var l_0 = vec4<f32>(0.0);
  var o_0 = vec4<f32>(0.0);
  var o_1 = vec4<f32>(0.0);
  var o_2 = vec4<f32>(0.0);
  var o_3 = vec4<f32>(0.0);
  for (var block = firstBlock; block < min(lastBlock, (lenK + 63u) / 64u); block++) {
    let partial = true;
    if (block >= firstBlock && block < lastBlock) {
      let k0 = block * 64u;
      {
        var k_0_0: vec4<f32>;
        var k_1_0: vec4<f32>;
        var k_2_0: vec4<f32>;
        var k_3_0: vec4<f32>;
        k_0_0 = rd_any_k(k0 + 0u + 0u + owner, lane + 0u);
        k_1_0 = rd_any_k(k0 + 0u + 8u + owner, lane + 0u);
        k_2_0 = rd_any_k(k0 + 0u + 16u + owner, lane + 0u);
        k_3_0 = rd_any_k(k0 + 0u + 24u + owner, lane + 0u);
        for (var part = 0u; part < 2u * once; part++) {
          let x_0_0 = k_0_0;
          partial_[((0u + owner) * 1u + 0u) * 9u + lane] = vec4<f32>(dot(q_0_0, x_0_0), dot(q_1_0, x_0_0), dot(q_2_0, x_0_0), dot(q_3_0, x_0_0));
          let x_1_0 = k_1_0;
          partial_[((8u + owner) * 1u + 0u) * 9u + lane] = vec4<f32>(dot(q_0_0, x_1_0), dot(q_1_0, x_1_0), dot(q_2_0, x_1_0), dot(q_3_0, x_1_0));
          let x_2_0 = k_2_0;
          partial_[((16u + owner) * 1u + 0u) * 9u + lane] = vec4<f32>(dot(q_0_0, x_2_0), dot(q_1_0, x_2_0), dot(q_2_0, x_2_0), dot(q_3_0, x_2_0));
          let x_3_0 = k_3_0;
          partial_[((24u + owner) * 1u + 0u) * 9u + lane] = vec4<f32>(dot(q_0_0, x_3_0), dot(q_1_0, x_3_0), dot(q_2_0, x_3_0), dot(q_3_0, x_3_0));
          if (part < 1u) {
            k_0_0 = rd_any_k(k0 + (part + 1u) * 32u + 0u + owner, lane + 0u);
            k_1_0 = rd_any_k(k0 + (part + 1u) * 32u + 8u + owner, lane + 0u);
            k_2_0 = rd_any_k(k0 + (part + 1u) * 32u + 16u + owner, lane + 0u);
            k_3_0 = rd_any_k(k0 + (part + 1u) * 32u + 24u + owner, lane + 0u);
          }
          workgroupBarrier(); // every lane's part of the products is visible
          if (tid < 32u) {
            var sum = partial_[tid * 9u];
            sum += partial_[tid * 9u + 1u];
            sum += partial_[tid * 9u + 2u];
            sum += partial_[tid * 9u + 3u];
            sum += partial_[tid * 9u + 4u];
            sum += partial_[tid * 9u + 5u];
            sum += partial_[tid * 9u + 6u];
            sum += partial_[tid * 9u + 7u];
            scores[part * 32u + tid] = sum;
          }
          workgroupBarrier(); // the sums are visible, and their parts done with
        }
      }
      var v_0: vec4<f32>;
      var v_1: vec4<f32>;
      var v_2: vec4<f32>;
      var v_3: vec4<f32>;
      var v_4: vec4<f32>;
      var v_5: vec4<f32>;
      var v_6: vec4<f32>;
      var v_7: vec4<f32>;
      v_0 = rd_any_v(k0 + 0u + 0u + keyGroup, column);
      v_1 = rd_any_v(k0 + 0u + 8u + keyGroup, column);
      v_2 = rd_any_v(k0 + 0u + 16u + keyGroup, column);
      v_3 = rd_any_v(k0 + 0u + 24u + keyGroup, column);
      v_4 = rd_any_v(k0 + 0u + 32u + keyGroup, column);
      v_5 = rd_any_v(k0 + 0u + 40u + keyGroup, column);
      v_6 = rd_any_v(k0 + 0u + 48u + keyGroup, column);
      v_7 = rd_any_v(k0 + 0u + 56u + keyGroup, column);
      var n_0 = m_0;
      for (var i = tid; i < 64u * once; i += 64u) {
        let kv = k0 + i;
        var x_0 = scores[i * 1u + 0u];
        x_0.x = select(-3.0e38, x_0.x * P.scale * 1.4426950408889634, kv < lenK);
        x_0.y = select(-3.0e38, x_0.y * P.scale * 1.4426950408889634, kv < lenK);
        x_0.z = select(-3.0e38, x_0.z * P.scale * 1.4426950408889634, kv < lenK);
        x_0.w = select(-3.0e38, x_0.w * P.scale * 1.4426950408889634, kv < lenK);
        scores[i * 1u + 0u] = x_0;
        n_0 = max(n_0, x_0);
      }
      workgroupBarrier(); // the place's last readers are done
      reduce[(tid) * 1u + 0u] = n_0;
      workgroupBarrier(); // every invocation's value is visible
      if (tid < 16u) {
        {
          var x = reduce[(tid) * 1u + 0u];
          for (var i = tid + 16u; i < 64u * once; i += 16u) { x = max(x, reduce[(i) * 1u + 0u]); }
          reduce[(64u + tid) * 1u + 0u] = x;
        }
      }
      workgroupBarrier(); // the pieces are visible
      n_0 = reduce[(64u) * 1u + 0u];
      for (var i = 1u; i < 16u * once; i++) { n_0 = max(n_0, reduce[(64u + i) * 1u + 0u]); }
      let alpha_0 = exp2(m_0 - n_0);
      m_0 = n_0;
      l_0 *= alpha_0;
      o_0 *= alpha_0.x;
      o_1 *= alpha_0.y;
      o_2 *= alpha_0.z;
      o_3 *= alpha_0.w;
      for (var i = tid; i < 64u * once; i += 64u) {
        let kv = k0 + i;
        var x_0 = exp2(scores[i * 1u + 0u] - m_0);
        l_0 += x_0;
        scores[i * 1u + 0u] = x_0;
      }
      workgroupBarrier(); // the probabilities are visible
      for (var part = 0u; part < 1u * once; part++) {
        let x_0 = select(vec4<f32>(0.0), v_0, k0 + part * 64u + 0u + keyGroup < lenK);
        let x_1 = select(vec4<f32>(0.0), v_1, k0 + part * 64u + 8u + keyGroup < lenK);
        let x_2 = select(vec4<f32>(0.0), v_2, k0 + part * 64u + 16u + keyGroup < lenK);
        let x_3 = select(vec4<f32>(0.0), v_3, k0 + part * 64u + 24u + keyGroup < lenK);
        let x_4 = select(vec4<f32>(0.0), v_4, k0 + part * 64u + 32u + keyGroup < lenK);
        let x_5 = select(vec4<f32>(0.0), v_5, k0 + part * 64u + 40u + keyGroup < lenK);
        let x_6 = select(vec4<f32>(0.0), v_6, k0 + part * 64u + 48u + keyGroup < lenK);
        let x_7 = select(vec4<f32>(0.0), v_7, k0 + part * 64u + 56u + keyGroup < lenK);
        if (part < 0u) {
          v_0 = rd_any_v(k0 + (part + 1u) * 64u + 0u + keyGroup, column);
          v_1 = rd_any_v(k0 + (part + 1u) * 64u + 8u + keyGroup, column);
          v_2 = rd_any_v(k0 + (part + 1u) * 64u + 16u + keyGroup, column);
          v_3 = rd_any_v(k0 + (part + 1u) * 64u + 24u + keyGroup, column);
          v_4 = rd_any_v(k0 + (part + 1u) * 64u + 32u + keyGroup, column);
          v_5 = rd_any_v(k0 + (part + 1u) * 64u + 40u + keyGroup, column);
          v_6 = rd_any_v(k0 + (part + 1u) * 64u + 48u + keyGroup, column);
          v_7 = rd_any_v(k0 + (part + 1u) * 64u + 56u + keyGroup, column);
        }
        let p_0_0 = scores[(part * 64u + 0u + keyGroup) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_0_0.x), x_0, o_0);
        o_1 = fma(vec4<f32>(p_0_0.y), x_0, o_1);
        o_2 = fma(vec4<f32>(p_0_0.z), x_0, o_2);
        o_3 = fma(vec4<f32>(p_0_0.w), x_0, o_3);
        let p_1_0 = scores[(part * 64u + 8u + keyGroup) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_1_0.x), x_1, o_0);
        o_1 = fma(vec4<f32>(p_1_0.y), x_1, o_1);
        o_2 = fma(vec4<f32>(p_1_0.z), x_1, o_2);
        o_3 = fma(vec4<f32>(p_1_0.w), x_1, o_3);
        let p_2_0 = scores[(part * 64u + 16u + keyGroup) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_2_0.x), x_2, o_0);
        o_1 = fma(vec4<f32>(p_2_0.y), x_2, o_1);
        o_2 = fma(vec4<f32>(p_2_0.z), x_2, o_2);
        o_3 = fma(vec4<f32>(p_2_0.w), x_2, o_3);
        let p_3_0 = scores[(part * 64u + 24u + keyGroup) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_3_0.x), x_3, o_0);
        o_1 = fma(vec4<f32>(p_3_0.y), x_3, o_1);
        o_2 = fma(vec4<f32>(p_3_0.z), x_3, o_2);
        o_3 = fma(vec4<f32>(p_3_0.w), x_3, o_3);
        let p_4_0 = scores[(part * 64u + 32u + keyGroup) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_4_0.x), x_4, o_0);
        o_1 = fma(vec4<f32>(p_4_0.y), x_4, o_1);
        o_2 = fma(vec4<f32>(p_4_0.z), x_4, o_2);
        o_3 = fma(vec4<f32>(p_4_0.w), x_4, o_3);
        let p_5_0 = scores[(part * 64u + 40u + keyGroup) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_5_0.x), x_5, o_0);
        o_1 = fma(vec4<f32>(p_5_0.y), x_5, o_1);
        o_2 = fma(vec4<f32>(p_5_0.z), x_5, o_2);
        o_3 = fma(vec4<f32>(p_5_0.w), x_5, o_3);
        let p_6_0 = scores[(part * 64u + 48u + keyGroup) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_6_0.x), x_6, o_0);
        o_1 = fma(vec4<f32>(p_6_0.y), x_6, o_1);
        o_2 = fma(vec4<f32>(p_6_0.z), x_6, o_2);
        o_3 = fma(vec4<f32>(p_6_0.w), x_6, o_3);
        let p_7_0 = scores[(part * 64u + 56u + keyGroup) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_7_0.x), x_7, o_0);
        o_1 = fma(vec4<f32>(p_7_0.y), x_7, o_1);
        o_2 = fma(vec4<f32>(p_7_0.z), x_7, o_2);
        o_3 = fma(vec4<f32>(p_7_0.w), x_7, o_3);
      }
    }
  }
  workgroupBarrier(); // the place's last readers are done
  reduce[(tid) * 1u + 0u] = l_0;
  workgroupBarrier(); // every invocation's value is visible
  if (tid < 16u) {
    {
      var x = reduce[(tid) * 1u + 0u];
      for (var i = tid + 16u; i < 64u * once; i += 16u) { x = x + reduce[(i) * 1u + 0u]; }
      reduce[(64u + tid) * 1u + 0u] = x;
    }
  }
  workgroupBarrier(); // the pieces are visible
  l_0 = reduce[(64u) * 1u + 0u];
  for (var i = 1u; i < 16u * once; i++) { l_0 = l_0 + reduce[(64u + i) * 1u + 0u]; }
  let at = (((b * P.Hkv + hkv) * P.tiles + tile) * P.splits + group.y) * 4u;
  if (tid == 0u) {
    stats[at + 0u] = vec2<f32>(m_0.x, l_0.x);
    stats[at + 1u] = vec2<f32>(m_0.y, l_0.y);
    stats[at + 2u] = vec2<f32>(m_0.z, l_0.z);
    stats[at + 3u] = vec2<f32>(m_0.w, l_0.w);
  }
  workgroupBarrier(); // the place is free
  partial_[tid] = o_0;
  workgroupBarrier(); // every key group's sum is visible
  if (tid < 4u) {
    var sum = partial_[tid];
    for (var k = 1u; k < 8u * once; k++) { sum += partial_[tid + k * 8u]; }
    sums[(at + 0u) * 4u + tid] = sum;
  }
  workgroupBarrier(); // the place is free
  partial_[tid] = o_1;
  workgroupBarrier(); // every key group's sum is visible
  if (tid < 4u) {
    var sum = partial_[tid];
    for (var k = 1u; k < 8u * once; k++) { sum += partial_[tid + k * 8u]; }
    sums[(at + 1u) * 4u + tid] = sum;
  }
  workgroupBarrier(); // the place is free
  partial_[tid] = o_2;
  workgroupBarrier(); // every key group's sum is visible
  if (tid < 4u) {
    var sum = partial_[tid];
    for (var k = 1u; k < 8u * once; k++) { sum += partial_[tid + k * 8u]; }
    sums[(at + 2u) * 4u + tid] = sum;
  }
  workgroupBarrier(); // the place is free
  partial_[tid] = o_3;
  workgroupBarrier(); // every key group's sum is visible
  if (tid < 4u) {
    var sum = partial_[tid];
    for (var k = 1u; k < 8u * once; k++) { sum += partial_[tid + k * 8u]; }
    sums[(at + 3u) * 4u + tid] = sum;
  }
}
