"""Clocks for calls that may run on a GPU, and percentiles of what they read."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch

__all__ = ["Clock", "check_clock", "percentile", "seconds_of", "synchronise"]

Clock = Literal["wall", "cpu"]
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def check_clock(owner: str, clock: str, device: torch.device) -> None:
    """Raises ValueError unless the clock exists and can time work on the device."""
    if clock not in get_args(Clock):
        raise ValueError(f"{owner}: clock must be 'wall' or 'cpu', got {clock!r}")
    if clock == "cpu" and device.type != "cpu":
        raise ValueError(
            f"{owner}: the CPU clock does not see work on {device}; use clock='wall', which reads "
            "the device's own events there"
        )


def seconds_of(
    call: Callable[[], object], clock: Clock, device: torch.device, repeats: int = 1
) -> float:
    """Returns the seconds of one call, the mean of ``repeats`` in a row.

    ``"cpu"`` is the time that all threads of the process computed, which other processes disturb
    little; ``"wall"`` is what a user waits. On a CUDA device, events around the calls are read.
    """
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(device)
        torch.cuda.synchronize(device)
        start.record(stream)
        for _ in range(repeats):
            call()
        end.record(stream)
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / repeats
    read = _CLOCKS[clock]
    synchronise(device)
    begin = read()
    for _ in range(repeats):
        call()
    synchronise(device)
    return (read() - begin) / repeats


def synchronise(device: torch.device) -> None:
    """Waits for what was started on the device; a CPU never lags behind."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def percentile(values: Sequence[float], percent: int) -> float:
    """Returns the percentile from 1 to 99, interpolated between the values around it."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
