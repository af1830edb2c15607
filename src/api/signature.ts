/**
 * A short text that is equal for calls that mean the same, so that planning and compiling happen once. Everything that can
 * change a Problem is in it, except data that Problems do not hold (sink values, dropout seeds).
 */
import type { TensorLike } from '../core/tensor.ts';
import { CONTEXT, type Expr, type Mask, type Mod, nodesOf } from '../mods/expr.ts';
import { printExpr } from '../mods/print.ts';
import type { AttentionOptions, GradientChoice } from './options.ts';
import { isEngineTensor } from './tensors.ts';

/**
 * Null when the call must be looked at anew: it reads host tensors, whose contents may have changed since and which must
 * not be kept, or it is wrong in a way that only checking will tell.
 */
export function signatureOf(
  tensors: readonly TensorLike[],
  options: AttentionOptions,
  grads: GradientChoice | null,
): string | null {
  try {
    return textOf(tensors, options, grads);
  } catch {
    return null;
  }
}

function textOf(
  tensors: readonly TensorLike[],
  options: AttentionOptions,
  grads: GradientChoice | null,
): string | null {
  let text = '';
  for (const t of tensors) text += `${tensorText(t)};`;
  for (const name of Object.keys(options) as (keyof AttentionOptions)[]) {
    const part = optionText(name, options);
    if (part === null) return null;
    if (part !== '') text += `${name}=${part};`;
  }
  if (grads === null) return text;
  const sides = grads.sides;
  const which = typeof sides === 'object' ? sides.map(idOf).join(' ') : String(sides);
  return `${text}grads=${grads.q} ${grads.k} ${grads.v} ${grads.sink} ${which}`;
}

/** Malformed tensors give some text too; it was never cached, so they go on to the checks. */
const tensorText = (t: TensorLike): string => `${t?.dtype}[${t?.shape}]`;

function optionText(name: keyof AttentionOptions, options: AttentionOptions): string | null {
  switch (name) {
    case 'layout':
    case 'scale':
    case 'causal':
    case 'softcap':
    case 'window':
      return String(options[name]);
    case 'bias':
    case 'alibi':
      return sideText(options[name]);
    case 'sink':
      return options.sink === undefined ? '' : tensorText(options.sink);
    case 'blockSparse': {
      const layout = sideText(options.blockSparse?.layout);
      return layout === null ? null : `${layout} ${options.blockSparse?.blockSize}`;
    }
    case 'mask': {
      const { mask } = options;
      return typeof mask === 'object' && !('build' in mask) ? sideText(mask) : expressionText(mask);
    }
    case 'mod': {
      const { mod } = options;
      if (!Array.isArray(mod)) return expressionText(mod as Mod);
      const texts = mod.map(expressionText);
      return texts.includes(null) ? null : texts.join(' ');
    }
    case 'dropout':
      return String(typeof options.dropout === 'object' ? options.dropout.p : options.dropout);
    case 'cuSeqlens': {
      const { q, k } = options.cuSeqlens ?? { q: [] };
      return q.length > 4096 ? null : `${q.join(' ')},${k?.join(' ')}`;
    }
    case 'prefer':
      return JSON.stringify(options.prefer);
    case 'engine':
    case 'signal':
    case 'onProgress':
      return '';
    default:
      // Options of other calls (into, grads) change no Problem; unknown names are refused by the checks.
      return name === 'into' || name === 'grads' ? '' : null;
  }
}

const sideText = (t: TensorLike | undefined): string | null =>
  t === undefined ? '' : isEngineTensor(t) ? `${idOf(t)}${tensorText(t)}` : null;

/** Masks and mods are objects that build the same expression every time, so their identity will do. */
const built = new WeakMap<object, string | null>();

function expressionText(e: Mask | Mod | ((at: typeof CONTEXT) => Expr) | undefined): string | null {
  if (e === undefined) return '';
  if (typeof e === 'function') return printed(e);
  let text = built.get(e);
  if (text === undefined) {
    text = printed(e.build);
    built.set(e, text);
  }
  return text;
}

/** What a function builds now: variables it closes over may have changed since the last call. */
function printed(build: (at: typeof CONTEXT) => Expr): string | null {
  try {
    const expr = build(CONTEXT);
    const sides: TensorLike[] = [];
    for (const e of nodesOf(expr)) {
      if (e.kind !== 'load') continue;
      if (!isEngineTensor(e.tensor)) return null;
      if (!sides.includes(e.tensor)) sides.push(e.tensor);
    }
    return `${printExpr(expr, sides)}{${sides.map(idOf).join(' ')}}`;
  } catch {
    return null;
  }
}

const ids = new WeakMap<object, number>();
let lastId = 0;

function idOf(o: object): number {
  let id = ids.get(o);
  if (id === undefined) {
    id = ++lastId;
    ids.set(o, id);
  }
  return id;
}
