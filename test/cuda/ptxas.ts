/** The machine-code assembler of the CUDA toolkit, where this machine has one: registers and spills without a GPU. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { KernelText } from '../../src/engines/cuda/ptx/assembler.ts';

export interface Resources {
  /** Registers a thread. */
  readonly registers: number;
  /** Bytes of registers that did not fit, written and read back. */
  readonly spilled: number;
  /** Bytes of local memory a thread. */
  readonly stack: number;
  readonly warnings: string;
  /** Bytes of the argument block the code reads. */
  readonly argumentBytes: number;
}

/** Why nothing can be assembled here, or false. */
export const ptxasMissing: string | false =
  spawnSync('ptxas', ['--version']).status === 0 ? false : 'ptxas (CUDA toolkit) is not on the PATH';

/** Assembles a kernel. @throws Error with ptxas's own words when it refuses the text. */
export function assemble(kernel: KernelText, architecture: string = kernel.target): Resources {
  const folder = mkdtempSync(join(tmpdir(), 'tilewise-ptxas-'));
  try {
    const file = join(folder, `${kernel.name}.ptx`);
    writeFileSync(file, kernel.text);
    const run = spawnSync('ptxas', ['-v', `-arch=${architecture}`, file, '-o', join(folder, 'out.cubin')], {
      encoding: 'utf8',
    });
    const said = `${run.stdout}${run.stderr}`;
    if (run.status !== 0) throw new Error(`ptxas refused ${kernel.name}:\n${said}`);
    const number = (pattern: RegExp): number => Number(pattern.exec(said)?.[1] ?? 0);
    return {
      argumentBytes: argumentBytes(readFileSync(join(folder, 'out.cubin'))),
      registers: number(/Used (\d+) registers/),
      spilled: number(/(\d+) bytes spill stores/) + number(/(\d+) bytes spill loads/),
      stack: number(/(\d+) bytes stack frame/),
      warnings: said
        .split('\n')
        .filter((line) => line.includes('warning') || line.includes('Potential Performance Loss'))
        .join('\n'),
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Reads EIATTR_PARAM_CBANK out of a kernel's attributes: four bytes of header, a symbol, then offset and size. */
function argumentBytes(cubin: Buffer): number {
  for (let at = 0; at + 12 <= cubin.length; at += 4)
    if (cubin.readUInt32LE(at) === 0x0008_0a04 && cubin.readUInt32LE(at + 4) < 0x10000)
      return cubin.readUInt16LE(at + 10);
  return 0;
}
