/** One HTML file that needs nothing else: plots, tables, what was measured on what, and how to read it. */
import type { Machine } from '../src/cli/machine.ts';
import { bytes, significant } from '../src/cli/terminal.ts';
import type { Caps } from '../src/engine/contract.ts';
import { type Chart, memoryChart, rateChart, timeChart } from './charts.ts';
import type { Real } from './real.ts';
import type { SweepRow } from './sweep.ts';
import { measured, realRows, sweepRows, type TextTable } from './tables.ts';

export interface ReportData {
  readonly machine: Machine;
  readonly commit: string | null;
  readonly engine: Caps;
  /** Bytes that standard attention was allowed. */
  readonly budget: number;
  readonly seconds: number;
  readonly real: Real;
  readonly rows: readonly SweepRow[];
}

const STYLE = `
:root { color-scheme: light dark; --page: #fbfbfa; --text: #1c1e21; --soft: #5b6168; --faint: #d9dcdf; --card: #ffffff;
  --tilewise: #0b6bcb; --tilewise2: #12908a; --standard: #c2410c; --standard2: #b4548c; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --text: #e4e6e9; --soft: #9aa1a9; --faint: #33383f; --card: #1b1e23;
  --tilewise: #5aa9f4; --tilewise2: #46c2b4; --standard: #f0884a; --standard2: #dc8cbc; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 1200px; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
p { max-width: 58rem; margin: .5rem 0; } .soft, figcaption { color: var(--soft); } figcaption { font-size: .9rem; margin-top: .5rem; }
.facts { display: flex; flex-wrap: wrap; gap: .9rem; margin: 1.4rem 0; }
.facts div { background: var(--card); border: 1px solid var(--faint); border-radius: 8px; padding: .8rem 1.1rem; flex: 1 1 13rem; }
.facts b { display: block; font-size: 1.55rem; line-height: 1.3; font-weight: 650; } .facts span { color: var(--soft); font-size: .9rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 1.1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--faint); border-radius: 8px; padding: 1rem 1.1rem; }
figure h3 { margin: 0 0 .35rem; font-size: 1rem; }
figure ul { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none; margin: 0 0 .5rem; padding: 0; font-size: .88rem; }
li { display: flex; align-items: center; gap: .45rem; } svg { display: block; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .75rem; text-align: right; border-bottom: 1px solid var(--faint); } th { color: var(--soft); font-weight: 600; }
.text { text-align: left; } code { font-size: .92em; }
`;

export function report(data: ReportData): string {
  const { machine: m, engine, budget, real, rows } = data;
  const when = new Date().toISOString().slice(0, 16).replace('T', ' ');
  const left = rows.flatMap(({ task, tilewise }) =>
    tilewise.kind === 'left out' ? [`N = ${task.n} ${task.causal ? 'causal' : 'full'} (${tilewise.why})`] : [],
  );
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tilewise: attention on this machine</title><style>${STYLE}</style></head><body>
<h1>Exact attention on this machine</h1>
<p class="soft">${text(m.cpu)}, ${m.cores} cores, Node ${m.node}. Tilewise ${data.commit === null ? '' : `at ${data.commit}, `}${text(engine.device)}${engine.features.revectorize === true ? ', 256-bit mode' : ''}.
${when} UTC, took ${data.seconds.toFixed(0)} s.</p>
<div class="facts">${headline(data)
    .map(([value, what]) => `<div><b>${text(value)}</b><span>${text(what)}</span></div>`)
    .join('')}</div>

<h2>A trained layer's Q, K, V</h2>
<p>Layer 2 of a small language model on 2048 bytes of text it has not seen: 4 heads, D = 64, causal, float32. Real scores are sharp and
structured, so they try the numerics harder than random ones.</p>
${html(realRows(real))}

<h2>From N = ${rows[0]?.task.n ?? ''} to ${lastLength(rows)}</h2>
<p>Random Q, K, V, 8 heads, D = 64, float32. Both axes are logarithmic: time grows with N² either way, memory only for standard attention,
which writes all N x N scores down. It runs on the same engine, threads and instructions, from the same blocked products and exponential, with
its softmax in place; its backward computes the probabilities anew, as Tilewise does.</p>
<div class="plots">
${figure('Time, causal', timeChart(rows, true), 'Median time of a pass. Causal Tilewise skips the blocks above the diagonal; standard attention computes them and throws them away.')}
${figure('Time, full', timeChart(rows, false), 'The same without a mask: every query attends to every key.')}
${figure('Memory', memoryChart(rows, budget), `Most memory held beyond inputs, outputs and gradients. Standard attention is refused past its budget of ${bytes(budget)}; the dashed line is what it would take.`)}
${figure('Throughput of Tilewise', rateChart(rows), 'GFLOP/s, counting only the work that the mask keeps, and no recomputation. Level is good.')}
</div>

<h2>All numbers</h2>
${html(sweepRows(rows))}
${left.length > 0 ? `<p>Left out for time: ${text(left.join('; '))}.</p>` : ''}
<p class="soft">ms: median of a pass, tensors already in the engine, compilation not counted. GFLOP/s: 4 N² D a head forward and 10 N² D backward, half
of it when causal. MiB: most memory beyond inputs, outputs and gradients; for a refused call, what it would have needed. Max error: largest absolute difference
from float64 on sampled rows of the output and columns of the gradients. Again with <code>npm run demo</code>.</p>
</body></html>
`;
}

/** The few numbers that say most. */
function headline({ real, rows }: ReportData): [value: string, what: string][] {
  const { forward, backward } = real.tilewise;
  const facts: [string, string][] = [
    [`${significant(forward.median * 1000)} ms`, 'forward on the trained layer, N = 2048'],
  ];
  if (backward !== null) facts.push([`${significant(backward.median * 1000)} ms`, 'backward on it']);
  const both = rows
    .filter((r) => measured(r.tilewise, 'forward') && measured(r.standard, 'forward') && r.task.causal)
    .pop();
  if (both !== undefined) {
    const [ours, theirs] = [measured(both.tilewise, 'forward')!, measured(both.standard, 'forward')!];
    facts.push([
      `${(theirs.median / ours.median).toFixed(1)}x`,
      `faster than standard attention, causal N = ${both.task.n}`,
    ]);
  }
  const longest = rows.filter((r) => measured(r.tilewise, 'forward')).pop();
  const scratch = longest && measured(longest.tilewise, 'forward')?.scratch;
  if (longest !== undefined && scratch !== undefined) {
    const refused = longest.standard.kind === 'refused' ? ', refused' : '';
    const beside = `standard attention: ${bytes(longest.task.matrices)}${refused}`;
    facts.push([bytes(scratch), `beyond inputs and output at N = ${longest.task.n}; ${beside}`]);
  }
  return facts;
}

const lastLength = (rows: readonly SweepRow[]): string =>
  String(rows.filter((r) => r.tilewise.kind === 'measured').pop()?.task.n ?? '');

function figure(title: string, { svg, legend }: Chart, caption: string): string {
  const names = legend.map(({ name, color, dashed }) => {
    const stroke = `stroke="var(--${color})" stroke-width="3"${dashed ? ' stroke-dasharray="6 4"' : ''}`;
    return `<li><svg width="26" height="8"><path d="M0 4H26" ${stroke}/></svg>${text(name)}</li>`;
  });
  return `<figure><h3>${text(title)}</h3><ul>${names.join('')}</ul>${svg}<figcaption>${text(caption)}</figcaption></figure>`;
}

function html({ head, rows }: TextTable): string {
  const words = new Set(['mask', 'pass', 'method']);
  const cell = (tag: string, i: number, value: string): string =>
    `<${tag}${words.has(head[i]) ? ' class="text"' : ''}>${text(value)}</${tag}>`;
  const row = (tag: string, values: readonly string[]): string =>
    `<tr>${values.map((value, i) => cell(tag, i, value)).join('')}</tr>`;
  return `<div class="scroll"><table><thead>${row('th', head)}</thead><tbody>
${rows.map((r) => row('td', r)).join('\n')}
</tbody></table></div>`;
}

const text = (s: string): string => s.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
