struct Params {
  out_s: u32,
  lse_b: u32,
  lse_h: u32,
  lse_s: u32,
  firstH: u32,
  group: u32,
  Hq: u32,
  firstB: u32,
  out_b: u32,
  out_h: u32,
  out_from: u32,
  hasDLse: u32,
}
@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read> out: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> dOut: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> dLse: array<f32>;
@group(0) @binding(4) var<storage, read> lse: array<f32>;
@group(0) @binding(5) var<storage, read_write> rows: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> tables: array<i32>;
var<private> atB: i32;
var<private> atH: i32;
var<private> atLenQ: i32;
var<private> atLenK: i32;
var<private> base_out: u32;
var<private> base_dOut: u32;
fn rd_out(row_: u32, quad_: u32) -> vec2<u32> {
  let row = min(row_, u32(atLenQ) - 1u);
  let quad = min(quad_, 3u);
  let at = base_out + row * P.out_s;
  return select(vec2<u32>(), out[(at >> 2u) + quad], row_ < u32(atLenQ) && quad_ < 4u);
}
fn tw_f16(w: vec2<u32>) -> vec4<f32> { return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }
fn rd_out_f32(row: u32, quad: u32) -> vec4<f32> { return tw_f16(rd_out(row, quad)); }
fn rd_dOut(row_: u32, quad_: u32) -> vec2<u32> {
  let row = min(row_, u32(atLenQ) - 1u);
  let quad = min(quad_, 3u);
  let at = base_dOut + row * P.out_s;
  return select(vec2<u32>(), dOut[(at >> 2u) + quad], row_ < u32(atLenQ) && quad_ < 4u);
}
fn rd_dOut_f32(row: u32, quad: u32) -> vec4<f32> { return tw_f16(rd_dOut(row, quad)); }
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
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
  let q = group.y * 64u + local;
  if (q >= lenQ) { return; }
  base_out = b * P.out_b + h * P.out_h + qStart * P.out_s - P.out_from;
  base_dOut = b * P.out_b + h * P.out_h + qStart * P.out_s - P.out_from;
  var value = 0.0;
  for (var d = 0u; d < 4u; d++) {
    let x = rd_out_f32(q, d);
    let y = rd_dOut_f32(q, d);
    // The order of dO V^T in the tiles: where one key takes all, delta and dP then cancel to the last bit.
    value = fma(x.w, y.w, fma(x.z, y.z, fma(x.y, y.y, fma(x.x, y.x, value))));
  }
  let at = b * P.lse_b + h * P.lse_h + (qStart + q) * P.lse_s;
  if (P.hasDLse != 0u) { value -= dLse[at]; }
  let x = lse[at];
  rows[at] = vec2<f32>(select(x * 1.4426950408889634, 3.0e38, x < -1.0e30), value);
}
