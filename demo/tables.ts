/** Results as rows of text, for the terminal and the report alike. */
import type { Timing } from '../src/cli/measure.ts';
import { mebibytes, milliseconds, rate, table } from '../src/cli/terminal.ts';
import type { Pass } from '../src/engine/contract.ts';
import type { Real } from './real.ts';
import type { Outcome, SweepRow } from './sweep.ts';

export interface TextTable {
  readonly head: readonly string[];
  readonly rows: readonly (readonly string[])[];
}

const MEASURES = ['ms', 'GFLOP/s', 'MiB', 'max error'];
const cells = (t: Timing): string[] => [
  milliseconds(t.median),
  rate(t.flops, t.median),
  mebibytes(t.scratch),
  t.check === null ? '' : t.check.error.toExponential(1),
];
const ratio = (ours: Timing | null, theirs: Timing | null): string =>
  ours === null || theirs === null ? '' : `${(theirs.median / ours.median).toFixed(1)}x`;

/** Memory is beyond inputs, outputs and gradients. */
export function realRows({ tilewise, standard }: Real): TextTable {
  const rows = (['forward', 'backward'] as const).flatMap((pass) => {
    const [ours, theirs] = [tilewise[pass], standard[pass]];
    if (ours === null) return [];
    const own = [pass, 'tilewise', ...cells(ours), ratio(ours, theirs)];
    return theirs === null ? [own] : [own, [pass, 'standard', ...cells(theirs), '']];
  });
  return { head: ['pass', 'method', ...MEASURES, 'faster'], rows };
}

export function sweepRows(rows: readonly SweepRow[]): TextTable {
  const body = rows.flatMap(({ task, tilewise, standard }) =>
    (task.grads ? (['forward', 'backward'] as const) : (['forward'] as const)).map((pass) => [
      String(task.n),
      task.causal ? 'causal' : 'full',
      pass,
      ...outcome(tilewise, pass, ''),
      ...outcome(standard, pass, mebibytes(task.matrices)).slice(0, 3),
      ratio(measured(tilewise, pass), measured(standard, pass)),
    ]),
  );
  const theirs = MEASURES.slice(0, 3).map((name) => `std ${name}`);
  return { head: ['N', 'mask', 'pass', ...MEASURES, ...theirs, 'faster'], rows: body };
}

export const measured = (o: Outcome, pass: Pass): Timing | null => (o.kind === 'measured' ? o.result[pass] : null);

/** `needs`: what to say about the memory of a refused call. */
function outcome(o: Outcome, pass: Pass, needs: string): string[] {
  const timing = measured(o, pass);
  if (timing !== null) return cells(timing);
  if (o.kind === 'refused') return ['refused', '', needs, ''];
  return [o.kind === 'measured' ? 'no kernel' : 'left out', '', '', ''];
}

export const realTable = (real: Real): string => asTable(realRows(real));
export function sweepTable(rows: readonly SweepRow[]): string {
  const left = rows.flatMap(({ task, tilewise }) =>
    tilewise.kind === 'left out'
      ? [`N = ${task.n} ${task.causal ? 'causal' : 'full'} was left out: ${tilewise.why}`]
      : [],
  );
  return [asTable(sweepRows(rows)), ...left].join('\n');
}

const asTable = ({ head, rows }: TextTable): string => table(head, rows);
