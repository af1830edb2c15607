/**
 * Runs conformance cases on the Hopper kernels alone, every tile of theirs, with waits that trap instead of hanging: cases of the
 * table that they do not refuse, the float32 ones too in half precision, and longer ones over every head size.
 *
 *     node bench/hopper_table.ts OUT.json [shard=0/1] [match=REGEXP] [table] [halved] [long] [lifted | backward]
 *
 * `portable` instead: the other kernels of the engine on the cases with masks, modifiers and dropout.
 */
import { writeFileSync } from 'node:fs';
import { CASES, type Case } from '../src/conformance/cases.ts';
import { instantiate, type Spec, sizesName } from '../src/conformance/spec.ts';
import { type CaseResult, runCase } from '../src/conformance/suite.ts';
import { tensor } from '../src/core/tensor.ts';
import { open } from '../src/engines/cuda/index.ts';
import type { CudaKernel } from '../src/engines/cuda/kernel.ts';
import { backwardWgmma } from '../src/engines/cuda/kernels/backward_wgmma.ts';
import { forwardWgmma } from '../src/engines/cuda/kernels/forward_wgmma.ts';
import { alibi, and, causal, documents, slidingWindow, softcap } from '../src/mods/library.ts';
import { debugged } from './bounded.ts';

const [out, ...words] = process.argv.slice(2);
const [shard, shards] = (words.find((w) => w.startsWith('shard='))?.slice(6) ?? '0/1').split('/').map(Number);

const portable = words.includes('portable');

const named = (name: string, spec: Spec): Case => ({ id: `${sizesName(spec)}:${name}`, quick: false, spec });
const isHalf = (spec: Spec): boolean => spec.dtype === 'f16' || spec.dtype === 'bf16';

function halved(): Case[] {
  return CASES.filter(({ spec }) => (spec.dtype ?? 'f32') === 'f32').map(({ id, spec }, i) =>
    named(`${id.split(':')[2]} halved`, {
      ...spec,
      dtype: i % 2 === 0 ? 'bf16' : 'f16',
      D: spec.D === undefined ? 64 : spec.D,
    }),
  );
}

/** Several tiles each way, over head sizes. */
function long(): Case[] {
  const cases: Case[] = [];
  const ids = tensor(
    Int32Array.from({ length: 600 }, (_, i) => Math.floor(i / 130)),
    [1, 600],
  );
  const slopes = tensor(Float32Array.of(0.3, 0.05), [2]);
  const kinds: Record<string, Partial<Spec>> = {
    full: {},
    causal: { mask: () => causal() },
    window: { mask: () => and(causal(), slidingWindow(100)), sink: true },
    dropout: { dropout: { p: 0.2, seed: [5, 6], offset: 1 }, mask: () => causal() },
    documents: { Sk: 290, mask: () => and(causal(), documents(ids)) },
    alibi: { mod: () => alibi(slopes) },
    softcap: { mod: () => softcap(3), mask: () => causal() },
    softcapWide: { mod: () => softcap(50), gain: 20 },
    steep: { gain: 8 },
    steepCausal: { gain: 8, mask: () => causal(), sink: true },
    packed: {
      lengths: [
        [130, 200],
        [0, 20],
        [300, 290],
        [17, 0],
      ],
      mask: () => causal(),
    },
  };
  const sizes = [
    [64, 64],
    [64, 128],
    [128, 128],
    [136, 136],
    [192, 128],
    [128, 192],
    [192, 192],
    [256, 64],
    [256, 256],
    [40, 24],
  ];
  sizes.forEach(([D, Dv], i) => {
    Object.entries(kinds).forEach(([kind, spec], j) => {
      // Every other pair, and dropout with all: its tiles are its own.
      if ((i + j) % 2 === 1 && kind !== 'dropout') return;
      const dtype = (i + (j >> 1)) % 2 === 0 ? 'bf16' : 'f16';
      const heads = (i + j) % 3 === 0 ? { Hq: 2, Hkv: 1 } : { Hq: 2, Hkv: 2 };
      cases.push(named(`long/${kind}`, { dtype, Sq: 290, Sk: 410, D, Dv, ...heads, noGrads: true, ...spec }));
    });
  });
  return cases;
}

const wanted = [
  ...(words.includes('table') ? CASES.filter(({ spec }) => isHalf(spec)) : []),
  ...(words.includes('halved') ? halved() : []),
  ...(words.includes('long') ? long() : []),
  ...(portable ? CASES.filter(({ id }) => /:(masks|mods|packed|drops|bf16|f16)\//.test(id)) : []),
]
  .filter(({ id }) => new RegExp(words.find((w) => w.startsWith('match='))?.slice(6) ?? '').test(id))
  .filter((_, i) => i % shards === shard);

const engine = await open({ cache: process.env.TILEWISE_CACHE });
const kernels = portable
  ? engine.kernels.filter(({ name }) => !name.includes('wgmma'))
  : [debugged(forwardWgmma as CudaKernel), debugged(backwardWgmma as CudaKernel)];
Object.defineProperty(engine, 'kernels', { value: kernels });
const results: CaseResult[] = [];
let [passed, refused] = [0, 0];
for (const [at, one] of wanted.entries()) {
  if (portable) {
    for (const r of await runCase(one, engine)) {
      results.push(r);
      if (!r.ok) console.log(`WRONG ${r.id} ${r.pass} ${r.kernel}: ${r.message}`);
      else if (r.skipped === undefined) passed++;
    }
    continue;
  }
  if (at % 4 === 3) console.log(`shard ${shard}: ${passed} passed of ${at} cases so far`);
  const { D = 0, Dv = D } = one.spec;
  const asked =
    words.includes('backward') ||
    (words.includes('lifted') && (one.spec.dropout || (Math.max(D, Dv) > 128 && Math.max(D, Dv) <= 192)));
  const backward = asked && one.spec.noGrads !== true;
  const spec = backward ? one.spec : { ...one.spec, noGrads: true };
  const { problem } = instantiate(one.id, spec);
  const all = forwardWgmma.refuse(problem, engine.caps) === null ? forwardWgmma.configs(problem, engine.caps) : [];
  // Short cases take turns at the tiles.
  const configs = one.id.endsWith('halved')
    ? all.slice(0, 2).filter((_, i) => i === results.length % Math.min(all.length, 2))
    : all;
  if (configs.length === 0) refused++;
  for (const [i, config] of configs.entries()) {
    // Backward is run once.
    const only = { ...one, spec: backward && i === 0 ? spec : { ...spec, noGrads: true } };
    const chosen = kernels.map((k) => (k.pass === 'forward' ? { ...k, configs: () => [config] } : k));
    Object.defineProperty(engine, 'kernels', { value: chosen });
    for (const r of await runCase(only, engine)) {
      results.push(r);
      const name = `${r.id} ${r.pass} ${Object.values(config).join('/')}`;
      if (!r.ok) console.log(`WRONG ${name}: ${r.message}`);
      else if (r.skipped !== undefined) console.log(`skipped ${name}: ${r.skipped}`);
      else passed++;
    }
  }
}
console.log(
  `shard ${shard}: ${passed} passed, ${results.filter((r) => !r.ok).length} wrong, ${refused} refused of ${wanted.length}`,
);
writeFileSync(
  out,
  JSON.stringify(
    results.filter((r) => !r.ok || r.maxError > 0.7 * r.allowed),
    null,
    1,
  ),
);
await engine.close();
