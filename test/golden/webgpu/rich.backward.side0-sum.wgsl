struct Params {
  B: u32,
  Hq: u32,
  Sq: u32,
  Sk: u32,
}
@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> dSide0: array<f32>;
@group(0) @binding(2) var<storage, read> partials0: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let once = min(groups.z, 1u);
  for (var element = group.x * 64u + local; element < 2u * once; element += groups.x * 64u) {
    var onlyB = 0u;
    var onlyH = 0u;
    var only = 0u;
    var read = true;
    var rest = element;
    onlyH = rest % 2u;
    rest /= 2u;
    var sum = 0.0;
    if (onlyH < P.Hq && read) {
      for (var b = 0u; b < P.B; b++) {
        for (var h = onlyH; h < onlyH + 1u; h++) {
          for (var i = 0u; i < ((P.Sq + 15u) / 16u); i++) { sum += partials0[(b * P.Hq + h) * ((P.Sq + 15u) / 16u) + i]; }
        }
      }
    }
    dSide0[element] = sum;
  }
}
