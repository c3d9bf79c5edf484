"""What the networks of a study cost where it ran: latency and memory, measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Latency", "MeasuredCost"]


@dataclass(frozen=True)
class Latency:
    """Time of a forward pass in eval mode.

    Attributes:
        batch_size: Images per call.
        p50: Seconds of a call, median.
        p95: Seconds that 95 % of the calls do not exceed.
        rounds: Calls that were timed.
    """

    batch_size: int
    p50: float
    p95: float
    rounds: int


@dataclass(frozen=True)
class MeasuredCost:
    """What one network of a study takes.

    Attributes:
        latencies: By rising batch size; the first is of one image.
        inference_memory: Bytes at the peak of a forward pass of the largest batch, above the
            network itself.
        training_memory: Bytes at the peak of a forward and backward pass of the recipe's batch,
            above the network itself.
        device: That computed.
        dtype: Of the network.
        threads: Of torch.
    """

    latencies: tuple[Latency, ...]
    inference_memory: int
    training_memory: int
    device: str
    dtype: str
    threads: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MeasuredCost":
        """Returns what `dataclasses.asdict` took apart."""
        latencies = tuple(Latency(**latency) for latency in values["latencies"])
        return cls(**{**values, "latencies": latencies})
