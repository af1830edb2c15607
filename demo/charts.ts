/** Plots as SVG text, drawn on the server. Colours are CSS variables, so that one drawing suits light and dark pages. */
import * as echarts from 'echarts';
import type { Timing } from '../src/cli/measure.ts';
import { significant } from '../src/cli/terminal.ts';
import type { Pass } from '../src/engine/contract.ts';
import type { SweepRow } from './sweep.ts';
import { measured } from './tables.ts';

/** Stand-ins that echarts can calculate with, each replaced by a variable of the page in the finished SVG. */
const INK = {
  text: '#010101',
  faint: '#020202',
  tilewise: '#030303',
  tilewise2: '#040404',
  standard: '#050505',
  standard2: '#060606',
};

interface Line {
  readonly name: string;
  readonly color: keyof typeof INK;
  readonly dashed?: boolean;
  readonly points: readonly (readonly [n: number, y: number])[];
}

interface Limit {
  readonly name: string;
  readonly y: number;
}

const WIDTH = 560;
const HEIGHT = 380;

/** Milliseconds of forward and backward against N. */
export function timeChart(rows: readonly SweepRow[], causal: boolean): string {
  const at = (who: 'tilewise' | 'standard', pass: Pass) => points(rows, causal, who, pass, (t) => t.median * 1000);
  return chart('ms', [
    { name: 'standard forward', color: 'standard', points: at('standard', 'forward') },
    { name: 'standard backward', color: 'standard2', dashed: true, points: at('standard', 'backward') },
    { name: 'Tilewise forward', color: 'tilewise', points: at('tilewise', 'forward') },
    { name: 'Tilewise backward', color: 'tilewise2', dashed: true, points: at('tilewise', 'backward') },
  ]);
}

/** MiB beyond inputs, outputs and gradients against N; what standard attention was refused is drawn where it would lie. */
export function memoryChart(rows: readonly SweepRow[], budget: number): string {
  // A pass without scratch has no place on a logarithmic axis.
  const at = (who: 'tilewise' | 'standard', pass: Pass) =>
    points(rows, false, who, pass, (t) => Math.max(t.scratch, 1024) / 2 ** 20);
  const refused = rows.flatMap(({ task, standard }) =>
    !task.causal && standard.kind === 'refused' ? [[task.n, standard.needs / 2 ** 20] as const] : [],
  );
  const last = at('standard', 'forward').slice(-1);
  const lines: Line[] = [
    { name: 'standard forward', color: 'standard', points: at('standard', 'forward') },
    {
      name: 'standard, refused',
      color: 'standard2',
      dashed: true,
      points: refused.length > 0 ? [...last, ...refused] : [],
    },
    { name: 'Tilewise forward', color: 'tilewise', points: at('tilewise', 'forward') },
    { name: 'Tilewise backward', color: 'tilewise2', dashed: true, points: at('tilewise', 'backward') },
  ];
  return chart('MiB', lines, { name: 'budget', y: budget / 2 ** 20 });
}

/** GFLOP/s against N: level when longer sequences cost no efficiency. */
export function rateChart(rows: readonly SweepRow[]): string {
  const at = (causal: boolean, pass: Pass) => points(rows, causal, 'tilewise', pass, (t) => t.flops / t.median / 1e9);
  return chart(
    'GFLOP/s',
    [
      { name: 'forward, full', color: 'tilewise', points: at(false, 'forward') },
      { name: 'forward, causal', color: 'tilewise', dashed: true, points: at(true, 'forward') },
      { name: 'backward, full', color: 'tilewise2', points: at(false, 'backward') },
      { name: 'backward, causal', color: 'tilewise2', dashed: true, points: at(true, 'backward') },
    ],
    undefined,
    'value',
  );
}

function points(
  rows: readonly SweepRow[],
  causal: boolean,
  who: 'tilewise' | 'standard',
  pass: Pass,
  y: (t: Timing) => number,
): [n: number, y: number][] {
  return rows.flatMap((row): [number, number][] => {
    const timing = row.task.causal === causal ? measured(row[who], pass) : null;
    return timing === null ? [] : [[row.task.n, y(timing)]];
  });
}

const lengthLabel = (n: number): string => (n >= 1024 ? `${n / 1024}k` : String(n));
const valueLabel = (y: number): string => (y >= 1000 ? `${significant(y / 1000)}k` : String(y)).replace(/\.0+k/, 'k');

function chart(unit: string, lines: readonly Line[], limit?: Limit, scale: 'log' | 'value' = 'log'): string {
  const shown = lines.filter((line) => line.points.length > 0);
  const lengths = [...new Set(shown.flatMap((line) => line.points.map(([n]) => n)))].sort((a, b) => a - b);
  const plot = echarts.init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height: HEIGHT });
  const faint = { lineStyle: { color: INK.faint, width: 1 } };
  const label = { color: INK.text, fontSize: 13 };
  plot.setOption({
    animation: false,
    textStyle: { fontFamily: 'system-ui, sans-serif' },
    grid: { left: 64, right: 20, top: 64, bottom: 48 },
    legend: { top: 0, left: 0, itemGap: 14, itemWidth: 26, textStyle: label, data: shown.map((line) => line.name) },
    xAxis: {
      type: 'log',
      logBase: 2,
      min: lengths[0],
      max: lengths[lengths.length - 1],
      name: 'sequence length N',
      nameLocation: 'middle',
      nameGap: 30,
      nameTextStyle: label,
      axisLine: faint,
      axisTick: { show: false },
      splitLine: { show: false },
      axisLabel: { ...label, formatter: (n: number) => (lengths.includes(Math.round(n)) ? lengthLabel(n) : '') },
    },
    yAxis: {
      type: scale,
      name: unit,
      nameTextStyle: { ...label, align: 'right', padding: [0, 8, 0, 0] },
      axisLine: { show: false },
      splitLine: faint,
      axisLabel: { ...label, formatter: valueLabel },
    },
    series: shown.map((line, i) => ({
      type: 'line',
      name: line.name,
      data: line.points.map((p) => [...p]),
      symbol: 'circle',
      symbolSize: 7,
      itemStyle: { color: INK[line.color] },
      lineStyle: { color: INK[line.color], width: 2.5, type: line.dashed ? 'dashed' : 'solid' },
      ...(i === 0 && limit !== undefined
        ? {
            markLine: {
              silent: true,
              symbol: 'none',
              data: [{ yAxis: limit.y }],
              lineStyle: { color: INK.text, type: 'dotted', width: 1.5 },
              label: { position: 'insideStartTop', formatter: limit.name, color: INK.text, fontSize: 13 },
            },
          }
        : {}),
    })),
  });
  const svg = plot.renderToSVGString();
  plot.dispose();
  return themed(svg);
}

/** The page's variables for the stand-ins, and a width that follows the page. */
function themed(svg: string): string {
  let text = svg.replace(/^<svg width="\d+" height="\d+"/, '<svg width="100%"');
  for (const [name, color] of Object.entries(INK)) text = text.replaceAll(color, `var(--${name})`);
  return text;
}
