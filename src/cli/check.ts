import type { Command } from 'commander';
import { CASES, type Case } from '../conformance/cases.ts';
import { type CaseResult, runCase } from '../conformance/suite.ts';
import { ArgumentError } from '../core/errors.ts';
import type { Engine } from '../engine/contract.ts';
import { command, InterruptedError, interruptible } from './command.ts';
import { type EngineFlags, engineOptions, withEngines } from './engines.ts';
import { machine } from './machine.ts';
import { print, printJson, progress, significant, table } from './terminal.ts';

interface Flags extends EngineFlags {
  readonly filter?: string;
  readonly quick?: boolean;
  readonly json?: boolean;
}

/** The conformance table on this machine: every case against float64 under the precision rule. */
export const check = (): Command =>
  engineOptions(
    command('check', 'the conformance table on this machine: every case against float64', [
      'tilewise check',
      'tilewise check --quick --engine wasm --threads 1',
      'tilewise check --filter dropout --json',
    ]),
  )
    .option('--quick', 'a subset that touches every feature once')
    .option('--filter <text>', 'only cases whose id contains it')
    .option('--json', 'print JSON')
    .action((flags: Flags) => withEngines(flags, (engines) => run(flags, engines[0])));

async function run(flags: Flags, engine: Engine): Promise<void> {
  const cases = CASES.filter((c) => (!flags.quick || c.quick) && c.id.includes(flags.filter ?? ''));
  if (cases.length === 0) throw new ArgumentError('--filter', 'part of the id of a case', flags.filter);
  const results = await runAll(cases, engine);
  const failed = results.filter((r) => !r.ok);
  if (flags.json) printJson({ machine: machine(), engine: engine.caps, results });
  else show(results, engine);
  if (failed.length > 0) process.exitCode = 1;
}

async function runAll(cases: readonly Case[], engine: Engine): Promise<CaseResult[]> {
  const bar = progress('');
  const signal = interruptible();
  const results: CaseResult[] = [];
  try {
    for (const [i, one] of cases.entries()) {
      if (signal.aborted) throw new InterruptedError();
      bar.update(i / cases.length, one.id);
      results.push(...(await runCase(one, engine)));
    }
  } finally {
    bar.stop();
  }
  return results;
}

function show(results: readonly CaseResult[], engine: Engine): void {
  print(`${engine.name}: ${engine.caps.device}`);
  const topics = new Map<string, CaseResult[]>();
  for (const r of results) {
    const key = `${topicOf(r.id)} ${r.pass}`;
    topics.set(key, [...(topics.get(key) ?? []), r]);
  }
  const body = [...topics.values()].map((list) => {
    const judged = list.filter((r) => r.skipped === undefined);
    const worst = judged.reduce((most, r) => Math.max(most, r.maxError === 0 ? 0 : r.maxError / r.allowed), 0);
    const ms = judged.reduce((sum, r) => sum + r.ms, 0);
    return [
      topicOf(list[0].id),
      list[0].pass,
      judged.filter((r) => r.ok).length,
      list.filter((r) => !r.ok).length,
      list.length - judged.length,
      `${(100 * worst).toFixed(0)} %`,
      significant(ms),
    ];
  });
  print(table(['topic', 'pass', 'passed', 'failed', 'skipped', 'error / allowed', 'ms'], body));
  for (const r of results) if (!r.ok) print(`failed   ${r.id} ${r.pass}: ${r.message}`);
  const reasons = new Map<string, number>();
  for (const r of results) if (r.skipped !== undefined) reasons.set(r.skipped, (reasons.get(r.skipped) ?? 0) + 1);
  for (const [reason, n] of reasons) print(`skipped  ${n}: ${reason}`);
  const failed = results.filter((r) => !r.ok).length;
  const skipped = results.filter((r) => r.skipped !== undefined).length;
  print(`${results.length - failed - skipped} passed, ${failed} failed, ${skipped} skipped`);
}

/** `f32:b1.hq2...:topic/name` -> topic. */
const topicOf = (id: string): string => (id.split(':').pop() ?? id).split('/')[0];
