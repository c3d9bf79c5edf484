"""Finds constructor arguments that make a network as large as another one, by width alone.

The control that papers leave out: is the block better than the same parameters spent on wider
layers? All widths are scaled by one factor first, found by bisection on shapes; then single stages
are moved by one step at a time, as long as that comes nearer. Where the constructor has no such
argument, or its steps are too coarse, the network that it builds is widened channel by channel.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from visgraft._shapes import first_line
from visgraft.models._width import MULTIPLIED, constructor_arguments
from visgraft.models._width_resizing import WIDENED

__all__ = ["TOLERANCE", "Widening", "WideningError", "widen"]

TOLERANCE = 0.01
"""A widened network may differ by so much from the size that was asked for."""

_LISTS = ("channels", "dims", "embed_dims", "embed_dim", "widths", "base_dims", "growth_rates")
_WHOLE = ("embed_dim", "growth_rate", "dim", "base_dim")
_FACTORS = ("width", "width_factor", "width_mult", "scale")
_KEPT = ("mlp_ratio", "wm")
"""Moved by small steps alone."""
_STEPS = (8, 4, 2, 1, 16)
_FINEST = 1e-3
_WIDEST = 16.0
_REFUSALS = (AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What constructors of networks raise at widths that they cannot have."""

Arguments = dict[str, Any]


class WideningError(ValueError):
    """A network cannot be made as large as was asked for."""


@dataclass(frozen=True)
class Widening:
    """A width that was found.

    Attributes:
        arguments: Of the network's constructor.
        size: What the network then has, in the unit of the target.
        target: What was asked for.
    """

    arguments: Arguments
    size: int
    target: int

    @property
    def error(self) -> float:
        """Distance to the target, as a fraction of it."""
        return abs(self.size - self.target) / self.target


def widen(
    model: str,
    arguments: Mapping[str, Any],
    target: int,
    measure: Callable[[Arguments], int],
    *,
    tolerance: float = TOLERANCE,
) -> Widening:
    """Finds the width at which a network has a given size.

    Args:
        model: Name of the network.
        arguments: Of its constructor; their widths are where the search starts.
        target: The size wanted.
        measure: Builds the network with other arguments and returns its size, such as the number
            of parameters.
        tolerance: Largest accepted distance, as a fraction of ``target``.

    Raises:
        WideningError: The network fixes all of its widths, or no width is near enough; the text
            says how near.
    """
    best: Widening | None = None
    sizes: dict[str, int | None] = {}
    start: int | None = None
    refusal = ""

    def attempt(changes: Arguments) -> int | None:
        nonlocal best, refusal
        key = repr(changes)
        if key not in sizes:
            try:
                sizes[key] = measure({**arguments, **changes})
            except _REFUSALS as error:
                sizes[key], refusal = None, first_line(error)
        size = sizes[key]
        if size is not None:
            found = Widening(changes, size, target)
            if size != start and (best is None or found.error < best.error):
                best = found
        return size

    start = attempt({})
    if start is None:
        raise WideningError(f"{model} cannot be built with {dict(arguments)}: {refusal}")
    best, scalable = None, False  # the network as it is does not count
    for knob in _all_knobs(model, arguments):
        same = attempt(knob.changes(1.0))
        if same is None or (same != start and knob.exact):
            continue  # this argument is not what it seems here
        scalable = True
        factor = _bisect(lambda f, k=knob: attempt(k.changes(f)), target)
        if factor is not None:
            _refine(knob, knob.changes(factor), attempt, target)
        if best is not None and best.error <= tolerance:
            return best
    if not scalable:
        raise WideningError(
            f"{model} cannot be widened: {refusal}; compare with a larger network in place of it, "
            "as a variant with model or model_args"
        )
    if best is None:
        raise WideningError(
            f"{model} cannot be widened to {target:,}: it has {start:,} and no width between"
        )
    raise WideningError(
        f"{model} cannot be widened to within {tolerance:.0%} of {target:,}: the nearest is "
        f"{best.size:,}, {best.error:.1%} off, with {best.arguments}"
    )


@dataclass(frozen=True)
class _Knob:
    """Arguments that scale a network's width together.

    Attributes:
        values: As they are.
        step: Numbers of channels are multiples of it; 0 for factors that are no channels.
        exact: Whether the values themselves, passed again, give the network as it is.
    """

    values: Arguments
    step: int
    exact: bool = True

    def changes(self, factor: float) -> Arguments:
        """Returns the arguments of a network ``factor`` times as wide."""
        return {name: self._scaled(value, factor) for name, value in self.values.items()}

    def neighbours(self, changes: Arguments) -> Iterator[Arguments]:
        """Yields the networks one step away in one stage, last stages first."""
        for name, value in changes.items():
            if isinstance(value, list):
                for index in reversed(range(len(value))):
                    for move in (self.step, -self.step):
                        moved = [*value]
                        moved[index] += move
                        if moved[index] > 0:
                            yield changes | {name: moved}
            elif name == "num_features":
                for move in (8, -8, 64, -64):
                    yield changes | {name: value + move}
            elif name in (*_KEPT, "wa"):
                for move in (0.005, -0.005, 0.025, -0.025):
                    yield changes | {name: round(value * (1 + move), 4)}

    def _scaled(self, value: Any, factor: float) -> Any:
        if isinstance(value, list):
            return [self._rounded(one * factor) for one in value]
        if isinstance(value, float):
            return round(value * factor, 4)
        return self._rounded(value * factor)

    def _rounded(self, width: float) -> int:
        return max(self.step, round(width / self.step) * self.step)


class _Mixed(_Knob):
    """A knob some of whose values stay as they are while the others are scaled."""

    def changes(self, factor: float) -> Arguments:
        """Returns the arguments of a network ``factor`` times as wide."""
        return super().changes(factor) | {
            name: value for name, value in self.values.items() if name in _KEPT
        }


def _all_knobs(model: str, arguments: Mapping[str, Any]) -> Iterator[_Knob]:
    """Yields the arguments of a network's own, then the one that every network has."""
    ours = (*MULTIPLIED, WIDENED)
    own = {name: value for name, value in arguments.items() if name not in ours}
    if WIDENED not in arguments:  # which comes after all others
        yield from _knobs(constructor_arguments(model, **own))
    yield _Knob({WIDENED: float(arguments.get(WIDENED, 1.0))}, 1)


def _knobs(known: Mapping[str, Any]) -> Iterator[_Knob]:
    """Yields the arguments that may scale a network, those with the most even widths first."""
    for name in _LISTS:
        value = known.get(name)
        if isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value):
            fine = [step for step in _STEPS if 8 * step <= min(value)]
            for step in dict.fromkeys((*fine, *_STEPS)):
                yield _Knob({name: list(value)}, step, exact=all(v % step == 0 for v in value))
    for name in _WHOLE:
        value = known.get(name)
        if isinstance(value, int):
            heads = known.get("num_heads", 1)
            heads = heads[0] if isinstance(heads, list | tuple) else heads
            ratio = known.get("mlp_ratio")
            more = {"mlp_ratio": float(ratio)} if isinstance(ratio, int | float) else {}
            for step in dict.fromkeys((2 * heads, heads)):
                yield _Mixed({name: value, **more}, step, exact=value % step == 0)
                if more:  # some networks know whole ratios only
                    yield _Knob({name: value}, step, exact=value % step == 0)
    if "round_chs_fn" in known:
        multiplier = getattr(known["round_chs_fn"], "keywords", {}).get("multiplier", 1.0)
        yield _Knob({"channel_multiplier": float(multiplier)}, 8)
        features = known.get("num_features")
        if isinstance(features, int) and features:
            yield _Knob({"channel_multiplier": float(multiplier), "num_features": features}, 8)
    for name in _FACTORS:
        if isinstance(known.get(name), float):
            yield _Knob({name: known[name]}, 1)
    cfg: Any = known.get("cfg")
    if hasattr(cfg, "w0") and hasattr(cfg, "wa"):
        yield _Mixed({"w0": int(cfg.w0), "wa": float(cfg.wa), "wm": float(cfg.wm)}, 8)


def _bisect(size_at: Callable[[float], int | None], target: int) -> float | None:
    """Returns the factor whose network is nearest to the target; None if the target is beyond."""
    low, high = _bracket(size_at, target)
    if low is None or high is None:
        return None
    while high - low > _FINEST:
        middle = (low + high) / 2
        size = size_at(middle)
        if size is None:
            break
        low, high = (middle, high) if size < target else (low, middle)
    ends = [(abs(size - target), f) for f in (low, high) if (size := size_at(f)) is not None]
    return min(ends)[1] if ends else None


def _bracket(
    size_at: Callable[[float], int | None], target: int
) -> tuple[float | None, float | None]:
    """Returns a factor whose network is too small and one whose network is large enough."""
    low = high = 1.0
    while (size := size_at(low)) is not None and size > target and low > 1 / _WIDEST:
        low /= 2
    if size is None or size > target:
        return None, None
    while (size := size_at(high)) is not None and size < target and high < _WIDEST:
        high *= math.sqrt(2)
    return (None, None) if size is None or size < target else (low, high)


def _refine(
    knob: _Knob, changes: Arguments, attempt: Callable[[Arguments], int | None], target: int
) -> None:
    """Moves single stages as long as that comes nearer to the target."""
    size = attempt(changes)
    distance = math.inf if size is None else abs(size - target)
    while distance > _FINEST * target:
        for other in knob.neighbours(changes):
            size = attempt(other)
            if size is not None and abs(size - target) < distance:
                changes, distance = other, abs(size - target)
                break
        else:
            return
