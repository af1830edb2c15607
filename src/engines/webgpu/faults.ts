/**
 * WebGPU reports failures late and on the side: through error scopes, a lost promise, rejected maps. Here they become typed
 * errors that the engine's next call throws.
 */
import { DeviceError, MemoryError, type TilewiseError } from '../../core/errors.ts';

const message = (e: unknown): string =>
  e instanceof Error ? e.message : String((e as { message?: unknown }).message ?? e);

export class Faults {
  readonly #device: GPUDevice;
  readonly #limit: number;
  /** The device is gone: permanent. */
  #lost: DeviceError | null = null;
  /** The first failure since the last report. */
  #pending: TilewiseError | null = null;
  /** Scopes that have not answered yet. */
  readonly #open = new Set<Promise<void>>();
  #closing = false;

  constructor(device: GPUDevice, limit: number) {
    this.#device = device;
    this.#limit = limit;
    device.lost.then(({ reason, message: text }) => {
      this.#lost ??= new DeviceError('webgpu', this.#closing ? 'closed' : `device lost (${reason}): ${text}`);
    });
  }

  get lost(): DeviceError | null {
    return this.#lost;
  }

  /** @throws the device's loss, or the first failure that no call has reported yet. */
  check(): void {
    if (this.#lost !== null) throw this.#lost;
    const fault = this.#pending;
    this.#pending = null;
    if (fault !== null) throw fault;
  }

  /** Runs `work` and remembers what the device has to say about it. `bytes` is what it allocates. */
  watch<T>(what: string, bytes: number, work: () => T): T {
    const device = this.#device;
    device.pushErrorScope('out-of-memory');
    device.pushErrorScope('validation');
    try {
      return work();
    } finally {
      const note = (error: TilewiseError): void => {
        this.#pending ??= error;
      };
      const invalid = device.popErrorScope();
      const memory = device.popErrorScope();
      const answered = Promise.all([
        invalid.then((e) => e && note(new DeviceError('webgpu', `${what}: ${e.message}`))),
        memory.then((e) => e && note(new MemoryError('webgpu', bytes, this.#limit))),
      ])
        .catch((e: unknown) => note(this.#lost ?? new DeviceError('webgpu', `${what}: ${message(e)}`)))
        .then(() => {
          this.#open.delete(answered);
        });
      this.#open.add(answered);
    }
  }

  /** Waits for every scope, then checks. */
  async settle(): Promise<void> {
    await Promise.all(this.#open);
    this.check();
  }

  /** Wraps a rejection of the device. */
  error(what: string, cause: unknown): TilewiseError {
    if (this.#lost !== null) return this.#lost;
    return new DeviceError('webgpu', `${what}: ${message(cause)}`, { cause: cause as Error });
  }

  closing(): void {
    this.#closing = true;
  }
}
