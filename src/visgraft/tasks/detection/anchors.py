"""Anchors for any number of levels."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torchvision.models.detection.anchor_utils import AnchorGenerator

__all__ = ["anchor_generator", "level_strides"]

_RATIOS = (0.5, 1.0, 2.0)  # height / width


def level_strides(reductions: Sequence[int], extra_levels: int) -> list[int]:
    """Returns the pixels per position of each level; each extra level halves the last map."""
    return [*reductions, *(reductions[-1] * 2 ** (i + 1) for i in range(extra_levels))]


def anchor_generator(
    detector: str, strides: Sequence[int], sizes: Sequence[Any] | None
) -> AnchorGenerator:
    """Builds the anchors of a detector.

    Args:
        detector: Its name.
        strides: Pixels per position of each level.
        sizes: Side of the square anchor, or several sides, in pixels, for each level; None for
            those of torchvision, which start at 32 and double from level to level on maps that do.

    Raises:
        ValueError: The sizes do not fit the levels.
    """
    if detector == "fcos":
        if sizes is not None:
            raise ValueError(
                "build_detector: fcos has no anchors to give sizes to; leave anchor_sizes out"
            )
        return AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
    found = _usual_sizes(detector, strides) if sizes is None else _checked(sizes, strides)
    return AnchorGenerator(found, (_RATIOS,) * len(strides))


def _usual_sizes(detector: str, strides: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Returns torchvision's sizes, carried over to other strides."""
    per_position = 4 if detector == "retinanet" else 8
    sides = [per_position * strides[0]]
    for before, stride in pairwise(strides):
        sides.append(sides[-1] * max(2, stride // before))
    if detector != "retinanet":
        return tuple((s,) for s in sides)
    return tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in sides)


def _checked(sizes: Any, strides: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    levels = list(sizes) if isinstance(sizes, (tuple, list)) else []
    rows = [tuple(s) if isinstance(s, (tuple, list)) else (s,) for s in levels]
    numbers = [n for row in rows for n in row]
    legal = all(isinstance(n, (int, float)) and not isinstance(n, bool) and n > 0 for n in numbers)
    if not levels or not legal or len(set(map(len, rows))) != 1 or not rows[0]:
        raise ValueError(
            "build_detector: anchor_sizes must be pixels for each level, or equally many sizes for "
            f"each, such as (16, 32, 64) or ((16, 24), (32, 48), (64, 96)), got {sizes!r}"
        )
    if len(levels) != len(strides):
        raise ValueError(
            f"build_detector: anchor_sizes has {len(levels)} entries for {len(strides)} levels, "
            f"which have one position per {', '.join(map(str, strides))} pixels"
        )
    return tuple(rows)
