import { runTable } from './table.ts';

// float64 storage is the reference engine's alone.
await runTable('webgpu', /^f64:/);
