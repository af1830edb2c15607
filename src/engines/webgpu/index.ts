/**
 * WebGPU engine: exact attention in WGSL, in browsers, Deno and Node (Dawn, through the optional peer `webgpu`).
 */
import type { Probe } from '../../engine/contract.ts';
import { capsOf } from './caps.ts';
import { findAdapter, findDevice, type WebGpuOptions } from './device.ts';
import { WebGpuEngine } from './engine.ts';

export type { WebGpuOptions } from './device.ts';
export type { EncodeOptions, WebGpuEngine, WebGpuProgram } from './engine.ts';
export type { WebGpuCaps } from './kernels/kernel.ts';
export type { GpuTensor } from './tensor.ts';

/** Whether there is an adapter here. No device is made. */
export async function probe(options: WebGpuOptions = {}): Promise<Probe> {
  try {
    const { adapter } = await findAdapter(options);
    const { vendor, architecture, description } = adapter.info;
    const detail = [description, vendor, architecture].filter((s) => s !== '').join(', ');
    return { engine: 'webgpu', available: true, detail: detail || 'an adapter that the browser does not name' };
  } catch (e) {
    const reason = e instanceof Error ? e.message : String(e);
    return { engine: 'webgpu', available: false, reason: reason.replace(/^webgpu: /, '') };
  }
}

/** @throws DeviceError when there is no WebGPU, no adapter or no device. */
export async function open(options: WebGpuOptions = {}): Promise<WebGpuEngine> {
  const found = await findDevice(options);
  return new WebGpuEngine(found, capsOf(found, options));
}
