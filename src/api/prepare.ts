/** Options and tensors to compiled programs: picks the engine, plans, compiles, and remembers. */
import { ArgumentError, type Refusal, UnsupportedError } from '../core/errors.ts';
import type { TensorLike } from '../core/tensor.ts';
import type { Engine, Program } from '../engine/contract.ts';
import { planOn } from '../plan/choose.ts';
import type { Plan } from '../plan/plan.ts';
import type { AttentionOptions, EngineChoice, GradientChoice } from './options.ts';
import { AUTO_ORDER, engineNamed, type LoadableEngine, reasonOf, sharedEngine } from './registry.ts';
import { createRequest, dropoutOf, type Request } from './request.ts';
import { signatureOf } from './signature.ts';
import { engineOf, isEngineTensor } from './tensors.ts';

/** Everything a call needs to run: `backward` is null when no gradients were asked for. */
export interface Call {
  readonly engine: Engine;
  readonly request: Request;
  readonly plan: Plan;
  readonly forward: Program;
  readonly backward: Program | null;
}

/** Engines that serve host tensors when none is named. GPUs are asked for by name: opening one is no small thing. */
const DEFAULT_ORDER: readonly LoadableEngine[] = ['wasm', 'reference'];

/** Calls remembered per engine; the least recently used go first. */
const REMEMBERED = 128;
type Memory = Map<string, Call | readonly Refusal[]>;
const memories = new WeakMap<Engine, Memory>();

/**
 * The call on the first engine of the order that serves it.
 *
 * @throws ArgumentError, ExpressionError for what is wrong with it; UnsupportedError with every engine's refusals.
 */
export async function prepareCall(
  q: TensorLike,
  k: TensorLike,
  v: TensorLike,
  options: AttentionOptions,
  grads: GradientChoice | null,
): Promise<Call> {
  const order = orderOf(q, k, v, options);
  const signature = signatureOf(q, k, v, options, grads);
  let request: Request | undefined;
  let refusals: readonly Refusal[] = [];
  for (const choice of order) {
    let engine: Engine;
    if (typeof choice !== 'string') engine = choice;
    else {
      try {
        engine = await sharedEngine(choice);
      } catch (error) {
        refusals = [...refusals, { engine: choice, reason: reasonOf(error) }];
        continue;
      }
    }
    const known = signature === null ? undefined : recall(engine, signature);
    if (known !== undefined) {
      if ('plan' in known) return withDropout(known, options);
      refusals = [...refusals, ...known];
      continue;
    }
    request ??= createRequest(q, k, v, options, grads);
    const attempt = planOn(request.problem, engine, options.prefer, refusals);
    if (attempt.plan === null) {
      if (signature !== null) remember(engine, signature, attempt.refusals.slice(refusals.length));
      refusals = attempt.refusals;
      continue;
    }
    const call = await compile(engine, request, attempt.plan);
    if (signature !== null) remember(engine, signature, call);
    return call;
  }
  throw new UnsupportedError('attention', refusals);
}

/** Compiles both passes of a plan, or finds them compiled. */
export async function compile(engine: Engine, request: Request, plan: Plan): Promise<Call> {
  const [forward, backward] = await Promise.all([
    engine.prepare(request.problem, plan.forward),
    plan.backward === null ? null : engine.prepare(request.problem, plan.backward),
  ]);
  return { engine, request, plan, forward, backward };
}

/** Engines to try, in order. Tensors in an engine leave no choice. */
export function orderOf(
  q: TensorLike,
  k: TensorLike,
  v: TensorLike,
  { engine: choice, ...options }: AttentionOptions,
): readonly (Engine | LoadableEngine)[] {
  const resident = [q, k, v].some((t) => t !== null && typeof t === 'object' && isEngineTensor(t));
  const { bias, alibi, sink, blockSparse } = options;
  const mask = typeof options.mask === 'object' && 'dtype' in options.mask ? options.mask : null;
  const engine = resident
    ? engineOf({ q, k, v, bias, alibi, sink, mask, 'blockSparse.layout': blockSparse?.layout })
    : null;
  if (engine === null) return choicesOf(choice);
  for (const [name, t] of Object.entries({ q, k, v }))
    if (!isEngineTensor(t))
      throw new ArgumentError(name, `a tensor of the ${engine.name} engine, as the others are`, t);
  if (choice !== undefined && choice !== 'auto') {
    const wanted = choicesOf(choice);
    if (!wanted.some((w) => w === engine || w === engine.name))
      throw new ArgumentError(
        'engine',
        `the ${engine.name} engine, where the tensors are`,
        wanted.map((w) => (typeof w === 'string' ? w : w.name)),
      );
  }
  return [engine];
}

function choicesOf(choice: EngineChoice | undefined): readonly (Engine | LoadableEngine)[] {
  if (choice === undefined) return DEFAULT_ORDER;
  if (choice === 'auto') return AUTO_ORDER;
  const list = Array.isArray(choice) ? (choice as readonly (Engine | string)[]) : [choice as Engine | string];
  if (list.length === 0) throw new ArgumentError('engine', 'at least one engine', []);
  return list.map((e) => (typeof e === 'string' ? engineNamed(e) : e));
}

/** The remembered call with this call's dropout state. */
function withDropout(call: Call, options: AttentionOptions): Call {
  if (call.request.problem.dropout === null) return call;
  const problem = Object.freeze({ ...call.request.problem, dropout: dropoutOf(options.dropout) });
  return { ...call, request: { ...call.request, problem } };
}

function recall(engine: Engine, signature: string): Call | readonly Refusal[] | undefined {
  const memory = memories.get(engine);
  const known = memory?.get(signature);
  if (memory === undefined || known === undefined) return undefined;
  memory.delete(signature);
  memory.set(signature, known);
  return known;
}

function remember(engine: Engine, signature: string, known: Call | readonly Refusal[]): void {
  let memory = memories.get(engine);
  if (memory === undefined) {
    memory = new Map();
    memories.set(engine, memory);
  }
  memory.set(signature, known);
  if (memory.size > REMEMBERED)
    for (const oldest of memory.keys()) {
      memory.delete(oldest);
      break;
    }
}
