"""Which positions of the map a window reads, one axis at a time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from visgraft.ops._exporting import exporting

__all__ = ["AxisTiles", "divide_axis", "inside_map"]

_SIDE = 8  # positions of the map along one side of a tile, at most
_EXPORTED_SIDE = 4  # gathers more keys, but leaves less of the fixed tiles empty


def inside_map(positions: Tensor, size: int, reach: int) -> Tensor:
    """Returns where a map of ``size`` is read for positions up to ``reach`` outside it.

    They are reflected at the edge where that ends inside the map, that is if ``size > reach``;
    otherwise the nearest position of the map is read.
    """
    last = size - 1
    reflected = last - (last - positions.abs()).abs()
    nearest = positions.clamp(0, last)
    if not exporting():
        return reflected if size > reach else nearest
    return torch.where(torch.full((), size, device=positions.device) > reach, reflected, nearest)


@dataclass(frozen=True)
class AxisTiles:
    """The queries along one axis in tiles, and the keys that each tile reads.

    The queries of a tile are ``phases`` apart and its keys ``dilation`` apart, so that the windows
    of one tile overlap however they are dilated.

    Attributes:
        kernel_size: Keys of a window.
        stride: Distance of the queries on the map.
        dilation: Distance of the keys.
        count: Tiles of each phase.
        side: Queries of a tile.
    """

    kernel_size: int
    stride: int
    dilation: int
    count: int
    side: int

    @property
    def phases(self) -> int:
        """Interleaved sets of queries, of which a tile takes one; 1 without dilation."""
        return self.dilation // math.gcd(self.stride, self.dilation)

    @property
    def step(self) -> int:
        """Keys from the window of one query of a tile to the next."""
        return self.stride // math.gcd(self.stride, self.dilation)

    @property
    def span(self) -> int:
        """Keys that a tile reads."""
        return (self.side - 1) * self.step + self.kernel_size

    def keys(self, size: int, device: torch.device) -> Tensor:
        """Returns ``(count, phases, span)``, the positions that tiles read on a map of ``size``."""
        reach = self.dilation * (self.kernel_size // 2)
        tile = torch.arange(self.count, device=device) * (self.side * self.phases)
        query = tile[:, None] + torch.arange(self.phases, device=device)
        tap = torch.arange(self.span, device=device) * self.dilation - reach
        positions = (query * self.stride)[:, :, None] + tap
        return inside_map(positions.clamp(max=size - 1 + reach), size, reach)

    def inside(self, device: torch.device) -> Tensor:
        """Returns ``(side, span)``, which keys of its tile are in the window of a query."""
        query = torch.arange(self.side, device=device)[:, None]
        ahead = torch.arange(self.span, device=device) - query * self.step
        return (ahead >= 0) & (ahead < self.kernel_size)


def divide_axis(queries: int, kernel_size: int, stride: int, dilation: int) -> AxisTiles:
    """Divides the queries of one axis into equal tiles with few beyond the last query.

    An exported graph has tiles of one size and one tile more than it needs: with a single tile,
    the exporter would take the example for a special case.
    """
    common = math.gcd(stride, dilation)
    per_phase = -(-queries // (dilation // common))
    if exporting():
        side = max(1, _EXPORTED_SIDE * common // stride)
        return AxisTiles(kernel_size, stride, dilation, -(-per_phase // side) + 1, side)
    count = -(-per_phase // max(1, _SIDE * common // stride))
    return AxisTiles(kernel_size, stride, dilation, count, -(-per_phase // count))
