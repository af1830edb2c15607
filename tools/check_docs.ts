/**
 * Runs every TypeScript block of the README and docs as it stands: each is written to .build and executed against the
 * built package, so that an example that stops working fails the gate. A block fenced ```ts no-run is only type checked.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const pages = ['README.md', ...(existsSync('docs') ? readdirSync('docs').map((f) => join('docs', f)) : [])].filter(
  (f) => f.endsWith('.md'),
);
const folder = '.build/docs';
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });

const blocks: { where: string; file: string; runs: boolean }[] = [];
for (const page of pages) {
  const text = readFileSync(page, 'utf8');
  for (const match of text.matchAll(/^```ts( no-run)?\n([\s\S]*?)^```/gm)) {
    const line = text.slice(0, match.index).split('\n').length;
    const file = join(folder, `${page.replace(/\W/g, '_')}_${line}.ts`);
    writeFileSync(file, `${match[2]}\nexport {};\n`);
    blocks.push({ where: `${page}:${line}`, file, runs: match[1] === undefined });
  }
}
writeFileSync(
  join(folder, 'tsconfig.json'),
  JSON.stringify({
    extends: '../../tsconfig.json',
    compilerOptions: {
      noEmit: false,
      allowImportingTsExtensions: false,
      outDir: 'out',
      rootDir: '.',
      noUnusedLocals: false,
    },
    include: ['*.ts'],
  }),
);
if (blocks.length > 0) {
  const compiled = spawnSync(process.execPath, ['node_modules/typescript/bin/tsc', '-p', folder], { stdio: 'inherit' });
  if (compiled.status !== 0) process.exit(1);
}
let failed = 0;
for (const { where, file, runs } of blocks) {
  if (!runs) continue;
  const out = join(folder, 'out', `${file.slice(folder.length + 1, -3)}.js`);
  const { status, stderr } = spawnSync(process.execPath, [out], { encoding: 'utf8', timeout: 120_000 });
  if (status !== 0) {
    failed++;
    console.error(`${where}: the example failed\n${stderr}`);
  }
}
console.log(
  `docs: ${blocks.filter((b) => b.runs).length} examples ran, ${blocks.length} type checked, on ${pages.length} pages`,
);
if (failed > 0) process.exit(1);
