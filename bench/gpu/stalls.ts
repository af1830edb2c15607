/** Where the warps of a kernel spend their time, from Nsight Compute's samples of each instruction (its source page as CSV). */

/** Shares of all samples, by what the sampled instruction is for. */
export interface Account {
  readonly function: string;
  readonly samples: number;
  /** Of the warps that compute. */
  readonly shares: Readonly<Record<string, number>>;
  /** Samples of warps that move data, of all samples. */
  readonly moving: number;
  /** The reasons, of the samples of computing warps. */
  readonly reasons: Readonly<Record<string, number>>;
  /** The instructions sampled most. */
  readonly hottest: readonly {
    readonly at: number;
    readonly sass: string;
    readonly share: number;
    readonly reason: string;
  }[];
}

/** What instructions are for, the first that fits. A warp waits at an instruction for what that instruction needs. */
const PURPOSES: readonly (readonly [purpose: string, opcode: RegExp, reason?: RegExp])[] = [
  ['products', /^(HGMMA|WARPGROUP|HMMA|LDSM)/],
  ['turns of the warpgroups', /./, /^barrier$/],
  ['products', /./, /^gmma$/],
  ['waiting for copies', /^(BRA|SYNCS|VOTEU|FENCE|LDS|NANOSLEEP)/, /^long_sb$/],
  ['exponentials', /^MUFU/],
  ['maxima and sums of rows', /^(FMNMX|FADD|SHFL|FSEL)/],
  ['scaling and rescaling', /^(FFMA|FMUL)/],
  ['rounding to 16 bits', /^(F2FP|PRMT)/],
  ['storing', /^(ST|STS|STSM|UTMASTG|RED|UTMAREDG)/],
  ['addresses and descriptors', /^(R2UR|IMAD|IADD3|VIADD|LEA|U[A-Z]|MOV|CS2R|S2R|LDC)/],
];
const REST = 'masks and control';

/** Rows of a CSV page: quoted cells. */
export const csvRows = (text: string): string[][] =>
  text
    .split('\n')
    .filter((line) => line.startsWith('"'))
    .map((line) => [...line.matchAll(/"((?:[^"]|"")*)"(?:,|$)/g)].map((m) => m[1]));

interface Instruction {
  readonly sass: string;
  readonly opcode: string;
  readonly samples: number;
  readonly reasons: ReadonlyMap<string, number>;
}

/** One account a kernel, in the order of launches. `page` is `ncu --import FILE --page source --csv`. */
export function accounts(page: string): Account[] {
  const found: { name: string; code: Instruction[] }[] = [];
  let head: readonly string[] | null = null;
  for (const cells of csvRows(page)) {
    if (cells[0] === 'Kernel Name') {
      found.push({ name: cells[1], code: [] });
      head = null;
    } else if (head === null) head = cells;
    else found[found.length - 1]?.code.push(instruction(head, cells));
  }
  return found.map(({ name, code }) => accountOf(name, code));
}

function instruction(head: readonly string[], cells: readonly string[]): Instruction {
  const number = (i: number): number => Number((cells[i] ?? '').replaceAll(',', '')) || 0;
  const reasons = new Map<string, number>();
  head.forEach((name, i) => {
    const reason = /^stall_(\w+)$/.exec(name)?.[1];
    if (reason !== undefined && number(i) > 0) reasons.set(reason, number(i));
  });
  const sass = (cells[head.indexOf('Source')] ?? '').trim();
  const opcode = sass.split(/\s+/).find((word) => !word.startsWith('@')) ?? '';
  return { sass, opcode, samples: number(head.indexOf('# Samples')), reasons };
}

function accountOf(name: string, code: readonly Instruction[]): Account {
  const all = code.reduce((n, { samples }) => n + samples, 0);
  const purposes = new Map<string, number>();
  const reasons = new Map<string, number>();
  const add = (to: Map<string, number>, key: string, n: number): void => void to.set(key, (to.get(key) ?? 0) + n);
  let [moves, moving, computing] = [false, 0, 0];
  for (const { opcode, reasons: why, samples, sass } of code) {
    // Warps that give registers away move data, those that take them compute; code before is both's.
    if (opcode.startsWith('USETMAXREG')) moves = sass.includes('DEALLOC');
    if (moves) {
      moving += samples;
      continue;
    }
    computing += samples;
    for (const [reason, n] of why) {
      add(reasons, reason, n);
      const [purpose] = PURPOSES.find(([, op, re]) => op.test(opcode) && (re === undefined || re.test(reason))) ?? [
        REST,
      ];
      add(purposes, purpose, n);
    }
  }
  const shares = (of: Map<string, number>): Record<string, number> =>
    Object.fromEntries(
      [...of].sort((a, b) => b[1] - a[1]).map(([key, n]) => [key, Number((n / Math.max(computing, 1)).toFixed(4))]),
    );
  const hottest = code
    .map(({ sass, samples, reasons: why }, at) => ({
      at,
      sass,
      share: Number((samples / Math.max(all, 1)).toFixed(4)),
      reason: [...why].sort((a, b) => b[1] - a[1])[0]?.[0] ?? '',
    }))
    .sort((a, b) => b.share - a.share)
    .slice(0, 6);
  return {
    ...{ function: name, samples: all, shares: shares(purposes) },
    ...{ moving: Number((moving / Math.max(all, 1)).toFixed(4)), reasons: shares(reasons), hottest },
  };
}
