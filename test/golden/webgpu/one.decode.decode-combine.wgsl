struct Params {
  out_s: u32,
  Sq: u32,
  group: u32,
  tiles: u32,
  splits: u32,
  firstH: u32,
  firstB: u32,
  Hkv: u32,
  out_b: u32,
  out_h: u32,
  out_from: u32,
  lse_b: u32,
  lse_h: u32,
  lse_s: u32,
  negInf: f32,
}
@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read> tables: array<i32>;
@group(0) @binding(2) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;
var<private> atLenQ: i32;
var<private> base_out: u32;
fn st_out(row: u32, quad: u32, x: vec4<f32>) {
  if (row >= u32(atLenQ) || quad >= 4u) { return; }
  let at = base_out + row * P.out_s;
  out[(at >> 2u) + quad] = x;
}
fn log2OrNan(x: f32) -> f32 {
  let bits = bitcast<u32>(x);
  return select(log2(x), bitcast<f32>(bits | 0x7fc00000u), (bits & 0x7f800000u) == 0x7f800000u);
}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let once = min(groups.z, 1u);
  let h = group.x + P.firstH;
  let q = group.y;
  let b = group.z + P.firstB;
  let qStart = u32(tables[b * 4u]);
  atLenQ = tables[b * 4u + 1u];
  if (q >= u32(atLenQ)) { return; }
  let packed = (h % P.group) * P.Sq + q;
  let at = ((b * P.Hkv + h / P.group) * P.tiles + packed / 4u) * P.splits * 4u + packed % 4u;
  var top = -1.0e30;
  for (var s = 0u; s < P.splits; s++) { top = max(top, stats[at + s * 4u].x); }
  let attended = top > -1.0e30;
  var total = 0.0;
  for (var s = 0u; s < P.splits; s++) {
    let one = stats[at + s * 4u];
    total += one.y * exp2(one.x - top);
  }
  base_out = b * P.out_b + h * P.out_h + qStart * P.out_s - P.out_from;
  for (var quad = local; quad < 4u * once; quad += 64u) {
    var sum = vec4<f32>(0.0);
    for (var s = 0u; s < P.splits; s++) {
      sum += sums[(at + s * 4u) * 4u + quad] * exp2(stats[at + s * 4u].x - top);
    }
    st_out(q, quad, select(vec4<f32>(0.0), sum / total, attended));
  }
  if (local == 0u) {
    lse[b * P.lse_b + h * P.lse_h + (qStart + q) * P.lse_s] = select(P.negInf, (top + log2OrNan(total)) * 0.6931471805599453, attended);
  }
}
