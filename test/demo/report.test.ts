import assert from 'node:assert/strict';
import test from 'node:test';
import { openStandard } from '../../demo/opponent.ts';
import { report } from '../../demo/report.ts';
import { planSweep, sweep } from '../../demo/sweep.ts';
import { sweepTable } from '../../demo/tables.ts';
import { openEngine } from '../../src/api/registry.ts';
import { machine } from '../../src/cli/machine.ts';

test('a sweep is planned, refused, left out, measured and reported', async () => {
  const engine = await openEngine('wasm', { threads: 1 });
  const standard = await openStandard({ threads: 1 });
  try {
    const budget = 2 ** 20;
    const planned = planSweep(true, 1e10, standard, budget);
    assert.deepEqual([...new Set(planned.map((t) => t.n))], [128, 512, 1024, 4096, 16384]);
    assert.deepEqual(
      planned.filter((t) => t.without === null).map((t) => t.n),
      [128, 128],
    );
    const tasks = planned.filter((t) => t.n <= 512).map((t) => ({ ...t, repeat: 0 }));
    const rows = await sweep(tasks, { engine, standard, deadline: performance.now() + 60_000 });
    assert.deepEqual(
      rows.map((r) => [r.tilewise.kind, r.standard.kind]),
      [
        ['measured', 'measured'],
        ['measured', 'measured'],
        ['measured', 'refused'],
        ['measured', 'refused'],
      ],
    );
    const late = await sweep(tasks.slice(0, 1), { engine, standard, deadline: performance.now() });
    assert.deepEqual([late[0].tilewise.kind, late[0].standard.kind], ['left out', 'left out']);
    assert.match(sweepTable([...rows, ...late]), /refused[\s\S]*left out/);

    const [{ tilewise, standard: theirs }] = rows;
    assert.ok(tilewise.kind === 'measured' && theirs.kind === 'measured');
    const real = { tilewise: tilewise.result, standard: theirs.result };
    const about = { machine: machine(), commit: null, engine: engine.caps, budget, seconds: 1 };
    const html = report({ ...about, real, rows: [...rows, ...late] });
    assert.equal(html.match(/<figure>/g)?.length, 4);
    assert.ok(!/undefined|NaN|\[object/.test(html));
    assert.ok(!/(src|href)="http/.test(html), 'nothing is fetched');
    assert.ok(!html.includes('#010101'), 'stand-in colours are replaced');
  } finally {
    await engine.close();
    await standard.close();
  }
});
