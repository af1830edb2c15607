import { runSoftware } from './software.ts';

await runSoftware({ driver: 'lavapipe', lanes: 16, every: 12, light: true });
