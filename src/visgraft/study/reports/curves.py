"""The learning curves of a report."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from visgraft.study.reports.data import Row, Summary
from visgraft.study.reports.style import Look, Plot, headed, looks, rounded, to_json

__all__ = ["learning_curves"]

_DRAWN = 24
"""So many networks at most are drawn; the baseline and the best."""
_THIN = 20
"""So many seeds of a network at most are drawn as lines of their own."""
_SHOWN = 8
"""So many of those are shown before the reader asks for more."""


def learning_curves(summary: Summary, metric: str, label: str) -> Plot | None:
    """Draws a metric over the epochs: mean and range over the seeds, and each seed as a thin line.

    Args:
        summary: The study.
        metric: The name of the metric in its curves.
        label: Its name for readers.

    Returns:
        The plot; None if no trial has recorded the metric.
    """
    series: dict[str, dict[int, dict[int, float]]] = {}
    for name, seed, epoch, metrics in summary.data.curves:
        if math.isfinite(metrics.get(metric, math.nan)):
            series.setdefault(name, {}).setdefault(seed, {})[epoch] = metrics[metric]
    if not series:
        return None
    rows = [row for row in summary.rows if row.name in series]
    chosen = _choose(rows, higher_is_better=summary.metric.higher_is_better)
    look_of, figure, table = looks(summary), go.Figure(), []
    for rank, name in enumerate(chosen):
        by_epoch = _by_epoch(series[name])
        _draw(figure, name, look_of[name], series[name], by_epoch, shown=rank < _SHOWN)
        last, numbers = max(by_epoch.items())
        spread = f"{min(numbers):.3f} to {max(numbers):.3f}"
        mean = f"{sum(numbers) / len(numbers):.3f}"
        table.append((name, str(last), mean, spread, str(len(numbers))))
    figure.update_layout(xaxis={"title": "epoch"}, yaxis={"title": label}, showlegend=True)
    rest = len(rows) - len(chosen)
    most = max(len(series[name]) for name in chosen)
    return Plot(
        name=f"curves-{metric}",
        title=f"{headed(label)} by epoch",
        caption="Thick line: mean over the seeds. Band: their range. Thin lines: the "
        f"{f'first {_THIN} ' if most > _THIN else ''}seeds. A click in the legend hides or shows "
        "a network."
        + (f" {rest} more networks, with lower results, are not drawn." if rest else ""),
        figure=to_json(figure),
        height=420,
        header=("Network", "Last epoch", "Mean", "Range over seeds", "Seeds"),
        rows=tuple(table),
    )


def _choose(rows: Sequence[Row], *, higher_is_better: bool) -> list[str]:
    """The baseline, then variants in the study's order; the best ones first if there are many."""
    baseline = [row.name for row in rows if row.comparison is None]
    variants = [row for row in rows if row.comparison is not None]
    if len(rows) > _SHOWN:
        sign = -1 if higher_is_better else 1
        variants.sort(key=lambda row: math.inf if row.mean is None else sign * row.mean)
    return [*baseline, *(row.name for row in variants)][:_DRAWN]


def _by_epoch(curves: Mapping[int, Mapping[int, float]]) -> dict[int, list[float]]:
    """The numbers of all seeds that have reached an epoch, by epoch."""
    found: dict[int, list[float]] = {}
    for curve in curves.values():
        for epoch, number in curve.items():
            found.setdefault(epoch, []).append(number)
    return dict(sorted(found.items()))


def _draw(
    figure: go.Figure,
    name: str,
    look: Look,
    curves: Mapping[int, Mapping[int, float]],
    by_epoch: Mapping[int, Sequence[float]],
    *,
    shown: bool,
) -> None:
    name = html.escape(name)
    epochs = list(by_epoch)
    shared: dict[str, Any] = {"legendgroup": name, "visible": True if shown else "legendonly"}
    behind = {"mode": "lines", "hoverinfo": "skip", "showlegend": False, **shared}
    if len(curves) > 1:
        highest = [max(numbers) for numbers in by_epoch.values()]
        lowest = [min(numbers) for numbers in by_epoch.values()]
        figure.add_scatter(
            x=epochs + epochs[::-1],
            y=rounded(highest + lowest[::-1]),
            fill="toself",
            fillcolor=look.tint,
            line={"width": 0},
            **behind,
        )
        x: list[int | None] = []
        y: list[float | None] = []
        for curve in list(curves.values())[:_THIN]:  # one trace for all, with gaps between
            x += [*curve, None]
            y += [*rounded(list(curve.values())), None]
        figure.add_scatter(x=x, y=y, line={"color": look.colour, "width": 0.6}, **behind)
    figure.add_scatter(
        x=epochs,
        y=rounded([sum(numbers) / len(numbers) for numbers in by_epoch.values()]),
        name=name,
        mode="lines" if len(epochs) > 1 else "markers",
        line={"color": look.colour, "width": 2.5, "dash": look.dash},
        marker={"symbol": look.symbol, "size": 9, "color": look.colour},
        hovertemplate=f"{name}, epoch %{{x}}: %{{y:.3f}}<extra></extra>",
        **shared,
    )
