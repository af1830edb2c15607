/**
 * While V8's flags are changed, no thread of the process may instantiate a module: an instance made then lacks what baseline
 * code, compiled under the usual flags, writes to, and the process ends. Starting a worker does it (Node strips types and
 * reads CommonJS with WebAssembly), and so does giving one a module. Both are announced here, and awaited before a change.
 * Workers that are not this library's are beyond reach, which is one reason why the mode has to be asked for.
 */
const busy = new Set<Promise<unknown>>();

/** Announces that other threads instantiate modules until `work` has settled. */
export function instantiating<T>(work: Promise<T>): Promise<T> {
  const settled = work.then(
    () => {},
    () => {},
  );
  busy.add(settled);
  void settled.then(() => busy.delete(settled));
  return work;
}

/** Resolves when no thread of this library instantiates a module; what follows in the same turn is safe. */
export async function quiet(): Promise<void> {
  while (busy.size > 0) await Promise.all(busy);
}
