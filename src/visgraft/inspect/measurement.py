"""Latency, throughput and peak memory of a model, measured."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from visgraft._shapes import Example, first_line, like_of
from visgraft.inspect._clock import Clock, check_clock, percentile, seconds_of, synchronise
from visgraft.inspect._kept import keeping_model, keeping_process
from visgraft.inspect._peak_memory import peak_memory
from visgraft.inspect.machine import allocator_settings

__all__ = ["Measurement", "Run", "measure"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """One batch size and one kind of call.

    Attributes:
        batch_size: Examples per call.
        backward: Whether the call is forward and backward in training mode; else forward alone,
            in eval mode, without gradients.
        latency_p50: Seconds of a call, median.
        latency_p95: Seconds that 95 % of the calls do not exceed.
        throughput: Examples per second, by the median.
        peak_memory: Bytes above the level at entry, results and gradients included.
        rounds: Calls that were timed.
    """

    batch_size: int
    backward: bool
    latency_p50: float
    latency_p95: float
    throughput: float
    peak_memory: int
    rounds: int


@dataclass(frozen=True)
class Measurement:
    """What a model takes, and on what.

    Attributes:
        runs: One for each batch size, and one more where the backward pass was asked for.
        device: That computed.
        dtype: Of the model.
        threads: Of torch.
        clock: ``'wall'`` or ``'cpu'``; on a CUDA device its events were read.
        allocator: Settings of the memory allocator in the environment of the process.
    """

    runs: tuple[Run, ...]
    device: str
    dtype: str
    threads: int
    clock: str
    allocator: Mapping[str, str]

    def at(self, batch_size: int | None = None, *, backward: bool = False) -> Run:
        """Returns the run of a batch size; None for the first one.

        Raises:
            ValueError: It was not measured.
        """
        for run in self.runs:
            if batch_size in (None, run.batch_size) and run.backward == backward:
                return run
        had = ", ".join(f"{r.batch_size}{' with backward' * r.backward}" for r in self.runs)
        raise ValueError(
            f"Measurement: batch size {batch_size}{' with backward' * backward} was not measured, "
            f"only {had}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns plain numbers and texts, ready for JSON."""
        return {**asdict(self), "runs": [asdict(run) for run in self.runs]}

    def __str__(self) -> str:
        lines = [f"{self.device}, {self.dtype}, {self.threads} threads, {self.clock} clock"]
        for run in self.runs:
            what = "forward and backward" if run.backward else "forward"
            lines.append(
                f"batch {run.batch_size}, {what}: p50 {1e3 * run.latency_p50:.2f} ms, p95 "
                f"{1e3 * run.latency_p95:.2f} ms, {run.throughput:.1f} examples/s, peak "
                f"{run.peak_memory / 2**20:.1f} MiB"
            )
        return "\n".join(lines)


def measure(
    model: nn.Module,
    example: Any,
    *,
    batch_sizes: int | Sequence[int] | None = None,
    backward: bool = False,
    warmup: int = 3,
    rounds: int = 30,
    threads: int | None = None,
    device: torch.device | str | None = None,
    clock: Clock = "wall",
) -> Measurement:
    """Measures what a call of a model takes, after some that do not count.

    A forward call runs in eval mode without gradients; forward and backward runs in training mode
    and computes the gradient of every parameter that requires one, of the sum of all outputs,
    without an optimiser's step. Modes, buffers, gradients, random states and threads are as they
    were afterwards. Compare several models with ``measure_side_by_side``: figures from two moments
    of a machine that others use, too, do not belong together.

    Args:
        model: Any module.
        example: A tensor, the shape of one, a tuple of positional or a dict of keyword arguments.
        batch_sizes: Examples per call, one or several: every tensor whose first size is that of
            the example's first tensor is repeated or cut to it. None takes the example as it is.
        backward: Whether to measure forward and backward, too.
        warmup: Calls before those that count.
        rounds: Calls that count.
        threads: Of torch; None leaves them.
        device: Where to compute; a model that is elsewhere is copied there. None for its own.
        clock: ``'wall'``, what a user waits, or ``'cpu'``, the time that the threads of the
            process computed, which other processes disturb little.

    Raises:
        ValueError: A number is out of range, the clock does not fit the device, the model has no
            values, or it does not run on the example.

    Example:
        >>> done = measure(nn.Conv2d(3, 8, 3), (1, 3, 32, 32), batch_sizes=(1, 4), rounds=5)
        >>> [run.batch_size for run in done.runs]
        [1, 4]
        >>> done.at(4).latency_p95 >= done.at(4).latency_p50 > 0
        True
    """
    inputs = Example.of("measure", example)
    sizes: list[int | None] = [None]
    if batch_sizes is not None:
        sizes = [batch_sizes] if isinstance(batch_sizes, int) else list(batch_sizes)
    numbers = [("batch_sizes", n, 1) for n in sizes if n is not None]
    numbers += [("warmup", warmup, 0), ("rounds", rounds, 1)]
    numbers += [] if threads is None else [("threads", threads, 1)]
    for name, number, least in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ValueError(f"measure: {name} must be an integer >= {least}, got {number!r}")
    if not sizes:
        raise ValueError("measure: batch_sizes is empty; name at least one, or None")
    place, dtype = like_of([model])
    if place.type == "meta":
        raise ValueError("measure: the model is on the meta device and has no values to compute")
    if device is not None:
        place, model = _placed(model, torch.device(device))
    check_clock("measure", clock, place)
    runs = []
    with keeping_process(threads, place):
        used = torch.get_num_threads()
        with keeping_model(model):
            for size in sizes:
                arguments = inputs.real(model)
                try:
                    if size is not None:
                        arguments = _resized(arguments, size)
                    for step in (False, True) if backward else (False,):
                        model.train(step)
                        call = _training_call(model, arguments) if step else _call(model, arguments)
                        runs.append(_run(call, arguments, step, warmup, rounds, clock, place))
                except Exception as error:
                    raise ValueError(
                        f"measure: {type(model).__name__} does not run on the example "
                        f"({type(error).__name__}: {first_line(error)}); pass a tensor or a shape "
                        "that it runs on"
                    ) from error
    return Measurement(
        tuple(runs),
        str(place),
        str(dtype).removeprefix("torch."),
        used,
        clock,
        dict(allocator_settings()),
    )


def _placed(model: nn.Module, device: torch.device) -> tuple[torch.device, nn.Module]:
    """Returns the model, or a copy of it on the device if it is elsewhere."""
    own, _ = like_of([model])
    if own.type == device.type and device.index in (None, own.index):
        return own, model
    return device, copy.deepcopy(model).to(device)


def _batch_of(arguments: Arguments) -> int:
    tensors = [t for t in tree_leaves(arguments) if isinstance(t, Tensor) and t.ndim]
    return tensors[0].shape[0] if tensors else 1


def _resized(arguments: Arguments, size: int) -> Arguments:
    """Repeats or cuts the examples to a batch of ``size``."""
    batch = _batch_of(arguments)
    if batch < 1:
        raise ValueError("the example is an empty batch")

    def resize(tensor: Tensor) -> Tensor:
        if not tensor.ndim or tensor.shape[0] != batch:
            return tensor
        return tensor[torch.arange(size, device=tensor.device) % batch]

    return tree_map_only(Tensor, resize, arguments)


def _call(model: nn.Module, arguments: Arguments) -> Callable[[], object]:
    args, kwargs = arguments

    @torch.no_grad()
    def call() -> object:
        return model(*args, **kwargs)

    return call


def _training_call(model: nn.Module, arguments: Arguments) -> Callable[[], object]:
    args, kwargs = arguments
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no parameter requires a gradient")

    @torch.enable_grad()
    def call() -> object:
        outputs = tree_leaves(model(*args, **kwargs))
        outputs = [t for t in outputs if isinstance(t, Tensor) and t.requires_grad]
        ones = [torch.ones_like(t) for t in outputs]
        return torch.autograd.grad(outputs, parameters, ones, allow_unused=True)

    return call


def _run(
    call: Callable[[], object],
    arguments: Arguments,
    backward: bool,
    warmup: int,
    rounds: int,
    clock: Clock,
    device: torch.device,
) -> Run:
    for _ in range(warmup):
        call()
    synchronise(device)
    seconds = [seconds_of(call, clock, device) for _ in range(rounds)]
    median, batch = percentile(seconds, 50), _batch_of(arguments)
    return Run(
        batch_size=batch,
        backward=backward,
        latency_p50=median,
        latency_p95=percentile(seconds, 95),
        throughput=batch / median,
        peak_memory=peak_memory(call, device),
        rounds=rounds,
    )
