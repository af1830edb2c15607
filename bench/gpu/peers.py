"""Times other libraries' attention on one GPU, on demand: a line of JSON in asks, a line of JSON out answers.

usage: python3 peers.py     (PyTorch with FlashAttention-2, cuDNN, memory-efficient and math back ends, and FlexAttention)

    {"do": "sdpa", "be": "cudnn", "pass": "forward", "q": [B, H, N, D], "k": [B, H, N, D], "causal": false, "dtype": "bf16", "p": 0, "reps": 5}
    {"do": "flex", "case": "alibi-causal", "pass": "backward", "q": ..., "k": ..., "reps": 5}
    {"do": "copy" | "matmul", "reps": 5}
    {"do": "hello"}

Every repetition comes after the L2 cache was flushed and starts after a pause on the device, so that what the host does between
launches is not counted; the answer has the milliseconds of each by events.
"""
import json
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    'fa2': SDPBackend.FLASH_ATTENTION,
    'cudnn': SDPBackend.CUDNN_ATTENTION,
    'efficient': SDPBackend.EFFICIENT_ATTENTION,
    'math': SDPBackend.MATH,
}
TYPES = {'bf16': torch.bfloat16, 'f16': torch.float16, 'f32': torch.float32}
PAUSE_CYCLES = 300_000
flush = torch.empty(256 << 20, dtype=torch.uint8, device='cuda')
made, graphs = {}, {}


def timed(run, reps):
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(reps)]
    for start, end in pairs:
        flush.zero_()
        torch.cuda._sleep(PAUSE_CYCLES)
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def tensors(ask):
    """q, k, v and dOut of the shapes asked for: only the last ones are kept."""
    key = (tuple(ask['q']), tuple(ask['k']), ask.get('dtype', 'bf16'))
    if key not in made:
        made.clear()
        graphs.clear()
        torch.cuda.empty_cache()
        kind = dict(device='cuda', dtype=TYPES[key[2]])
        q = torch.randn(key[0], **kind, requires_grad=True)
        k = torch.randn(key[1], **kind, requires_grad=True)
        v = torch.randn(key[1], **kind, requires_grad=True)
        made[key] = (q, k, v, torch.randn(key[0], **kind))
    return made[key]


def both_ways(ask, forward):
    """A function that runs the pass asked for, of `forward(q, k, v)`."""
    q, k, v, grad = tensors(ask)
    if ask['pass'] == 'forward':

        def run():
            with torch.no_grad():
                forward(q, k, v)

        return run
    name = json.dumps([ask['do'], ask.get('be'), ask.get('case'), ask.get('causal'), ask.get('p')])
    if name not in graphs:
        graphs[name] = forward(q, k, v)
    out = graphs[name]
    return lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)


def sdpa(ask):
    options = dict(is_causal=ask.get('causal', False), dropout_p=ask.get('p', 0))
    if ask['q'][1] != ask['k'][1]:
        options['enable_gqa'] = True
    with sdpa_kernel([BACKENDS[ask['be']]]):
        run = both_ways(ask, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options))
        return warm_and_time(ask, run)


def flex_case(name, n):
    """Score modifier and mask function of a case, as FlexAttention takes them."""
    slopes = torch.exp2(-torch.arange(1, 17, device='cuda') * 0.5)
    document = (torch.arange(n, device='cuda') // 1500).to(torch.int32)
    causal = lambda b, h, i, j: i >= j  # noqa: E731
    return {
        'plain': (None, None),
        'causal': (None, causal),
        'alibi-causal': (lambda s, b, h, i, j: s + slopes[h] * (j - i), causal),
        'softcap': (lambda s, b, h, i, j: 20 * torch.tanh(s / 20), None),
        'window1024': (None, lambda b, h, i, j: (i >= j) & (i - j < 1024)),
        'doc-causal': (None, lambda b, h, i, j: (i >= j) & (document[i] == document[j])),
    }[name]


compiled = {}


def flex(ask):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    name, n = ask['case'], ask['q'][2]
    if name not in compiled:
        mod, mask = flex_case(name, n)
        blocks = create_block_mask(mask, None, None, n, n, device='cuda') if mask else None
        call = torch.compile(flex_attention)
        compiled[name] = lambda q, k, v: call(q, k, v, score_mod=mod, block_mask=blocks)
    return warm_and_time(ask, both_ways(ask, compiled[name]))


def copy(ask):
    x = torch.empty(2**31, dtype=torch.uint8, device='cuda')
    y = torch.empty_like(x)
    return {'ms': timed(lambda: y.copy_(x), ask['reps']), 'bytes': 2 * 2**31}


def matmul(ask):
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device='cuda')
    b = torch.randn_like(a)
    return {'ms': timed(lambda: a @ b, ask['reps']), 'flops': 2 * 8192**3}


warmed = set()


def warm_and_time(ask, run):
    key = json.dumps({k: v for k, v in ask.items() if k != 'reps'})
    if key not in warmed:
        warmed.add(key)
        run()
        run()
        torch.cuda.synchronize()
    return {'ms': timed(run, ask['reps'])}


def hello(_):
    return {
        'torch': torch.__version__,
        'cudnn': torch.backends.cudnn.version(),
        'cuda': torch.version.cuda,
        'device': torch.cuda.get_device_name(0),
    }


for line in sys.stdin:
    ask = json.loads(line)
    try:
        answer = {'sdpa': sdpa, 'flex': flex, 'copy': copy, 'matmul': matmul, 'hello': hello}[ask['do']](ask)
    except Exception as error:
        answer = {'error': f'{type(error).__name__}: {error}'[:300]}
    print(json.dumps(answer), flush=True)
