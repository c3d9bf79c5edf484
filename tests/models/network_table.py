"""Counts the papers' networks: ``python -m tests.models.network_table`` writes what it finds.

It writes the costs that the catalogue stores, and the table of docs/networks.md between its two
marks.
"""

import json
from pathlib import Path
from typing import Any

import timm

from visgraft.inspect import cost
from visgraft.models import NetworkInfo, list_networks, network_info

__all__ = ["COSTS", "PAGE", "count", "figures_of", "page", "table"]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "networks.md"
COSTS = ROOT / "src" / "visgraft" / "models" / "costs.json"
_BEGIN = "<!-- table: begin; written by python -m tests.models.network_table -->"
_END = "<!-- table: end -->"
_HEADS = (
    "network",
    "parameters",
    "published",
    "difference",
    "MACs at 224",
    "published",
    "at",
    "counted there",
    "difference",
    "top-1, published",
)


def count(name: str) -> dict[str, Any]:
    """Returns what the catalogue stores for a network, counted without computing anything."""
    network = timm.create_model(name, device="meta")
    size, side = network.pretrained_cfg["input_size"][1:], network_info(name).published.image_size
    costs = {s: cost(network, (1, 3, *s)) for s in (size, (224, 224), (side, side))}
    counted = {
        "params": costs[size].params,
        "macs": costs[size].macs,
        "image_size": [*size],
        "macs_at_224": costs[224, 224].macs,
    }
    if (side, side) not in (size, (224, 224)):
        counted["macs_at_published"] = costs[side, side].macs
    return counted


def figures_of(info: NetworkInfo) -> list[str]:
    """Returns a network's row of the table, from the stored costs."""
    cost, published = info.cost, info.published
    side, gmacs = published.image_size, published.gmacs
    at = {cost.image_size: cost.macs, (224, 224): cost.macs_at_224}
    counted = at.get((side, side), cost.macs_at_published)
    there = None if counted is None or gmacs is None else counted / 1e9
    return [
        f"`{info.name}`",
        f"{cost.params / 1e6:.2f} M",
        *_against(cost.params / 1e6, published.params, "M"),
        f"{cost.macs_at_224 / 1e9:.3f} G",
        _against(there, gmacs, "G")[0],
        "-" if gmacs is None else str(side),
        "-" if there is None else f"{there:.3f} G",
        _against(there, gmacs, "G")[1],
        "-" if published.top1 is None else f"{published.top1:g}",
    ]


def _against(ours: float | None, published: float | None, unit: str) -> tuple[str, str]:
    if published is None:
        return "-", "-"
    if ours is None:
        return f"{published:g} {unit}", "-"
    return f"{published:g} {unit}", f"{100 * (ours / published - 1):+.1f} %"


def table() -> str:
    """Returns the table of docs/networks.md, and what has to be known of its rows."""
    infos = [network_info(name) for name in list_networks()]
    lines = [_HEADS, ["---"] * len(_HEADS), *map(figures_of, infos)]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes: dict[str, list[str]] = {}
    for info in infos:
        if info.published.note:
            notes.setdefault(info.published.note, []).append(f"`{info.name}`")
    told = "\n".join(f"- {', '.join(names)}: {note}" for note, names in notes.items())
    return f"{rows}\n\n{told}"


def page(text: str) -> str:
    """Returns the page with the table in its place."""
    before, rest = text.split(_BEGIN)
    return f"{before}{_BEGIN}\n\n{table()}\n\n{_END}{rest.split(_END)[1]}"


if __name__ == "__main__":
    counted = {name: count(name) for name in list_networks()}
    COSTS.write_text(json.dumps(counted, indent=2) + "\n")
    PAGE.write_text(page(PAGE.read_text()))
