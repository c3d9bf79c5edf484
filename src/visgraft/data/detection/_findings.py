"""What a reader met in a data set, collected so that all of it can be told at once."""

import logging
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from visgraft.data._errors import DataError
from visgraft.data.detection.annotations import Box

__all__ = ["Findings", "OnProblem", "check_on_problem", "is_number", "is_whole", "shorten"]

logger = logging.getLogger("visgraft.data")

OnProblem = Literal["error", "mend"]
_ON_PROBLEM = ("error", "mend")
_NAMED = 50  # problems that are named one by one in an error
_SLACK = 1.0  # pixels by which rounding may put a box outside


@dataclass
class Findings:
    """Problems, each with its place and the way out, and counts of what needs no mending."""

    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def problem(self, where: str, what: str) -> None:
        """Adds something that has to be mended."""
        self.problems.append(f"{where}: {what}")

    def note(self, what: str, count: int = 1) -> None:
        """Counts something that is handled."""
        if count:
            self.counts[what] += count

    @property
    def notes(self) -> tuple[str, ...]:
        """The counts as sentences."""
        return tuple(f"{count} {what}" for what, count in self.counts.items())

    def settle(self, caller: str, source: str, on_problem: OnProblem) -> None:
        """Raises if there are problems and they are not to be mended; logs them otherwise.

        Raises:
            DataError: It names the problems.
        """
        for note in self.notes:
            logger.info("%s: %s", source, note)
        if not self.problems:
            return
        if on_problem == "mend":
            for problem in self.problems:
                logger.warning("left out or cut: %s", problem)
            return
        named = "\n".join(f"  {problem}" for problem in self.problems[:_NAMED])
        more = len(self.problems) - _NAMED
        raise DataError(
            f"{caller}: {len(self.problems)} problems in {source}; mend them, or leave out what "
            "cannot be used and cut boxes to their images with on_problem='mend':\n"
            + named
            + (f"\n  ... and {more} more (visgraft data check names all)" if more > 0 else "")
        )

    def settle_box(self, box: Box, height: int, width: int, where: str) -> Box | None:
        """Returns the part of a box in the image, ``None`` if there is none; tells what is wrong.

        Args:
            box: ``x1, y1, x2, y2`` in pixels.
            height: Of the image.
            width: Of the image.
            where: File and id.
        """
        x1, y1, x2, y2 = box
        shown = f"box ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
        if not all(math.isfinite(value) for value in box):
            self.problem(where, f"{shown} is not finite")
            return None
        if not (x1 < x2 and y1 < y2):
            self.problem(where, f"{shown} has no area")
            return None
        inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if not (inside[0] < inside[2] and inside[1] < inside[3]):
            self.problem(where, f"{shown} lies outside of its image of {width} x {height} pixels")
            return None
        excess = max(-x1, -y1, x2 - width, y2 - height)
        if excess > _SLACK:
            self.problem(
                where,
                f"{shown} sticks out of its image of {width} x {height} pixels by {excess:g}",
            )
        elif excess > 0:
            self.note(f"boxes stuck out by at most {_SLACK:g} pixel and were cut")
        if min(inside[2] - inside[0], inside[3] - inside[1]) < 1:
            self.note("boxes are thinner than one pixel (kept)")
        return inside


def check_on_problem(caller: str, value: str) -> None:
    """Raises if the option has no legal value."""
    if value not in _ON_PROBLEM:
        raise DataError(
            f"{caller}: on_problem must be one of {', '.join(_ON_PROBLEM)}, got {value!r}"
        )


def shorten(value: object, limit: int = 60) -> str:
    """Returns how a value looks, cut to a length that fits into a sentence."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def is_number(value: object) -> bool:
    """Returns whether a value of a json is a finite number that a float holds well."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def is_whole(value: object) -> bool:
    """Returns whether a value of a json is an integer of at most 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
