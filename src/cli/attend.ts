import type { Command } from 'commander';
import { attention } from '../api/attention.ts';
import { attentionWithGrads } from '../api/grads.ts';
import type { AttentionOptions } from '../api/options.ts';
import { createRequest } from '../api/request.ts';
import { ArgumentError } from '../core/errors.ts';
import type { HostTensor } from '../core/tensor.ts';
import type { Plan } from '../plan/plan.ts';
import { flopsOf } from '../problem/cost.ts';
import { command, integer, interruptible } from './command.ts';
import { type EngineFlags, engineOptions, withEngines } from './engines.ts';
import { checkTargets, saveTensors } from './files.ts';
import { type InputFlags, type Loaded, loadInputs } from './inputs.ts';
import { scoreOptions } from './scores.ts';
import { dtypeOption } from './shapes.ts';
import { milliseconds, pairs, print, printJson, progress, rate } from './terminal.ts';

interface Flags extends InputFlags, EngineFlags {
  readonly out?: string;
  readonly lse?: string;
  readonly dq?: string;
  readonly dk?: string;
  readonly dv?: string;
  readonly dBias?: string;
  readonly dSlopes?: string;
  readonly dSink?: string;
  readonly json?: boolean;
}

/** Result name -> the option that says where it goes. */
const TARGETS = {
  out: '--out',
  lse: '--lse',
  dq: '--dq',
  dk: '--dk',
  dv: '--dv',
  dBias: '--d-bias',
  dSlopes: '--d-slopes',
  dSink: '--d-sink',
} as const;
type ResultName = keyof typeof TARGETS;
const GRADIENTS: readonly ResultName[] = ['dq', 'dk', 'dv', 'dBias', 'dSlopes', 'dSink'];

/** Results with the axes of q, k and v, of which some may be missing. */
const LIKE_INPUTS: ReadonlySet<ResultName> = new Set(['out', 'lse', 'dq', 'dk', 'dv']);

/** Attention on tensors in files, with gradients when `--grad` gives those of the output. */
export const attend = (): Command =>
  engineOptions(
    scoreOptions(
      command('attend', 'attention on tensors from .npy files, or FILE.safetensors:NAME', [
        'tilewise attend --q q.npy --k k.npy --v v.npy --causal --out o.npy',
        'tilewise attend --q x.safetensors:q --k x.safetensors:k --v x.safetensors:v --window 512 --out o.safetensors:out',
        'tilewise attend --q q.npy --k k.npy --v v.npy --causal --grad do.npy --dq dq.npy --dk dk.npy --dv dv.npy',
      ])
        .requiredOption('--q <file>', 'queries [B, Hq, Sq, D]; leading axes of length 1 may be missing')
        .requiredOption('--k <file>', 'keys [B, Hkv, Sk, D]')
        .requiredOption('--v <file>', 'values [B, Hkv, Sk, Dv]')
        .addOption(dtypeOption('convert q, k and v to this type first'))
        .option('--out <file>', 'where the output goes')
        .option('--lse <file>', 'where the log-sum-exp goes, f32 [B, Hq, Sq]')
        .option('--grad <file>', 'gradient of the output: computes backward too')
        .option('--d-lse <file>', 'gradient of the log-sum-exp')
        .option('--dq <file>', 'where the gradient of q goes')
        .option('--dk <file>', 'of k')
        .option('--dv <file>', 'of v')
        .option('--d-bias <file>', 'of the bias')
        .option('--d-slopes <file>', 'of the ALiBi slopes')
        .option('--d-sink <file>', 'of the sink logits')
        .option('--mask <file>', 'bool or u8 that broadcasts to [B, Hq, Sq, Sk]; true attends')
        .option('--bias <file>', 'floats added to the scaled scores; broadcasts likewise')
        .option('--alibi [file]', "ALiBi slopes [Hq]; without a file the paper's")
        .option('--sink <file>', 'one more logit a head in the softmax sum, [Hq]')
        .option('--documents <file>', 'ids [S]: queries see keys of their own document')
        .option('--block-layout <file>', 'u8 [B|1, Hq|1, nQ, nK]: blocks that attend')
        .option('--block-size <n>', 'their edge in positions', integer(1))
        .option('--cu-seqlens-q <file>', 'packed sequences: offsets [B + 1] into q, whose shape is [Hq, total, D]')
        .option('--cu-seqlens-k <file>', 'offsets into k and v; default: those of q'),
    ),
  )
    .option('--json', 'print JSON')
    .action(async (flags: Flags) => {
      checkFlags(flags);
      const targets = (Object.keys(TARGETS) as ResultName[]).flatMap((name) => {
        const spec = flags[name];
        return spec === undefined ? [] : [{ name, option: TARGETS[name], spec }];
      });
      await checkTargets(targets);
      const inputs = await loadInputs(flags);
      const done = await withEngines(flags, (engines) => compute(inputs, { ...inputs.options, engine: engines }));
      const saved = targets.flatMap(({ name, option, spec }) => {
        const result = done.results[name];
        if (result === null || result === undefined)
          throw new ArgumentError(option, 'a tensor that the call has', 'none');
        const t = LIKE_INPUTS.has(name) ? inputs.restore(result) : result;
        return [{ option, spec, tensor: t }];
      });
      await saveTensors(saved);
      tell(done, saved, flags.json === true);
    });

/** Gradients cannot be saved without the gradient they come from. @throws ArgumentError */
function checkFlags(flags: Flags): void {
  if (flags.grad !== undefined) return;
  for (const name of [...GRADIENTS, 'dLse'] as const)
    if (flags[name as keyof Flags] !== undefined)
      throw new ArgumentError(
        '--grad',
        'a file with the gradient of the output, as gradients are asked for',
        undefined,
      );
}

interface Done {
  readonly results: { readonly [N in ResultName]?: HostTensor | null };
  readonly plan: Plan;
  readonly seed: readonly [number, number] | null;
  readonly seconds: { readonly forward: number; readonly backward: number | null };
  readonly flops: { readonly forward: number; readonly backward: number | null };
}

async function compute({ q, k, v, dOut, dLse }: Loaded, options: AttentionOptions): Promise<Done> {
  const { problem } = createRequest(q, k, v, options, dOut === null ? null : {});
  const bar = progress('forward');
  const signal = interruptible();
  const settings = { ...options, signal, onProgress: (share: number) => bar.update(share) };
  const start = performance.now();
  const since = (from: number): number => (performance.now() - from) / 1000;
  try {
    if (dOut === null) {
      const { out, lse, plan, dropout } = await attention(q, k, v, settings);
      const seconds = { forward: since(start), backward: null };
      const flops = { forward: flopsOf(problem, 'forward'), backward: null };
      return { results: { out, lse }, plan, seed: dropout?.seed ?? null, seconds, flops };
    }
    const run = await attentionWithGrads(q, k, v, settings);
    const forward = since(start);
    bar.update(0, 'backward');
    const middle = performance.now();
    const grads = await run.backward(dOut, dLse, { signal, onProgress: (share) => bar.update(share) });
    const { out, lse, plan, dropout } = run;
    run.dispose();
    return {
      results: { out, lse, ...grads },
      plan,
      seed: dropout?.seed ?? null,
      seconds: { forward, backward: since(middle) },
      flops: { forward: flopsOf(problem, 'forward'), backward: flopsOf(problem, 'backward') },
    };
  } finally {
    bar.stop();
  }
}

function tell(done: Done, saved: readonly { spec: string; tensor: HostTensor }[], json: boolean): void {
  const { plan, seconds, flops, seed } = done;
  if (json) {
    const written = saved.map(({ spec, tensor: { dtype, shape } }) => ({ file: spec, dtype, shape }));
    printJson({ plan, seconds, flops, seed, written });
    return;
  }
  const line = (s: number, f: number): string => `${milliseconds(s)} ms with transfers, ${rate(f, s)} GFLOP/s`;
  const list: [string, string][] = [
    ['plan', plan.id],
    ['forward', line(seconds.forward, flops.forward)],
  ];
  if (seconds.backward !== null) list.push(['backward', line(seconds.backward, flops.backward ?? 0)]);
  if (seed !== null) list.push(['seed', String((BigInt(seed[1]) << 32n) | BigInt(seed[0]))]);
  for (const { engine, kernel, reason } of plan.refusals)
    if (engine !== plan.engine)
      list.push(['refused', `${engine}${kernel === undefined ? '' : `/${kernel}`}: ${reason}`]);
  for (const { spec, tensor: t } of saved) list.push(['wrote', `${spec} ${t.dtype} [${t.shape.join(', ')}]`]);
  if (saved.length === 0) list.push(['wrote', 'nothing: --out and --lse say where results go']);
  print(pairs(list));
}
