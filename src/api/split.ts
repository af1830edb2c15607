/**
 * Calls on host tensors that are larger than the engine's memory: done in parts, some batches or some groups of heads at a
 * time, each an ordinary call on a copy of its rows. Sequences are never cut, so every part is exact by itself.
 */
import { allocate, BYTES } from '../core/dtype.ts';
import { MemoryError } from '../core/errors.ts';
import { ceilDiv } from '../core/math.ts';
import { type HostTensor, sizeOf, tensor } from '../core/tensor.ts';
import type { RunOptions } from '../engine/contract.ts';
import { apply, childrenOf, constant, type Expr, type I32, nodesOf } from '../mods/expr.ts';
import type { ExprType } from '../mods/ops.ts';
import { simplify } from '../mods/simplify.ts';
import { planOn } from '../plan/choose.ts';
import type { Named, Problem, Strides } from '../problem/problem.ts';
import type { AttentionOptions } from './options.ts';
import { type Call, compile } from './prepare.ts';
import type { Request } from './request.ts';
import { freeBytes, type HostInputs } from './run.ts';
import { isEngineTensor } from './tensors.ts';
import { tunedHere } from './tuned.ts';

/** Tensors of a call that have rows of its batches and heads. */
export type Role = 'q' | 'k' | 'v' | 'out' | 'lse';

/** Batches [b, b + batches) and key heads [h, h + heads). */
interface Range {
  readonly b: number;
  readonly batches: number;
  readonly h: number;
  readonly heads: number;
}

export interface Part {
  readonly call: Call;
  /** The part's rows of a host tensor, head-major. */
  slice(role: Role, whole: HostTensor): HostTensor;
  /** The part's elements of a tensor [Hq]. */
  heads(whole: HostTensor): HostTensor;
  /** Writes the part's rows back into their places. */
  place(role: Role, part: HostTensor, whole: HostTensor): void;
  /** Number of the part's first query head. */
  readonly firstHead: number;
}

/**
 * The fewest parts that fit into the engine's free memory.
 *
 * @param needed bytes that a call holds at once.
 * @throws MemoryError when one key head of one batch is too large still, or when dropout, whose bits depend on the place
 * of a head among all of them, stands in the way.
 */
export async function splitCall(
  call: Call,
  needed: (call: Call) => number,
  prefer: AttentionOptions['prefer'],
): Promise<readonly Part[]> {
  const { engine, request } = call;
  const { problem } = request;
  const free = freeBytes(engine);
  const batches = problem.strides.q.b === 0 ? 1 : problem.B;
  const units = batches * problem.Hkv;
  const fail = new MemoryError(engine.name, needed(call), free);
  if (problem.dropout !== null) throw fail;
  for (let count = 2; count < units * 2; count *= 2) {
    const parts = Math.min(count, units);
    const each = parts <= batches ? ceilDiv(batches, parts) : 1;
    const heads = parts <= batches ? problem.Hkv : ceilDiv(problem.Hkv, ceilDiv(parts, batches));
    const first = await partCall(call, { b: 0, batches: each, h: 0, heads }, prefer);
    if (first === null || needed(first) > free) continue;
    const ranges: Range[] = [];
    for (let b = 0; b < batches; b += each)
      for (let h = 0; h < problem.Hkv; h += heads)
        ranges.push({ b, batches: Math.min(each, batches - b), h, heads: Math.min(heads, problem.Hkv - h) });
    const calls = await Promise.all(ranges.map((range) => partCall(call, range, prefer)));
    const found = calls.filter((c) => c !== null);
    if (found.length === calls.length) return found.map((c, i) => partOf(problem, c, ranges[i]));
  }
  throw fail;
}

/** Elements a call's own tensors have, by role. */
function elementsOf({ problem, lseShape, rowsK, batches }: Request): Record<Role, number> {
  const rows = sizeOf(lseShape);
  const keys = rowsK * batches * problem.Hkv;
  return { q: rows * problem.D, k: keys * problem.D, v: keys * problem.Dv, out: rows * problem.Dv, lse: rows };
}

/** Bytes of the tensors named, and of every side. */
export function bytesOfRoles(request: Request, roles: readonly Role[]): number {
  const elements = elementsOf(request);
  const { dtype, sides } = request.problem;
  const size = (role: Role): number => (role === 'lse' ? (dtype === 'f64' ? 8 : 4) : BYTES[dtype]);
  const read = sides.reduce((sum, t) => sum + sizeOf(t.shape) * BYTES[t.dtype], 0);
  return roles.reduce((sum, role) => sum + elements[role] * size(role), read);
}

/** The call on some of the batches and heads; null when no kernel takes it. */
async function partCall(whole: Call, range: Range, prefer: AttentionOptions['prefer']): Promise<Call | null> {
  const { problem, rowsK, covered } = whole.request;
  const packed = problem.strides.q.b === 0;
  const group = problem.Hq / problem.Hkv;
  const [Hq, Hkv] = [range.heads * group, range.heads];
  const B = packed ? problem.B : range.batches;
  const rowsQ = problem.strides.lse.h;
  const strides = (H: number, rows: number, width: number): Strides => ({
    b: packed ? 0 : H * rows * width,
    h: rows * width,
    s: width,
  });
  const shift = { b: range.b, h: range.h * group };
  const part: Problem = Object.freeze({
    ...problem,
    B,
    Hq,
    Hkv,
    strides: {
      q: strides(Hq, rowsQ, problem.D),
      k: strides(Hkv, rowsK, problem.D),
      v: strides(Hkv, rowsK, problem.Dv),
      out: strides(Hq, rowsQ, problem.Dv),
      lse: strides(Hq, rowsQ, 1),
    },
    sequences: packed ? problem.sequences : problem.sequences.slice(range.b * 4, (range.b + range.batches) * 4),
    mask: shifted(problem.mask, shift),
    mod: shifted(problem.mod, shift),
  });
  const batches = packed ? 1 : range.batches;
  const request: Request = {
    problem: part,
    outShape: [batches, Hq, rowsQ, problem.Dv],
    lseShape: packed ? [Hq, rowsQ] : [batches, Hq, rowsQ],
    covered,
    rowsK,
    batches,
  };
  const { plan } = planOn(part, whole.engine, prefer, [], tunedHere());
  return plan === null ? null : compile(whole.engine, request, plan);
}

/** The expression as the whole call's positions see it: the part's b and h count from its own first ones. */
function shifted<T extends ExprType>(
  named: Named<Expr<T>> | null,
  shift: Readonly<Record<'b' | 'h', number>>,
): Named<Expr<T>> | null {
  if (named === null) return null;
  const done = new Map<Expr, Expr>();
  for (const e of nodesOf(named.expr))
    done.set(
      e,
      moved(
        e,
        childrenOf(e).map((c) => done.get(c) as Expr),
        shift,
      ),
    );
  return { label: named.label, expr: simplify(done.get(named.expr) as Expr<T>) };
}

function moved(e: Expr, children: readonly Expr[], shift: Readonly<Record<'b' | 'h', number>>): Expr {
  if (e.kind === 'index' && (e.name === 'b' || e.name === 'h')) return apply('iadd', e, constant('i32', shift[e.name]));
  if (e.kind === 'load') return { ...e, indices: children as readonly I32[] };
  return e.kind === 'op' ? { ...e, args: children } : e;
}

function partOf(problem: Problem, call: Call, { b, batches, h, heads }: Range): Part {
  const group = problem.Hq / problem.Hkv;
  const firstHead = h * group;
  const whole = problem.strides;
  const own = call.request.problem.strides;
  /** Calls `move` with the start of each piece that is contiguous in both tensors, in the whole and in the part. */
  const pieces = (role: Role, move: (whole: number, part: number, length: number) => void): void => {
    const keys = role === 'k' || role === 'v';
    const width = own[role].s;
    const rows = own[role].h / width;
    const [n, first] = keys ? [heads, h] : [heads * group, firstHead];
    const joined = whole[role].s === width;
    for (let i = 0; i < batches; i++)
      for (let j = 0; j < n; j++) {
        const from = (b + i) * whole[role].b + (first + j) * whole[role].h;
        const to = i * own[role].b + j * own[role].h;
        if (joined) move(from, to, rows * width);
        else for (let s = 0; s < rows; s++) move(from + s * whole[role].s, to + s * width, width);
      }
  };
  return {
    call,
    firstHead,
    slice(role, t) {
      const data = allocate(t.dtype, elementsOf(call.request)[role]);
      pieces(role, (from, to, length) => data.set(t.data.subarray(from, from + length), to));
      return tensor(data, [data.length], t.dtype);
    },
    heads: (t) => tensor(t.data.slice(firstHead, firstHead + heads * group), [heads * group], t.dtype),
    place(role, part, t) {
      pieces(role, (to, from, length) => t.data.set(part.data.subarray(from, from + length), to));
    },
  };
}

/** The part's share of what a call reads. */
export const sliceInputs = (part: Part, { q, k, v, sink }: HostInputs): HostInputs => ({
  q: part.slice('q', q),
  k: part.slice('k', k),
  v: part.slice('v', v),
  sink: sink === undefined ? undefined : part.heads(sink as HostTensor),
});

/** A part's share of the progress; stops between parts as well. */
export function partOptions({ signal, onProgress }: RunOptions, i: number, parts: number): RunOptions {
  signal?.throwIfAborted();
  return { signal, onProgress: onProgress && ((share) => onProgress((i + share) / parts)) };
}

/** Parts slice sinks on the host. */
export async function sinkOnHost(inputs: HostInputs): Promise<HostInputs> {
  const { sink } = inputs;
  return sink !== undefined && isEngineTensor(sink) ? { ...inputs, sink: await sink.read() } : inputs;
}
