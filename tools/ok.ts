/** The gate: `npm run ok`. Every check in order, each timed; the first failure stops it with that check's own words. */
import { spawnSync } from 'node:child_process';

const node = process.execPath;
const bin = (name: string): string => `node_modules/${name}`;
const STEPS: readonly (readonly [name: string, ...command: string[]])[] = [
  ['types', node, bin('typescript/bin/tsc'), '-p', 'tsconfig.json'],
  ['lint and format', node, bin('@biomejs/biome/bin/biome'), 'check', '--error-on-warnings', '.'],
  ['build', node, bin('typescript/bin/tsc'), '-p', 'tsconfig.build.json'],
  ['imports', node, '.build/tools/check_imports.js'],
  ['file sizes', node, '.build/tools/check_sizes.js'],
  ['package lint', node, bin('publint/src/cli.js'), '--strict'],
  [
    'types as consumers see them',
    node,
    bin('@arethetypeswrong/cli/dist/index.js'),
    '--pack',
    '.',
    '--profile',
    'esm-only',
  ],
  ['bundle size', node, '.build/tools/check_bundle.js'],
  ['docs examples', node, '.build/tools/check_docs.js'],
  ['tables of results', node, '.build/tools/results.js', '--check', 'README.md', 'docs/results.md', 'docs/kernels.md'],
];
/** The tests come first or alone: `npm run ok -- --no-tests` is for CI, which runs `npm test` by itself before. */
const tests: readonly (readonly [string, ...string[]])[] = process.argv.includes('--no-tests')
  ? []
  : [['tests', node, '.build/tools/test.js']];

for (const [name, command, ...args] of [...STEPS, ...tests]) {
  const start = performance.now();
  console.log(`\n== ${name}`);
  const { status } = spawnSync(command, args, { stdio: 'inherit' });
  if (status !== 0) {
    console.error(`\nnot ok: ${name}`);
    process.exit(1);
  }
  console.log(`   ${((performance.now() - start) / 1000).toFixed(1)} s`);
}
console.log('\nok');
