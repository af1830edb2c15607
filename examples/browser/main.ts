/** Attention in a page: the textbook's loop, then every engine of Tilewise that this browser has, on the same tensors. */
import {
  attention,
  attentionWithGrads,
  doctor,
  type Engine,
  type HostTensor,
  openEngine,
  tensor,
} from '../../src/index.ts';
import { backwardHead, forwardHead, type Gradients, type Heads } from './naive.ts';

const D = 64;
/** Timed calls of an engine, after one that compiles: fewer when they take long. */
const MOST_CALLS = 9;
const ENOUGH_MS = 1500;

interface Task {
  readonly heads: Heads;
  readonly causal: boolean;
  readonly gradients: boolean;
}
/** Results in a fixed order: out, and with gradients dq, dk, dv. */
interface Outcome {
  readonly ms: number;
  readonly results: readonly Float32Array[];
}

const find = <E extends Element>(selector: string): E => document.querySelector<E>(selector)!;
const form = find<HTMLFormElement>('#form');
const button = find<HTMLButtonElement>('button');
/** Lets the browser paint. */
const frame = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 20));

function taskOf(data: FormData): Task {
  const [H, N] = [Number(data.get('heads')), Number(data.get('length'))];
  const noise = () => Float32Array.from({ length: H * N * D }, () => 2 * Math.random() - 1);
  return {
    heads: { H, N, D, q: noise(), k: noise(), v: noise() },
    causal: data.has('causal'),
    gradients: data.has('gradients'),
  };
}

/** The textbook's way, a head at a time so that the page stays alive. The gradient of the output is the output. */
async function naive({ heads, causal, gradients }: Task): Promise<Outcome> {
  const zeros = () => new Float32Array(heads.q.length);
  const out = zeros();
  const grads: Gradients = { dq: zeros(), dk: zeros(), dv: zeros() };
  let ms = 0;
  for (let h = 0; h < heads.H; h++) {
    await frame();
    const start = performance.now();
    const p = forwardHead(heads, h, causal, out);
    if (gradients) backwardHead(heads, h, p, out, grads);
    ms += performance.now() - start;
  }
  return { ms, results: gradients ? [out, grads.dq, grads.dk, grads.dv] : [out] };
}

/** Median time of calls on host tensors: copies to and from the engine are part of it. */
async function tiled(engine: Engine, { heads, causal, gradients }: Task): Promise<Outcome> {
  const shape = [1, heads.H, heads.N, D];
  const [q, k, v] = [heads.q, heads.k, heads.v].map((data) => tensor(data, shape));
  const once = async (): Promise<HostTensor[]> => {
    if (!gradients) return [(await attention(q, k, v, { causal, engine })).out];
    const run = await attentionWithGrads(q, k, v, { causal, engine });
    try {
      const { dq, dk, dv } = await run.backward(run.out);
      return [run.out, dq, dk, dv];
    } finally {
      run.dispose();
    }
  };
  const results = (await once()).map(({ data }) => data as Float32Array);
  const times: number[] = [];
  const begin = performance.now();
  while (times.length < MOST_CALLS && (times.length === 0 || performance.now() - begin < ENOUGH_MS)) {
    const start = performance.now();
    await once();
    times.push(performance.now() - start);
    await frame();
  }
  return { ms: times.sort((a, b) => a - b)[times.length >> 1], results };
}

function difference(a: readonly Float32Array[], b: readonly Float32Array[]): number {
  let most = 0;
  a.forEach((data, t) => {
    for (let i = 0; i < data.length; i++) most = Math.max(most, Math.abs(data[i] - b[t][i]));
  });
  return most;
}

/** Makes the bars' lengths those of their times, the longest time being the whole width. */
function scaleBars(): void {
  const bars = [...document.querySelectorAll<HTMLElement>('td.bar i')];
  const longest = Math.max(...bars.map((bar) => Number(bar.dataset.ms)));
  for (const bar of bars) bar.style.width = `${(100 * Number(bar.dataset.ms)) / longest}%`;
}

/** A row of the table, in its engine's colour. */
function rowOf(name: string, colour: string): { pending(text: string): void; show(o: Outcome, first: Outcome): void } {
  const row = find<HTMLTableSectionElement>('#rows').insertRow();
  const head = document.createElement('th');
  head.scope = 'row';
  head.textContent = name;
  const cells = (...texts: string[]): HTMLTableCellElement[] => {
    row.replaceChildren(head);
    return texts.map((text) => {
      const cell = row.insertCell();
      cell.textContent = text;
      return cell;
    });
  };
  return {
    pending(text) {
      const [cell] = cells(text);
      cell.colSpan = 4;
      cell.className = 'note';
    },
    show(outcome, first) {
      const { ms, results } = outcome;
      const same = outcome === first;
      const times = same ? '' : `${(first.ms / ms).toFixed(1)} x`;
      const off = same ? '' : difference(results, first.results).toExponential(1);
      const [, , , bar] = cells(ms.toFixed(ms < 10 ? 2 : 0), times, off, '');
      bar.className = 'bar';
      const mark = document.createElement('i');
      mark.style.background = `var(--${colour})`;
      mark.dataset.ms = String(ms);
      bar.append(mark);
      requestAnimationFrame(scaleBars);
    },
  };
}

const engines: Engine[] = [];
const isEmulated = ({ caps }: Engine): boolean => 'software' in caps && caps.software === true;
const title = (engine: Engine): string =>
  engine.name === 'wasm' ? 'WASM' : isEmulated(engine) ? 'WebGPU (emulated)' : 'WebGPU';

async function run(): Promise<void> {
  find('#rows').replaceChildren();
  const task = taskOf(new FormData(form));
  const rows = [rowOf('N x N loop', 'naive'), ...engines.map((engine) => rowOf(title(engine), engine.name))];
  rows[0].pending('running, a head at a time');
  for (const row of rows.slice(1)) row.pending('waiting');
  const first = await naive(task);
  rows[0].show(first, first);
  for (const [i, engine] of engines.entries()) {
    rows[i + 1].pending('compiling for this shape, then running');
    await frame();
    try {
      rows[i + 1].show(await tiled(engine, task), first);
    } catch (error) {
      rows[i + 1].pending(String(error));
    }
  }
}

/** Opens what `doctor` found, and says what it found. */
async function start(): Promise<void> {
  for (const probe of await doctor()) {
    if (probe.engine !== 'wasm' && probe.engine !== 'webgpu') continue;
    const item = document.createElement('li');
    const name = document.createElement('b');
    name.textContent = probe.engine === 'wasm' ? 'WASM' : 'WebGPU';
    item.append(name, probe.available ? probe.detail : `not here: ${probe.reason}`);
    find('#engines').append(item);
    if (!probe.available) continue;
    try {
      const engine = await openEngine(probe.engine);
      engines.push(engine);
      if (isEmulated(engine)) item.append(': no GPU is open to this page, so the processor plays one, slowly');
    } catch (error) {
      item.append(` (it did not open: ${String(error)})`);
    }
  }
  engines.sort((a, b) => Number(b.name === 'wasm') - Number(a.name === 'wasm'));
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  button.disabled = true;
  button.textContent = 'Running';
  document.body.dataset.state = 'running';
  await run();
  document.body.dataset.state = 'done';
  button.textContent = 'Run';
  button.disabled = false;
});

await start();
form.requestSubmit();
