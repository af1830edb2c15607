import { runConfigurations, runTable } from './table.ts';

// float64 storage is the reference engine's alone.
await runTable('webgpu', { mayRefuse: /^f64:/ });
await runConfigurations('webgpu');
