/**
 * Imports an optional package at run time. The name is out of bundlers' sight, so that a bundle for browsers needs no
 * configuration for packages that only Node uses. Rejects as `import()` does when the package is not installed.
 */
export const optionalPackage = (name: string): Promise<unknown> =>
  import(/* webpackIgnore: true */ /* @vite-ignore */ name);
