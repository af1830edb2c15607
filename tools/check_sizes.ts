/** Files stay readable in one sitting: a hard cap for each, and a word on the median and the 90th percentile. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const CAP = 600;
/** Tables of opcodes or cases may be longer: they are looked things up in, not read. */
const TABLES = new Set(['src/conformance/cases.ts']);

const sizes = ['src', 'test', 'tools', 'bench', 'examples', 'demo']
  .flatMap((room) => {
    try {
      return readdirSync(room, { recursive: true, encoding: 'utf8' }).map((f) => join(room, f));
    } catch {
      return [];
    }
  })
  .filter((f) => f.endsWith('.ts') && !f.includes('node_modules'))
  .map((file) => ({ file, lines: readFileSync(file, 'utf8').split('\n').length - 1 }))
  .sort((a, b) => a.lines - b.lines);

const quantile = (share: number): number => sizes[Math.min(sizes.length - 1, Math.floor(sizes.length * share))].lines;
const over = sizes.filter(({ file, lines }) => lines > CAP && !TABLES.has(file));
for (const { file, lines } of over) console.error(`${file}: ${lines} lines, at most ${CAP}`);
console.log(
  `sizes: ${sizes.length} files, median ${quantile(0.5)} lines, 90 % under ${quantile(0.9)}, longest ${quantile(1)}`,
);
if (over.length > 0) process.exit(1);
