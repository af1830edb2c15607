/** Runs a conformance spec on the reference engine, for tests that look at its numbers. */
import { type Outputs, type Results, Run } from '../../src/conformance/execute.ts';
import { type Inputs, outputsOf, type Spec } from '../../src/conformance/spec.ts';
import { open } from '../../src/engines/reference/index.ts';
import { choosePlan } from '../../src/plan/choose.ts';
import type { Problem } from '../../src/problem/problem.ts';

const engine = await open();

/** Forward's results, and backward's when the problem asks for gradients. */
export async function results(problem: Problem, inputs: Inputs, spec: Spec, backward = true): Promise<Results> {
  const outputs: Outputs = outputsOf(problem, spec);
  const plan = choosePlan(problem, [engine]);
  const run = new Run(engine, problem, inputs, outputs);
  try {
    const forward = (await run.pass(plan.forward)).results;
    if (plan.backward === null || !backward) return forward;
    return new Map([...forward, ...(await run.pass(plan.backward)).results]);
  } finally {
    run.dispose();
  }
}
