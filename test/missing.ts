/** What a machine lacks: tests of it are skipped with the reason, except in CI. */
import test from 'node:test';

/** There a test that something is missing for fails: nobody would see that it was skipped. */
export const inCi: boolean = (process.env.CI ?? '') !== '';

/** A test that is skipped for `reason`, and fails in CI. */
export function missing(title: string, reason: string): void {
  test(title, { skip: inCi ? false : reason }, () => {
    throw new Error(reason);
  });
}
