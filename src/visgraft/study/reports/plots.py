"""The plots of a report, each with the same numbers as a table."""

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from visgraft.study.reports.costs import NAMED, cost_plots, pareto_front
from visgraft.study.reports.curves import learning_curves
from visgraft.study.reports.data import Summary
from visgraft.study.reports.numbers import interval, signed
from visgraft.study.reports.style import (
    Plot,
    looks,
    not_drawn,
    rounded,
    seeds_drawn,
    to_json,
)
from visgraft.study.statistics import Comparison

__all__ = ["build_plots", "pareto_front"]

_LINES = 60
"""So many variants at most are drawn beneath each other; those that differ most."""
_COLUMNS = 30
"""So many seeds at most are columns of the table; trials.csv has all."""


def build_plots(summary: Summary) -> list[Plot]:
    """Returns the plots for which the study has numbers."""
    metric, known = summary.data.metric, summary.data.known_metrics
    besides = [name for name in known.first if name != metric]
    plots = [
        _differences(summary),
        *cost_plots(summary),
        learning_curves(summary, metric, summary.metric.label),
        *(learning_curves(summary, name, known.metrics[name].label) for name in besides),
        learning_curves(summary, "train_loss", "training loss"),
    ]
    return [plot for plot in plots if plot is not None]


def _differences(summary: Summary) -> Plot | None:
    """Forest plot: a line per variant with its interval, its mean and its seeds."""
    found = [c for c in summary.comparisons if c.mean is not None]
    if not found:
        return None
    every, found = found, _largest(found)
    look_of, unit = looks(summary), summary.metric.unit
    most = max(len(c.seeds) for c in found)
    drawn = seeds_drawn(len(found), most)
    figure = go.Figure()
    for place, c in enumerate(reversed(found)):
        look, name, mean = look_of[c.variant], html.escape(c.variant), c.mean or 0.0
        figure.add_scatter(
            x=rounded(c.differences[:drawn]),
            y=[place - 0.22] * min(drawn, len(c.differences)),
            mode="markers",
            marker={"size": 7, "color": look.tint, "line": {"color": look.colour, "width": 1.2}},
            customdata=list(c.seeds[:drawn]),
            hovertemplate=f"{name}, seed %{{customdata}}: %{{x:+.2f}} {unit}<extra></extra>",
        )
        bars = {}
        if c.low is not None and c.high is not None:
            bars = {"array": rounded([c.high - mean]), "arrayminus": rounded([mean - c.low])}
        figure.add_scatter(
            x=rounded([mean]),
            y=[place + 0.08],
            mode="markers",
            marker={"size": 12, "color": look.colour, "symbol": look.symbol},
            error_x={"type": "data", "symmetric": False, "thickness": 2.5, "width": 7, **bars},
            hovertemplate=f"<b>{name}</b>: {interval(mean, c.low, c.high)} {unit}<extra></extra>",
        )
    figure.add_vline(x=0, layer="below", line={"color": "var(--ink)", "width": 1.2})
    names = [html.escape(c.variant) for c in reversed(found)]
    in_unit = f", {unit}" if unit else ""
    figure.update_layout(
        xaxis={"title": f"difference in {summary.metric.label}{in_unit}"},
        yaxis={
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "range": [-0.6, len(names) - 0.4],
            "showgrid": False,
        },
        showlegend=False,
    )
    seeds = sorted({seed for c in every for seed in c.seeds})[:_COLUMNS]
    by_seed = [dict(zip(c.seeds, c.differences, strict=True)) for c in every]
    rest = len(every) - len(found)
    return Plot(
        name="differences",
        title="Paired differences to the baseline",
        caption="Marker and bar: mean and 95 % interval. Circles: the seeds, each the variant "
        "minus the baseline of the same seed. "
        f"{'Right' if summary.metric.higher_is_better else 'Left'} of zero is better."
        + not_drawn(drawn, most)
        + (f" {rest} more variants, with smaller differences, are in the table." if rest else ""),
        figure=to_json(figure),
        height=120 + (64 if len(found) <= NAMED else 28) * len(found),
        header=("Variant", "Mean [95 %]", *(f"Seed {seed}" for seed in seeds)),
        rows=tuple(
            (
                c.variant,
                interval(c.mean, c.low, c.high),
                *(signed(differences.get(seed)) for seed in seeds),
            )
            for c, differences in zip(every, by_seed, strict=True)
        ),
    )


def _largest(found: Sequence[Comparison]) -> list[Comparison]:
    """Returns the variants to draw, in the study's order."""
    if len(found) <= _LINES:
        return list(found)
    least = sorted((abs(c.mean or 0.0) for c in found), reverse=True)[_LINES - 1]
    return [c for c in found if abs(c.mean or 0.0) >= least][:_LINES]
