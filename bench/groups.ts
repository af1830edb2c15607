/** What is measured: each group runs in a process of its own, at one number of threads. */
import type { Engine, EngineTensor } from '../src/engine/contract.ts';
import { attention, attentionWithGrads, openEngine, tensor } from '../src/index.ts';
import { type Case, type Contender, inputsOf } from './contenders/contender.ts';
import { jax } from './contenders/jax.ts';
import { onnxruntime } from './contenders/onnxruntime.ts';
import { tfjs } from './contenders/tfjs.ts';
import { type Mode, tilewise } from './contenders/tilewise.ts';
import { compare, interleave, type Row } from './harness.ts';

export interface Scope {
  readonly threads: number;
  /** Fewer and smaller cases, to see that everything works. */
  readonly quick: boolean;
  /** Peers too, not Tilewise alone. */
  readonly peers: boolean;
}

export type Group = (scope: Scope) => Promise<Row[]>;

const MODES: readonly Mode[] = ['portable', 'wide', 'native'];
/** Seconds a case, all entrants together; the largest cases take longer. */
const SECONDS = 4;

const ours = async (threads: number): Promise<Contender[]> =>
  (await Promise.all(MODES.map((mode) => tilewise(mode, threads)))).filter((c) => c !== null);

const note = (rows: readonly Row[]): void => {
  for (const { id, who, threads, median, gflops } of rows)
    console.error(`${id.padEnd(24)} ${who.padEnd(40)} t${threads} ${median.toFixed(3)} ms ${gflops?.toFixed(1) ?? ''}`);
};

async function cases(
  group: 'forward' | 'both',
  list: readonly Case[],
  contenders: readonly Contender[],
  { threads, quick }: Scope,
): Promise<Row[]> {
  const rows: Row[] = [];
  for (const c of list) {
    const measured = await compare(group, contenders, c, inputsOf(c), quick ? 0.5 : SECONDS, threads);
    note(measured);
    rows.push(...measured);
  }
  for (const contender of contenders) await contender.close();
  return rows;
}

/** Full and causal forward against onnxruntime's native operators. */
const forward: Group = async (scope) => {
  const { threads, quick, peers } = scope;
  const native = ['MultiHeadAttention', 'GroupQueryAttention'] as const;
  const contenders = await ours(threads);
  if (peers) for (const op of native) contenders.push(await onnxruntime('node', op, threads));
  const sizes = quick ? [512] : [128, 512, 1024, 2048, 4096, 8192];
  const list = sizes.map((N) => ({ H: 8, N, D: 64 }));
  const shapes = quick ? list : [...list, { H: 16, N: 2048, D: 128 }];
  return cases(
    'forward',
    shapes.flatMap((s) => [false, true].map((causal) => ({ ...s, causal }))),
    contenders,
    scope,
  );
};

/** Forward against the libraries of browsers, one thread each. */
const web: Group = async (scope) => {
  const contenders = await ours(scope.threads);
  if (scope.peers) {
    contenders.push(await onnxruntime('web', 'MultiHeadAttention', scope.threads));
    for (const way of ['batched', 'heads'] as const) contenders.push(await tfjs(way));
    contenders.push(await jax());
  }
  const sizes = scope.quick ? [512] : [512, 1024, 2048];
  const list = sizes.flatMap((N) => [false, true].map((causal) => ({ H: 8, N, D: 64, causal })));
  return cases('forward', list, contenders, scope);
};

/** Forward and backward together against the libraries that have gradients. */
const both: Group = async (scope) => {
  const contenders = await ours(scope.threads);
  if (scope.peers) {
    contenders.push(await jax());
    for (const way of ['batched', 'heads'] as const) contenders.push(await tfjs(way));
  }
  const sizes = scope.quick ? [512] : [512, 1024, 2048, 4096];
  const list = sizes.flatMap((N) => [false, true].map((causal) => ({ H: 8, N, D: 64, causal })));
  return cases('both', scope.quick ? list : [...list, { H: 16, N: 2048, D: 128, causal: false }], contenders, scope);
};

/** One mode's engine, or null where the host lacks it. */
async function engineIn(mode: Mode, threads: number): Promise<Engine | null> {
  const engine = await openEngine('wasm', { threads, revectorize: mode === 'wide', native: mode === 'native' });
  const { features } = engine.caps;
  const got = mode === 'portable' || (mode === 'wide' ? features.revectorize : features['machine code']);
  if (got) return engine;
  await engine.close();
  return null;
}

/** Forward alone and backward alone: their rates are to be alike. */
const passes: Group = async ({ threads, quick }) => {
  const rows: Row[] = [];
  for (const c of quick
    ? [{ H: 8, N: 512, D: 64 }]
    : [
        { H: 8, N: 1024, D: 64 },
        { H: 8, N: 4096, D: 64 },
        { H: 16, N: 2048, D: 128 },
      ])
    for (const causal of [false, true])
      for (const mode of MODES) {
        const engine = await engineIn(mode, threads);
        if (engine === null) continue;
        const { H, N, D } = c;
        const put = (x: Float32Array): EngineTensor => engine.upload(tensor(x, [1, H, N, D]));
        const { q, k, v, dOut } = inputsOf({ ...c, causal });
        const [rq, rk, rv, rd] = [q, k, v, dOut].map(put);
        const call = await attentionWithGrads(rq, rk, rv, { causal });
        const entrants = [
          {
            who: `tilewise ${mode} forward`,
            once: async () => {
              const { out, lse } = await attention(rq, rk, rv, { causal });
              out.dispose();
              lse.dispose();
            },
          },
          {
            who: `tilewise ${mode} backward`,
            once: async () => {
              const { dq, dk, dv } = await call.backward(rd);
              for (const x of [dq, dk, dv]) x?.dispose();
            },
          },
        ];
        const times = await interleave(entrants, quick ? 0.5 : SECONDS);
        const pairs = H * N * (causal ? (N + 1) / 2 : N);
        const id = `n${N}.h${H}.d${D}.${causal ? 'causal' : 'full'}`;
        const measured = entrants.map(({ who }, i) => {
          const t = times.get(who) as { median: number; best: number; runs: number };
          return { group: 'passes', id, who, threads, ...t, gflops: ((i === 0 ? 4 : 10) * pairs * D) / t.median / 1e6 };
        });
        note(measured);
        rows.push(...measured);
        await engine.close();
      }
  return rows;
};

/** Time against the share of pairs a window or a block layout keeps. */
const sparse: Group = async ({ threads, quick }) => {
  const rows: Row[] = [];
  const N = quick ? 2048 : 16384;
  const [H, D, block] = [2, 64, 128];
  const { q, k, v } = inputsOf({ H, N, D, causal: false });
  for (const mode of MODES) {
    const engine = await engineIn(mode, threads);
    if (engine === null) continue;
    const [rq, rk, rv] = [q, k, v].map((x) => engine.upload(tensor(x, [1, H, N, D])));
    const window = quick ? 128 : 1024;
    const kept = N * window - (window * (window - 1)) / 2;
    const settings = [
      { who: 'full', density: 1, options: {} },
      { who: `window ${window}`, density: kept / N ** 2, options: { window } },
      ...[0.1, 0.25, 0.5].map((wanted) => {
        const { layout, density } = blockLayout(N / block, wanted);
        return { who: `blocks ${wanted}`, density, options: { blockSparse: { layout, blockSize: block } } };
      }),
    ];
    const entrants = settings.map(({ who, options }) => ({
      who,
      once: async () => {
        const { out, lse } = await attention(rq, rk, rv, options);
        out.dispose();
        lse.dispose();
      },
    }));
    const times = await interleave(entrants, quick ? 1 : 12);
    const full = times.get('full')?.median ?? 1;
    const measured = settings.map(({ who, density }) => {
      const t = times.get(who) as { median: number; best: number; runs: number };
      return {
        group: 'sparse',
        id: `n${N}.h${H}.d${D}.${who.replace(' ', '')}`,
        who: `tilewise ${mode}`,
        threads,
        ...t,
        gflops: (4 * H * D * N * N * density) / t.median / 1e6,
        extra: { density, overDensity: t.median / full / density },
      };
    });
    note(measured);
    rows.push(...measured);
    await engine.close();
  }
  return rows;
};

/** A random layout of n x n blocks with about the wanted share of ones, at least one a row. */
function blockLayout(n: number, wanted: number): { layout: ReturnType<typeof tensor>; density: number } {
  const data = new Uint8Array(n * n);
  let state = 7;
  for (let i = 0; i < data.length; i++) {
    state = (state * 48271) % 2147483647;
    data[i] = Number(state / 2147483647 < wanted || i % (n + 1) === 0);
  }
  return { layout: tensor(data, [1, 1, n, n]), density: data.reduce((a, b) => a + b, 0) / data.length };
}

/** One thread against two, in the same process. */
const scaling: Group = async ({ threads, quick }) => {
  const rows: Row[] = [];
  for (const mode of MODES) {
    const team = [1, ...(threads > 1 ? [threads] : [])];
    const engines = await Promise.all(team.map((n) => engineIn(mode, n)));
    if (engines.includes(null)) continue;
    for (const c of quick
      ? [{ H: 8, N: 512, D: 64 }]
      : [
          { H: 8, N: 1024, D: 64 },
          { H: 8, N: 4096, D: 64 },
        ])
      for (const causal of [false, true]) {
        const { H, N, D } = c;
        const { q, k, v } = inputsOf({ ...c, causal });
        const entrants = engines.map((engine, i) => {
          const [rq, rk, rv] = [q, k, v].map((x) => (engine as Engine).upload(tensor(x, [1, H, N, D])));
          const once = async (): Promise<void> => {
            const { out, lse } = await attention(rq, rk, rv, { causal });
            out.dispose();
            lse.dispose();
          };
          return { who: String(team[i]), once };
        });
        const times = await interleave(entrants, quick ? 0.5 : SECONDS);
        const pairs = H * N * (causal ? (N + 1) / 2 : N);
        const measured = team.map((n) => {
          const t = times.get(String(n)) as { median: number; best: number; runs: number };
          const id = `n${N}.h${H}.d${D}.${causal ? 'causal' : 'full'}`;
          const gflops = (4 * pairs * D) / t.median / 1e6;
          return { group: 'scaling', id, who: `tilewise ${mode}`, threads: n, ...t, gflops };
        });
        note(measured);
        rows.push(...measured);
      }
    for (const engine of engines) await engine?.close();
  }
  return rows;
};

/** What a call costs beyond its kernel: calls so small that there is hardly a kernel, and N=128. */
const small: Group = async ({ threads }) => {
  const rows: Row[] = [];
  for (const mode of MODES) {
    const engine = await engineIn(mode, threads);
    if (engine === null) continue;
    for (const c of [
      { H: 1, N: 1, D: 8 },
      { H: 8, N: 128, D: 64 },
    ])
      for (const where of ['resident', 'host'] as const) {
        const { H, N, D } = c;
        const { q, k, v } = inputsOf({ ...c, causal: false });
        const host = [q, k, v].map((x) => tensor(x, [1, H, N, D]));
        const resident = host.map((x) => engine.upload(x));
        const once = async (): Promise<void> => {
          if (where === 'host') await attention(host[0], host[1], host[2], { engine });
          else {
            const { out, lse } = await attention(resident[0], resident[1], resident[2]);
            out.dispose();
            lse.dispose();
          }
        };
        const who = `tilewise ${mode} ${where}`;
        for (let i = 0; i < 500; i++) await once();
        const times = await interleave([{ who, once }], 0.5);
        const t = times.get(who) as { median: number; best: number; runs: number };
        const row = { group: 'small', id: `n${N}.h${H}.d${D}.full`, who, threads, ...t };
        note([row]);
        rows.push(row);
      }
    await engine.close();
  }
  return rows;
};

export const GROUPS = { forward, web, both, passes, sparse, scaling, small } as const satisfies Record<string, Group>;
