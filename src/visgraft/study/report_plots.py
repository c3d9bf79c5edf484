"""The plots of a report, each with the same numbers as a table."""

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from visgraft.study.report_curves import learning_curves
from visgraft.study.report_data import Summary
from visgraft.study.report_numbers import interval, quantity, signed, value
from visgraft.study.report_style import Plot, headed, looks, rounded, to_json

__all__ = ["build_plots", "pareto_front"]

_NAMED = 14
"""Up to so many networks the plots against cost have a legend; beyond, names show on hover."""


def build_plots(summary: Summary) -> list[Plot]:
    """Returns the plots for which the study has numbers."""
    metric, known = summary.data.metric, summary.data.known_metrics
    besides = [name for name in known.first if name != metric]
    plots = [
        _differences(summary),
        _against_cost(summary, "params", "parameters"),
        _against_cost(summary, "macs", "MACs per image"),
        learning_curves(summary, metric, summary.metric.label),
        *(learning_curves(summary, name, known.metrics[name].label) for name in besides),
        learning_curves(summary, "train_loss", "training loss"),
    ]
    return [plot for plot in plots if plot is not None]


def pareto_front(points: Mapping[str, tuple[float, float]], *, higher_is_better: bool) -> list[str]:
    """Returns the names of those (cost, value) points that no other point beats, by rising cost.

    A point beats another if it costs no more and is as good, and differs in one of both.
    """
    sign = 1 if higher_is_better else -1

    def is_beaten(cost: float, worth: float) -> bool:
        return any(
            c <= cost and sign * v >= sign * worth and (c, v) != (cost, worth)
            for c, v in points.values()
        )

    front = [name for name, point in points.items() if not is_beaten(*point)]
    return sorted(front, key=lambda name: points[name])


def _differences(summary: Summary) -> Plot | None:
    """Forest plot: a line per variant with its interval, its mean and its seeds."""
    found = [c for c in summary.comparisons if c.mean is not None]
    if not found:
        return None
    look_of, unit = looks(summary), summary.metric.unit
    figure = go.Figure()
    for place, c in enumerate(reversed(found)):
        look, name, mean = look_of[c.variant], html.escape(c.variant), c.mean or 0.0
        figure.add_scatter(
            x=rounded(c.differences),
            y=[place - 0.22] * len(c.differences),
            mode="markers",
            marker={"size": 7, "color": look.tint, "line": {"color": look.colour, "width": 1.2}},
            customdata=list(c.seeds),
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
    seeds = sorted({seed for c in found for seed in c.seeds})
    by_seed = [dict(zip(c.seeds, c.differences, strict=True)) for c in found]
    return Plot(
        name="differences",
        title="Paired differences to the baseline",
        caption="Marker and bar: mean and 95 % interval. Circles: the seeds, each the variant "
        "minus the baseline of the same seed. "
        f"{'Right' if summary.metric.higher_is_better else 'Left'} of zero is better.",
        figure=to_json(figure),
        height=120 + (64 if len(found) <= _NAMED else 28) * len(found),
        header=("Variant", "Mean [95 %]", *(f"Seed {seed}" for seed in seeds)),
        rows=tuple(
            (
                c.variant,
                interval(c.mean, c.low, c.high),
                *(signed(differences.get(seed)) for seed in seeds),
            )
            for c, differences in zip(found, by_seed, strict=True)
        ),
    )


def _against_cost(summary: Summary, cost: str, title: str) -> Plot | None:
    """The metric against a cost, with the Pareto front."""
    rows = {r.name: r for r in summary.rows if r.mean is not None and getattr(r, cost) is not None}
    if not rows:
        return None
    look_of, label = looks(summary), summary.metric.label
    points = {name: (float(getattr(r, cost)), r.mean or 0.0) for name, r in rows.items()}
    front = pareto_front(points, higher_is_better=summary.metric.higher_is_better)
    figure = go.Figure()
    figure.add_scatter(
        x=[points[name][0] for name in front],
        y=rounded([points[name][1] for name in front]),
        mode="lines",
        line={"color": "var(--muted)", "width": 1.5, "dash": "dot", "shape": "hv"},
        hoverinfo="skip",
        showlegend=False,
    )
    for row_name, row in rows.items():
        look, name = look_of[row_name], html.escape(row_name)
        (price, mean), on_front = points[row_name], row_name in front
        figure.add_scatter(
            x=[price] * len(row.values),
            y=rounded(list(row.values.values())),
            mode="markers",
            marker={"size": 6, "color": look.tint, "line": {"color": look.colour, "width": 1}},
            customdata=list(row.values),
            hovertemplate=f"{name}, seed %{{customdata}}: %{{y:.2f}}<extra></extra>",
            legendgroup=name,
            showlegend=False,
        )
        figure.add_scatter(
            x=[price],
            y=rounded([mean]),
            mode="markers",
            name=name,
            legendgroup=name,
            marker={
                "size": 13,
                "color": look.colour,
                "symbol": look.symbol,
                "line": {"color": "var(--ink)", "width": 2.5 if on_front else 0},
            },
            hovertemplate=f"<b>{name}</b>: {mean:.2f} with {quantity(price)}"
            f"{', on the Pareto front' if on_front else ''}<extra></extra>",
        )
    prices = [price for price, _ in points.values()]
    scale = {"type": "linear", "range": _with_room(prices)}
    if min(prices) > 0 and max(prices) > 4 * min(prices):
        scale = {"type": "log"}
    figure.update_layout(
        xaxis={"title": title, "tickformat": "~s", **scale},
        yaxis={"title": label},
        showlegend=len(rows) <= _NAMED,
    )
    return Plot(
        name=f"against-{cost}",
        title=f"{headed(label)} against {title}",
        caption="Outlined markers on the dotted line form the Pareto front: nothing that costs no "
        "more is as good, by the means and without regard to chance. Small circles: the seeds.",
        figure=to_json(figure),
        height=400,
        header=("Network", title.capitalize(), f"Mean {label}", "On the front"),
        rows=tuple(
            (name, quantity(points[name][0]), value(row.mean), "yes" if name in front else "no")
            for name, row in rows.items()
        ),
    )


def _with_room(numbers: Sequence[float]) -> list[float]:
    """The range of an axis whose outermost markers are not cut."""
    low, high = min(numbers), max(numbers)
    room = 0.08 * (high - low) or 0.05 * high or 1.0
    return [low - room, high + room]
