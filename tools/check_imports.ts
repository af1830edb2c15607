/**
 * Imports go only leftwards through the rooms, engines never import each other, and no file imports a cycle's worth of
 * rooms by accident: the order is docs/architecture.md's.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';

/** Rooms by rank; a room may import rooms of a lower rank, and itself. */
const RANKS: readonly (readonly string[])[] = [
  ['core'],
  ['mods'],
  ['problem'],
  ['engine'],
  ['engines/reference', 'engines/wasm', 'engines/webgpu', 'engines/cuda', 'plan'],
  ['api'],
  ['interop', 'conformance', 'dist'],
  ['cli'],
];

/** The registry is the one place that names engines; it loads them by dynamic import, which this check reads as well. */
const LOADERS = new Set(['api/registry.ts']);

const rankOf = (room: string): number => RANKS.findIndex((rooms) => rooms.includes(room));

function roomOf(file: string): string {
  const [first, second] = file.split('/');
  return first === 'engines' ? `engines/${second}` : first;
}

const problems: string[] = [];
for (const file of readdirSync('src', { recursive: true, encoding: 'utf8' }).filter((f) => f.endsWith('.ts'))) {
  const room = roomOf(file);
  if (file === 'index.ts') continue;
  if (rankOf(room) < 0) problems.push(`src/${file}: room '${room}' has no place in the import order`);
  const source = readFileSync(join('src', file), 'utf8');
  for (const [, from] of source.matchAll(/(?:from|import\()\s*'(\.[^']+)'/g)) {
    const target = relative('src', resolve('src', dirname(file), from));
    const other = roomOf(target);
    if (other === room) continue;
    if (rankOf(other) >= rankOf(room)) problems.push(`src/${file}: ${room} may not import ${other} (${from})`);
    if (rankOf(room) > 4 && other.startsWith('engines/') && !LOADERS.has(file))
      problems.push(`src/${file}: only ${[...LOADERS].join(', ')} may name an engine (${from})`);
  }
}
for (const p of problems) console.error(p);
if (problems.length > 0) process.exit(1);
console.log('imports: every import goes leftwards');
