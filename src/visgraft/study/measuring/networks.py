"""What the networks of a study cost where it runs: latency and memory, measured in turns.

All networks are held at once and take turns, round by round, so that whatever slows the machine for
a while slows all of them. Weights are the initial ones: what a network takes does not depend on
them. Of a detector the backbone with its pyramid is measured, since the work of the heads depends
on what they find, which is nothing yet.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visgraft.inspect import SideBySide, measure, measure_side_by_side
from visgraft.study.environment import describe_environment
from visgraft.study.measuring.cost import Latency, MeasuredCost
from visgraft.study.measuring.record import CostRecord
from visgraft.study.plan import Study, trials
from visgraft.study.pricing import counted_part
from visgraft.tasks.building import build_model, resolve_input
from visgraft.tasks.devices import pick_device
from visgraft.tasks.images import RunData
from visgraft.tasks.recipe import Recipe

__all__ = ["measure_networks"]

SECONDS = 5.0
"""Of timing, per network; slow networks get fewer rounds for it."""
LEAST_ROUNDS = 5
MOST_ROUNDS = 50
SLOWEST_CALL = 0.5
"""Seconds that a call of the large batch may take; the recipe's batch is halved until it does."""
_WARMUP = 2


@dataclass
class _Subject:
    """A network on its device, ready to be timed."""

    network: nn.Module
    example: Tensor
    seconds: float  # of one image, however busy the machine is
    training_memory: int

    def call(self, batch_size: int) -> Callable[[], object]:
        """Returns a forward pass of a batch, in eval mode without gradients."""
        images = self.example.expand(batch_size, -1, -1, -1).contiguous()

        @torch.no_grad()
        def forward() -> object:
            return self.network(images)

        return forward


class _Half(nn.Module):
    """A network as mixed precision runs it."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self._device = device.type

    def forward(self, x: Tensor) -> Any:
        """Returns what the network makes of images (B, C, H, W)."""
        with torch.autocast(self._device, torch.bfloat16):
            return self.network(x)


def measure_networks(
    study: Study,
    names: Sequence[str],
    data: RunData,
    *,
    threads: int,
    announce: Callable[[str | None], None] = lambda _: None,
) -> CostRecord:
    """Measures networks of a study side by side on the recipe's device.

    Args:
        study: Whose widths are all known.
        names: Of its networks, the baseline's included.
        data: Says channels and size of an image.
        threads: Of torch.
        announce: Told which network has the process to itself; None once they take turns.

    Returns:
        What they cost; a network that fails, such as for want of memory, is among the failures.

    Raises:
        TrainingError: The recipe's device is not there.
    """
    recipes = {spec.variant: spec.recipe for spec in reversed(trials(study))}
    device = pick_device(study.recipe.device)
    subjects: dict[str, _Subject] = {}
    failures: dict[str, str] = {}

    def attempt(name: str, step: Callable[[], object]) -> None:
        announce(name)
        try:
            step()
        except Exception as error:  # of any library below; the report names it
            subjects.pop(name, None)
            failures[name] = _reason(error)
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def prepare(name: str) -> None:
        subjects[name] = _prepare(recipes[name], data, device, threads)

    for name in names:
        attempt(name, lambda name=name: prepare(name))
    slowest = max((subject.seconds for subject in subjects.values()), default=0.0)
    large = _largest_batch(study.recipe.batch_size, slowest)
    for name, subject in list(subjects.items()):
        attempt(name, subject.call(large))
    announce(None)
    begin = time.perf_counter(), time.thread_time()
    costs = _take_turns(subjects, sorted({1, large}), study.recipe, device, threads)
    spent, worked = time.perf_counter() - begin[0], time.thread_time() - begin[1]
    height, width = resolve_input(study.recipe, data).size
    return CostRecord(
        costs,
        failures,
        describe_environment() | {"threads": threads},
        f"{_measured_part(study.recipe)}, images of {height} x {width} pixels",
        time.time(),
        min(worked / spent, 1.0) if device.type == "cpu" else None,
    )


def _prepare(recipe: Recipe, data: RunData, device: torch.device, threads: int) -> _Subject:
    """Builds a network, times its first calls and measures the memory of a training step."""
    model, _ = build_model(recipe, data)
    network = counted_part(model, recipe).to(device)
    if recipe.precision == "bf16":
        network = _Half(network, device)
    spec = resolve_input(recipe, data)
    shape = (1, data.in_chans, *spec.size)
    how: dict[str, Any] = {"threads": threads, "warmup": 1, "rounds": 3}
    on_cpu = device.type == "cpu"
    first = measure(network, shape, clock="cpu" if on_cpu else "wall", **how)
    how = {"threads": threads, "warmup": 0, "rounds": 1}
    step = measure(network, shape, batch_sizes=recipe.batch_size, backward=True, **how)
    noise = torch.Generator().manual_seed(0)
    return _Subject(
        network.eval(),
        torch.randn(shape, generator=noise).to(device),
        first.at().latency_p50 / (threads if on_cpu else 1),
        step.at(backward=True).peak_memory,
    )


def _largest_batch(batch_size: int, seconds: float) -> int:
    """Halves a batch until a call is quick enough, if each image takes so many seconds."""
    while batch_size > 1 and batch_size * seconds > SLOWEST_CALL:
        batch_size //= 2
    return batch_size


def _take_turns(
    subjects: Mapping[str, _Subject],
    batch_sizes: Sequence[int],
    recipe: Recipe,
    device: torch.device,
    threads: int,
) -> dict[str, MeasuredCost]:
    """Times all networks at all batch sizes, round by round."""
    if not subjects:
        return {}
    calls = {
        f"{size} {name}": subject.call(size)
        for name, subject in subjects.items()
        for size in batch_sizes
    }
    how: dict[str, Any] = {"clock": "wall", "threads": threads, "device": device}
    how["least_seconds"] = 0.0  # each reading is one call: p95 is to show the slow ones
    begin = time.perf_counter()
    parts = [measure_side_by_side(calls, rounds=LEAST_ROUNDS, warmup=_WARMUP, **how)]
    left = SECONDS * len(subjects) - (time.perf_counter() - begin)
    if left > 0 and MOST_ROUNDS > LEAST_ROUNDS:
        more = MOST_ROUNDS - LEAST_ROUNDS
        parts += [
            measure_side_by_side(calls, rounds=more, warmup=0, memory=False, budget=left, **how)
        ]
    dtype = "float32" if recipe.precision == "fp32" else "bfloat16, mixed"
    return {
        name: MeasuredCost(
            latencies=tuple(_latency(size, f"{size} {name}", parts) for size in batch_sizes),
            inference_memory=parts[0][f"{batch_sizes[-1]} {name}"].peak_memory or 0,
            training_memory=subject.training_memory,
            device=str(device),
            dtype=dtype,
            threads=threads,
        )
        for name, subject in subjects.items()
    }


def _latency(batch_size: int, call: str, parts: Sequence[SideBySide]) -> Latency:
    readings = [reading for part in parts for reading in part[call].readings]
    p50, p95 = np.percentile(readings, (50, 95))
    return Latency(batch_size, float(p50), float(p95), len(readings))


def _measured_part(recipe: Recipe) -> str:
    part = "backbone and pyramid" if recipe.finds_objects else "the whole network"
    return f"{part}, channels last" if recipe.channels_last else part


def _reason(error: Exception) -> str:
    """Returns the first line of what went wrong below."""
    cause = error.__cause__ or error
    text = str(cause).strip()
    return f"{type(cause).__name__}: {text.splitlines()[0]}" if text else type(cause).__name__
