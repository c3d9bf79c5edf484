"""What is known of each network beyond its code: paper, source, figures, cost, weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from visgraft.blocks import Paper, Source

__all__ = [
    "NetworkCost",
    "NetworkInfo",
    "Published",
    "describe_networks",
    "list_networks",
    "network_info",
]

_COSTS = Path(__file__).with_name("costs.json")


@dataclass(frozen=True)
class Published:
    """Figures that the authors state for a network.

    Attributes:
        params: Parameters, in millions.
        gmacs: Multiply-adds of one image, in 10^9; papers call them FLOPs.
        top1: Accuracy on ImageNet-1k, in percent.
        top5: Accuracy among the first five on ImageNet-1k, in percent.
        image_size: Of the square image that ``gmacs`` and the accuracies are of, in pixels.
        note: What a reader of the figures has to know, as a sentence.
    """

    params: float | None = None
    gmacs: float | None = None
    top1: float | None = None
    top5: float | None = None
    image_size: int = 224
    note: str = ""


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs, counted once by `visgraft.cost` and stored.

    Attributes:
        params: Parameters, those of the classifier included.
        macs: Multiply-accumulate operations of one image of ``image_size``.
        image_size: Height and width that the network takes by default, in pixels.
        macs_at_224: The same of one image of 224 x 224 pixels.
        macs_at_published: The same of an image as the published figures are of, where these are of
            another size than both.
    """

    params: int
    macs: int
    image_size: tuple[int, int]
    macs_at_224: int
    macs_at_published: int | None = None


@dataclass(frozen=True)
class NetworkInfo:
    """What the catalogue knows of one network.

    Attributes:
        name: In timm's registry.
        paper: Where the network was published.
        source: The code it is compared with.
        published: The authors' figures.
        figures_from: Where these figures stand.
        weights: Whether the authors give weights away, and how to get and convert them.
        recipe: Name of the recipe that follows the paper's training; None where there is none.
    """

    name: str
    paper: Paper
    source: Source
    published: Published
    figures_from: str
    weights: str
    recipe: str | None

    @property
    def cost(self) -> NetworkCost:
        """Parameters and multiply-accumulate operations.

        Raises:
            ValueError: They have not been counted.
        """
        if self.name not in _costs():
            raise ValueError(
                f"network {self.name!r}: {_COSTS.name} does not have its cost; run "
                "python -m tests.models.network_table"
            )
        return _costs()[self.name]


@cache
def _costs() -> dict[str, NetworkCost]:
    stored = json.loads(_COSTS.read_text())
    return {
        name: NetworkCost(**(cost | {"image_size": tuple(cost["image_size"])}))
        for name, cost in stored.items()
    }


_NETWORKS: dict[str, NetworkInfo] = {}


def describe_networks(
    networks: Mapping[str, Published],
    *,
    paper: Paper,
    source: Source,
    figures_from: str,
    weights: str,
    recipe: str | None = None,
) -> None:
    """Adds networks, by their names in timm's registry, to those that `list_networks` names."""
    for name, published in networks.items():
        _NETWORKS[name] = NetworkInfo(name, paper, source, published, figures_from, weights, recipe)


def list_networks(pattern: str = "*") -> list[str]:
    """Returns the names of the papers' networks that match a shell pattern, sorted."""
    return sorted(name for name in _NETWORKS if fnmatchcase(name, pattern))


def network_info(name: str) -> NetworkInfo:
    """Returns what the catalogue knows of one of the papers' networks.

    Raises:
        ValueError: It is none of them; the text has the nearest names.
    """
    if name not in _NETWORKS:
        near = get_close_matches(name, _NETWORKS, n=3, cutoff=0.4) or list_networks()
        raise ValueError(
            f"network {name!r} is none of the papers' networks; nearest: {', '.join(near)}"
        )
    return _NETWORKS[name]
