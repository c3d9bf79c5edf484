"""The most memory that PyTorch's allocators hand out at once during a call."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.profiler import profile

__all__ = ["peak_memory"]


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Returns the peak of allocated bytes above the level at entry; the result counts.

    On a CPU the events of torch's allocator are read: scratch memory of oneDNN and of other
    libraries, which they take from the system themselves, is not seen. On CUDA it is the peak of
    torch's caching allocator, whose statistics are reset.

    Raises:
        RuntimeError: Another profiler of torch is running.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = call()
        torch.cuda.synchronize(device)
        del kept
        return torch.cuda.max_memory_allocated(device) - before
    recorder = profile(profile_memory=True)
    with _silent_profiler(), recorder:
        kept = call()
    del kept
    results: Any = recorder.kineto_results
    events = (event for event in results.events() if event.name() == "[memory]")
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.device_type().name == "CPU")
    return max(accumulate((change for _, change in changes), initial=0))


@contextmanager
def _silent_profiler() -> Iterator[None]:
    """Keeps the profiler's own messages off the terminal; it reads the level at its first use."""
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "9"
    try:
        yield
    finally:
        del os.environ[name]
