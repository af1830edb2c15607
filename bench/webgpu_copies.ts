/** What a device's memory gives when nothing but copying is done: the ceiling for decode. */
import type { WebGpuEngine } from '../src/engines/webgpu/index.ts';
import { noise, timeInTurn } from './webgpu_cases.ts';

const COPY = `@group(0) @binding(0) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> target_: array<vec4<f32>>;
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let at = (group.y * groups.x + group.x) * 1024u + local;
  let x0 = source[at];
  let x1 = source[at + 256u];
  let x2 = source[at + 512u];
  let x3 = source[at + 768u];
  target_[at] = x0;
  target_[at + 256u] = x1;
  target_[at + 512u] = x2;
  target_[at + 768u] = x3;
}`;

/** Terabytes a second, read and written, of the API's copy and of a shader's, over `bytes` of noise. */
export async function copies(engine: WebGpuEngine, bytes: number): Promise<{ name: string; tbs: number }[]> {
  const { device } = engine;
  const [from, to] = [1, 2].map((seed) => noise(engine, 'f32', [bytes / 4], seed));
  const [source, target] = [from, to].map((t) => (t as typeof t & { readonly buffer: GPUBuffer }).buffer);
  const pipeline = device.createComputePipeline({
    layout: 'auto',
    compute: { module: device.createShaderModule({ code: COPY }) },
  });
  const entries = [source, target].map((buffer, binding) => ({ binding, resource: { buffer } }));
  const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
  const blocks = Math.ceil(bytes / 16384);
  const submit = (write: (encoder: GPUCommandEncoder) => void): void => {
    const encoder = device.createCommandEncoder();
    write(encoder);
    device.queue.submit([encoder.finish()]);
  };
  const settle = (): Promise<void> => engine.synchronize();
  const ways = {
    copyBufferToBuffer: () => submit((encoder) => encoder.copyBufferToBuffer(source, 0, target, 0, bytes)),
    'copy in WGSL': () =>
      submit((encoder) => {
        const pass = encoder.beginComputePass();
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, group);
        pass.dispatchWorkgroups(Math.min(blocks, 4096), Math.ceil(blocks / 4096));
        pass.end();
      }),
  };
  const times = await timeInTurn(Object.values(ways).map((once) => ({ once, settle })));
  from.dispose();
  to.dispose();
  return Object.keys(ways).map((name, i) => ({ name, tbs: (2 * bytes) / times[i] / 1e9 }));
}
