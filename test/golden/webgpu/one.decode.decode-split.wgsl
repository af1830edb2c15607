struct Params {
  q_s: u32,
  k_s: u32,
  v_s: u32,
  Sq: u32,
  group: u32,
  tiles: u32,
  splits: u32,
  each: u32,
  scale: f32,
  q_b: u32,
  q_h: u32,
  k_b: u32,
  k_h: u32,
  v_b: u32,
  v_h: u32,
}
@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> sums: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> tables: array<i32>;
var<private> atB: i32;
var<private> atH: i32;
var<private> atLenQ: i32;
var<private> atLenK: i32;
var<private> base_q: u32;
var<private> base_k: u32;
var<private> base_v: u32;
var<workgroup> partial_: array<vec4<f32>, 272>;
var<workgroup> scores: array<vec4<f32>, 64>;
var<workgroup> reduce: array<vec4<f32>, 80>;
fn inside4(q: i32, kv: i32) -> vec4<bool> { return vec4<i32>(kv) + vec4<i32>(0, 1, 2, 3) < vec4<i32>(atLenK); }
fn ld_q(row_: u32, quad_: u32) -> vec4<f32> {
  let inside = row_ < u32(atLenQ) && quad_ < 4u;
  let row = min(row_, u32(atLenQ) - 1u);
  let quad = min(quad_, 3u);
  let at = base_q + row * P.q_s;
  return select(vec4<f32>(0.0), q[(at >> 2u) + quad], inside);
}
fn ld_k(row_: u32, quad_: u32) -> vec4<f32> {
  let inside = row_ < u32(atLenK) && quad_ < 4u;
  let row = min(row_, u32(atLenK) - 1u);
  let quad = min(quad_, 3u);
  let at = base_k + row * P.k_s;
  return select(vec4<f32>(0.0), k[(at >> 2u) + quad], inside);
}
fn ld_v(row_: u32, quad_: u32) -> vec4<f32> {
  let inside = row_ < u32(atLenK) && quad_ < 4u;
  let row = min(row_, u32(atLenK) - 1u);
  let quad = min(quad_, 3u);
  let at = base_v + row * P.v_s;
  return select(vec4<f32>(0.0), v[(at >> 2u) + quad], inside);
}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let once = min(groups.z, 1u);
  let tid = local;
  let lane = tid % 16u;
  let owner = tid / 16u;
  let column = tid % 4u;
  let keyGroup = tid / 4u;
  let hkv = group.x / P.tiles;
  let tile = group.x % P.tiles;
  let b = group.z;
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
  base_q = b * P.q_b + h_0 * P.q_h + qStart * P.q_s;
  let q_0_0 = ld_q(q_0, lane + 0u);
  let row_1 = min(tile * 4u + 1u, P.group * P.Sq - 1u);
  let h_1 = hkv * P.group + row_1 / P.Sq;
  let q_1 = min(row_1 % P.Sq, lenQ - 1u);
  base_q = b * P.q_b + h_1 * P.q_h + qStart * P.q_s;
  let q_1_0 = ld_q(q_1, lane + 0u);
  let row_2 = min(tile * 4u + 2u, P.group * P.Sq - 1u);
  let h_2 = hkv * P.group + row_2 / P.Sq;
  let q_2 = min(row_2 % P.Sq, lenQ - 1u);
  base_q = b * P.q_b + h_2 * P.q_h + qStart * P.q_s;
  let q_2_0 = ld_q(q_2, lane + 0u);
  let row_3 = min(tile * 4u + 3u, P.group * P.Sq - 1u);
  let h_3 = hkv * P.group + row_3 / P.Sq;
  let q_3 = min(row_3 % P.Sq, lenQ - 1u);
  base_q = b * P.q_b + h_3 * P.q_h + qStart * P.q_s;
  let q_3_0 = ld_q(q_3, lane + 0u);
  base_k = b * P.k_b + hkv * P.k_h + kStart * P.k_s;
  base_v = b * P.v_b + hkv * P.v_h + kStart * P.v_s;
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
      for (var first = 0u; first < 64u * once; first += 16u) {
        let k_0_0 = ld_k(k0 + first + 0u + owner, lane + 0u);
        let k_1_0 = ld_k(k0 + first + 4u + owner, lane + 0u);
        let k_2_0 = ld_k(k0 + first + 8u + owner, lane + 0u);
        let k_3_0 = ld_k(k0 + first + 12u + owner, lane + 0u);
        partial_[((0u + owner) * 1u + 0u) * 17u + lane] = vec4<f32>(dot(q_0_0, k_0_0), dot(q_1_0, k_0_0), dot(q_2_0, k_0_0), dot(q_3_0, k_0_0));
        partial_[((4u + owner) * 1u + 0u) * 17u + lane] = vec4<f32>(dot(q_0_0, k_1_0), dot(q_1_0, k_1_0), dot(q_2_0, k_1_0), dot(q_3_0, k_1_0));
        partial_[((8u + owner) * 1u + 0u) * 17u + lane] = vec4<f32>(dot(q_0_0, k_2_0), dot(q_1_0, k_2_0), dot(q_2_0, k_2_0), dot(q_3_0, k_2_0));
        partial_[((12u + owner) * 1u + 0u) * 17u + lane] = vec4<f32>(dot(q_0_0, k_3_0), dot(q_1_0, k_3_0), dot(q_2_0, k_3_0), dot(q_3_0, k_3_0));
        workgroupBarrier(); // every lane's part of the products is visible
        for (var i = tid; i < 16u * once; i += 64u) {
          var sum = partial_[i * 17u];
          for (var l = 1u; l < 16u * once; l++) { sum += partial_[i * 17u + l]; }
          scores[first * 1u + i] = sum;
        }
        workgroupBarrier(); // the sums are visible, and their parts done with
      }
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
      for (var j = keyGroup; j < 64u * once; j += 64u) {
        let v_0 = ld_v(k0 + j + 0u, column);
        let v_1 = ld_v(k0 + j + 16u, column);
        let v_2 = ld_v(k0 + j + 32u, column);
        let v_3 = ld_v(k0 + j + 48u, column);
        let p_0_0 = scores[(j + 0u) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_0_0.x), v_0, o_0);
        o_1 = fma(vec4<f32>(p_0_0.y), v_0, o_1);
        o_2 = fma(vec4<f32>(p_0_0.z), v_0, o_2);
        o_3 = fma(vec4<f32>(p_0_0.w), v_0, o_3);
        let p_1_0 = scores[(j + 16u) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_1_0.x), v_1, o_0);
        o_1 = fma(vec4<f32>(p_1_0.y), v_1, o_1);
        o_2 = fma(vec4<f32>(p_1_0.z), v_1, o_2);
        o_3 = fma(vec4<f32>(p_1_0.w), v_1, o_3);
        let p_2_0 = scores[(j + 32u) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_2_0.x), v_2, o_0);
        o_1 = fma(vec4<f32>(p_2_0.y), v_2, o_1);
        o_2 = fma(vec4<f32>(p_2_0.z), v_2, o_2);
        o_3 = fma(vec4<f32>(p_2_0.w), v_2, o_3);
        let p_3_0 = scores[(j + 48u) * 1u + 0u];
        o_0 = fma(vec4<f32>(p_3_0.x), v_3, o_0);
        o_1 = fma(vec4<f32>(p_3_0.y), v_3, o_1);
        o_2 = fma(vec4<f32>(p_3_0.z), v_3, o_2);
        o_3 = fma(vec4<f32>(p_3_0.w), v_3, o_3);
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
  let at = ((b * groups.x + group.x) * P.splits + group.y) * 4u;
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
    for (var k = 1u; k < 16u * once; k++) { sum += partial_[tid + k * 4u]; }
    sums[(at + 0u) * 4u + tid] = sum;
  }
  workgroupBarrier(); // the place is free
  partial_[tid] = o_1;
  workgroupBarrier(); // every key group's sum is visible
  if (tid < 4u) {
    var sum = partial_[tid];
    for (var k = 1u; k < 16u * once; k++) { sum += partial_[tid + k * 4u]; }
    sums[(at + 1u) * 4u + tid] = sum;
  }
  workgroupBarrier(); // the place is free
  partial_[tid] = o_2;
  workgroupBarrier(); // every key group's sum is visible
  if (tid < 4u) {
    var sum = partial_[tid];
    for (var k = 1u; k < 16u * once; k++) { sum += partial_[tid + k * 4u]; }
    sums[(at + 2u) * 4u + tid] = sum;
  }
  workgroupBarrier(); // the place is free
  partial_[tid] = o_3;
  workgroupBarrier(); // every key group's sum is visible
  if (tid < 4u) {
    var sum = partial_[tid];
    for (var k = 1u; k < 16u * once; k++) { sum += partial_[tid + k * 4u]; }
    sums[(at + 3u) * 4u + tid] = sum;
  }
}
