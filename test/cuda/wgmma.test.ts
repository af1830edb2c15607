import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { tensor } from '../../src/core/tensor.ts';
import type { Driver } from '../../src/engines/cuda/driver/api.ts';
import { encodeTensorMap } from '../../src/engines/cuda/driver/tensormap.ts';
import type { CudaCaps, CudaKernel } from '../../src/engines/cuda/kernel.ts';
import { backwardWgmma } from '../../src/engines/cuda/kernels/backward_wgmma.ts';
import { backwardWgmmaFused, walkOf } from '../../src/engines/cuda/kernels/backward_wgmma_fused.ts';
import { backwardWgmmaPair } from '../../src/engines/cuda/kernels/backward_wgmma_pair.ts';
import { forwardWgmma } from '../../src/engines/cuda/kernels/forward_wgmma.ts';
import { Assembler } from '../../src/engines/cuda/ptx/assembler.ts';
import {
  arrive,
  arriveExpecting,
  arriveNamed,
  copyBox,
  cursorOf,
  fenceAsync,
  initBarrier,
  publishBarriers,
  setRegisters,
  syncNamed,
  TENSOR_MAP,
  tensorMap,
  waitParity,
} from '../../src/engines/cuda/ptx/async.ts';
import { advance, descriptor, wgmma, wgmmaCommit, wgmmaFence, wgmmaWait } from '../../src/engines/cuda/ptx/wgmma.ts';
import { CONTEXT } from '../../src/mods/expr.ts';
import { alibi, causal, slidingWindow, softcap } from '../../src/mods/library.ts';
import { createProblem, denseSequences, type Problem, stridesOf } from '../../src/problem/problem.ts';
import { blockRuns } from '../../src/problem/ranges.ts';
import { assemble, ptxasMissing } from './ptxas.ts';

const assembler = (): Assembler => new Assembler({ name: 'probe', target: 'sm_90a', threads: 128, blocksPerSm: 1 });

test('wgmma: operands are checked where they are given', () => {
  const a = assembler();
  const d = descriptor(a, a.constant('b32', 1024));
  const accumulate = a.op('setp.eq.s32', a.constant('b32', 0), 0);
  const options = { type: 'bf16', accumulate } as const;
  assert.throws(() => wgmma(a, a.regs('f32', 3), d, d, options), /4 to 128 accumulators/);
  assert.throws(() => wgmma(a, a.regs('f32', 132), d, d, options), /4 to 128 accumulators/);
  assert.throws(() => wgmma(a, a.regs('f32', 8), a.regs('b32', 2), d, options), /4 registers of the left operand/);
  assert.throws(
    () => wgmma(a, a.regs('f32', 8), a.regs('b32', 4), d, { ...options, leftDownRows: true }),
    /cannot be transposed/,
  );
  assert.throws(() => setRegisters(a, 'inc', 100), /multiple of 8/);
  assert.throws(() => copyBox(a, a.reg('b32'), 0, a.reg('b64'), [0], a.reg('b32')), /2 to 5 coordinates/);
});

test('wgmma: a product spells its shape from its accumulators', () => {
  const a = assembler();
  const d = descriptor(a, a.constant('b32', 0));
  const accumulate = a.op('setp.eq.s32', a.constant('b32', 0), 0);
  wgmma(a, a.regs('f32', 40), a.regs('b32', 4), d, { type: 'f16', accumulate, downRows: true });
  assert.match(
    a.finish().text,
    /wgmma\.mma_async\.sync\.aligned\.m64n80k16\.f32\.f16\.f16 \{.*\}, 1, 1, 1;|, 1, 1, 1;/,
  );
});

test('every Hopper instruction assembles', { skip: ptxasMissing }, () => {
  const a = assembler();
  const map = tensorMap(a, a.parameterBytes('map', TENSOR_MAP.bytes, TENSOR_MAP.align));
  const out = a.parameter('out', 'b64');
  const data = a.sharedAddress(a.shared('data', 16384, 1024));
  const barrier = a.sharedAddress(a.shared('barrier', 16, 8));
  const first = a.op('setp.eq.s32', a.special('tid.x'), 0);
  const cursor = cursorOf(a, 2, 0);
  a.if(first, () => {
    initBarrier(a, barrier, 0, 1);
    initBarrier(a, barrier, 8, 128);
    publishBarriers(a);
    arriveExpecting(a, barrier, 16384);
    for (const panel of [0, 1]) copyBox(a, data, panel * 8192, map, [64 * panel, 0, 0, 0], barrier);
  });
  a.barrier();
  setRegisters(a, 'inc', 240);
  waitParity(a, barrier, cursor.parity);
  cursor.advance();
  const no = a.op('setp.eq.s32', a.constant('b32', 1), 0);
  const acc = a.regs('f32', 32);
  const d = descriptor(a, data, 8192);
  fenceAsync(a);
  wgmmaFence(a);
  wgmma(a, acc, d, advance(a, d, 32), { type: 'bf16', accumulate: no });
  wgmma(a, acc, d, advance(a, d, 2048), {
    type: 'bf16',
    accumulate: a.op('not.pred', no),
    downRows: true,
    leftDownRows: true,
  });
  wgmmaCommit(a);
  wgmmaWait(a, 0);
  arrive(a, barrier, 8);
  arriveNamed(a, 1, 256);
  syncNamed(a, a.constant('b32', 1), 256);
  acc.forEach((x, i) => {
    a.store('global', 'f32', out, x, 4 * i);
  });
  const text = a.finish();
  const { spilled, warnings, argumentBytes } = assemble(text);
  // Tensor maps are aligned by their place in memory, so where they lie depends on where the argument block starts.
  assert.equal(argumentBytes, text.parameterBytes);
  assert.equal(spilled, 0);
  assert.equal(warnings, '');
});

test('a tensor map: strides in bytes, box and extents as given, memory aligned', () => {
  const seen: unknown[] = [];
  const driver = {
    addressOf: () => 16,
    cuTensorMapEncodeTiled: (map: Uint8Array, ...rest: unknown[]) => {
      seen.push(map.byteOffset, map.length, ...rest);
      return 0;
    },
  } as unknown as Driver;
  encodeTensorMap(driver, {
    type: 'bf16',
    address: 4096,
    dims: [40, 300, 6, 1],
    strides: [240, 40, 7],
    box: [64, 128, 1, 1],
    swizzle: '128B',
  });
  assert.deepEqual(seen.slice(0, 5), [48, 128, 9, 4, 4096]);
  assert.deepEqual(seen[5], BigUint64Array.of(40n, 300n, 6n, 1n));
  assert.deepEqual(seen[6], BigUint64Array.of(480n, 80n, 16n));
  assert.deepEqual(seen[7], Uint32Array.of(64, 128, 1, 1));
  const refusing = { ...driver, cuTensorMapEncodeTiled: () => 1 } as Driver;
  assert.throws(
    () =>
      encodeTensorMap(refusing, { type: 'f16', address: 1, dims: [8, 8], strides: [8], box: [8, 8], swizzle: 'none' }),
    /refused \(CUresult 1\) a tensor of 8 x 8/,
  );
});

const HOPPER = { capability: 90, sharedPerBlock: 232448, multiprocessors: 132 } as CudaCaps;

function problemOf(D: number, overrides: Partial<Problem> = {}): Problem {
  const rows = stridesOf('bhnd', 4, 512, D);
  return createProblem({
    B: 2,
    Hq: 4,
    Hkv: 4,
    Sq: 512,
    Sk: 512,
    D,
    Dv: D,
    dtype: 'bf16',
    scale: 0.125,
    strides: { q: rows, k: rows, v: rows, out: rows, lse: stridesOf('bhnd', 4, 512, 1) },
    sequences: denseSequences(2, 512, 512),
    uniform: true,
    kv: { kind: 'strided' },
    mask: null,
    mod: null,
    sides: [],
    sink: false,
    dropout: null,
    grads: null,
    ...overrides,
  });
}

const named = { mask: (m: ReturnType<typeof causal>) => ({ label: m.label, expr: m.build(CONTEXT) }) };

test('forward_wgmma: what it refuses, with reasons', () => {
  const plain = problemOf(128);
  assert.equal(forwardWgmma.refuse(plain, HOPPER), null);
  assert.match(forwardWgmma.refuse(plain, { ...HOPPER, capability: 80 }) ?? '', /9\.0/);
  assert.match(forwardWgmma.refuse(problemOf(128, { dtype: 'f32' }), HOPPER) ?? '', /f16 and bf16/);
  assert.match(forwardWgmma.refuse(problemOf(20), HOPPER) ?? '', /16 bytes/);
  const paged = { kv: { kind: 'paged', pageSize: 16, maxPages: 32, table: new Int32Array(64) } } as const;
  assert.match(forwardWgmma.refuse(problemOf(128, paged), HOPPER) ?? '', /paged/);
});

const slopes = tensor(Float32Array.of(0.5, 0.25, 0.1, 0.01), [4]);
const VARIANTS: readonly (readonly [string, Partial<Problem>])[] = [
  ['plain', {}],
  ['causal', { mask: named.mask(causal()) }],
  ['window', { mask: named.mask(slidingWindow(100)) }],
  ['lengths', { uniform: false }],
  ['softcap', { mod: { label: 'softcap', expr: softcap(20).build(CONTEXT) } }],
  [
    'alibi',
    { mask: named.mask(causal()), mod: { label: 'alibi', expr: alibi(slopes).build(CONTEXT) }, sides: [slopes] },
  ],
  ['dropout-causal', { mask: named.mask(causal()), dropout: { p: 0.1, seed: [1, 2], offset: 0 } }],
  ['dropout', { dropout: { p: 0.1, seed: [1, 2], offset: 0 } }],
];

const TABLE = join('test', 'golden', 'cuda', 'wgmma.json');
const update = process.env.UPDATE_GOLDEN === '1';
/** Hashes of texts that were assembled and found clean, by name: the same text gives the same code. */
const clean: Record<string, string> = existsSync(TABLE) ? JSON.parse(readFileSync(TABLE, 'utf8')) : {};
const found: Record<string, string> = {};
test.after(() => {
  if (update) writeFileSync(TABLE, `${JSON.stringify(found, null, 1)}\n`);
});

/** Every program of every configuration: assembled, with nothing spilled and no product waiting for another. */
function assembleAll(what: string, kernel: CudaKernel, problem: Problem, spills = 0): void {
  for (const config of kernel.configs(problem, HOPPER))
    for (const program of kernel.kernels(problem, config)) {
      const name = `${what} ${program.name} ${Object.values(config).join('/')}`;
      assert.ok(program.sharedBytes <= HOPPER.sharedPerBlock, `${name}: ${program.sharedBytes} bytes of shared memory`);
      found[name] = createHash('sha256').update(program.text).digest('hex').slice(0, 16);
      if (clean[name] === found[name] && !update && process.env.TILEWISE_FULL !== '1') continue;
      const { spilled, stack, warnings } = assemble(program);
      assert.ok(spilled <= spills, `${name}: ${spilled} bytes spilled`);
      if (spills === 0) assert.equal(stack, 0, name);
      assert.equal(warnings, '', name);
    }
}

const grads = { q: true, k: true, v: true, sides: [], sink: false };

for (const D of [64, 128, 256, 40, 192])
  for (const [what, overrides] of VARIANTS) {
    test(`backward_wgmma D=${D} ${what}: no spills, no products serialised, fits`, { skip: ptxasMissing }, () => {
      const problem = problemOf(D, { ...overrides, grads });
      if (backwardWgmma.refuse(problem, HOPPER) === null)
        assembleAll(`D=${D} ${what}`, backwardWgmma as CudaKernel, problem);
      else assert.match(backwardWgmma.refuse(problem, HOPPER) ?? '', /different lengths/);
    });
    test(`backward_wgmma_fused D=${D} ${what}: no spills, no products serialised, fits`, { skip: ptxasMissing }, () => {
      const problem = problemOf(D, { ...overrides, grads });
      if (backwardWgmmaFused.refuse(problem, HOPPER) === null)
        // Both halves of a step are in registers when a modifier or dropout is worked out: some do not fit, which still is
        // faster than two programs.
        assembleAll(
          `D=${D} ${what}`,
          backwardWgmmaFused as CudaKernel,
          problem,
          problem.mod !== null || problem.dropout !== null ? 1200 : 0,
        );
      else
        assert.match(backwardWgmmaFused.refuse(problem, HOPPER) ?? '', /different lengths|not yet checked|up to 128/);
    });
    test(`backward_wgmma_pair D=${D} ${what}: hardly any spills, no products serialised, fits`, {
      skip: ptxasMissing,
    }, () => {
      const problem = problemOf(D, { ...overrides, grads });
      const refused = backwardWgmmaPair.refuse(problem, HOPPER);
      if (refused === null) assembleAll(`D=${D} ${what}`, backwardWgmmaPair as CudaKernel, problem, 48);
      else assert.match(refused, /different lengths|modifiers and dropout|129 to 256/);
    });
    test(`forward_wgmma D=${D} ${what}: no spills, no products serialised, fits`, { skip: ptxasMissing }, () => {
      assembleAll(`D=${D} ${what}`, forwardWgmma as CudaKernel, problemOf(D, overrides));
    });
  }

test('backward_wgmma_fused: every block is walked once, and sums of dQ go by the order in which key blocks start', () => {
  for (const mask of [null, named.mask(causal()), named.mask(slidingWindow(100)), named.mask(slidingWindow(0, 300))])
    for (const reverse of [false, true])
      for (const blockQ of [64, 128]) {
        const problem = problemOf(64, { mask, grads });
        const runs = { ...blockRuns(problem, 'kv', blockQ, 128) };
        const tiles = 512 / blockQ;
        const { start, steps } = walkOf(problem, runs, tiles, reverse);
        const seen: number[][] = Array.from({ length: tiles }, () => []);
        for (let j = 0; j < runs.rows; j++) {
          const row = runs.rowOf(0, 0, reverse ? runs.rows - 1 - j : j);
          const walked = Array.from({ length: start[row + 1] - start[row] }, (_, i) => 2 * (start[row] + i));
          const due: number[] = [];
          for (let i = runs.rowStart[row]; i < runs.rowStart[row + 1]; i++)
            for (let tile = runs.runs[3 * i]; tile < runs.runs[3 * i + 1]; tile++)
              due.push(2 * tile + runs.runs[3 * i + 2]);
          if (!reverse) due.reverse();
          assert.deepEqual(
            walked.map((at) => steps[at]),
            due,
          );
          for (const at of walked) seen[steps[at] >> 1].push(steps[at + 1]);
        }
        for (const of of seen) assert.deepEqual(of, [...of.keys()]);
      }
});
