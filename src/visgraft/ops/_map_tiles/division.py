"""How GPU kernels divide maps among programs, for work that is one pass over each value.

A program has some channels of one image, and of their positions all or a part, which it takes tile
by tile. Sums over positions are then its own: parts are written beside each other and added
afterwards, so that each run adds in the same order.
"""

from dataclasses import dataclass
from math import gcd
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from visgraft.ops._dispatch import being_traced
from visgraft.ops._gpu import refuse_unless_on_gpu
from visgraft.ops._strides import in_layout, is_channels_last, layout_of, needs_long_index

__all__ = ["ALIGNED", "PARTS", "PROGRAMS", "VALUES", "Division", "aligned", "refuse_maps"]

VALUES = 2048  # of a tile
_RUN = {False: 256, True: 128}  # values of a tile that follow each other, by channels last
PROGRAMS = 1024  # that leave none of the GPU idle
PARTS = 1 << 15  # that a grid can hold
ALIGNED = 16  # values that the compiler need not know to be read at once


@dataclass(frozen=True)
class Division:
    """The programs for maps, and what each of them is told.

    Attributes:
        programs: The grid: blocks of channels of all images, and parts of the positions.
        options: Arguments of the kernel, by name.
    """

    programs: tuple[int, int]
    options: dict[str, Any]

    @property
    def parts(self) -> int:
        """Into how many parts the positions are divided."""
        return self.programs[1]

    @classmethod
    def of(cls, x: Tensor, *, one_tile: bool = False) -> "Division":
        """Divides maps ``(B, C, H, W)`` that are not empty.

        Args:
            x: Contiguous, or contiguous with the channels last.
            one_tile: Whether a program takes a single tile, as it may where nothing is summed, as
                long as a grid can hold them.
        """
        batch, channels, height, width = x.shape
        area = height * width
        channels_last = is_channels_last(x)
        inner, outer = (channels, area) if channels_last else (area, channels)
        run = min(_RUN[channels_last], triton.next_power_of_2(inner))
        beside = min(VALUES // run, triton.next_power_of_2(outer))
        of_channels, of_positions = (run, beside) if channels_last else (beside, run)
        blocks = batch * triton.cdiv(channels, of_channels)
        tiles = triton.cdiv(area, of_positions)
        parts = PARTS if one_tile else min(PARTS, triton.cdiv(PROGRAMS, blocks))
        steps = triton.cdiv(tiles, min(tiles, parts))
        unit = gcd(inner, ALIGNED)
        options = {
            "channels": channels // unit if channels_last else channels,
            "area": area if channels_last else area // unit,
            "steps": steps,
            "UNIT": unit,
            "CHANNELS": of_channels,
            "POSITIONS": of_positions,
            "CHANNELS_LAST": channels_last,
            "INDEX": tl.int64 if needs_long_index(x) else tl.int32,
            "enable_fp_fusion": True,
        }
        return cls((blocks, triton.cdiv(tiles, steps)), options)


def aligned(x: Tensor, like: Tensor) -> Tensor:
    """Returns the values in the dtype and layout of a map: themselves, or a copy."""
    return in_layout(x.to(like.dtype), last=is_channels_last(like))


def refuse_maps(*maps: Tensor, others: tuple[Tensor, ...] = ()) -> str | None:
    """Says why kernels that divide maps so cannot take these tensors, or returns None."""
    reason = refuse_unless_on_gpu(*maps, *others)
    if reason is not None:
        return reason
    if being_traced():
        return "a compiler or exporter is tracing and gets ordinary operators instead"
    first = maps[0]
    for x in maps:
        if x.dtype != first.dtype:
            return f"needs maps of one dtype, got {first.dtype} and {x.dtype}"
        if not x.is_contiguous(memory_format=layout_of(first)):
            return "needs maps that lie in memory row by row, or all with the channels last"
    return None
