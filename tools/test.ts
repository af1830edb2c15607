/**
 * Runs the compiled tests on any supported Node by handing `node --test` an explicit list of files (globs and folders
 * mean different things from Node 20 to 26). Arguments filter by path: `npm test -- wasm mods`.
 */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

const run = (...command: string[]): void => {
  const { status } = spawnSync(process.execPath, command, { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
};

const filters = process.argv.slice(2).filter((a) => !a.startsWith('-'));
const flags = process.argv.slice(2).filter((a) => a.startsWith('-'));
const files = readdirSync('.build/test', { recursive: true, encoding: 'utf8' })
  .filter((f) => f.endsWith('.test.js') && (filters.length === 0 || filters.some((x) => f.includes(x))))
  .map((f) => join('.build/test', f))
  .sort();
if (files.length === 0) {
  console.error(`no test file matches ${filters.join(' ')}`);
  process.exit(1);
}
run('--test', '--test-reporter=spec', ...flags, ...files);
