"""The plots of a report that set the metric against what a network costs, counted or measured."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go

from visgraft.study.measuring.cost import Latency, MeasuredCost
from visgraft.study.reports.data import Row, StudyData, Summary
from visgraft.study.reports.numbers import NOTHING, latency, memory, percent, quantity, value
from visgraft.study.reports.style import (
    Plot,
    headed,
    looks,
    not_drawn,
    rounded,
    seeds_drawn,
    to_json,
)

__all__ = ["NAMED", "cost_plots", "measured_where", "pareto_front"]

NAMED = 14
"""Up to so many networks a plot has a legend; beyond, names show on hover."""
_UNDISTURBED = 0.9
_FRONT = (
    "Outlined markers on the dotted line form the Pareto front: nothing that costs no more is as "
    "good, by the means and without regard to chance. Small circles: the seeds."
)


@dataclass(frozen=True)
class _Cost:
    """A cost to plot against.

    Attributes:
        name: In the name of the plot.
        title: Of the axis.
        of: What a network costs; None where it is not known.
        text: That in words.
        unit: What one step of the axis is.
        ticks: Format of the axis, plotly's.
        most: What 95 % of the calls do not exceed; None draws no bar.
        columns: Further columns of the table.
        note: Further words of the caption.
    """

    name: str
    title: str
    of: Callable[[Row], float | None]
    text: Callable[[float | None], str]
    unit: float = 1.0
    ticks: str = "~s"
    most: Callable[[Row], float | None] | None = None
    columns: Mapping[str, Callable[[Row], str]] = field(default_factory=dict)
    note: str = ""

    def place(self, row: Row) -> float:
        """Returns where on the axis a network stands."""
        return (self.of(row) or 0.0) / self.unit

    def end(self, row: Row) -> float:
        """Returns where its bar ends."""
        most = self.most(row) if self.most else None
        return self.place(row) if most is None else max(most / self.unit, self.place(row))


def cost_plots(summary: Summary) -> list[Plot]:
    """Returns the plots against each cost that is known of any network."""
    costs = [
        _Cost("params", "parameters", lambda row: row.params, quantity),
        _Cost("macs", "MACs per image", lambda row: row.macs, quantity),
        *(_measured(summary) if summary.data.measured else ()),
    ]
    plots = (_against(summary, cost) for cost in costs)
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


def measured_where(data: StudyData) -> str:
    """Returns what was measured on which machine, and what was not and why; empty for nothing."""
    if not data.measured and not data.unmeasured:
        return ""
    sentences = []
    if data.measured:
        cost = next(iter(data.measured.values()))
        threads = f"{cost.threads} thread{'s' if cost.threads != 1 else ''}"
        machine = _machine(data, data.measured_on)
        place = f"{machine} ({cost.device}, {threads}, {cost.dtype})"
        sentences.append(f"Measured in turns on {place}: {data.measured_of}.")
        share = 1.0 if data.measured_share is None else data.measured_share
        if share < _UNDISTURBED:
            sentences.append(
                f"The machine was busy, and the calls waited {percent(1 - share)} of their time "
                "for a processor: latencies are too long and compare badly; measure again when it "
                "is idle (visgraft study run with --measure-again)."
            )
        others = {_machine(data, facts) for facts in data.environments} - {machine}
        if others:
            names = " and ".join(sorted(others))
            sentences.append(f"Trials also ran on {names}, where these figures do not hold.")
    for name, reason in data.unmeasured.items():
        sentences.append(f"{name} is not measured: {reason}.")
    return " ".join(sentences)


def _machine(data: StudyData, facts: Mapping[str, object]) -> str:
    """Returns what computes in an environment, by the device that the recipe asks for."""
    gpu = facts.get("gpu") if data.recipe.get("device") != "cpu" else None
    return str(gpu or facts.get("cpu") or "a machine that is not recorded")


def _measured(summary: Summary) -> list[_Cost]:
    """Returns the costs that were measured where the study ran."""
    where = measured_where(summary.data)
    sizes = {x.batch_size for cost in summary.data.measured.values() for x in cost.latencies}
    large = max(sizes)
    throughput: dict[str, Callable[[Row], str]] = {}
    if large > 1:
        throughput = {
            f"Batch of {large}": lambda row: latency(_latency(row.measured, large, "p50")),
            "Images/s": lambda row: _throughput(row.measured, large),
        }
    return [
        _Cost(
            "latency",
            "ms for one image",
            lambda row: _latency(row.measured, 1, "p50"),
            latency,
            unit=1e-3,
            ticks="~g",
            most=lambda row: _latency(row.measured, 1, "p95"),
            columns={"95 % of calls": lambda row: latency(_latency(row.measured, 1, "p95"))}
            | throughput,
            note=f" Marker: the median call; its bar ends where 95 % of the calls do. {where}",
        ),
        _Cost(
            "memory",
            "MiB for a training step",
            lambda row: row.measured and row.measured.training_memory,
            memory,
            unit=2**20,
            ticks="~g",
            columns={
                "Inference": lambda row: memory(row.measured and row.measured.inference_memory)
            },
            note=" Peak of a forward and backward pass of the recipe's batch, above the network "
            f"itself and without the optimizer's state. {where}",
        ),
    ]


def _latency(cost: MeasuredCost | None, batch_size: int, part: str) -> float | None:
    found = _find(cost, batch_size)
    return found and getattr(found, part)


def _throughput(cost: MeasuredCost | None, batch_size: int) -> str:
    found = _find(cost, batch_size)
    return quantity(found.batch_size / found.p50) if found else NOTHING


def _find(cost: MeasuredCost | None, batch_size: int) -> Latency | None:
    found = cost.latencies if cost else ()
    return next((one for one in found if one.batch_size == batch_size), None)


def _against(summary: Summary, cost: _Cost) -> Plot | None:
    """The metric against a cost, with the Pareto front."""
    rows = {r.name: r for r in summary.rows if r.mean is not None and cost.of(r) is not None}
    if not rows:
        return None
    look_of, label = looks(summary), summary.metric.label
    points = {name: (cost.place(row), row.mean or 0.0) for name, row in rows.items()}
    front = pareto_front(points, higher_is_better=summary.metric.higher_is_better)
    most = max(len(row.values) for row in rows.values())
    drawn = seeds_drawn(len(rows), most)
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
            x=[price] * min(drawn, len(row.values)),
            y=rounded(list(row.values.values())[:drawn]),
            mode="markers",
            marker={"size": 6, "color": look.tint, "line": {"color": look.colour, "width": 1}},
            customdata=list(row.values)[:drawn],
            hovertemplate=f"{name}, seed %{{customdata}}: %{{y:.2f}}<extra></extra>",
            legendgroup=name,
            showlegend=False,
        )
        bar = {}
        if cost.most:
            upwards = {"array": [cost.end(row) - price], "arrayminus": [0.0]}
            bar = {"error_x": {"type": "data", "symmetric": False, "width": 5, **upwards}}
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
            hovertemplate=f"<b>{name}</b>: {mean:.2f} with {cost.text(cost.of(row))}"
            f"{', on the Pareto front' if on_front else ''}<extra></extra>",
            **bar,
        )
    places = [end for row in rows.values() for end in (cost.place(row), cost.end(row))]
    scale = {"type": "linear", "range": _with_room(places)}
    if min(places) > 0 and max(places) > 4 * min(places):
        scale = {"type": "log"}
    figure.update_layout(
        xaxis={"title": cost.title, "tickformat": cost.ticks, **scale},
        yaxis={"title": label},
        showlegend=len(rows) <= NAMED,
    )
    return Plot(
        name=f"against-{cost.name}",
        title=f"{headed(label)} against {cost.title}",
        caption=_FRONT + not_drawn(drawn, most) + cost.note,
        figure=to_json(figure),
        height=400,
        header=("Network", headed(cost.title), *cost.columns, f"Mean {label}", "On the front"),
        rows=tuple(
            (
                name,
                cost.text(cost.of(row)),
                *(column(row) for column in cost.columns.values()),
                value(row.mean),
                "yes" if name in front else "no",
            )
            for name, row in rows.items()
        ),
    )


def _with_room(numbers: Sequence[float]) -> list[float]:
    """The range of an axis whose outermost markers are not cut."""
    low, high = min(numbers), max(numbers)
    room = 0.08 * (high - low) or 0.05 * high or 1.0
    return [low - room, high + room]
