/** Tile sizes for a head size on a device, from an itemised count of workgroup memory and registers. */
import { ceilDiv } from '../../../core/math.ts';
import type { Config } from '../../../engine/contract.ts';
import type { Gathered } from './gathered.ts';
import type { WebGpuCaps } from './kernel.ts';
import { type PlaceOptions, placesOf, type Tile, threadsOf } from './tile.ts';

export type TileConfig = Tile & Gathered & Config;

/** Bytes of workgroup memory of a tile: the arena and one flag. */
export const workgroupBytes = (t: TileConfig, place: PlaceOptions): number => placesOf(t, place).size * 16 + 16;

export const fits = (t: TileConfig, place: PlaceOptions, caps: WebGpuCaps): boolean =>
  threadsOf(t) <= caps.invocations && workgroupBytes(t, place) <= caps.workgroupMemory;

/** The tiles whose arithmetic a kernel has been tuned for, best first; the last fits the smallest device there is. */
export function tileConfigs(
  candidates: readonly TileConfig[],
  place: (t: TileConfig) => PlaceOptions,
  caps: WebGpuCaps,
): TileConfig[] {
  return candidates.filter((t) => fits(t, place(t), caps));
}

export const tile = (
  rt: number,
  ct: number,
  tm: number,
  cols: number,
  depth: number,
  span: number,
  turn = 1,
  ahead = true,
  paired = true,
): TileConfig => ({ rt, ct, tm, cols, depth, span, turn, ahead, paired });

/** What drivers on processors compile in bearable time, widest first: few accumulators, and no loads ahead of their use. */
export const SOFTWARE_TILES: readonly TileConfig[] = [
  tile(4, 8, 4, 32, 4, 16, 1, false, false),
  tile(4, 4, 4, 16, 4, 8, 1, false, false),
];

/**
 * Multiply-adds an invocation makes for each vec4 it reads from workgroup memory, relative to the best tile (8 x 8): what the
 * arithmetic rate of a tile mostly depends on. 0 to 1.
 */
export function reuse(t: Tile, quads: number): number {
  const cols = t.cols / t.ct;
  const width = 4 * ceilDiv(quads, t.ct);
  const dot = (t.tm * cols) / (t.tm + cols);
  const sum = (t.tm * width) / (t.tm + width);
  return 2 / (1 / dot + 1 / sum) / 4;
}

/** Workgroups that a device of unknown size is taken to run at once. */
const PROCESSORS = 128;

/** Share of the device that a grid keeps busy. A processor that plays a GPU is busy with any. */
export const busyShare = (workgroups: number, caps: WebGpuCaps): number =>
  caps.software ? 1 : Math.min(1, Math.max(workgroups, 1) / PROCESSORS);
