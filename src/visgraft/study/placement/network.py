"""The blocks of a network in the order in which they run, as a map of it shows them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from visgraft.surgery.sites import CONTAINERS, Site, Survey

__all__ = ["NetworkBlock", "NetworkMap", "last_block", "map_network"]


@dataclass(frozen=True)
class NetworkBlock:
    """One block of a network, or one layer that is in none.

    Attributes:
        path: Of the module.
        stage: As sites count it; 0 is the stem.
        channels: Of the map that it returns.
        feature_size: ``(H, W)`` of that map.
    """

    path: str
    stage: int
    channels: int
    feature_size: tuple[int, int]


@dataclass(frozen=True)
class NetworkMap:
    """The blocks of a network.

    Attributes:
        blocks: In the order in which they return.
        residual: Whether there are residual blocks, so that stage 0 is a stem.
    """

    blocks: tuple[NetworkBlock, ...]
    residual: bool

    def index_of(self, path: str) -> int:
        """Returns the place in ``blocks`` of the block that a layer belongs to."""
        inside = [i for i, b in enumerate(self.blocks) if path == b.path or _is_in(path, b.path)]
        return max(inside, key=lambda i: len(self.blocks[i].path))


def map_network(found: Survey, more: Sequence[Site] = ()) -> NetworkMap:
    """Returns the blocks that hold the sites of a network, and their siblings.

    A block is what a shortcut spans. Modules that stand in a row with blocks are blocks, too, such
    as the first of each stage of a MobileNet, which has no shortcut. Other layers with a site
    belong to the module that was written around them, unless blocks are in it.

    Args:
        found: The network and its sites.
        more: Further sites that the map shall show.
    """
    known = {
        site.path if site.kind == "stage_end" else _written_around(found, site.path)
        for site in found.sites
        if site.kind in ("block_end", "stage_end")
    } - {""}
    rows = {row for path in known if (row := _parent(path)) and _is_container(found, row)}
    siblings = {p for p in found.run.calls if _parent(p) in rows and found.at_path(p) is not None}
    known |= siblings
    paths = {_block_of(found, site.path, known): site for site in (*found.sites, *more)}
    paths = {path: found.at_path(path) or site for path, site in paths.items()}
    paths |= {path: site for path in siblings if (site := found.at_path(path)) is not None}
    order = {path: calls[0].end for path, calls in found.run.calls.items()}
    blocks = tuple(
        NetworkBlock(path, site.stage, site.out_channels, site.feature_size)
        for path, site in sorted(paths.items(), key=lambda item: order[item[0]])
    )
    return NetworkMap(blocks, any(site.kind == "block_end" for site in found.sites))


def last_block(network: NetworkMap, sites: Sequence[Site]) -> list[Site]:
    """Returns the sites in the last of the blocks that have some."""
    last = network.index_of(sites[-1].path)
    return [site for site in sites if network.index_of(site.path) == last]


def _block_of(found: Survey, path: str, known: set[str]) -> str:
    """Returns the path of the block of a layer; the layer itself where it is in none."""
    inside = [block for block in known if path == block or _is_in(path, block)]
    if inside:
        return max(inside, key=len)
    around = _written_around(found, path)
    return path if not around or any(_is_in(block, around) for block in known) else around


def _written_around(found: Survey, path: str) -> str:
    """Returns the innermost module around a layer that is more than a row of modules."""
    return next((p for p in _ancestors(path) if not _is_container(found, p)), "")


def _is_container(found: Survey, path: str) -> bool:
    return isinstance(found.run.modules[path], CONTAINERS)


def _is_in(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.")


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _ancestors(path: str) -> Iterator[str]:
    while path := _parent(path):
        yield path
