/**
 * Where this machine's own findings are kept (compiled programs, measured configurations): the environment's TILEWISE_CACHE, else
 * `tilewise` in the user's cache folder. Null where there are no files, as in browsers.
 *
 * Node's modules are asked for at run time: bundlers for browsers follow imports.
 */
export function cacheRoot(): { readonly path: string; readonly named: boolean } | null {
  const node = globalThis.process;
  if (typeof node?.getBuiltinModule !== 'function') return null;
  try {
    const own = node.env.TILEWISE_CACHE;
    if (own !== undefined && own !== '') return { path: own, named: true };
    const { homedir } = node.getBuiltinModule('node:os');
    const { join } = node.getBuiltinModule('node:path');
    const base =
      node.platform === 'win32'
        ? (node.env.LOCALAPPDATA ?? homedir())
        : (node.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'));
    return { path: join(base, 'tilewise'), named: false };
  } catch {
    // Deno without leave to read the environment.
    return null;
  }
}
