/** Trees to bytes of the code section. */
import type { FuncBuilder } from './func.ts';
import { signed, unsigned } from './leb128.ts';
import { OPCODES, type Opcode } from './opcodes.ts';
import type { Node } from './values.ts';

const CONTROL: Readonly<Record<string, number>> = {
  block: 0x02,
  loop: 0x03,
  if: 0x04,
  br: 0x0c,
  br_if: 0x0d,
  return: 0x0f,
  call: 0x10,
  select: 0x1b,
  'local.get': 0x20,
  'local.set': 0x21,
};
const ELSE = 0x05;
const END = 0x0b;
/** Block type of a block without result. */
const EMPTY = 0x40;
/** `select` is untyped for numbers; v128 needs the form that names its type. */
const SELECT_TYPED = 0x1c;

const word = new DataView(new ArrayBuffer(4));

export function encodeFunction(f: FuncBuilder, out: number[]): void {
  for (const node of f.body) encode(node, out);
  out.push(END);
}

function encode(node: Node, out: number[]): void {
  for (const arg of node.args) encode(arg, out);
  const op: Opcode | undefined = (OPCODES as Readonly<Record<string, Opcode>>)[node.name];
  if (op !== undefined) encodeOp(op, node.imm, out);
  else if (node.name.endsWith('.const')) encodeConst(node, out);
  else encodeControl(node, out);
}

function encodeOp(op: Opcode, imm: readonly number[], out: number[]): void {
  if (op.code > 0xff) {
    out.push(op.code >> 12);
    unsigned(op.code & 0xfff, out);
  } else out.push(op.code);
  if (op.imm === 'memory' || op.imm === 'memory-lane') {
    unsigned(op.align, out);
    unsigned(imm[0], out);
    if (op.imm === 'memory-lane') out.push(imm[1]);
  } else for (const lane of imm) out.push(lane);
}

function encodeConst(node: Node, out: number[]): void {
  if (node.name === 'i32.const') {
    out.push(0x41);
    signed(node.imm[0], out);
  } else if (node.name === 'f32.const') {
    out.push(0x43);
    word.setFloat32(0, node.imm[0], true);
    for (let i = 0; i < 4; i++) out.push(word.getUint8(i));
  } else {
    out.push(0xfd);
    unsigned(12, out);
    for (const w of node.imm) for (let i = 0; i < 4; i++) out.push((w >>> (8 * i)) & 0xff);
  }
}

function encodeControl(node: Node, out: number[]): void {
  const code = CONTROL[node.name];
  if (code === undefined) throw new TypeError(`no encoding for ${node.name}`);
  if (node.name === 'select' && node.type === 'v128') {
    out.push(SELECT_TYPED, 1, 0x7b);
    return;
  }
  out.push(code);
  if (node.bodies !== undefined) {
    out.push(EMPTY);
    for (const [i, body] of node.bodies.entries()) {
      if (i > 0) out.push(ELSE);
      for (const inner of body) encode(inner, out);
    }
    out.push(END);
  } else for (const n of node.imm) unsigned(n, out);
}
