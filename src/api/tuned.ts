/**
 * Measured choices on disk: one file a record, named by the hash of what it answers, which appears whole or not at all. Files are
 * read once a process, when the first plan asks.
 */
import { cacheRoot } from '../core/folder.ts';
import type { Tuned, TunedRecord } from '../plan/tuned.ts';

const builtin = <N extends 'node:fs' | 'node:path' | 'node:crypto'>(name: N) => process.getBuiltinModule(name);

export class TunedStore implements Tuned {
  private readonly folder: string;
  private known: Map<string, TunedRecord> | null = null;

  constructor(folder: string) {
    this.folder = folder;
  }

  get size(): number {
    return this.records().size;
  }

  find(key: string): TunedRecord | null {
    return this.records().get(key) ?? null;
  }

  list(): readonly TunedRecord[] {
    return [...this.records().values()];
  }

  /** Keeps a record, in place of an older one for the same key. @throws the system's error when the folder cannot be written. */
  publish(record: TunedRecord): void {
    const { mkdirSync, renameSync, rmSync, writeFileSync } = builtin('node:fs');
    const { join } = builtin('node:path');
    const { createHash, randomUUID } = builtin('node:crypto');
    const hash = createHash('sha256').update(record.key).digest('hex').slice(0, 40);
    const own = join(this.folder, `${hash}.${randomUUID()}.tmp`);
    mkdirSync(this.folder, { recursive: true });
    try {
      writeFileSync(own, `${JSON.stringify(record, null, 1)}\n`);
      renameSync(own, join(this.folder, `${hash}.json`));
    } finally {
      rmSync(own, { force: true });
    }
    this.records().set(record.key, record);
  }

  /** Removes every record; the number there were. */
  forget(): number {
    const n = this.records().size;
    builtin('node:fs').rmSync(this.folder, { recursive: true, force: true });
    this.known = new Map();
    return n;
  }

  private records(): Map<string, TunedRecord> {
    this.known ??= this.load();
    return this.known;
  }

  /** A file that is no record, or cannot be read, counts as absent. */
  private load(): Map<string, TunedRecord> {
    const { readdirSync, readFileSync } = builtin('node:fs');
    const { join } = builtin('node:path');
    const found = new Map<string, TunedRecord>();
    let names: string[] = [];
    try {
      names = readdirSync(this.folder);
    } catch {}
    for (const name of names.filter((n) => n.endsWith('.json'))) {
      try {
        const record = JSON.parse(readFileSync(join(this.folder, name), 'utf8')) as TunedRecord;
        if (record.format === 'tilewise-tuned-1' && typeof record.key === 'string' && isCandidate(record.winner))
          found.set(record.key, record);
      } catch {}
    }
    return found;
  }
}

const isCandidate = (value: unknown): boolean => {
  const { kernel, config } = (value ?? {}) as { kernel?: unknown; config?: unknown };
  return typeof kernel === 'string' && typeof config === 'object' && config !== null;
};

let shared: TunedStore | null | undefined;

/** The records of this machine; null where there are no files. */
export function tunedHere(): TunedStore | null {
  if (shared === undefined) {
    const root = cacheRoot();
    shared = root === null ? null : new TunedStore(builtin('node:path').join(root.path, 'tuned'));
  }
  return shared;
}
