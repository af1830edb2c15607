/** The picture of docs/cuda-h200.svg: rates of every cell of the grid beside FlashAttention-2 and cuDNN. */
import * as echarts from 'echarts';
import type { Pass } from '../src/engine/contract.ts';
import { cellName, LENGTHS, ratesOf, readGpu } from './results_gpu.ts';

const SERIES = [
  { who: 'fa2', name: 'FlashAttention-2', color: '#8a8f98' },
  { who: 'cudnn', name: 'cuDNN', color: '#d98a1f' },
  { who: 'tilewise', name: 'Tilewise', color: '#1668c7' },
] as const;
const SIZES = [64, 128, 256];
const ROWS: readonly (readonly [pass: Pass, causal: boolean])[] = [
  ['forward', false],
  ['forward', true],
  ['backward', false],
  ['backward', true],
];
const [WIDTH, PANEL, LEFT, TOP, GAP] = [960, 280, 50, 92, 36];
const HEIGHT = 168;
const INK = '#3c4149';
const FAINT = '#e3e5e9';

/** SVG text, the same for the same results. */
export function plotGpu(): string {
  const results = readGpu();
  const panels = ROWS.flatMap(([pass, causal], row) =>
    SIZES.map((d, column) => ({
      ...{ pass, causal, d },
      left: LEFT + column * (PANEL + 22),
      top: TOP + row * (HEIGHT + GAP),
    })),
  );
  const height = TOP + ROWS.length * (HEIGHT + GAP) - 8;
  const most = Math.max(...results.rows.filter((r) => r.group === 'grid' && r.tflops > 0).map((r) => r.tflops));
  const text = { color: INK, fontSize: 11 };
  const plot = echarts.init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height });
  plot.setOption({
    animation: false,
    backgroundColor: '#ffffff',
    textStyle: { fontFamily: 'system-ui, sans-serif' },
    title: [
      {
        text: `Attention on one ${results.device}, bfloat16, 16k tokens, hidden size 2048: TFLOP/s by sequence length`,
        left: LEFT - 8,
        top: 6,
        textStyle: { color: INK, fontSize: 14, fontWeight: 600 },
      },
      ...panels.map(({ pass, causal, d, left, top }) => ({
        text: `${pass}, ${causal ? 'causal' : 'full'}, D = ${d}`,
        left: left - 4,
        top: top - 21,
        textStyle: { ...text, fontWeight: 600 },
      })),
    ],
    legend: { left: LEFT - 8, top: 32, itemGap: 16, textStyle: text, data: SERIES.map(({ name }) => ({ name })) },
    grid: panels.map(({ left, top }) => ({ left, top, width: PANEL - 12, height: HEIGHT - 12 })),
    xAxis: panels.map((_, i) => ({
      gridIndex: i,
      type: 'category',
      data: LENGTHS.map((n) => (n < 1024 ? String(n) : `${n / 1024}k`)),
      boundaryGap: false,
      axisLine: { lineStyle: { color: FAINT } },
      axisTick: { show: false },
      axisLabel: text,
    })),
    yAxis: panels.map((_, i) => ({
      gridIndex: i,
      type: 'value',
      min: 0,
      max: Math.ceil(most / 200) * 200,
      interval: 200,
      splitLine: { lineStyle: { color: FAINT } },
      axisLabel: { ...text, show: i % SIZES.length === 0 },
    })),
    series: panels.flatMap(({ pass, causal, d }, i) =>
      SERIES.map(({ who, name, color }) => ({
        ...{ type: 'line', name, xAxisIndex: i, yAxisIndex: i, symbol: 'circle', symbolSize: 5 },
        lineStyle: { color, width: who === 'tilewise' ? 2.5 : 1.5 },
        itemStyle: { color },
        data: LENGTHS.map((n) => ratesOf(results.rows, cellName(d, causal, n), pass).get(who)?.tflops ?? null),
      })),
    ),
  });
  const svg = plot.renderToSVGString();
  plot.dispose();
  // Names that echarts counts up in a process.
  const names = new Map<string, string>();
  return `${svg.replace(/zr\d+-(?:c(?:ls-)?)?\d+/g, (name) => {
    if (!names.has(name)) names.set(name, `n${names.size}`);
    return names.get(name) as string;
  })}\n`;
}
