/**
 * The conformance table on processors that play a GPU: Vulkan drivers that machines without one can have. The driver is chosen by the
 * environment of the process, before anything loads Vulkan: hence a test file, and so a process, a device.
 */
import { existsSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { WebGpuOptions } from '../../src/engines/webgpu/index.ts';
import { executable } from '../browser/chromium.ts';
import { missing } from '../missing.ts';
import { runConfigurations, runTable, type TableOptions } from './table.ts';

export interface SoftwareDevice
  extends Pick<TableOptions, 'every' | 'light' | 'open' | 'variant'>,
    Partial<Pick<TableOptions, 'mayRefuse'>> {
  readonly driver: keyof typeof DRIVERS;
  /** Size of a subgroup, and how many lanes lavapipe is told to use; 0 where `open` does without subgroups. */
  readonly lanes: number;
  /** Also every configuration of every kernel for quick cases, one in so many. */
  readonly configurations?: number;
}

/** `named`: part of the adapter's name. `variable`: names the driver's description, a JSON file, where it is not found otherwise. */
const DRIVERS = {
  lavapipe: {
    named: 'llvmpipe',
    variable: 'LAVAPIPE',
    install: 'apt-get install mesa-vulkan-drivers libvulkan1 (Mesa 25 or later)',
    folders: ['/usr/share/vulkan/icd.d', '/usr/local/share/vulkan/icd.d', '/etc/vulkan/icd.d'],
    files: ['lvp_icd.json', 'lvp_icd.x86_64.json', 'lvp_icd.aarch64.json'],
  },
  SwiftShader: {
    named: 'SwiftShader',
    variable: 'SWIFTSHADER',
    install: 'apt-get install chromium libvulkan1',
    folders: [...(executable === undefined ? [] : [dirname(realpathSync(executable))]), '/usr/lib/chromium'],
    files: ['vk_swiftshader_icd.json'],
  },
} as const;

/** The description of a driver on this machine. */
export function driverFile(driver: keyof typeof DRIVERS): string | undefined {
  const { variable, folders, files } = DRIVERS[driver];
  const given = process.env[variable];
  const all = folders.flatMap((folder) => files.map((file) => join(folder, file)));
  return given === undefined ? all.find((file) => existsSync(file)) : given;
}

/** Makes this process use one driver. Null, or why it cannot. */
export function useDriver(driver: keyof typeof DRIVERS, lanes = 0): string | null {
  const file = driverFile(driver);
  if (file === undefined) return `no ${driver} here: ${DRIVERS[driver].install}, or ${DRIVERS[driver].variable}=<file>`;
  process.env.VK_ICD_FILENAMES = file;
  process.env.VK_DRIVER_FILES = file;
  if (driver === 'lavapipe' && lanes > 0) process.env.LP_NATIVE_VECTOR_WIDTH = String(lanes * 32);
  return null;
}

/** Runs the table (or a share of it: see `TableOptions.every`) on a software device. */
export async function runSoftware({
  driver,
  lanes,
  configurations,
  open = {},
  variant,
  every,
  light,
  mayRefuse = /^f64:/,
}: SoftwareDevice): Promise<void> {
  const title = variant === undefined ? `${driver}, subgroups of ${lanes}` : `${driver}, ${variant}`;
  const reason = useDriver(driver, lanes);
  if (reason !== null) {
    missing(`conformance: webgpu, ${title}`, reason);
    return;
  }
  const options: WebGpuOptions = { adapter: DRIVERS[driver].named, ...open };
  await runTable('webgpu', { mayRefuse, open: options, variant: title, every, light, lanes });
  if (configurations !== undefined) await runConfigurations('webgpu', { open: options, every: configurations });
}
