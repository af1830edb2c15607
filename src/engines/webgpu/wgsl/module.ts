/**
 * Builds one WGSL compute shader. Bindings and parameters are declared once, by name, and numbered here; the runtime reads the
 * same record to make the bind group layout and to pack the uniform buffer, so that code and host cannot disagree.
 */
export type Access = 'read' | 'read_write';
export type ParamType = 'u32' | 'i32' | 'f32';

export interface Binding {
  readonly name: string;
  readonly access: Access;
  /** WGSL type of the whole variable, such as `array<vec4<f32>>`. */
  readonly type: string;
}

export interface Param {
  readonly name: string;
  readonly type: ParamType;
}

/** A compute shader with everything the runtime must know of it. Group 0: the uniform at binding 0, storage from 1 on. */
export interface Shader {
  readonly name: string;
  readonly code: string;
  readonly bindings: readonly Binding[];
  readonly params: readonly Param[];
}

/** What the entry point sees besides the declared names. */
const BUILTINS = [
  '@builtin(workgroup_id) group: vec3<u32>',
  '@builtin(num_workgroups) groups: vec3<u32>',
  '@builtin(local_invocation_index) local: u32',
];
const SUBGROUP_BUILTINS = [
  '@builtin(subgroup_id) subgroup: u32',
  '@builtin(subgroup_size) subgroupSize: u32',
  '@builtin(subgroup_invocation_id) lane: u32',
];

export interface Entry {
  readonly name: string;
  /** Invocations of a workgroup, in one dimension. */
  readonly threads: number;
  /** Brings `subgroup`, `subgroupSize` and `lane` into the entry point. */
  readonly subgroups?: boolean;
  readonly body: string;
}

export class ModuleBuilder {
  /** First word of each side tensor in the buffer that holds all, or null where each has its own. */
  readonly sidePlaces: readonly number[] | null;
  readonly #enables: string[] = [];
  readonly #bindings: Binding[] = [];
  readonly #params: Param[] = [];
  readonly #declarations: string[] = [];
  readonly #functions = new Map<string, string>();

  constructor(sidePlaces: readonly number[] | null = null) {
    this.sidePlaces = sidePlaces;
  }

  /** Turns on a WGSL extension, such as `f16`. */
  enable(extension: string): void {
    if (!this.#enables.includes(`enable ${extension};`)) this.#enables.push(`enable ${extension};`);
  }

  /** A storage buffer. Asking again for the same name gives the same binding. */
  storage(name: string, type: string, access: Access = 'read'): string {
    if (!this.#bindings.some((b) => b.name === name)) this.#bindings.push({ name, access, type });
    return name;
  }

  /** A uniform scalar; the result is how code refers to it. */
  param(name: string, type: ParamType = 'u32'): string {
    if (!this.#params.some((p) => p.name === name)) this.#params.push({ name, type });
    return `P.${name}`;
  }

  workgroup(name: string, type: string): string {
    return this.#declare(name, `var<workgroup> ${name}: ${type};`);
  }

  /** A variable of the invocation that helper functions share. Never uniform in WGSL's eyes. */
  local(name: string, type: string): string {
    return this.#declare(name, `var<private> ${name}: ${type};`);
  }

  #declare(name: string, text: string): string {
    if (!this.#declarations.includes(text)) this.#declarations.push(text);
    return name;
  }

  /** A helper function. Declaring a name twice keeps the first text. */
  fn(name: string, text: string): string {
    if (!this.#functions.has(name)) this.#functions.set(name, text.trim());
    return name;
  }

  build(entry: Entry): Shader {
    const bindings = this.#bindings.map(
      (b, i) => `@group(0) @binding(${i + 1}) var<storage, ${b.access}> ${b.name}: ${b.type};`,
    );
    const params =
      this.#params.length === 0
        ? []
        : [
            `struct Params {\n${this.#params.map((p) => `  ${p.name}: ${p.type},`).join('\n')}\n}`,
            '@group(0) @binding(0) var<uniform> P: Params;',
          ];
    if (entry.subgroups) this.enable('subgroups');
    const builtins = entry.subgroups ? [...BUILTINS, ...SUBGROUP_BUILTINS] : BUILTINS;
    const code = [
      ...this.#enables,
      ...(entry.subgroups ? ['requires subgroup_id;'] : []),
      ...params,
      ...bindings,
      ...this.#declarations,
      ...this.#functions.values(),
      `@compute @workgroup_size(${entry.threads})`,
      `fn main(${builtins.join(', ')}) {\n${indent(entry.body.trim())}\n}`,
    ].join('\n');
    return { name: entry.name, code: `${code}\n`, bindings: [...this.#bindings], params: [...this.#params] };
  }
}

/** The uniform buffer of a shader: 4 bytes a parameter in order of declaration, padded to 16. */
export function packParams(shader: Shader, values: Readonly<Record<string, number>>): ArrayBuffer {
  const buffer = new ArrayBuffer(Math.max(16, Math.ceil(shader.params.length / 4) * 16));
  const view = new DataView(buffer);
  shader.params.forEach(({ name, type }, i) => {
    const value = values[name];
    if (value === undefined) throw new Error(`${shader.name}: no value for parameter ${name}`);
    if (type === 'f32') view.setFloat32(i * 4, value, true);
    else if (type === 'i32') view.setInt32(i * 4, value, true);
    else view.setUint32(i * 4, value, true);
  });
  return buffer;
}

/** Indents by two spaces for every open brace, so that emitted code reads like written code. */
function indent(text: string): string {
  let depth = 1;
  return text
    .split('\n')
    .map((raw) => raw.trim())
    .filter((line) => line !== '')
    .map((line) => {
      if (line.startsWith('}')) depth--;
      const out = '  '.repeat(Math.max(depth, 0)) + line;
      const opened = (line.match(/{/g) ?? []).length;
      const closed = (line.match(/}/g) ?? []).length;
      depth += opened - closed + (line.startsWith('}') ? 1 : 0);
      return out;
    })
    .join('\n');
}
