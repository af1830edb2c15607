import { runConfigurations, runTable } from './table.ts';

// float64 storage is the reference engine's alone.
await runTable('cuda', { mayRefuse: /^f64:/ });
await runConfigurations('cuda');
