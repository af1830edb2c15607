/** A function as folded WebAssembly text, for `dump` and golden files. */
import type { FuncBuilder } from './func.ts';
import type { Node } from './values.ts';

const WIDTH = 116;

export function printFunction(f: FuncBuilder, exported: boolean): string {
  const params = f.params.map((p) => ` (param $${p.label} ${p.type})`).join('');
  const head = `  (func $${f.name}${exported ? ` (export "${f.name}")` : ''}${params}`;
  const locals = f.locals.map((l) => `(local $${l.label} ${l.type})`);
  const lines = [head, ...wrap(locals, 4)];
  for (const node of f.body) print(node, 4, lines);
  return `${lines.join('\n')})`;
}

function print(node: Node, indent: number, lines: string[]): void {
  const pad = ' '.repeat(indent);
  if (node.bodies !== undefined) {
    const head = node.label === undefined ? node.name : `${node.name} $${node.label}`;
    const condition = node.args.map((a) => ` ${folded(a)}`).join('');
    lines.push(`${pad}(${head}${condition}`);
    const [first, second] = node.bodies;
    const inner = node.name === 'if' ? indent + 4 : indent + 2;
    if (node.name === 'if') lines.push(`${pad}  (then`);
    for (const n of first) print(n, inner, lines);
    if (node.name === 'if') lines.push(`${lines.pop()})`);
    if (second !== undefined) {
      lines.push(`${pad}  (else`);
      for (const n of second) print(n, inner, lines);
      lines.push(`${lines.pop()})`);
    }
    lines.push(`${lines.pop()})`);
    return;
  }
  lines.push(pad + folded(node));
}

function folded(node: Node): string {
  const parts = [head(node), ...node.args.map(folded)];
  return `(${parts.join(' ')})`;
}

function head(node: Node): string {
  if (node.label !== undefined) return `${node.name} $${node.label}`;
  if (node.name.endsWith('.const')) {
    const lanes = node.name === 'v128.const' ? ' i32x4' : '';
    return `${node.name}${lanes} ${node.imm.map(number).join(' ')}`;
  }
  const isMemory = /\.(load|store)/.test(node.name);
  if (!isMemory) return [node.name, ...node.imm].join(' ');
  const [offset, ...lanes] = node.imm;
  return [node.name, ...(offset === 0 ? [] : [`offset=${offset}`]), ...lanes].join(' ');
}

const number = (x: number): string =>
  Number.isNaN(x) ? 'nan' : Number.isFinite(x) ? String(Object.is(x, -0) ? '-0' : x) : x > 0 ? 'inf' : '-inf';

function wrap(words: readonly string[], indent: number): string[] {
  const lines: string[] = [];
  for (const w of words) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + w.length < WIDTH) lines[lines.length - 1] = `${last} ${w}`;
    else lines.push(' '.repeat(indent) + w);
  }
  return lines;
}
