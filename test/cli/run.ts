/** Runs the command line as a person does: a process of its own, in a folder of its own. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { HostTensor } from '../../src/core/tensor.ts';
import { formatNpy, parseNpy } from '../../src/interop/npy.ts';

const MAIN = fileURLToPath(
  new URL(`../../src/cli/main.${import.meta.url.endsWith('.ts') ? 'ts' : 'js'}`, import.meta.url),
);

export interface Finished {
  readonly status: number | null;
  readonly out: string;
  readonly error: string;
}

/** A folder with files, and `tilewise` run in it. */
export class Folder {
  readonly path = mkdtempSync(join(tmpdir(), 'tilewise-'));

  run(...words: string[]): Finished {
    const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, ...words], {
      cwd: this.path,
      encoding: 'utf8',
      timeout: 120_000,
    });
    return { status, out: stdout, error: stderr };
  }

  /** `run` that must succeed; what it printed, read as JSON. */
  json(...words: string[]): unknown {
    const { status, out, error } = this.run(...words, '--json');
    if (status !== 0) throw new Error(`tilewise ${words.join(' ')} exited with ${status}: ${error}`);
    return JSON.parse(out);
  }

  write(name: string, content: HostTensor | Uint8Array | string): void {
    const isTensor = typeof content === 'object' && 'dtype' in content;
    writeFileSync(join(this.path, name), isTensor ? formatNpy(content) : content);
  }

  bytes(name: string): Uint8Array {
    return readFileSync(join(this.path, name));
  }

  tensor(name: string): HostTensor {
    return parseNpy(this.bytes(name), name);
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}
