"""How GPU kernels divide maps whose rows and columns are summed apart."""

from dataclasses import dataclass
from math import gcd
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from visgraft.ops._map_tiles.division import ALIGNED, PARTS, PROGRAMS, VALUES
from visgraft.ops._strides import is_channels_last, needs_long_index

__all__ = ["StripDivision"]

_COLUMNS = {False: 128, True: 32}  # of a tile at most, by channels last
_CHANNELS = 32  # that lie beside each other, of a tile at most


@dataclass(frozen=True)
class StripDivision:
    """The programs for maps, and what each of them is told.

    Attributes:
        blocks: Blocks of channels of all images.
        row_parts: Into how many parts the rows are divided.
        column_parts: Into how many parts the columns are.
        options: Arguments of the kernel, by name.
    """

    blocks: int
    row_parts: int
    column_parts: int
    options: dict[str, Any]

    @property
    def programs(self) -> tuple[int, int]:
        """The grid."""
        return self.blocks, self.row_parts * self.column_parts

    @classmethod
    def of(cls, x: Tensor, *, one_tile: bool = False) -> "StripDivision":
        """Divides maps ``(B, C, H, W)`` that are not empty.

        Args:
            x: Contiguous, or contiguous with the channels last.
            one_tile: Whether a program takes a single tile, as it may where nothing is summed, as
                long as a grid can hold them.
        """
        batch, channels, height, width = x.shape
        last = is_channels_last(x)
        of_columns = min(_COLUMNS[last], triton.next_power_of_2(width))
        rest = max(1, VALUES // of_columns)
        if last:
            of_channels = min(_CHANNELS, rest, triton.next_power_of_2(channels))
            of_rows = min(rest // of_channels, triton.next_power_of_2(height))
        else:
            of_rows = min(rest, triton.next_power_of_2(height))
            of_channels = min(rest // of_rows, triton.next_power_of_2(channels))
        blocks = batch * triton.cdiv(channels, of_channels)
        beside = triton.cdiv(width, of_columns)
        tiles = triton.cdiv(height, of_rows)
        most = max(1, PARTS // beside)
        parts = most if one_tile else min(most, triton.cdiv(PROGRAMS, blocks * beside))
        steps = triton.cdiv(tiles, min(tiles, parts))
        unit = gcd(channels if last else width, ALIGNED)
        options = {
            "channels": channels // unit if last else channels,
            "height": height,
            "width": width if last else width // unit,
            "steps": steps,
            "UNIT": unit,
            "CHANNELS": of_channels,
            "ROWS": of_rows,
            "COLUMNS": of_columns,
            "CHANNELS_LAST": last,
            "INDEX": tl.int64 if needs_long_index(x) else tl.int32,
            "enable_fp_fusion": True,
        }
        return cls(blocks, triton.cdiv(tiles, steps), beside, options)
