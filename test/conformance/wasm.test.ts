import type { Engine } from '../../src/engine/contract.ts';
import { runConfigurations, runTable } from './table.ts';

// float64 storage is the reference engine's alone.
const mayRefuse = /^f64:/;
await runTable('wasm', { mayRefuse, open: { guards: true }, variant: 'guards round every block' });
await runTable('wasm', { mayRefuse, open: { threads: 1 }, variant: 'one thread', quick: true });
await runTable('wasm', { mayRefuse, open: { revectorize: true }, variant: 'revectorized', quick: true });
await runTable('wasm', {
  mayRefuse,
  open: { native: true },
  variant: 'machine code',
  unless: withoutNative,
  quick: true,
});
await runConfigurations('wasm');

function withoutNative({ caps }: Engine): string | null {
  return caps.features['machine code'] === false ? String(caps.features.note) : null;
}
