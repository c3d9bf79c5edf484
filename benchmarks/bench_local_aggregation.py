"""Time and memory of `ops.local_aggregation` against the unfolded form, on one CPU thread.

The variants alternate within each round; a figure is the median over rounds, a ratio the median of
the ratios within a round. Time is CPU time, so other work on the machine disturbs it little. Memory
is the peak of what PyTorch's allocator hands out above the level at entry. The unfolded form is the
one that the published layer is usually rewritten to. Nothing is printed unless all results agree.

    python benchmarks/bench_local_aggregation.py --rounds 9 --out local_aggregation.json

The default allocator of glibc returns large temporaries to the system at once, and the page faults
that follow are charged to whoever allocates most. Compare with the setting that avoids them:

    GLIBC_TUNABLES=glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296:\
glibc.malloc.top_pad=268435456 python benchmarks/bench_local_aggregation.py
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own messages

import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from visgraft.ops import local_aggregation

SIZES = [(8, 256, 14, 14), (8, 64, 56, 56), (4, 512, 7, 7), (2, 256, 40, 40)]
SHARE, KERNEL = 8, 3
Variant = Callable[[Tensor, Tensor], Tensor]


def unfolded(x: Tensor, weight: Tensor) -> Tensor:
    """Unfold, multiply, add: every value is copied once per tap."""
    b, c, h, w = x.shape
    columns = functional.unfold(x, KERNEL, padding=KERNEL // 2)
    columns = columns.view(b, SHARE, c // SHARE, KERNEL**2, h, w)
    return (columns * weight).sum(3).view(b, c, h, w)


def backend(name: str) -> Variant:
    """Returns one of our implementations."""
    return lambda x, weight: local_aggregation(x, weight, KERNEL, backend=name)


VARIANTS: dict[str, Variant] = {
    "unfolded": unfolded,
    "shifted": backend("shifted"),
    "traced": backend("traced"),
}


def forward(run: Variant, x: Tensor, weight: Tensor, _: Tensor) -> list[Tensor]:
    """Returns the result."""
    with torch.no_grad():
        return [run(x, weight)]


def forward_and_backward(run: Variant, x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    """Returns the result and both gradients."""
    tensors = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    out = run(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


PASSES = {"forward": forward, "forward_and_backward": forward_and_backward}


def peak_bytes(call: Callable[[], object]) -> int:
    """Returns the most memory that was allocated at once during a call."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        kept = call()
    recorded = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in recorded if e.name() == "[memory]")
    del kept
    return max(accumulate(change for _, change in changes))


def measure(size: tuple[int, int, int, int], rounds: int) -> dict[str, object]:
    """Times all variants at one size."""
    torch.manual_seed(0)
    b, c, h, w = size
    arguments = (
        torch.randn(size),
        torch.randn(b, 1, c // SHARE, KERNEL**2, h, w),
        torch.randn(size),
    )
    result: dict[str, object] = {"size": size}
    for label, run_pass in PASSES.items():
        expected = run_pass(unfolded, *arguments)
        for run in VARIANTS.values():
            for ours, theirs in zip(run_pass(run, *arguments), expected, strict=True):
                assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(rounds):
            for name, run in VARIANTS.items():
                start = time.process_time()
                run_pass(run, *arguments)
                seconds[name].append(time.process_time() - start)
        memory = {n: peak_bytes(partial(run_pass, r, *arguments)) for n, r in VARIANTS.items()}
        result[label] = {
            name: {
                "milliseconds": round(1e3 * statistics.median(times), 3),
                "times_faster": round(
                    statistics.median(
                        a / b for a, b in zip(seconds["unfolded"], times, strict=True)
                    ),
                    2,
                ),
                "peak_mebibytes": round(memory[name] / 2**20, 2),
                "times_less_memory": round(memory["unfolded"] / memory[name], 2),
            }
            for name, times in seconds.items()
        }
    return result


def main() -> None:
    """Runs all sizes and writes one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the JSON; standard output by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    document = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "dtype": "float32",
        "threads": 1,
        "rounds": options.rounds,
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "sizes": [],
    }
    for size in SIZES:
        document["sizes"].append(measure(size, options.rounds))
        print(f"measured {size}", file=sys.stderr)
    text = json.dumps(document, indent=2)
    if options.out:
        options.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
