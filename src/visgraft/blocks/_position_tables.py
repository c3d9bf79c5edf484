"""Tables of position vectors: the map they are built for, and other maps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from visgraft.blocks._checks import check_positive
from visgraft.ops._exporting import exporting

__all__ = ["checked_size", "resized"]


def resized(table: Tensor, entries: int) -> Tensor:
    """Returns the table with so many entries, interpolated linearly, as if it had been scaled."""
    if not exporting() and len(table) == entries:
        return table
    wide = torch.promote_types(table.dtype, torch.float32)
    entry = torch.arange(entries, dtype=wide, device=table.device)
    place = ((entry + 0.5) * (len(table) / entries) - 0.5).clamp(0, len(table) - 1)
    source = torch.arange(len(table), dtype=wide, device=table.device)
    weight = (1 - (place[:, None] - source).abs()).clamp(min=0)
    return (weight @ table.to(wide)).to(table.dtype)


def checked_size(owner: str, value: Sequence[int]) -> tuple[int, int]:
    """Returns rows and columns; raises ValueError unless these are two positive integers."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(
            f"{owner}: feature_size must be the rows and columns of a map, such as (14, 14), got "
            f"{value!r}"
        )
    check_positive(owner, **{"feature_size[0]": value[0], "feature_size[1]": value[1]})
    return value[0], value[1]
