"""The metrics of a report that do not decide: means and paired differences, without a verdict."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from visgraft.study.reports.numbers import signed, value

if TYPE_CHECKING:
    from visgraft.study.reports.data import StudyData, Summary

__all__ = ["Other", "other_metrics", "others_table"]


@dataclass(frozen=True)
class Other:
    """One metric of one network; ``None`` where nothing is known.

    Attributes:
        mean: Over its finished trials; NaN where the validation images do not tell.
        difference: Mean paired difference to the baseline.
    """

    mean: float | None = None
    difference: float | None = None

    def __str__(self) -> str:
        if self.difference is None:
            return value(self.mean)
        return f"{value(self.mean)} ({signed(self.difference)})"


def other_metrics(data: "StudyData") -> dict[str, dict[str, Other]]:
    """Returns the metrics that the task shows besides the one that decides.

    What a finished trial has not recorded does not exist on its validation images: NaN.

    Returns:
        By name of the metric, then of the network; empty before a trial has finished.
    """
    finished = [trial for trial in data.trials if trial.metrics]
    names = (data.baseline, *data.variants, *data.controls)
    found: dict[str, dict[str, Other]] = {}
    for metric in data.known_metrics.shown if finished else ():
        if metric != data.metric:
            values = {(t.variant, t.seed): t.metrics.get(metric, math.nan) for t in finished}
            found[metric] = {name: _other(data, values, name) for name in names}
    return found


def others_table(summary: "Summary") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns header and rows of the table of all metrics that do not decide."""
    known = summary.data.known_metrics.metrics
    header = ("Network", *(known[name].label for name in summary.others))
    rows = [
        (row.name, *(str(networks[row.name]) for networks in summary.others.values()))
        for row in summary.rows
    ]
    return header, rows


def _other(data: "StudyData", values: Mapping[tuple[str, int], float], name: str) -> Other:
    own = [values[name, seed] for seed in data.seeds if (name, seed) in values]
    pairs = [
        values[name, seed] - values[data.baseline, seed]
        for seed in data.seeds
        if (name, seed) in values and (data.baseline, seed) in values
    ]
    if not own:
        return Other()
    mean, difference = fmean(own), fmean(pairs) if pairs else None
    if name == data.baseline or difference is None or math.isnan(difference):
        return Other(mean)
    return Other(mean, difference)
