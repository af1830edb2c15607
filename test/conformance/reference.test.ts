import { runTable } from './table.ts';

// Standard attention serves everything.
await runTable('reference', { mayRefuse: /^$/ });
