import type { Command } from 'commander';
import { createRequest } from '../api/request.ts';
import { tunedHere } from '../api/tuned.ts';
import type { Engine, Listing } from '../engine/contract.ts';
import { choosePlan } from '../plan/choose.ts';
import type { Plan } from '../plan/plan.ts';
import type { Problem } from '../problem/problem.ts';
import { command } from './command.ts';
import { withEngines } from './engines.ts';
import { type PlannedFlags, plannedCall, plannedOptions } from './planned.ts';
import { print, printJson } from './terminal.ts';

/** The code that a plan's kernels emit, for reading. */
export const dump = (): Command =>
  plannedOptions(
    command('dump', "the code that the plan's kernels emit, as text", [
      'tilewise dump -n 4096 --causal | less',
      'tilewise dump -n 1024 --softcap 30 --grad --engine wasm > kernels.wat',
    ]),
  )
    .option('--json', 'print JSON: the plan, and name and text of each listing')
    .action((flags: PlannedFlags & { readonly json?: boolean }) =>
      withEngines(flags, async (engines) => {
        const { q, k, v, options, grads } = plannedCall(flags);
        const { problem } = createRequest(q, k, v, options, grads);
        const plan = choosePlan(problem, engines, { tuned: tunedHere() });
        const listings = listingsOf(plan, problem, engines.find((e) => e.name === plan.engine)!);
        if (flags.json) printJson({ plan, listings });
        else if (listings.length === 0) print(`;; ${plan.id}: the ${plan.engine} engine emits no code`);
        else for (const { name, text } of listings) print(`;; ${plan.id}: ${name}\n${text}\n`);
      }),
    );

function listingsOf(plan: Plan, problem: Problem, engine: Engine): readonly Listing[] {
  return [plan.forward, plan.backward].flatMap((step) => {
    const kernel = engine.kernels.find((x) => x.name === step?.kernel && x.pass === step.pass);
    return step === null || kernel === undefined ? [] : kernel.emit(problem, step.config, engine.caps);
  });
}
