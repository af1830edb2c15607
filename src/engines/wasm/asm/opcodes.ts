/**
 * The instructions the kernels use, by their names in the WebAssembly specification: opcode, operand types, result type and
 * immediates. Opcodes above 0xff carry their prefix byte in the third hexadecimal digit and up: 0xfd000 + n.
 */
export type ValType = 'i32' | 'f32' | 'v128';

/** Immediates: none, a memory offset (and natural alignment), a lane number, both, or sixteen lane numbers. */
export type Immediate = 'none' | 'memory' | 'lane' | 'memory-lane' | 'shuffle';

export interface Opcode {
  readonly code: number;
  readonly args: readonly ValType[];
  readonly result: ValType | null;
  readonly imm: Immediate;
  /** log2 of the access size in bytes, for memory instructions. */
  readonly align: number;
}

const PLAIN = { imm: 'none', align: 0 } as const;
const unary = <A extends ValType, R extends ValType>(code: number, a: A, r: R) =>
  ({ code, args: [a], result: r, ...PLAIN }) as const;
const binary = <A extends ValType, R extends ValType>(code: number, a: A, r: R) =>
  ({ code, args: [a, a], result: r, ...PLAIN }) as const;
const loads = <R extends ValType>(code: number, align: number, result: R) =>
  ({ code, args: ['i32'], result, imm: 'memory', align }) as const;
const stores = <A extends ValType>(code: number, align: number, a: A) =>
  ({ code, args: ['i32', a], result: null, imm: 'memory', align }) as const;

const SIMD = 0xfd000;
const v1 = (n: number) => unary(SIMD + n, 'v128', 'v128');
const v2 = (n: number) => binary(SIMD + n, 'v128', 'v128');
const v3 = (n: number) => ({ code: SIMD + n, args: ['v128', 'v128', 'v128'], result: 'v128', ...PLAIN }) as const;
const shift = (n: number) => ({ code: SIMD + n, args: ['v128', 'i32'], result: 'v128', ...PLAIN }) as const;
const test = (n: number) => unary(SIMD + n, 'v128', 'i32');
const extract = <R extends ValType>(n: number, result: R) =>
  ({ code: SIMD + n, args: ['v128'], result, imm: 'lane', align: 0 }) as const;
const replace = <A extends ValType>(n: number, a: A) =>
  ({ code: SIMD + n, args: ['v128', a], result: 'v128', imm: 'lane', align: 0 }) as const;

export const OPCODES = {
  'i32.load': loads(0x28, 2, 'i32'),
  'i32.load8_u': loads(0x2d, 0, 'i32'),
  'i32.load16_u': loads(0x2f, 1, 'i32'),
  'i32.store': stores(0x36, 2, 'i32'),
  'i32.store16': stores(0x3b, 1, 'i32'),
  'f32.load': loads(0x2a, 2, 'f32'),
  'f32.store': stores(0x38, 2, 'f32'),

  'i32.eqz': unary(0x45, 'i32', 'i32'),
  'i32.eq': binary(0x46, 'i32', 'i32'),
  'i32.ne': binary(0x47, 'i32', 'i32'),
  'i32.lt_s': binary(0x48, 'i32', 'i32'),
  'i32.lt_u': binary(0x49, 'i32', 'i32'),
  'i32.gt_s': binary(0x4a, 'i32', 'i32'),
  'i32.le_s': binary(0x4c, 'i32', 'i32'),
  'i32.ge_s': binary(0x4e, 'i32', 'i32'),
  'i32.ge_u': binary(0x4f, 'i32', 'i32'),
  'i32.add': binary(0x6a, 'i32', 'i32'),
  'i32.sub': binary(0x6b, 'i32', 'i32'),
  'i32.mul': binary(0x6c, 'i32', 'i32'),
  'i32.div_s': binary(0x6d, 'i32', 'i32'),
  'i32.div_u': binary(0x6e, 'i32', 'i32'),
  'i32.rem_s': binary(0x6f, 'i32', 'i32'),
  'i32.rem_u': binary(0x70, 'i32', 'i32'),
  'i32.and': binary(0x71, 'i32', 'i32'),
  'i32.or': binary(0x72, 'i32', 'i32'),
  'i32.xor': binary(0x73, 'i32', 'i32'),
  'i32.shl': binary(0x74, 'i32', 'i32'),
  'i32.shr_s': binary(0x75, 'i32', 'i32'),
  'i32.shr_u': binary(0x76, 'i32', 'i32'),
  'i32.reinterpret_f32': unary(0xbc, 'f32', 'i32'),
  'i32.trunc_sat_f32_s': unary(0xfc000, 'f32', 'i32'),

  'f32.eq': binary(0x5b, 'f32', 'i32'),
  'f32.ne': binary(0x5c, 'f32', 'i32'),
  'f32.lt': binary(0x5d, 'f32', 'i32'),
  'f32.gt': binary(0x5e, 'f32', 'i32'),
  'f32.le': binary(0x5f, 'f32', 'i32'),
  'f32.ge': binary(0x60, 'f32', 'i32'),
  'f32.abs': unary(0x8b, 'f32', 'f32'),
  'f32.neg': unary(0x8c, 'f32', 'f32'),
  'f32.floor': unary(0x8e, 'f32', 'f32'),
  'f32.nearest': unary(0x90, 'f32', 'f32'),
  'f32.sqrt': unary(0x91, 'f32', 'f32'),
  'f32.add': binary(0x92, 'f32', 'f32'),
  'f32.sub': binary(0x93, 'f32', 'f32'),
  'f32.mul': binary(0x94, 'f32', 'f32'),
  'f32.div': binary(0x95, 'f32', 'f32'),
  'f32.min': binary(0x96, 'f32', 'f32'),
  'f32.max': binary(0x97, 'f32', 'f32'),
  'f32.convert_i32_s': unary(0xb2, 'i32', 'f32'),
  'f32.reinterpret_i32': unary(0xbe, 'i32', 'f32'),

  'v128.load': loads(SIMD + 0, 4, 'v128'),
  'v128.load8x8_u': loads(SIMD + 2, 3, 'v128'),
  'v128.load16x4_u': loads(SIMD + 4, 3, 'v128'),
  'v128.load32_splat': loads(SIMD + 9, 2, 'v128'),
  'v128.load32_zero': loads(SIMD + 92, 2, 'v128'),
  'v128.load64_zero': loads(SIMD + 93, 3, 'v128'),
  'v128.store': stores(SIMD + 11, 4, 'v128'),
  'v128.load32_lane': { code: SIMD + 86, args: ['i32', 'v128'], result: 'v128', imm: 'memory-lane', align: 2 },
  'v128.store32_lane': { code: SIMD + 90, args: ['i32', 'v128'], result: null, imm: 'memory-lane', align: 2 },
  'v128.store64_lane': { code: SIMD + 91, args: ['i32', 'v128'], result: null, imm: 'memory-lane', align: 3 },
  'v128.not': v1(77),
  'v128.and': v2(78),
  'v128.andnot': v2(79),
  'v128.or': v2(80),
  'v128.xor': v2(81),
  'v128.bitselect': v3(82),
  'v128.any_true': test(83),
  'i8x16.shuffle': { code: SIMD + 13, args: ['v128', 'v128'], result: 'v128', imm: 'shuffle', align: 0 },
  'i16x8.narrow_i32x4_u': v2(134),
  'i32x4.splat': unary(SIMD + 17, 'i32', 'v128'),
  'i32x4.extract_lane': extract(27, 'i32'),
  'i32x4.replace_lane': replace(28, 'i32'),
  'i32x4.eq': v2(55),
  'i32x4.ne': v2(56),
  'i32x4.lt_s': v2(57),
  'i32x4.lt_u': v2(58),
  'i32x4.le_s': v2(61),
  'i32x4.ge_u': v2(64),
  'i32x4.extend_low_i16x8_u': v1(169),
  'i32x4.extend_high_i16x8_u': v1(170),
  'i32x4.abs': v1(160),
  'i32x4.all_true': test(163),
  'i32x4.shl': shift(171),
  'i32x4.shr_s': shift(172),
  'i32x4.shr_u': shift(173),
  'i32x4.add': v2(174),
  'i32x4.sub': v2(177),
  'i32x4.mul': v2(181),
  'i32x4.min_s': v2(182),
  'i32x4.max_s': v2(184),
  'i64x2.extmul_low_i32x4_u': v2(222),
  'i64x2.extmul_high_i32x4_u': v2(223),
  'i32x4.trunc_sat_f32x4_s': v1(248),
  'f32x4.splat': unary(SIMD + 19, 'f32', 'v128'),
  'f32x4.extract_lane': extract(31, 'f32'),
  'f32x4.replace_lane': replace(32, 'f32'),
  'f32x4.eq': v2(65),
  'f32x4.ne': v2(66),
  'f32x4.lt': v2(67),
  'f32x4.gt': v2(68),
  'f32x4.le': v2(69),
  'f32x4.ge': v2(70),
  'f32x4.floor': v1(104),
  'f32x4.nearest': v1(106),
  'f32x4.abs': v1(224),
  'f32x4.neg': v1(225),
  'f32x4.sqrt': v1(227),
  'f32x4.add': v2(228),
  'f32x4.sub': v2(229),
  'f32x4.mul': v2(230),
  'f32x4.div': v2(231),
  'f32x4.min': v2(232),
  'f32x4.max': v2(233),
  'f32x4.pmin': v2(234),
  'f32x4.pmax': v2(235),
  'f32x4.convert_i32x4_s': v1(250),
  'f32x4.relaxed_madd': v3(0x105),
} as const satisfies Record<string, Opcode>;

export type OpcodeName = keyof typeof OPCODES;
