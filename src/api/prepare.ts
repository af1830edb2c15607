/** Options and tensors to compiled programs: picks the engine, plans, compiles, and remembers. */
import { ArgumentError, type Refusal, UnsupportedError } from '../core/errors.ts';
import type { TensorLike } from '../core/tensor.ts';
import type { Engine, EngineName, Program } from '../engine/contract.ts';
import { type Preferences, planOn } from '../plan/choose.ts';
import type { Plan } from '../plan/plan.ts';
import type { AttentionOptions, EngineChoice, GradientChoice } from './options.ts';
import { AUTO_ORDER, engineNamed, reasonOf, sharedEngine } from './registry.ts';
import { createRequest, dropoutOf, type Request, type View } from './request.ts';
import { signatureOf } from './signature.ts';
import { engineOf, isEngineTensor } from './tensors.ts';
import { tunedHere } from './tuned.ts';

/** Everything a call needs to run: `backward` is null when no gradients were asked for. */
export interface Call {
  readonly engine: Engine;
  readonly request: Request;
  readonly plan: Plan;
  readonly forward: Program;
  readonly backward: Program | null;
}

/** Engines that serve host tensors when none is named. GPUs are asked for by name: opening one is no small thing. */
const DEFAULT_ORDER: readonly EngineName[] = ['wasm', 'reference'];

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
  view: View | null = null,
): Promise<Call> {
  const order = orderOf({ q, k, v }, options);
  const plain = signatureOf([q, k, v], options, grads);
  const signature = view === null || plain === null ? plain : `${plain};view=${view.q};${view.k};${view.v}`;
  let made: Request | undefined;
  const make = (): Request => {
    made = createRequest(q, k, v, options, grads, view);
    return made;
  };
  const call = await prepare(order, signature, make, options.prefer);
  // A remembered call has another call's dropout state. A new one keeps its problem, and what planning found out about it:
  // backward then sees the blocks that forward saw, whatever happened to a mask's host tensor in between.
  if (call.request === made || call.request.problem.dropout === null) return call;
  const problem = Object.freeze({ ...call.request.problem, dropout: dropoutOf(options.dropout) });
  return { ...call, request: { ...call.request, problem } };
}

/** The first engine's call under a signature, made and remembered if it is new. Null signatures are never remembered. */
export async function prepare(
  order: readonly (Engine | EngineName)[],
  signature: string | null,
  make: () => Request,
  prefer: Preferences | undefined,
): Promise<Call> {
  let request: Request | undefined;
  let refusals: readonly Refusal[] = [];
  for (const choice of order) {
    let engine: Engine;
    try {
      engine = typeof choice === 'string' ? await sharedEngine(choice) : choice;
    } catch (error) {
      refusals = [...refusals, { engine: String(choice), reason: reasonOf(error) }];
      continue;
    }
    if (order === AUTO_ORDER && isSoftware(engine)) {
      refusals = [...refusals, { engine: engine.name, reason: 'emulated on the processor; ask for it by name' }];
      continue;
    }
    const known = signature === null ? undefined : recall(engine, signature);
    if (known !== undefined && 'plan' in known) return known;
    if (known !== undefined) {
      refusals = [...refusals, ...known];
      continue;
    }
    request ??= make();
    const attempt = planOn(request.problem, engine, prefer, refusals, tunedHere());
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

/** A GPU's driver that runs on the processor is no faster hardware. */
const isSoftware = ({ caps }: Engine): boolean => 'software' in caps && caps.software === true;

/** Compiles both passes of a plan, or finds them compiled. */
export async function compile(engine: Engine, request: Request, plan: Plan): Promise<Call> {
  const [forward, backward] = await Promise.all([
    engine.prepare(request.problem, plan.forward),
    plan.backward === null ? null : engine.prepare(request.problem, plan.backward),
  ]);
  return { engine, request, plan, forward, backward };
}

/** Engines to try, in order. Tensors in an engine leave no choice. */
function orderOf(
  named: Readonly<Record<string, TensorLike>>,
  { engine: choice, bias, alibi, sink, mask: given, blockSparse }: AttentionOptions,
): readonly (Engine | EngineName)[] {
  const resident = Object.values(named).some((t) => t !== null && typeof t === 'object' && isEngineTensor(t));
  if (!resident) return choicesOf(choice);
  const mask = given !== null && typeof given === 'object' && 'dtype' in given ? given : null;
  const engine = engineOf({ ...named, bias, alibi, sink, mask, 'blockSparse.layout': blockSparse?.layout }) as Engine;
  for (const [name, t] of Object.entries(named))
    if (!isEngineTensor(t))
      throw new ArgumentError(name, `a tensor of the ${engine.name} engine, as the others are`, t);
  checkChosen(engine, choice);
  return [engine];
}

/** An engine that the tensors decide must be among those asked for. */
export function checkChosen(engine: Engine, choice: EngineChoice | undefined): void {
  if (choice === undefined || choice === 'auto') return;
  const wanted = choicesOf(choice);
  if (wanted.some((w) => w === engine || w === engine.name)) return;
  const names = wanted.map((w) => (typeof w === 'string' ? w : w.name));
  throw new ArgumentError('engine', `the ${engine.name} engine, where the tensors are`, names);
}

export function choicesOf(choice: EngineChoice | undefined): readonly (Engine | EngineName)[] {
  if (choice === undefined) return DEFAULT_ORDER;
  if (choice === 'auto') return AUTO_ORDER;
  const list = Array.isArray(choice) ? (choice as readonly (Engine | string)[]) : [choice as Engine | string];
  if (list.length === 0) throw new ArgumentError('engine', 'at least one engine', []);
  return list.map((e) => (typeof e === 'string' ? engineNamed(e) : e));
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
