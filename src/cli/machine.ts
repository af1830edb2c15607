/** What results were measured on, as plain data. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

export interface Machine {
  readonly node: string;
  readonly v8: string;
  readonly platform: string;
  readonly cpu: string;
  readonly cores: number;
  /** Bytes. */
  readonly memory: number;
}

export const machine = (): Machine => ({
  node: process.versions.node,
  v8: process.versions.v8,
  platform: `${process.platform}-${process.arch}`,
  cpu: cpus()[0]?.model.trim() ?? 'unknown processor',
  cores: availableParallelism(),
  memory: totalmem(),
});

/** The commit this code is at, with a + when files differ from it; null outside a checkout. */
export function commit(): string | null {
  const git = (...words: string[]): string =>
    execFileSync('git', words, {
      cwd: dirname(fileURLToPath(import.meta.url)),
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  try {
    return (
      git('rev-parse', '--short', 'HEAD') + (git('status', '--porcelain', '--untracked-files=no') === '' ? '' : '+')
    );
  } catch {
    return null;
  }
}

/** This package's own package.json: the nearest one above this file, which lies at different depths in sources and builds. */
export function ownPackage(): { readonly version: string; readonly description: string } {
  let url = new URL('package.json', import.meta.url);
  while (!existsSync(url)) {
    const above = new URL('../package.json', url);
    if (above.href === url.href) return { version: 'unknown', description: '' };
    url = above;
  }
  return JSON.parse(readFileSync(url, 'utf8'));
}
