struct Params {
  B: u32,
  lse_b: u32,
  lse_h: u32,
  lse_s: u32,
}
@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read> tables: array<i32>;
@group(0) @binding(2) var<storage, read> sink: array<f32>;
@group(0) @binding(3) var<storage, read> rows: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> dSink: array<f32>;
var<workgroup> sums: array<f32, 64>;
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let once = min(groups.z, 1u);
  let h = group.x;
  var sum = 0.0;
  for (var b = 0u; b < P.B; b++) {
    let qStart = u32(tables[b * 4u]);
    let lenQ = u32(tables[b * 4u + 1u]);
    for (var q = local; q < lenQ; q += 64u) {
      let at = b * P.lse_b + h * P.lse_h + (qStart + q) * P.lse_s;
      let row = rows[at];
      sum -= exp2(sink[h] * 1.4426950408889634 - row.x) * row.y;
    }
  }
  sums[local] = sum;
  workgroupBarrier(); // every invocation's sum is visible
  if (local == 0u) {
    var total = 0.0;
    for (var i = 0u; i < 64u * once; i++) { total += sums[i]; }
    dSink[h] = total;
  }
}
