/**
 * What a browser downloads: the package bundled and minified, entry and lazily loaded engines apart, in gzip bytes. Nothing is declared external: that
 * a bundler needs no configuration is checked as well.
 */
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';

/** Budgets in KiB of gzip. The entry is what an import costs; an engine is paid for when it is opened. */
const ENTRY_BUDGET = 40;
const TOTAL_BUDGET = 180;

const { outputFiles } = await build({
  entryPoints: ['dist/index.js'],
  bundle: true,
  minify: true,
  splitting: true,
  format: 'esm',
  platform: 'browser',
  outdir: '.build/bundle',
  write: false,
  logLevel: 'error',
});
const sizes = outputFiles
  .map((f) => ({ name: f.path.replace(/.*\//, ''), text: f.text, kib: gzipSync(f.contents).length / 1024 }))
  .sort((a, b) => b.kib - a.kib);
const byName = new Map(sizes.map((s) => [s.name, s]));

/** Chunks reached by static imports from the entry. */
const eager = new Set<string>();
const follow = (name: string): void => {
  const file = byName.get(name);
  if (file === undefined || eager.has(name)) return;
  eager.add(name);
  for (const [, other] of file.text.matchAll(/(?:from|import)\s*"\.\/([^"]+)"/g)) follow(other);
};
follow('index.js');
const entry = [...eager].reduce((sum, name) => sum + (byName.get(name)?.kib ?? 0), 0);
const total = sizes.reduce((sum, s) => sum + s.kib, 0);
for (const { name, kib } of sizes)
  console.log(`  ${kib.toFixed(1).padStart(6)} KiB  ${name}${eager.has(name) ? '' : '  (lazy)'}`);
console.log(
  `bundle: entry ${entry.toFixed(1)} of ${ENTRY_BUDGET} KiB gzip, everything ${total.toFixed(1)} of ${TOTAL_BUDGET} KiB`,
);
if (entry > ENTRY_BUDGET || total > TOTAL_BUDGET) process.exit(1);
