"""How every plot of a report looks: colours, markers, axes.

Colours are names of CSS variables, so that one figure serves light mode, dark mode and paper; the
page's script puts the current values in. Neighbours in the palettes stay apart under the common
forms of colour blindness, and each network also has its own marker and line dash.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from visgraft.study.reports.data import Summary

__all__ = [
    "DARK",
    "LIGHT",
    "Look",
    "Plot",
    "headed",
    "looks",
    "not_drawn",
    "rounded",
    "seeds_drawn",
    "to_json",
]

LIGHT = ("#59626d", "#0072b2", "#d55e00", "#008f68", "#332288", "#3399cc", "#c05565")
"""Of the baseline, then of the variants in turn, on white."""
DARK = ("#98a2ae", "#5b9bff", "#ff7f40", "#7dd87d", "#f0e442", "#88ccee", "#f472b6")
"""The same on a dark page."""

_SYMBOLS = ("circle", "square", "triangle-up", "cross", "star", "hexagon", "bowtie")
_DASHES = ("solid", "dash", "dashdot", "longdash")
_TONES = len(LIGHT) - 1
_CIRCLES = 1500
"""So many seeds at most are drawn in one plot: a browser stays quick with them."""
_FEWEST = 5


@dataclass(frozen=True)
class Plot:
    """A figure and its alternative.

    Attributes:
        name: Of the element in the page.
        title: Above it.
        caption: How to read it, one or two sentences.
        figure: Plotly's JSON, colours as CSS variables.
        height: In pixels.
        header: Of the table with the same numbers.
        rows: Of that table.
    """

    name: str
    title: str
    caption: str
    figure: str
    height: int
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Look:
    """How one network appears in the whole report.

    Attributes:
        colour: A CSS variable.
        tint: Its light form, for areas.
        symbol: Of its points.
        dash: Of its lines.
    """

    colour: str
    tint: str
    symbol: str
    dash: str


def looks(summary: Summary) -> dict[str, Look]:
    """Returns a look per network; the baseline is grey, variants take turns."""
    found = {summary.data.baseline: Look("var(--tone-0)", "var(--tint-0)", "diamond", "dot")}
    for index, name in enumerate((*summary.data.variants, *summary.data.controls)):
        tone = 1 + index % _TONES
        found[name] = Look(
            colour=f"var(--tone-{tone})",
            tint=f"var(--tint-{tone})",
            symbol=_SYMBOLS[index % len(_SYMBOLS)],
            dash=_DASHES[index // _TONES % len(_DASHES)],
        )
    return found


def headed(label: str) -> str:
    """Returns a label as a title begins: ``Top-1``, ``AP_S``, ``Mask AP``."""
    return label[:1].upper() + label[1:]


def seeds_drawn(networks: int, seeds: int) -> int:
    """Returns how many seeds of each network a plot draws."""
    return min(seeds, max(_FEWEST, _CIRCLES // max(networks, 1)))


def not_drawn(drawn: int, seeds: int) -> str:
    """Returns what a caption adds where not all seeds are drawn."""
    if drawn >= seeds:
        return ""
    return f" Of each network the first {drawn} of {seeds} seeds are drawn; means are of all."


def to_json(figure: go.Figure) -> str:
    """Returns a figure's JSON, dressed in what all figures share."""
    axis = {
        "gridcolor": "var(--line)",
        "linecolor": "var(--muted)",
        "zeroline": False,
        "automargin": True,
        "title": {"standoff": 10},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    clear = "rgba(0,0,0,0)"
    figure.update_layout(
        template="none",
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        font={"family": "system-ui, sans-serif", "size": 13, "color": "var(--ink)"},
        hoverlabel={"bgcolor": "var(--card)", "font": {"color": "var(--ink)"}},
        modebar={"bgcolor": clear, "color": "var(--muted)", "activecolor": "var(--ink)"},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        margin={"l": 16, "r": 16, "t": 34, "b": 16},
        hovermode="closest",
    )
    return str(figure.to_json())


def rounded(numbers: Sequence[float]) -> list[float]:
    """Returns four decimals: twice what is ever read, half the bytes."""
    return [round(float(n), 4) for n in numbers]
