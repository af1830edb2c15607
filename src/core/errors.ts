/**
 * Every error the library throws on purpose. The message says which argument, what was expected and what came;
 * `code` is stable and meant for programs.
 */
export type ErrorCode =
  | 'ARGUMENT' // wrong kind, shape, dtype or value of an argument
  | 'EXPRESSION' // a mask or score expression that cannot mean anything: type error, out-of-range load, no derivative
  | 'UNSUPPORTED' // no engine can do it; `refusals` says why
  | 'MEMORY' // an engine has no room; sizes in the message
  | 'DEVICE' // a device, driver, worker or compiler failed
  | 'DISPOSED' // a tensor or engine was used after dispose
  | 'FORMAT'; // malformed .npy or .safetensors bytes

/** The base of every error of the library. */
export class TilewiseError extends Error {
  readonly code: ErrorCode;
  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** An argument is wrong: `got` is shown as it came. */
export class ArgumentError extends TilewiseError {
  readonly argument: string;
  constructor(argument: string, expected: string, got: unknown) {
    super('ARGUMENT', `${argument}: expected ${expected}, got ${show(got)}`);
    this.argument = argument;
  }
}

/** A mask or modifier means nothing: a type error, a load that may leave its tensor, an op without the derivative asked for. */
export class ExpressionError extends TilewiseError {
  constructor(message: string) {
    super('EXPRESSION', message);
  }
}

/** Why one kernel or engine does not serve a problem. A value, not an exception: it travels inside the plan. */
export interface Refusal {
  readonly engine: string;
  /** Absent when the whole engine refuses. */
  readonly kernel?: string;
  readonly reason: string;
}

/** No engine of the order serves the call. `refusals` has each one's reason. */
export class UnsupportedError extends TilewiseError {
  readonly refusals: readonly Refusal[];
  constructor(what: string, refusals: readonly Refusal[]) {
    const list = refusals.map((r) => `  ${r.kernel ? `${r.engine}/${r.kernel}` : r.engine}: ${r.reason}`);
    super('UNSUPPORTED', [`${what}: no engine can serve it`, ...list].join('\n'));
    this.refusals = refusals;
  }
}

/** An allocation does not fit. Nothing was written and the engine stays usable. Sizes in bytes. */
export class MemoryError extends TilewiseError {
  readonly requested: number;
  readonly available: number;
  constructor(engine: string, requested: number, available: number) {
    super('MEMORY', `${engine}: asked for ${requested} bytes, ${available} bytes are free`);
    this.requested = requested;
    this.available = available;
  }
}

/** A device, driver, worker or compiler failed, or is not there. */
export class DeviceError extends TilewiseError {
  readonly engine: string;
  constructor(engine: string, message: string, options?: ErrorOptions) {
    super('DEVICE', `${engine}: ${message}`, options);
    this.engine = engine;
  }
}

/** A tensor, cache, run or engine was used after its end. */
export class DisposedError extends TilewiseError {
  constructor(what: string) {
    super('DISPOSED', `${what} was used after dispose()`);
  }
}

/** Bytes are not what their format promises. */
export class FormatError extends TilewiseError {
  constructor(format: string, expected: string, got: unknown) {
    super('FORMAT', `${format}: expected ${expected}, got ${show(got)}`);
  }
}

function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(show).join(', ')}]`;
  if (value !== null && typeof value === 'object') {
    const t = value as { dtype?: unknown; shape?: unknown };
    if (t.dtype !== undefined && Array.isArray(t.shape)) return `${String(t.dtype)}[${t.shape.join(', ')}]`;
    return value.constructor?.name ?? 'object';
  }
  return String(value);
}
