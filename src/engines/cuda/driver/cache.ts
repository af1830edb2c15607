/**
 * Compiled programs on disk, found by the hash of what they were compiled from. A file appears whole or not at all: it is
 * written under a name of its own and renamed, so processes may race.
 */

import { cacheRoot } from '../../../core/folder.ts';

// Not imports: bundlers for browsers follow those into this file, although no browser loads it.
const { createHash, randomUUID } = process.getBuiltinModule('node:crypto');
const { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } = process.getBuiltinModule('node:fs');
const { join } = process.getBuiltinModule('node:path');

/** Where compiled programs are kept: TILEWISE_CACHE itself, else a folder of the user's cache. */
export function cacheFolder(): string {
  const root = cacheRoot();
  if (root === null) return '';
  return root.named ? root.path : join(root.path, 'cuda');
}

/** Name of what the given texts compile to. */
export const contentHash = (...parts: readonly string[]): string =>
  createHash('sha256').update(parts.join('\0')).digest('hex').slice(0, 40);

export class DiskCache {
  private readonly folder: string;

  constructor(folder: string) {
    this.folder = folder;
  }

  /** The stored bytes, or null. A file that cannot be read counts as absent. */
  get(hash: string): Uint8Array | null {
    try {
      return new Uint8Array(readFileSync(this.path(hash)));
    } catch {
      return null;
    }
  }

  /** Publishes the bytes. A folder that cannot be written only costs the next process a compilation. */
  put(hash: string, bytes: Uint8Array): void {
    const own = join(this.folder, `${hash}.${randomUUID()}.tmp`);
    try {
      mkdirSync(this.folder, { recursive: true });
      writeFileSync(own, bytes);
      renameSync(own, this.path(hash));
    } catch {
      rmSync(own, { force: true });
    }
  }

  /** Forgets an entry, for one the driver refused. */
  drop(hash: string): void {
    rmSync(this.path(hash), { force: true });
  }

  private path(hash: string): string {
    return join(this.folder, `${hash}.cubin`);
  }
}
