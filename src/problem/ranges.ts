/**
 * Which blocks of the score matrix have to be visited: the only place that turns a mask into loop bounds. Found by
 * bisection with interval arithmetic, so no mask is ever evaluated on Sq x Sk.
 */
import { type BlockClass, type Box, classifier } from '../mods/classify.ts';
import { type Bool, type IndexName, nodesOf } from '../mods/expr.ts';
import type { BoundsCache, Domain } from '../mods/interval.ts';
import { printExpr } from '../mods/print.ts';
import { simplify } from '../mods/simplify.ts';
import type { Problem } from './problem.ts';

/**
 * Runs of blocks to visit, row by row. A row is one block of queries (`by: 'q'`, runs count blocks of keys) or of keys
 * (`by: 'kv'`, the reverse) of one (batch, head). Runs are in order, disjoint and never start at or past the sequence's
 * end; blocks in no run are skipped. Read-only: shared between calls.
 */
export interface BlockRuns {
  /** Rows of one (b, h): blocks of the longest sequence. Rows past a shorter sequence have no runs. */
  readonly rows: number;
  /** Runs of row r are number rowStart[r] up to, without, rowStart[r + 1]. */
  readonly rowStart: Int32Array;
  /** Triples (first, end, partial): blocks first ... end - 1, partial 0 when every position inside the sequence attends. */
  readonly runs: Int32Array;
  /** Row of block i of (b, h) is b * strideB + h * strideH + i; strides are 0 when all batches or heads share rows. */
  readonly strideB: number;
  readonly strideH: number;
  rowOf(b: number, h: number, i: number): number;
  /** Number of runs of a row. */
  count(row: number): number;
}

/** Lengths of sequence b. */
export const lengthsOf = ({ sequences, uniform, Sq, Sk }: Problem, b: number): { lenQ: number; lenK: number } =>
  uniform ? { lenQ: Sq, lenK: Sk } : { lenQ: sequences[b * 4 + 1], lenK: sequences[b * 4 + 3] };

/** The values every index of an expression takes over a problem, for `verifyLoads`. */
export function domainOf(problem: Problem): Domain {
  const { B, Hq, Sq, Sk } = problem;
  let [minQ, minK] = [Sq, Sk];
  for (let b = 0; b < B; b++) {
    const { lenQ, lenK } = lengthsOf(problem, b);
    minQ = Math.min(minQ, lenQ);
    minK = Math.min(minK, lenK);
  }
  return {
    b: { lo: 0, hi: B - 1 },
    h: { lo: 0, hi: Hq - 1 },
    q: { lo: 0, hi: Sq - 1 },
    kv: { lo: 0, hi: Sk - 1 },
    lenQ: { lo: minQ, hi: Sq },
    lenK: { lo: minK, hi: Sk },
  };
}

/** What a mask depends on, by expression. */
interface MaskFacts {
  readonly expr: Bool;
  readonly reads: ReadonlySet<IndexName>;
  /** Canonical text, or null when the mask reads tensors, whose contents may change between calls. */
  readonly text: string | null;
}

const factsCache = new WeakMap<Bool, MaskFacts>();

function factsOf(mask: Bool): MaskFacts {
  let facts = factsCache.get(mask);
  if (facts === undefined) {
    const expr = simplify(mask);
    const nodes = nodesOf(expr);
    const reads = new Set(nodes.flatMap((e) => (e.kind === 'index' ? [e.name] : [])));
    facts = { expr, reads, text: nodes.some((e) => e.kind === 'load') ? null : printExpr(expr) };
    factsCache.set(mask, facts);
  }
  return facts;
}

/** Runs that follow from sizes and mask text alone; oldest are dropped first. */
const shared = new Map<string, unknown>();
const SHARED_ENTRIES = 128;
const byProblem = new WeakMap<Problem, Map<string, unknown>>();

function cacheOf(problem: Problem): Map<string, unknown> {
  const cache = byProblem.get(problem) ?? new Map<string, unknown>();
  byProblem.set(problem, cache);
  return cache;
}

/**
 * Remembers what `make` finds out about which positions of a problem attend: across problems when sizes and the text of
 * the mask decide it, for the life of the problem when tensors or sequence lengths do.
 */
export function remember<T>(problem: Problem, what: string, make: () => T): T {
  const { B, Hq, Sq, Sk, mask } = problem;
  const text = mask === null ? '' : factsOf(mask.expr).text;
  const own = text === null || !problem.uniform;
  const cache = own ? cacheOf(problem) : shared;
  const key = own ? what : `${what} ${B} ${Hq} ${Sq} ${Sk} ${text}`;
  const found = cache.get(key) as T | undefined;
  if (found !== undefined) return found;
  const made = make();
  if (cache === shared && shared.size >= SHARED_ENTRIES) shared.delete(shared.keys().next().value as string);
  cache.set(key, made);
  return made;
}

/**
 * The blocks to visit. Cached: a second call with the same problem, or with the same sizes and mask, is a look-up.
 *
 * @param by which axis the rows are blocks of.
 */
export const blockRuns = (problem: Problem, by: 'q' | 'kv', blockQ: number, blockK: number): BlockRuns =>
  remember(problem, `${by} ${blockQ} ${blockK}`, () => findRuns(problem, by, blockQ, blockK));

/** `classifier` of a problem's mask, whose bounds of side tensors are gathered once a problem. */
export function problemClassifier(problem: Problem): (box: Box) => BlockClass {
  if (problem.mask === null) return () => 'full';
  const { expr } = factsOf(problem.mask.expr);
  const bounds = remember<BoundsCache>(problem, 'bounds', () => new Map());
  return classifier(expr, bounds);
}

/** Whether positions attend differently from batch to batch and from head to head. */
export function variesWith(problem: Problem): { b: boolean; h: boolean } {
  const reads = problem.mask === null ? null : factsOf(problem.mask.expr).reads;
  return { b: !problem.uniform || reads?.has('b') === true, h: reads?.has('h') === true };
}

function findRuns(problem: Problem, by: 'q' | 'kv', blockQ: number, blockK: number): BlockRuns {
  const [block, across] = by === 'q' ? [blockQ, blockK] : [blockK, blockQ];
  const rows = Math.ceil((by === 'q' ? problem.Sq : problem.Sk) / block);
  const varies = variesWith(problem);
  const [batches, heads] = [varies.b ? problem.B : Math.min(problem.B, 1), varies.h ? problem.Hq : 1];
  const rowStart = new Int32Array(batches * heads * rows + 1);
  const runs: number[] = [];
  const classify = problemClassifier(problem);

  let row = 0;
  for (let b = 0; b < batches; b++) {
    const { lenQ, lenK } = lengthsOf(problem, b);
    const [length, acrossLength] = by === 'q' ? [lenQ, lenK] : [lenK, lenQ];
    for (let h = 0; h < heads; h++) {
      const found = bisect(Math.ceil(length / block), Math.ceil(acrossLength / across), (r, c) => {
        const own = [r[0] * block, Math.min(r[1] * block, length) - 1] as const;
        const other = [c[0] * across, Math.min(c[1] * across, acrossLength) - 1] as const;
        return classify(by === 'q' ? { b, h, lenQ, lenK, q: own, kv: other } : { b, h, lenQ, lenK, q: other, kv: own });
      });
      for (let i = 0; i < rows; i++) {
        if (i < found.length) for (const x of found[i]) runs.push(x);
        rowStart[++row] = runs.length / 3;
      }
    }
  }
  const strideH = varies.h ? rows : 0;
  const strideB = varies.b ? heads * rows : 0;
  return Object.freeze({
    rows,
    rowStart,
    runs: Int32Array.from(runs),
    strideB,
    strideH,
    rowOf: (b: number, h: number, i: number) => b * strideB + h * strideH + i,
    count: (r: number) => rowStart[r + 1] - rowStart[r],
  });
}

/** First block and the end of a range of blocks. */
type Span = readonly [first: number, end: number];

/**
 * Runs of every row of a matrix of blocks. Rectangles of blocks that attend as a whole, or not at all, are settled at
 * once; others are quartered. Of two rectangles in one row the left one is visited first, so runs come in order.
 */
function bisect(rows: number, columns: number, classify: (rows: Span, columns: Span) => BlockClass): number[][] {
  const found = Array.from({ length: rows }, (): number[] => []);
  const visit = (r: Span, c: Span): void => {
    const kind = classify(r, c);
    if (kind === 'skip') return;
    if (kind === 'partial' && (r[1] - r[0] > 1 || c[1] - c[0] > 1)) {
      for (const half of halves(r)) for (const other of halves(c)) visit(half, other);
      return;
    }
    for (let i = r[0]; i < r[1]; i++) append(found[i], c, kind === 'partial' ? 1 : 0);
  };
  if (rows > 0 && columns > 0) visit([0, rows], [0, columns]);
  return found;
}

function halves([first, end]: Span): readonly Span[] {
  if (end - first === 1) return [[first, end]];
  const middle = (first + end) >> 1;
  return [
    [first, middle],
    [middle, end],
  ];
}

/** Adds a run to a row, or lengthens the last one. */
function append(row: number[], [first, end]: Span, partial: 0 | 1): void {
  const n = row.length;
  if (n > 0 && row[n - 2] === first && row[n - 1] === partial) row[n - 2] = end;
  else row.push(first, end, partial);
}
