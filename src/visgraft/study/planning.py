"""How many seeds a study needs, said before it runs.

The spread is the standard deviation of the paired differences (variant minus baseline of one seed).
A pilot of a few seeds knows it badly, so that its upper confidence limit stands beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from visgraft.study.errors import StudyError
from visgraft.study.reports.data import summarise
from visgraft.study.reports.writing import study_data
from visgraft.study.statistics import LEVEL, POWER, seeds_needed

__all__ = ["SeedPlan", "in_words", "plan_seeds"]

CONFIDENCE = 0.8
"""Of the upper limit of a spread that a pilot has measured."""


@dataclass(frozen=True)
class SeedPlan:
    """How many seeds show a difference.

    Attributes:
        variant: Of the pilot; None for a spread that was given.
        pairs: Seeds that the spread comes from; None for a spread that was given.
        spread: Standard deviation of the paired differences.
        seeds: Needed, if the spread is right.
        spread_high: Upper 80 % confidence limit of the spread, from a pilot.
        seeds_high: Needed, if the spread is that large.
    """

    variant: str | None
    pairs: int | None
    spread: float
    seeds: int
    spread_high: float | None = None
    seeds_high: int | None = None


def plan_seeds(
    difference: float,
    *,
    spread: float | None = None,
    pilot: str | Path | None = None,
    variants: int | None = None,
    power: float = POWER,
) -> list[SeedPlan]:
    """Returns how many seeds show a true difference with a given probability.

    Args:
        difference: To be seen, in the unit of the metric.
        spread: Standard deviation of the paired differences; or
        pilot: Folder of a study with at least two finished seeds, which tells it per variant.
        variants: Of the study that is planned, for Holm's correction; by default the pilot's
            number, or 1.
        power: Probability to see the difference.

    Returns:
        One plan per variant of the pilot, or one for the spread.

    Raises:
        StudyError: The question makes no sense, or the pilot does not know the spread.

    Example:
        >>> plan_seeds(0.5, spread=0.4)[0].seeds
        8
    """
    if (spread is None) == (pilot is None):
        raise StudyError("study plan: give either a spread or a pilot.")
    if not (math.isfinite(difference) and difference != 0):
        raise StudyError(f"study plan: difference must be a number other than 0, got {difference}.")
    if not 0 < power < 1:
        raise StudyError(f"study plan: power must be between 0 and 1, got {power}.")
    if variants is not None and variants < 1:
        raise StudyError(f"study plan: variants must be at least 1, got {variants}.")
    if pilot is None:
        if spread is None or not (math.isfinite(spread) and spread > 0):
            raise StudyError(f"study plan: spread must be above 0, got {spread}.")
        return [SeedPlan(None, None, spread, _seeds(difference, spread, variants or 1, power))]
    summary = summarise(study_data(pilot))
    names = set(summary.data.variants)
    known = [
        (c.variant, len(c.seeds), c.sd) for c in summary.comparisons if c.variant in names and c.sd
    ]
    if not known:
        raise StudyError(
            f"study plan: no variant in {pilot} has two finished seeds with different results, so "
            "the spread is not known; run more seeds of the pilot, or give a spread."
        )
    family = variants or len(names)
    return [_from_pilot(difference, *one, family, power) for one in known]


def in_words(plans: Sequence[SeedPlan], difference: float, power: float) -> str:
    """Returns the answer in one sentence, on the safe side."""
    most = max(plan.seeds for plan in plans)
    words = f"{most} seeds show a difference of {abs(difference):g} with {power:.0%} power"
    safe = max((plan.seeds_high or 0 for plan in plans), default=0)
    if safe > most:
        words += (
            f"; {safe} are on the safe side, because the pilot's few seeds may understate the "
            f"spread (its upper {CONFIDENCE:.0%} limit)"
        )
    return f"{words}."


def _from_pilot(
    difference: float, variant: str, pairs: int, spread: float, family: int, power: float
) -> SeedPlan:
    freedom = pairs - 1
    high = spread * math.sqrt(freedom / float(stats.chi2.ppf(1 - CONFIDENCE, freedom)))
    return SeedPlan(
        variant,
        pairs,
        spread,
        _seeds(difference, spread, family, power),
        high,
        _seeds(difference, high, family, power),
    )


def _seeds(difference: float, spread: float, family: int, power: float) -> int:
    try:
        return seeds_needed(spread, difference, level=LEVEL / family, power=power)
    except ValueError as error:
        raise StudyError(f"study plan: {error}.") from error
