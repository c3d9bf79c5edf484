"""Shows where the time of those blocks goes that missed a target, operator by operator.

    python -m benchmarks.profile_targets

writes benchmarks/profiles/blocks-cpu.json, from which docs/performance.md takes its section. The
shares are of the profiler's own time of each operator, the median over steps in one thread.
"""

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from visgraft.blocks import create_block
from visgraft.inspect import measure_side_by_side
from visgraft.inspect.machine import allocator_settings, describe_machine, tuned_environment

__all__ = ["FILE", "PROFILED", "main", "shares"]

FILE = Path(__file__).parent / "profiles" / "blocks-cpu.json"
PROFILED = (
    ("cot", (8, 64, 56, 56)),
    ("cot", (8, 256, 14, 14)),
    ("cot_attention", (8, 256, 14, 14)),
    ("acmix", (8, 64, 56, 56)),
    ("acmix", (8, 256, 14, 14)),
    ("selective_kernel", (8, 256, 14, 14)),
    ("coord_attention", (8, 64, 56, 56)),
    ("coord_attention", (4, 512, 7, 7)),
)
_SHOWN, _STEPS = 6, 15


def shares(step: Callable[[], object], steps: int = _STEPS) -> dict[str, float]:
    """Returns the operators that take most of a step, and the share of each.

    The time of an operator is its median over the steps, since the profiler's clock goes on while
    other processes run.
    """
    step()
    found: dict[str, list[float]] = {}
    for _ in range(steps):
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            step()
        for event in recorded.key_averages():
            found.setdefault(event.key, []).append(event.self_cpu_time_total)
    times = {name: median(readings) for name, readings in found.items()}
    total = sum(times.values())
    largest = sorted(times, key=lambda name: -times[name])[:_SHOWN]
    return {name: round(times[name] / total, 3) for name in largest}


def _step(module: nn.Module, shape: tuple[int, ...]) -> Callable[[], object]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    tensors = (x, *module.train().parameters())
    return lambda: torch.autograd.grad(module(x), tensors, grad, allow_unused=True)


def _profile(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    torch.manual_seed(0)
    block = _step(create_block(name, shape[1]), shape)
    conv = _step(nn.Conv2d(shape[1], shape[1], 3, padding=1, bias=False), shape)
    timed = measure_side_by_side({"conv3x3": conv, "block": block}, rounds=3, memory=False)
    return {
        "case": name,
        "shape": list(shape),
        "seconds": timed["block"].seconds,
        "ratio": timed["block"].ratio,
        "shares": shares(block),
    }


def main() -> None:
    """Profiles the blocks, in a process whose allocator keeps large blocks."""
    if not any(os.environ.get(name) for name in ("GLIBC_TUNABLES", "LD_PRELOAD")):
        environment = tuned_environment(threads=1)
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.profile_targets"], environment)
    torch.set_num_threads(1)
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "allocator": dict(allocator_settings()),
        "profiles": [_profile(name, shape) for name, shape in PROFILED],
    }
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(FILE)


if __name__ == "__main__":
    main()
