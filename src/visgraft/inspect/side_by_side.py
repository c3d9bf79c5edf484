"""Several ways to do one thing, timed in turns, so that a slow moment hits all of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from visgraft.inspect._clock import Clock, check_clock, percentile, seconds_of
from visgraft.inspect._kept import keeping_process
from visgraft.inspect._peak_memory import peak_memory
from visgraft.inspect.machine import allocator_settings

__all__ = ["SideBySide", "Timing", "measure_side_by_side"]

_MOST_REPEATS = 10_000
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """How one of the calls did.

    Attributes:
        seconds: Of one call, median over the rounds.
        ratio: Of its time to the baseline's in the same round, median over the rounds; below 1 is
            faster.
        ratio_low: First quartile of these ratios.
        ratio_high: Third quartile.
        peak_memory: Bytes above the level at entry; None where memory was not measured.
        repeats: Calls in a row that one reading of the clock covers.
        readings: Seconds of one call, round by round.
    """

    seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    peak_memory: int | None
    repeats: int
    readings: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class SideBySide:
    """Timings of calls that took turns.

    Attributes:
        timings: Name of each call to how it did, in the order given.
        baseline: Name of the call that the ratios refer to.
        rounds: How often each call had its turn.
        clock: ``'cpu'`` time of the process or ``'wall'`` time; events on a CUDA device.
        device: That the calls were timed on.
        threads: Of torch.
        allocator: Settings of the memory allocator in the environment of the process.
    """

    timings: Mapping[str, Timing]
    baseline: str
    rounds: int
    clock: str
    device: str
    threads: int
    allocator: Mapping[str, str]

    def __getitem__(self, name: str) -> Timing:
        return self.timings[name]

    def ratio(self, name: str, other: str) -> float:
        """Returns the time of one call to that of another, by round; the median."""
        pairs = zip(self[name].readings, self[other].readings, strict=True)
        return statistics.median(own / its for own, its in pairs)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain numbers and texts, ready for JSON."""
        plain = {n: v for n, v in vars(self).items() if n not in ("timings", "allocator")}
        timings = {
            name: {**asdict(timing), "readings": [float(f"{r:.4g}") for r in timing.readings]}
            for name, timing in self.timings.items()
        }
        return {**plain, "allocator": dict(self.allocator), "timings": timings}

    def table(self) -> str:
        """Returns a text table, one line for each call."""
        header = ("", "ms", "ratio", "quartiles", "peak MiB")
        rows = [header, *(_row(name, t) for name, t in self.timings.items())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        first, *others = widths
        return "\n".join(
            "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows
        )

    def __str__(self) -> str:
        return self.table()


def measure_side_by_side(
    calls: Mapping[str, Callable[[], object]],
    *,
    baseline: str | None = None,
    rounds: int = 9,
    warmup: int = 1,
    clock: Clock = "cpu",
    threads: int | None = None,
    device: torch.device | str = "cpu",
    least_seconds: float = 0.005,
    budget: float | None = None,
    memory: bool = True,
) -> SideBySide:
    """Times calls in turns and compares each with one of them, round by round.

    Each round times every call once, in an order that moves on from round to round; a ratio is
    taken within a round, so what slows the machine for a while slows both sides. A short call is
    repeated until one reading of the clock covers ``least_seconds``. Memory is measured after the
    rounds, in one more call each. Threads of torch and random states are put back.

    Args:
        calls: Name to a function without arguments, at least one.
        baseline: The call that the ratios refer to; None for the first.
        rounds: How often each call has its turn.
        warmup: Untimed calls of each before the rounds.
        clock: ``'cpu'``, the time that the threads of the process computed, which other processes
            disturb little; or ``'wall'``. A CUDA device wants ``'wall'``, and its events are read.
        threads: Of torch; None leaves them.
        device: Where the calls compute.
        least_seconds: Seconds that one reading of the clock covers at least, by repetition.
        budget: Seconds, by the wall clock, after which no further round starts once there are
            three; None for no limit.
        memory: Whether to measure the peak memory of each call.

    Raises:
        ValueError: ``calls`` is empty, ``baseline`` is none of them, a number is out of range, or
            the clock does not fit the device.

    Example:
        >>> x = torch.randn(64, 64)
        >>> done = measure_side_by_side({"add": lambda: x + x, "matmul": lambda: x @ x}, rounds=3)
        >>> done["add"].ratio
        1.0
    """
    owner, place = "measure_side_by_side", torch.device(device)
    names = list(calls)
    if not names:
        raise ValueError(f"{owner}: calls is empty; name at least one function to time")
    first = names[0] if baseline is None else baseline
    if first not in calls:
        raise ValueError(f"{owner}: baseline {baseline!r} is none of {', '.join(names)}")
    for label, number, least in (("rounds", rounds, 1), ("warmup", warmup, 0)):
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ValueError(f"{owner}: {label} must be an integer >= {least}, got {number!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"{owner}: threads must be an integer >= 1 or None, got {threads!r}")
    if not least_seconds >= 0 or (budget is not None and not budget >= 0):
        raise ValueError(
            f"{owner}: least_seconds and budget must be at least 0 seconds, got {least_seconds!r} "
            f"and {budget!r}"
        )
    check_clock(owner, clock, place)
    with keeping_process(threads, place):
        used = torch.get_num_threads()
        begin = time.perf_counter()
        repeats = {}
        for name, call in calls.items():
            for _ in range(warmup):
                call()
            once = seconds_of(call, clock, place)
            wanted = math.ceil(least_seconds / max(once, 1e-9))
            repeats[name] = min(max(wanted, 1), _MOST_REPEATS)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        done = 0
        while done < rounds:
            spent = time.perf_counter() - begin
            if budget is not None and done >= _LEAST_ROUNDS and spent > budget:
                break
            turn = done % len(names)
            for name in names[turn:] + names[:turn]:
                seconds[name].append(seconds_of(calls[name], clock, place, repeats[name]))
            done += 1
        peaks = {n: peak_memory(call, place) if memory else None for n, call in calls.items()}
    timings = {
        name: _timing(times, seconds[first], peaks[name], repeats[name])
        for name, times in seconds.items()
    }
    return SideBySide(
        MappingProxyType(timings), first, done, clock, str(place), used, allocator_settings()
    )


def _timing(times: list[float], base: list[float], peak: int | None, repeats: int) -> Timing:
    ratios = [own / other if other else math.nan for own, other in zip(times, base, strict=True)]
    low, middle, high = (percentile(ratios, percent) for percent in (25, 50, 75))
    return Timing(statistics.median(times), middle, low, high, peak, repeats, tuple(times))


def _row(name: str, timing: Timing) -> tuple[str, ...]:
    peak = timing.peak_memory
    return (
        name,
        f"{1e3 * timing.seconds:.3f}",
        f"{timing.ratio:.3f}",
        f"{timing.ratio_low:.3f} to {timing.ratio_high:.3f}",
        "-" if peak is None else f"{peak / 2**20:.1f}",
    )
