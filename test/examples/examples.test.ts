import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import test from 'node:test';
import { fileURLToPath } from 'node:url';

/** What each example prints when it works. */
const EXAMPLES: Readonly<Record<string, readonly RegExp[]>> = {
  node_quickstart: [
    /out \[1,8,512,64\], lse \[1,8,512\], by \w+:forward:f32/,
    /row 0 is the first value: true/,
    /blocks visited/,
  ],
  custom_mod: [/gradient of decay: (-?\d+\.\d+ ?){4}/, /keeps 11\.\d % of the pairs/],
  train_step: [/it went down at every step: true/, /bytes left in the engine: 0/],
  decode: [/sequences 0,1, rows free 400/, /lengths 110,110/, /cached and plain agree: true/],
  packed: [/packed 4 sequences into \[438,4,32\]/, /packed and one by one agree: true/],
};

/** Beside the sources, or compiled beside the compiled tests. */
const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js';

for (const [name, lines] of Object.entries(EXAMPLES))
  test(`examples/${name}`, () => {
    const file = fileURLToPath(new URL(`../../examples/${name}.${extension}`, import.meta.url));
    const { status, stdout, stderr } = spawnSync(process.execPath, [file], { encoding: 'utf8', timeout: 60_000 });
    assert.equal(status, 0, stderr);
    for (const line of lines) assert.match(stdout, line);
  });
