/** Plots as SVG text, drawn on the server. Colours are CSS variables, so that one drawing suits light and dark pages. */
import * as echarts from 'echarts';
import type { Timing } from '../src/cli/measure.ts';
import { bytes } from '../src/cli/terminal.ts';
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

/** A drawing, and what its lines are called. */
export interface Chart {
  readonly svg: string;
  readonly legend: readonly Pick<Line, 'name' | 'color' | 'dashed'>[];
}

/** Time of a pass against N. */
export function timeChart(rows: readonly SweepRow[], causal: boolean): Chart {
  const at = (who: 'tilewise' | 'standard', pass: Pass) => points(rows, causal, who, pass, (t) => t.median);
  return chart({ base: 10, label: timeLabel }, [
    { name: 'standard forward', color: 'standard', points: at('standard', 'forward') },
    { name: 'standard backward', color: 'standard2', dashed: true, points: at('standard', 'backward') },
    { name: 'Tilewise forward', color: 'tilewise', points: at('tilewise', 'forward') },
    { name: 'Tilewise backward', color: 'tilewise2', dashed: true, points: at('tilewise', 'backward') },
  ]);
}

/** Bytes beyond inputs, outputs and gradients against N; what standard attention was refused is drawn where it would lie. */
export function memoryChart(rows: readonly SweepRow[], budget: number): Chart {
  // Masks change no sizes: of full and causal the one that was measured, or the larger. Nothing at all has no place on a
  // logarithmic axis.
  const at = (who: 'tilewise' | 'standard', pass: Pass): [n: number, bytes: number][] => {
    const most = new Map<number, number>();
    for (const causal of [true, false])
      for (const [n, bytes] of points(rows, causal, who, pass, (t) => Math.max(t.scratch, 4096)))
        most.set(n, Math.max(most.get(n) ?? 0, bytes));
    return [...most];
  };
  const refused = rows.flatMap(({ task, standard }) =>
    task.causal && standard.kind === 'refused' ? [[task.n, task.matrices] as const] : [],
  );
  const last = at('standard', 'forward').slice(-1);
  const lines: Line[] = [
    { name: 'standard forward', color: 'standard', points: at('standard', 'forward') },
    { name: 'refused', color: 'standard2', dashed: true, points: refused.length > 0 ? [...last, ...refused] : [] },
    { name: 'Tilewise forward', color: 'tilewise', points: at('tilewise', 'forward') },
    { name: 'Tilewise backward', color: 'tilewise2', dashed: true, points: at('tilewise', 'backward') },
  ];
  return chart({ base: 16, label: bytes }, lines, { name: `budget ${bytes(budget)}`, y: budget });
}

/** GFLOP/s against N: level when longer sequences cost no efficiency. */
export function rateChart(rows: readonly SweepRow[]): Chart {
  const at = (causal: boolean, pass: Pass) => points(rows, causal, 'tilewise', pass, (t) => t.flops / t.median / 1e9);
  return chart({ base: null, label: String }, [
    { name: 'forward, full', color: 'tilewise', points: at(false, 'forward') },
    { name: 'forward, causal', color: 'tilewise', dashed: true, points: at(true, 'forward') },
    { name: 'backward, full', color: 'tilewise2', points: at(false, 'backward') },
    { name: 'backward, causal', color: 'tilewise2', dashed: true, points: at(true, 'backward') },
  ]);
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
const timeLabel = (seconds: number): string =>
  seconds < 1e-3
    ? `${significantly(seconds * 1e6)} µs`
    : seconds < 1
      ? `${significantly(seconds * 1e3)} ms`
      : `${significantly(seconds)} s`;
const significantly = (x: number): string => String(Number(x.toPrecision(3)));

interface Scale {
  /** Of the logarithm; null for a linear axis from 0. */
  readonly base: number | null;
  readonly label: (y: number) => string;
}

function chart(scale: Scale, lines: readonly Line[], limit?: Limit): Chart {
  const shown = lines.filter((line) => line.points.length > 0);
  const lengths = [...new Set(shown.flatMap((line) => line.points.map(([n]) => n)))].sort((a, b) => a - b);
  const plot = echarts.init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height: HEIGHT });
  const faint = { lineStyle: { color: INK.faint, width: 1 } };
  const label = { color: INK.text, fontSize: 13 };
  plot.setOption({
    animation: false,
    textStyle: { fontFamily: 'system-ui, sans-serif' },
    grid: { left: 64, right: 20, top: 14, bottom: 48 },
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
      ...(scale.base === null ? { type: 'value', min: 0 } : { type: 'log', logBase: scale.base }),
      axisLine: { show: false },
      axisTick: { show: false },
      splitLine: faint,
      axisLabel: { ...label, formatter: scale.label },
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
  return { svg: themed(svg), legend: shown };
}

/** The page's variables for the stand-ins, and a width that follows the page. */
function themed(svg: string): string {
  let text = svg.replace(/^<svg width="\d+" height="\d+"/, '<svg width="100%"');
  for (const [name, color] of Object.entries(INK)) text = text.replaceAll(color, `var(--${name})`);
  return text;
}
