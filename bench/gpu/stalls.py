"""Where the warps of profiled kernels wait: sums the samples of an ncu report by the instruction waited at and the reason.

usage: python3 stalls.py REPORT.ncu-rep LABELS.json > OUT.json

A kernel's code is cut into roles at its setmaxnreg instructions: what gives registers up moves data, what takes them computes.
"""
import collections
import glob
import json
import re
import sys

for folder in glob.glob('/opt/nvidia/nsight-compute/*/extras/python') + glob.glob('/usr/local/cuda*/nsight-compute*/extras/python'):
    sys.path.append(folder)
import ncu_report  # noqa: E402

report, labels = sys.argv[1], json.load(open(sys.argv[2]))
SAMPLES = re.compile(r'(?:smsp__pcsamp_warps_issue_stalled_)(\w+)')
WHOLE = [
    'gpu__time_duration.sum',
    'sm__throughput.avg.pct_of_peak_sustained_elapsed',
    'sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active',
    'sm__inst_executed_pipe_tensor_op_gmma.avg.pct_of_peak_sustained_active',
    'sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active',
    'sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active',
    'sm__pipe_tensor_op_gmma_cycles_active.avg.pct_of_peak_sustained_active',
    'sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active',
    'sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active',
    'sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active',
    'smsp__issue_active.avg.pct_of_peak_sustained_active',
]


def value(metric):
    for read in (metric.as_double, metric.as_uint64):
        try:
            return float(read())
        except Exception:
            pass
    return None


def opcode(sass):
    words = [w for w in sass.split() if not w.startswith('@')]
    return '.'.join(words[0].rstrip(';').split('.')[:2]) if words else '?'


kernels = []
context = ncu_report.load_report(report)
index = 0
for r in range(context.num_ranges()):
    group = context.range_by_idx(r)
    for a in range(group.num_actions()):
        action = group.action_by_idx(a)
        label = labels[index] if index < len(labels) else {}
        index += 1
        names = list(action.metric_names())
        by_pc = collections.defaultdict(collections.Counter)
        for name in names:
            found = SAMPLES.fullmatch(name)
            if not found or name.endswith('_not_issued'):
                continue
            metric = action.metric_by_name(name)
            if not metric.has_correlation_ids():
                continue
            places = metric.correlation_ids()
            for i in range(metric.num_instances()):
                n = metric.as_uint64(i)
                if n:
                    by_pc[places.as_uint64(i)][found.group(1)] += n
        role, table, hot = 'start', collections.defaultdict(collections.Counter), []
        # Roles need the instructions without samples too.
        pcs = sorted(by_pc)
        known = set(pcs)
        if pcs:
            step = 16
            near = range(pcs[0], pcs[-1] + step, step) if pcs[-1] - pcs[0] < 2**22 else pcs
            for pc in near:
                try:
                    sass = action.sass_by_pc(pc)
                except Exception:
                    sass = ''
                if 'USETMAXREG' in sass:
                    role = 'moves data' if 'DEALLOC' in sass else 'computes'
                if pc in known:
                    table[f'{role}: {opcode(sass)}'].update(by_pc[pc])
                    hot.append((sum(by_pc[pc].values()), pc - pcs[0], role, sass, dict(by_pc[pc].most_common(3))))
        metrics = {n: value(action.metric_by_name(n)) for n in WHOLE if n in names}
        metrics.update(
            (n, value(action.metric_by_name(n)))
            for n in names
            if re.fullmatch(r'smsp__average_warps?_issue_stalled_\w+_per_issue_active\.ratio', n)
            or re.fullmatch(r'sm__inst_executed_pipe_\w+\.avg\.pct_of_peak_sustained_active', n)
            or re.fullmatch(r'sm__pipe_\w+_cycles_active\.avg\.pct_of_peak_sustained_active', n)
        )
        kernels.append(
            {
                **label,
                'function': action.name(),
                'metrics': {k: round(v, 4) for k, v in metrics.items() if v is not None},
                'samples': {
                    k: {'all': sum(c.values()), **dict(c.most_common(4))}
                    for k, c in sorted(table.items(), key=lambda kv: -sum(kv[1].values()))[:40]
                },
                'hot': [h for h in sorted(hot, key=lambda h: -h[0])[:30]],
            }
        )
        total = sum(sum(c.values()) for c in by_pc.values())
        print(action.name(), label, 'samples', total, file=sys.stderr)
json.dump(kernels, sys.stdout)
