"""The map of a placement as SVG: the blocks of the network, and below them a lane per candidate.

What a lane says stands in its text, sign and symbol included; colours repeat it. Filled marks are
results of the final study, hollow ones of the screening. Colours are the variables of the report's
style sheet, so that one drawing serves light mode, dark mode and paper.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from visgraft.study.placement.network import NetworkBlock, NetworkMap

__all__ = ["MAP_STYLES", "Lane", "draw_map"]

MAP_STYLES = """
.map text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink); }
.map .name { font-weight: 600; font-size: 13px; }
.map .small, .map .screening .number, .map .excluded text { fill: var(--muted); }
.map .number { font-variant-numeric: tabular-nums; }
.map .centred { text-anchor: middle; }
.map .stage { fill: var(--page); }
.map .block { fill: var(--quiet-bg); stroke: var(--muted); }
.map .flow, .map .rule { stroke: var(--line); }
.map .flow { stroke-width: 3; }
.map .mark { fill: var(--quiet); stroke: var(--quiet); stroke-width: 1.8; }
.map .link { stroke: var(--quiet); stroke-width: 1.8; }
.map .better .mark, .map .better .call { fill: var(--good); }
.map .worse .mark, .map .worse .call { fill: var(--bad); }
.map .better .mark, .map .better .link, .map .screening.gain .mark, .map .screening.gain .link
  { stroke: var(--good); }
.map .worse .mark, .map .worse .link, .map .screening.loss .mark, .map .screening.loss .link
  { stroke: var(--bad); }
.map .screening .mark { fill: var(--card); stroke-width: 1.4; }
.map .screening .link { stroke-width: 1; stroke-dasharray: 3 3; }
.map .screening .mark, .map .screening .link { stroke-opacity: 0.75; }
.map .excluded .mark { fill: none; stroke: var(--muted); }
.map .excluded .link { stroke: none; }
""".strip()
_ALONE = """
svg { --page: #f6f7f9; --card: #ffffff; --ink: #1b2129; --muted: #59626d; --line: #dfe3e8;
  --good: #006b4e; --bad: #a83a00; --quiet: #454d57; --quiet-bg: #eceff2; }
@media (prefers-color-scheme: dark) { svg { --page: #0d1015; --card: #14181f; --ink: #e6e9ee;
  --muted: #98a2ae; --line: #2b323c; --good: #7fe0b5; --bad: #ffab82; --quiet: #c3cad3;
  --quiet-bg: #262d37; } }
""".strip()

_LABELS, _LANE, _HEADER, _TALLEST = 240, 44, 124, 48
_NAME = 19
"""Characters of a name that the map has room for; pointing at it tells the rest."""
_ROOM, _NARROWEST, _WIDEST, _STAGE, _GAP = 640, 16, 72, 76, 10


@dataclass(frozen=True)
class Lane:
    """What the map says of one candidate.

    Attributes:
        name: Of the candidate.
        verdict: A few words beside the name.
        number: The gain with its sign, or what stands in its place.
        told: Everything in one sentence, for who hears the map or points at it.
        blocks: Indices of the blocks that the candidate changes.
        styles: ``final``, ``screening`` or ``excluded``; ``better`` or ``worse`` for a verdict;
            ``gain`` or ``loss`` for the direction of the number.
    """

    name: str
    verdict: str
    number: str
    told: str
    blocks: tuple[int, ...]
    styles: tuple[str, ...]


def draw_map(network: NetworkMap, lanes: Sequence[Lane], *, title: str, alone: bool = False) -> str:
    """Returns the map as an ``svg`` element.

    Args:
        network: Its blocks.
        lanes: One per candidate.
        title: Of the map.
        alone: Whether it has to be a file of its own, with its colours in it.
    """
    spans = _spans(network)
    width = round(max(end for _, end in spans)) + _GAP
    height = _HEADER + _LANE * len(lanes) + 6
    told = " ".join(lane.told for lane in lanes)
    namespace = 'xmlns="http://www.w3.org/2000/svg" ' if alone else ""
    parts = [
        f'<svg {namespace}class="map" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-labelledby="map-title map-told">',
        f'<title id="map-title">{escape(title)}</title>',
        f'<desc id="map-told">{escape(told)}</desc>',
    ]
    if alone:
        parts.append(f"<style>{_ALONE}\n{MAP_STYLES}</style>")
        parts.append(f'<rect width="{width}" height="{height}" fill="var(--card)"/>')
    parts += _network(network, spans, height)
    for index, lane in enumerate(lanes):
        parts += _lane(lane, spans, _HEADER + _LANE * index, width)
    parts.append("</svg>")
    return "\n".join(parts)


def _spans(network: NetworkMap) -> list[tuple[float, float]]:
    """Returns the left and right end of each block; stages have room for their labels."""
    usual = min(max(_ROOM / len(network.blocks), _NARROWEST), _WIDEST)
    left = float(_LABELS)
    spans = []
    for _, blocks in groupby(network.blocks, key=lambda block: block.stage):
        row = list(blocks)
        width = max(usual, _STAGE / len(row))
        for _ in row:
            spans.append((round(left, 1), round(left + width, 1)))
            left += width
        left += _GAP
    return spans


def _network(network: NetworkMap, spans: Sequence[tuple[float, float]], height: int) -> list[str]:
    """Draws the stages with their labels, and the blocks as high as their maps are large."""
    parts = []
    middle = _HEADER - 14 - _TALLEST / 2
    largest = max(max(block.feature_size) for block in network.blocks)
    first, last = spans[0][0], spans[-1][1]
    placed = list(zip(network.blocks, spans, strict=True))
    for stage, group in groupby(placed, key=lambda pair: pair[0].stage):
        row = list(group)
        left, right = row[0][1][0], row[-1][1][1]
        name = "stem" if stage == 0 and network.residual else f"stage {stage}"
        end: NetworkBlock = row[-1][0]
        rows, columns = end.feature_size
        centre = round((left + right) / 2, 1)
        parts += [
            f'<rect class="stage" x="{left - 3}" y="2" width="{right - left + 6:.1f}" '
            f'height="{height - 4}" rx="6"/>',
            f'<text class="name centred" x="{centre}" y="19">{name}</text>',
            f'<text class="small centred" x="{centre}" y="35">{end.channels} ch</text>',
            f'<text class="small centred" x="{centre}" y="50">{rows} x {columns}</text>',
        ]
    parts.append(f'<path class="flow" d="M{first} {middle}H{last}"/>')
    for block, (left, right) in placed:
        share = math.log2(1 + max(block.feature_size)) / math.log2(1 + largest)
        tall = round(10 + (_TALLEST - 10) * share, 1)
        rows, columns = block.feature_size
        told = f"{block.path}: {block.channels} channels, {rows} x {columns}"
        parts.append(
            f'<rect class="block" x="{left + 2}" y="{middle - tall / 2:.1f}" '
            f'width="{right - left - 4:.1f}" height="{tall}" rx="3">'
            f"<title>{escape(told)}</title></rect>"
        )
    return parts


def _lane(lane: Lane, spans: Sequence[tuple[float, float]], top: int, width: int) -> list[str]:
    """Draws the text of a candidate at the left, and a mark in each of its blocks."""
    middle = top + _LANE / 2
    at = [round(sum(spans[index]) / 2, 1) for index in sorted(lane.blocks)]
    name = lane.name if len(lane.name) <= _NAME else f"{lane.name[: _NAME - 1]}…"
    link = f'<path class="link" d="M{at[0]} {middle}H{at[-1]}"/>' if len(at) > 1 else ""
    return [
        f'<g class="lane {" ".join(lane.styles)}" data-candidate="{escape(lane.name)}">',
        f"<title>{escape(lane.told)}</title>",
        f'<path class="rule" d="M4 {top}H{width - 4}"/>',
        f'<rect x="0" y="{top}" width="{width}" height="{_LANE}" fill="none" '
        'pointer-events="all"/>',
        f'<text x="6" y="{top + 18}"><tspan class="name">{escape(name)}</tspan>'
        f'<tspan class="call" dx="8">{escape(lane.verdict)}</tspan></text>',
        f'<text class="number" x="6" y="{top + 35}">{escape(lane.number)}</text>',
        link,
        *(f'<path class="mark" d="{_mark(x, middle, lane.styles)}"/>' for x in at),
        "</g>",
    ]


def _mark(x: float, y: float, styles: Sequence[str]) -> str:
    """Returns the outline of a mark: up and down for a gain or a loss, a cross where none can be.

    A final result without a verdict is a diamond, whatever its sign.
    """
    if "excluded" in styles:
        return f"M{x - 4} {y - 4}l8 8m0 -8l-8 8"
    if "final" in styles and not {"better", "worse"} & set(styles):
        return f"M{x} {y - 6}l6 6l-6 6l-6 -6z"
    if "gain" in styles:
        return f"M{x - 7} {y + 5}h14l-7 -12z"
    if "loss" in styles:
        return f"M{x - 7} {y - 5}h14l-7 12z"
    return f"M{x - 4} {y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0"
