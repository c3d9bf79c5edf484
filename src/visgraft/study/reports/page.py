"""The report as one HTML page that needs nothing but a browser."""

from collections.abc import Sequence
from dataclasses import dataclass

from plotly.offline import get_plotlyjs

from visgraft.study.reports.data import Summary
from visgraft.study.reports.files import render
from visgraft.study.reports.plots import build_plots
from visgraft.study.reports.style import DARK, LIGHT, looks, seeds_drawn
from visgraft.study.reports.texts import resource
from visgraft.study.statistics import Comparison

__all__ = ["render_html"]

_WIDTH, _MARGIN = 150.0, 6.0


def render_html(summary: Summary) -> str:
    """Returns the page: styles, script, plotting library and data in one text."""
    return render(
        "report.html.j2",
        summary,
        for_html=True,
        drawings=_drawings(summary.comparisons),
        looks=looks(summary),
        plots=build_plots(summary),
        light=_variables(LIGHT, opacity=0.14),
        dark=_variables(DARK, opacity=0.2),
        styles=resource("report.css"),
        script=resource("report.js"),
        plotly=get_plotlyjs(),
    )


@dataclass(frozen=True)
class _Drawing:
    """A small picture of an interval: horizontal positions in pixels."""

    zero: float
    mean: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


def _drawings(comparisons: Sequence[Comparison]) -> dict[str, _Drawing]:
    """One picture per variant, all on one scale that includes zero."""
    ends = [0.0]
    seeds = seeds_drawn(len(comparisons), max((len(c.seeds) for c in comparisons), default=0))
    for c in comparisons:
        ends += [*c.differences, *(end for end in (c.low, c.high) if end is not None)]
    start, span = min(ends), (max(ends) - min(ends)) or 1.0

    def place(number: float) -> float:
        return round(_MARGIN + (_WIDTH - 2 * _MARGIN) * (number - start) / span, 1)

    return {
        c.variant: _Drawing(
            zero=place(0.0),
            mean=place(c.mean),
            low=None if c.low is None else place(c.low),
            high=None if c.high is None else place(c.high),
            seeds=tuple(place(d) for d in c.differences[:seeds]),
        )
        for c in comparisons
        if c.mean is not None
    }


def _variables(palette: Sequence[str], *, opacity: float) -> str:
    """CSS variables: each colour solid, and as the tint of an area."""
    parts = []
    for index, colour in enumerate(palette):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        tint = f"rgba({red}, {green}, {blue}, {opacity})"
        parts.append(f"--tone-{index}: {colour}; --tint-{index}: {tint};")
    return " ".join(parts)
