"""The measured cost of a study's networks as a report tells it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from visgraft.study.measuring.cost import Latency, MeasuredCost

if TYPE_CHECKING:
    from visgraft.study.reports.data import Summary

__all__ = ["large_batch", "measured_header", "measured_numbers"]


def large_batch(summary: "Summary") -> int | None:
    """Returns the largest batch whose latency was measured; None if only one image's was."""
    sizes = {latency.batch_size for cost in _costs(summary) for latency in cost.latencies}
    return max(sizes) if sizes and max(sizes) > 1 else None


def measured_header(summary: "Summary") -> tuple[str, ...]:
    """Returns names of columns for a file of numbers; none where nothing was measured."""
    if not _costs(summary):
        return ()
    latencies = (
        f"latency_{part}_batch{size}" for size in _sizes(summary) for part in ("p50", "p95")
    )
    return (*latencies, "inference_memory", "training_memory", "measured_on")


def measured_numbers(summary: "Summary", cost: MeasuredCost | None) -> tuple[object, ...]:
    """Returns what stands in the columns of `measured_header`: seconds and bytes."""
    header = measured_header(summary)
    if cost is None:
        return (None,) * len(header)
    by_size: dict[int, Latency] = {latency.batch_size: latency for latency in cost.latencies}
    numbers: list[object] = []
    for size in _sizes(summary):
        latency = by_size.get(size)
        numbers += [None, None] if latency is None else [latency.p50, latency.p95]
    return (*numbers, cost.inference_memory, cost.training_memory, cost.device)


def _costs(summary: "Summary") -> Sequence[MeasuredCost]:
    return [row.measured for row in summary.rows if row.measured is not None]


def _sizes(summary: "Summary") -> list[int]:
    return sorted({x.batch_size for cost in _costs(summary) for x in cost.latencies})
