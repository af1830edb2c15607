/** Runs the cases whose ids are its arguments, a line of JSON each: what `webgpu_deno.test.ts` starts in Deno. */
import { openEngine } from '../../src/api/registry.ts';
import { CASES } from '../../src/conformance/cases.ts';
import { runCase } from '../../src/conformance/suite.ts';

const engine = await openEngine('webgpu');
console.log(JSON.stringify(engine.caps.device));
for (const one of CASES.filter(({ id }) => process.argv.includes(id)))
  console.log(JSON.stringify({ id: one.id, results: await runCase(one, engine), left: engine.bytesInUse }));
await engine.close();
