"""Standard attention on one GPU, through PyTorch: what its kernels move and what its matrices hold.

usage: python3 standard.py bytes SECTIONS.json '[[B, H, N, D, causal], ...]'     (under ncu --profile-from-start off)
       python3 standard.py memory OUT.json '[N, ...]'

`standard` multiplies bf16 matrices by hand and keeps scores and probabilities in bf16; `math` is PyTorch's own path.
"""
import json
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

mode, out, cases = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])


def standard(q, k, v, causal):
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        n = q.shape[-2]
        scores = scores.masked_fill(torch.ones(n, n, device='cuda', dtype=torch.bool).triu(1), float('-inf'))
    return scores.softmax(-1) @ v


def math(q, k, v, causal):
    with sdpa_kernel([SDPBackend.MATH]):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def tensors(b, h, n, d):
    q, k, v = (torch.randn(b, h, n, d, device='cuda', dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    return q, k, v, torch.randn_like(q)


def bytes_of():
    profiler = torch.cuda.cudart()
    sections = []

    def section(name, who, which, run):
        sections.append({'name': name, 'who': who, 'pass': which})
        torch.cuda.synchronize()
        profiler.cudaProfilerStart()
        torch.cuda._sleep(10)
        result = run()
        torch.cuda.synchronize()
        profiler.cudaProfilerStop()
        return result

    for b, h, n, d, causal in cases:
        name = f'B={b} H={h} N={n} D={d} {"causal" if causal else "full"}'
        for who, way in (('standard', standard), ('math', math)):
            q, k, v, do = tensors(b, h, n, d)
            try:
                # Handles and workspaces of the libraries come to be here.
                torch.autograd.grad(way(q, k, v, causal), (q, k, v), do)
                o = section(name, who, 'forward', lambda: way(q, k, v, causal))
                section(name, who, 'backward', lambda: torch.autograd.grad(o, (q, k, v), do))
            except torch.OutOfMemoryError as error:
                print(name, who, str(error)[:100], file=sys.stderr)
            o = None
            torch.cuda.empty_cache()
    json.dump(sections, open(out, 'w'))


def memory_of():
    rows = []
    for n in cases:
        for who, way in (('standard', standard), ('math', math)):
            q, k, v, do = tensors(1, 16, n, 128)
            row = {'name': f'B=1 H=16 N={n} D=128 full', 'who': who, 'N': n}
            try:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                base = torch.cuda.memory_allocated()
                o = way(q, k, v, False)
                grads = torch.autograd.grad(o, (q, k, v), do)
                torch.cuda.synchronize()
                own = sum(t.numel() * t.element_size() for t in (o, *grads))
                row['beyond'] = torch.cuda.max_memory_allocated() - base - own
            except torch.OutOfMemoryError as error:
                row['error'] = str(error)[:120]
            rows.append(row)
            print(json.dumps(row), flush=True)
            o = grads = None
            torch.cuda.empty_cache()
    json.dump(rows, open(out, 'w'))


bytes_of() if mode == 'bytes' else memory_of()
