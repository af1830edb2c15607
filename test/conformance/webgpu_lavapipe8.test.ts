import { runSoftware } from './software.ts';

await runSoftware({ driver: 'lavapipe', lanes: 8, every: 24 });
