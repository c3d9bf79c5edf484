"""What networks cost, made up."""

from visgraft.study.measuring.cost import Latency, MeasuredCost
from visgraft.study.measuring.record import CostRecord

__all__ = ["ENVIRONMENT", "cost", "record"]

ENVIRONMENT = {"cpu": "A processor", "threads": 1}


def cost(milliseconds, memory=3 << 20, *, worst=1.5, batch=8):
    """A network whose calls take so long; a batch costs half as much per image."""
    one, many = milliseconds / 1e3, milliseconds * batch / 2e3
    return MeasuredCost(
        latencies=(Latency(1, one, worst * one, 50), Latency(batch, many, worst * many, 50)),
        inference_memory=memory // 2,
        training_memory=memory,
        device="cpu",
        dtype="float32",
        threads=1,
    )


def record(names, time, failures=()):
    costs = {name: cost(index + 1) for index, name in enumerate(names) if name not in failures}
    return CostRecord(costs, dict(failures), ENVIRONMENT, "the whole network", time, 0.97)
