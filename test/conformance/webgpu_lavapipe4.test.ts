import { runSoftware } from './software.ts';

await runSoftware({ driver: 'lavapipe', lanes: 4, every: 16 });
