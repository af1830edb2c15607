/** Getting a block of K or V rows as neighbouring f32 rows: in place when they are, else copied into scratch. */
import { BYTES } from '../../../core/dtype.ts';
import type { Problem } from '../../../problem/problem.ts';
import type { Callable, FuncBuilder, Local } from '../asm/func.ts';
import type { ModuleBuilder } from '../asm/module.ts';
import { f32x4, type I32, i32, type V128, v128 } from '../asm/values.ts';
import type { Stored } from '../storage.ts';
import { ints } from '../tile.ts';
import { ITEM, minimum } from './items.ts';
import { PARAMS } from './params.ts';
import { emitStraighten } from './rows.ts';

/** Emits `fetch`, which gives the address of rows kv0 ... kv0 + rows - 1 of an item's K or V. */
export function emitFetch(
  m: ModuleBuilder,
  problem: Problem,
  which: 'k' | 'v',
): (f: FuncBuilder, params: Local<'i32'>, item: Local<'i32'>, kv0: Local<'i32'>, rows: I32, to: I32) => Local<'i32'> {
  const size = which === 'k' ? problem.D : problem.Dv;
  const dtype = problem.dtype as Stored;
  const stride = which === 'k' ? 'strideK' : 'strideV';
  if (problem.kv.kind === 'paged') {
    const gather = emitGather(m, which, size, emitStraighten(m, `straighten_${which}`, dtype, size));
    return (f, params, item, kv0, rows, to) => {
      const target = f.let(to, which);
      f.call(gather, params, item, kv0, rows, target);
      return target;
    };
  }
  const straighten = straightener(m, `straighten_${which}`, dtype, size);
  return (f, params, item, kv0, rows, to) => {
    const step = f.let(PARAMS.i32(params, stride), 'stride');
    const at = f.let(i32.add(ITEM.i32(item, which), i32.mul(kv0, step)), which);
    straighten(f, at, step, rows, to);
    return at;
  };
}

/**
 * Rows as neighbouring f32 rows: emits code that, where they are not, copies them to `to` and sets `at` to it. Returned
 * for a size and type, so that the copying function exists once.
 */
export function straightener(
  m: ModuleBuilder,
  name: string,
  dtype: Stored,
  size: number,
): (f: FuncBuilder, at: Local<'i32'>, stride: I32, rows: I32, to: I32) => void {
  const copy = emitStraighten(m, name, dtype, size);
  return (f, at, stride, rows, to) => {
    const move = (): void => {
      f.call(copy, at, stride, rows, to);
      f.set(at, to);
    };
    if (dtype === 'f32') f.if(i32.ne(stride, size * BYTES.f32), move);
    else move();
  };
}

/** (params, item, kv0, rows, to): rows found page by page. */
function emitGather(m: ModuleBuilder, which: 'k' | 'v', size: number, straighten: Callable): Callable {
  const params = { params: 'i32', item: 'i32', kv0: 'i32', rows: 'i32', to: 'i32' } as const;
  return m.func(`gather_${which}`, params, (f, a) => {
    const pageSize = f.let(PARAMS.i32(a.params, 'pageSize'), 'pageSize');
    const stride = f.let(PARAMS.i32(a.params, which === 'k' ? 'strideK' : 'strideV'), 'stride');
    const first = f.let(i32.mul(ITEM.i32(a.item, 'b'), PARAMS.i32(a.params, 'maxPages')), 'first');
    const end = f.let(i32.add(a.kv0, a.rows), 'end');
    f.block((done) =>
      f.loop((again) => {
        f.branch(done, i32.ge_s(a.kv0, end));
        const inPage = f.let(i32.rem_u(a.kv0, pageSize), 'inPage');
        const n = f.let(minimum(f, i32.sub(pageSize, inPage), i32.sub(end, a.kv0)), 'n');
        const entry = i32.add(first, i32.div_u(a.kv0, pageSize));
        const page = i32.load(i32.add(PARAMS.i32(a.params, 'table'), i32.mul(entry, 4)));
        const start = i32.mul(page, PARAMS.i32(a.params, which === 'k' ? 'pageBytesK' : 'pageBytesV'));
        const from = i32.add(i32.add(ITEM.i32(a.item, which), start), i32.mul(inPage, stride));
        f.call(straighten, from, stride, n, a.to);
        f.bump(a.kv0, n);
        f.bump(a.to, i32.mul(n, 4 * size));
        f.branch(again);
      }),
    );
  });
}

/**
 * (at, elements, flag): stores 1 at `flag` when some of the elements is infinite or NaN, else 0. Such values must not be
 * multiplied by the zero weight of a masked position.
 */
export function emitCheckFinite(m: ModuleBuilder): Callable {
  return m.func('check_finite', { at: 'i32', elements: 'i32', flag: 'i32' }, (f, a) => {
    // Four sums, or each addition would wait for the one before it.
    const sums = [0, 1, 2, 3].map(() => f.let(ints(0), 'sum'));
    const end = f.let(i32.add(a.at, i32.mul(a.elements, 4)), 'end');
    const whole = f.let(i32.add(a.at, i32.mul(i32.and(a.elements, -16), 4)), 'whole');
    f.sweep(a.at, whole, 64, (at) => {
      for (const [i, sum] of sums.entries()) f.set(sum, f32x4.add(sum, f32x4.mul(v128.load(at, 16 * i), ints(0))));
    });
    f.sweep(whole, end, 4, (at) => f.set(sums[0], f32x4.add(sums[0], f32x4.mul(v128.load32_splat(at), ints(0)))));
    const sum = f.let(sums.slice(1).reduce<V128>((x, y) => f32x4.add(x, y), sums[0]));
    f.do(i32.store(a.flag, v128.any_true(f32x4.ne(sum, sum))));
  });
}
