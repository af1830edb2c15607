/** Hopper kernels whose waits give up, so that a mistake in their protocol ends a process and not the machine. */
import type { CudaKernel } from '../src/engines/cuda/kernel.ts';
import type { KernelText } from '../src/engines/cuda/ptx/assembler.ts';

/** Waits give up after about a second and trap. */
function bounded(text: KernelText): KernelText {
  let n = 0;
  const body = text.text
    .replace(/^\{$/m, '{\n    .reg .b32 %spin;\n    .reg .pred %spun;\n    mov.b32 %spin, 0;')
    .replace(/@!(%p\d+) bra (\$wait_\d+);/g, (_, done: string, again: string) => {
      const on = `$spun_${n++}`;
      return `@${done} bra ${on};\n    add.s32 %spin, %spin, 1;\n    setp.lt.s32 %spun, %spin, 4000000;\n    @%spun bra ${again};\n    trap;\n${on}:`;
    });
  return { ...text, text: body };
}

export const debugged = (kernel: CudaKernel): CudaKernel => ({
  ...kernel,
  kernels: (problem, config) => kernel.kernels(problem, config).map(bounded),
});
