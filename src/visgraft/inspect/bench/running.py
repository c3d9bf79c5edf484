"""Runs the cases: agreement first, then time and memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visgraft.inspect._clock import Clock
from visgraft.inspect._kept import keeping_process
from visgraft.inspect.bench.cases import STEPS, Case, bytes_moved, step_call
from visgraft.inspect.bench.variants import converted, graph_breaks, with_compiled
from visgraft.inspect.machine import Limits
from visgraft.inspect.side_by_side import measure_side_by_side

__all__ = ["Settings", "agreeing_calls", "run_case"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_IN_CACHE = 16 << 20  # bytes that a copy may move to be held against the copy within the cache


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: Where the forms compute.
        dtype: Of tensors and parameters.
        channels_last: Whether maps and modules are laid out so; with this or another dtype, our
            form and the baseline are also timed as they are without.
        compiled: Whether our form and the one that circulates are also timed through
            ``torch.compile``.
        rounds: As of ``measure_side_by_side``, like the rest.
        threads: None leaves them.
        budget: Seconds for one comparison.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compiled: bool = False
    rounds: int = 7
    threads: int | None = None
    budget: float | None = 20.0

    @property
    def clock(self) -> Clock:
        """``'cpu'`` on a CPU."""
        return "cpu" if self.device.type == "cpu" else "wall"


def run_case(case: Case, settings: Settings, limits: Limits) -> list[dict[str, Any]]:
    """Measures the steps of a case.

    Returns:
        One record per step, plain values ready for JSON: what was compared, who refused and why,
        the timings, and for each form the fraction of the machine's limits that it reached:
        ``of_copy``, the bytes that must be moved at the speed of a copy, and ``of_multiply``, its
        multiplications at the speed of a matrix product; for compiled forms their graph breaks.

    Raises:
        RuntimeError: Forms that must agree do not; nothing is timed then.
    """
    case = converted(case, settings.dtype, channels_last=settings.channels_last)
    with keeping_process(settings.threads, settings.device):
        if not settings.compiled:
            return [_run_step(case, step, settings, limits) for step in case.steps]
        try:
            return [_run_compiled(case, step, settings, limits) for step in case.steps]
        finally:
            torch.compiler.reset()


def _run_compiled(case: Case, step: str, settings: Settings, limits: Limits) -> dict[str, Any]:
    """Measures a step with the compiled forms, and how often each leaves its graph."""
    both = with_compiled(case)
    added = [name for name in both.forms if name not in case.forms]
    breaks = {
        name: graph_breaks(case.forms[name.removesuffix(", compiled")], case.tensors, step)
        for name in added
    }
    return {**_run_step(both, step, settings, limits), "graph_breaks": breaks}


def _run_step(case: Case, step: str, settings: Settings, limits: Limits) -> dict[str, Any]:
    calls, refused = agreeing_calls(case, step, settings)
    baseline = case.baseline if case.baseline in calls else next(iter(calls))
    done = measure_side_by_side(
        calls,
        baseline=baseline,
        rounds=settings.rounds,
        clock=settings.clock,
        device=settings.device,
        budget=settings.budget,
    )
    first = calls[baseline]()[0]
    moved = bytes_moved(case.tensors, first, step)
    copy = limits.copy_small if moved <= _IN_CACHE else limits.copy_large
    reached: dict[str, dict[str, float | None]] = {}
    for name, timing in done.timings.items():
        macs = case.forms[name].macs
        flops = None if macs is None else 2 * macs * (1 if step == STEPS[0] else 3)
        share = None if flops is None else round(flops / timing.seconds / limits.multiply, 4)
        reached[name] = {
            "of_copy": round(moved / timing.seconds / copy, 4),
            "of_multiply": share,
        }
    return {
        "case": case.name,
        "shape": list(case.shape),
        "step": step,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "channels_last": settings.channels_last,
        "ours": case.ours,
        "moved_bytes": moved,
        "reached": reached,
        "refused": refused,
        **done.as_dict(),
    }


def agreeing_calls(
    case: Case, step: str, settings: Settings
) -> tuple[dict[str, Callable[[], list[Tensor]]], dict[str, str]]:
    """Returns the forms that take a step, after they agreed, and why the others do not.

    Raises:
        RuntimeError: Forms that must agree in output or in the gradients of the tensors do not.
        NotImplementedError: Our form lacks this device or dtype; another form that does is among
            those that refuse.
    """
    calls: dict[str, Callable[[], list[Tensor]]] = {}
    refused: dict[str, str] = {}
    results: dict[str, list[Tensor]] = {}
    wants_grad = step != STEPS[0]
    for name, form in case.forms.items():
        given = case.tensors if form.tensors is None else form.tensors
        probes = tuple(t.detach().requires_grad_(wants_grad) for t in given)
        reason = form.refusal(*probes)
        if reason is not None:
            refused[name] = reason
            continue
        try:
            call = step_call(form, given, step, with_inputs=case.with_inputs)
            results[name] = call()
        except torch.OutOfMemoryError as error:
            refused[name] = f"out of memory ({str(error).splitlines()[0]})"
            continue
        except NotImplementedError as error:
            if name == (case.ours or next(iter(case.forms))):
                raise
            refused[name] = f"not implemented ({str(error).splitlines()[0]})"
            continue
        calls[name] = call
    inputs = len(case.tensors) if wants_grad and case.with_inputs else 0
    for name, form in case.forms.items():
        other = form.same_as
        if name in results and other in results:
            pairs = zip(results[name], results[other][: 1 + inputs], strict=False)
            for index, (mine, theirs) in enumerate(pairs):
                _agree(case, step, name, other, index, mine, theirs, settings)
    return calls, refused


def _agree(
    case: Case,
    step: str,
    name: str,
    other: str,
    index: int,
    mine: Tensor,
    theirs: Tensor,
    settings: Settings,
) -> None:
    """Raises RuntimeError where two results differ by more than rounding."""
    mine, theirs = mine.double(), theirs.double()
    scale = theirs.abs().max().clamp(min=1e-6)
    difference = ((mine - theirs).abs().max() / scale).item()
    if not difference <= _TOLERANCE[settings.dtype]:
        what = "output" if index == 0 else f"gradient {index}"
        raise RuntimeError(
            f"bench: {name} and {other} of {case.name} {case.shape} give different values in "
            f"{step} ({what}: {difference:.1e} of the largest value); nothing is timed"
        )
