/** From files and flags to the tensors and options of one attention call. */
import type { AttentionOptions } from '../api/options.ts';
import type { FloatDType } from '../core/dtype.ts';
import { ArgumentError } from '../core/errors.ts';
import { type HostTensor, tensor } from '../core/tensor.ts';
import { alibiSlopes, and, documents, maskTensor } from '../mods/library.ts';
import { converted, loadTensor } from './files.ts';
import { type ScoreFlags, scoreSettings } from './scores.ts';

export interface InputFlags extends ScoreFlags {
  readonly q: string;
  readonly k: string;
  readonly v: string;
  readonly dtype?: FloatDType;
  readonly mask?: string;
  readonly bias?: string;
  readonly alibi?: true | string;
  readonly sink?: string;
  readonly documents?: string;
  readonly blockLayout?: string;
  readonly blockSize?: number;
  readonly cuSeqlensQ?: string;
  readonly cuSeqlensK?: string;
  readonly grad?: string;
  readonly dLse?: string;
}

export interface Loaded {
  readonly q: HostTensor;
  readonly k: HostTensor;
  readonly v: HostTensor;
  readonly options: AttentionOptions;
  readonly dOut: HostTensor | null;
  readonly dLse: HostTensor | null;
  /** A result with as many axes as the files had. */
  readonly restore: (t: HostTensor) => HostTensor;
}

/** @throws ArgumentError and FormatError naming the option or file. */
export async function loadInputs(flags: InputFlags): Promise<Loaded> {
  const optional = async (option: string, spec: string | undefined): Promise<HostTensor | null> =>
    spec === undefined ? null : loadTensor(option, spec);
  const [fileQ, fileK, fileV, mask, bias, ids, blocks, sink, cuQ, cuK, dOut, dLse] = await Promise.all([
    loadTensor('--q', flags.q),
    loadTensor('--k', flags.k),
    loadTensor('--v', flags.v),
    optional('--mask', flags.mask),
    optional('--bias', flags.bias),
    optional('--documents', flags.documents),
    optional('--block-layout', flags.blockLayout),
    optional('--sink', flags.sink),
    optional('--cu-seqlens-q', flags.cuSeqlensQ),
    optional('--cu-seqlens-k', flags.cuSeqlensK),
    optional('--grad', flags.grad),
    optional('--d-lse', flags.dLse),
  ]);
  const dtype = flags.dtype ?? (fileQ.dtype as FloatDType);
  const row: FloatDType = dtype === 'f64' ? 'f64' : 'f32';
  const packed = cuQ !== null;
  // Missing leading axes are axes of length 1; packed tensors may be [H, total, D] as they are.
  const missing = packed ? 0 : Math.max(0, 4 - fileQ.shape.length);
  const axes = (t: HostTensor, n = missing): HostTensor =>
    n === 0 ? t : tensor(t.data, [...new Array<number>(n).fill(1), ...t.shape], t.dtype);
  const [q, k, v] = [fileQ, fileK, fileV].map((t) => axes(converted(t, dtype)));

  const settings = scoreSettings(flags);
  const masks = settings.masks;
  if (ids !== null) masks.push(documents(ids));
  const slopes = flags.alibi === undefined ? null : await slopesOf(flags.alibi, q, settings.options.layout);
  if (blocks !== null && flags.blockSize === undefined)
    throw new ArgumentError('--block-size', 'the edge of a block in positions', undefined);
  const options: AttentionOptions = {
    ...settings.options,
    ...(masks.length > 0
      ? { mask: and(...masks, ...(mask === null ? [] : [maskTensor(mask)])) }
      : mask === null
        ? {}
        : { mask }),
    ...(bias === null ? {} : { bias }),
    ...(slopes === null ? {} : { alibi: slopes }),
    ...(sink === null ? {} : { sink: converted(sink, row) }),
    ...(blocks === null ? {} : { blockSparse: { layout: blocks, blockSize: flags.blockSize as number } }),
    ...(cuQ === null
      ? {}
      : { cuSeqlens: { q: offsets('--cu-seqlens-q', cuQ), ...(cuK && { k: offsets('--cu-seqlens-k', cuK) }) } }),
  };
  return {
    q,
    k,
    v,
    options,
    dOut: dOut && axes(converted(dOut, dtype)),
    dLse: dLse && axes(converted(dLse, row), packed ? 0 : Math.max(0, 3 - dLse.shape.length)),
    restore: (t) => (missing === 0 ? t : tensor(t.data, t.shape.slice(missing), t.dtype)),
  };
}

async function slopesOf(spec: true | string, q: HostTensor, layout = 'bhnd'): Promise<HostTensor> {
  if (spec !== true) return loadTensor('--alibi', spec);
  return alibiSlopes(q.shape[q.shape.length - (layout === 'bnhd' ? 2 : 3)] ?? 1);
}

function offsets(option: string, t: HostTensor): Int32Array {
  if (!(t.data instanceof Int32Array) || t.shape.length !== 1) throw new ArgumentError(option, 'i32 or i64 [B + 1]', t);
  return t.data;
}
