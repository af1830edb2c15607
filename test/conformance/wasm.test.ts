import { runConfigurations, runTable } from './table.ts';

// float64 storage is the reference engine's alone.
const mayRefuse = /^f64:/;
await runTable('wasm', { mayRefuse, open: { guards: true }, variant: 'guards round every block' });
await runTable('wasm', { mayRefuse, open: { threads: 1 }, variant: 'one thread', quick: true });
await runTable('wasm', { mayRefuse, open: { revectorize: true }, variant: 'revectorized', quick: true });
await runConfigurations('wasm');
