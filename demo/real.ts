/** Forward and backward on what a trained layer's attention receives. */
import { converted, loadTensor } from '../src/cli/files.ts';
import { type Measurement, measure } from '../src/cli/measure.ts';
import { progress } from '../src/cli/terminal.ts';
import { type HostTensor, tensor } from '../src/core/tensor.ts';
import type { Engine } from '../src/engine/contract.ts';

export interface Real {
  readonly tilewise: Measurement;
  readonly standard: Measurement;
}

export async function measureReal(engine: Engine, standard: Engine): Promise<Real> {
  const bar = progress('reading data/model');
  try {
    const load = async (name: string): Promise<HostTensor> => {
      const t = converted(await loadTensor(name, `data/model/layer2_${name}.npy`), 'f32');
      return tensor(t.data, [1, ...t.shape]);
    };
    const [q, k, v] = await Promise.all(['q', 'k', 'v'].map(load));
    const task = { q, k, v, options: { causal: true }, grads: true };
    bar.update(0, 'tilewise on real tensors');
    const tilewise = await measure(engine, task, { samples: 64, onProgress: (share) => bar.update(share / 2) });
    bar.update(0.5, 'standard attention on real tensors');
    const theirs = await measure(standard, task, { samples: 64, onProgress: (share) => bar.update(0.5 + share / 2) });
    return { tilewise, standard: theirs };
  } finally {
    bar.stop();
  }
}
