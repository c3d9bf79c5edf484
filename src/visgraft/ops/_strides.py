"""What the strides of a tensor allow a kernel to assume."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["in_layout", "is_channels_last", "is_flat", "layout_of", "needs_long_index", "new_map"]

_MOST = 2**31 - 2**20  # elements, a margin of one program below what 32 bits count


def is_channels_last(t: Tensor) -> bool:
    """Whether the channels of a position follow each other, and not the positions of a row."""
    return t.stride(1) == 1 and t.stride(-1) > 1


def layout_of(t: Tensor) -> torch.memory_format:
    """Returns the layout that a map has, or that what is made of it gets."""
    return torch.channels_last if is_channels_last(t) else torch.contiguous_format


def in_layout(t: Tensor, *, last: bool) -> Tensor:
    """Returns a map as it is laid out, or a copy: channels_last, or row by row."""
    return t.contiguous(memory_format=torch.channels_last) if last else t.contiguous()


def new_map(
    like: Tensor, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Returns an unfilled map: channels_last where ``like`` is, otherwise row by row."""
    shape = like.shape if shape is None else shape
    if not is_channels_last(like):
        return like.new_empty(shape, dtype=dtype)
    last, dtype = torch.channels_last, dtype or like.dtype
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=last)


def is_flat(t: Tensor) -> bool:
    """Whether the rows of a map follow each other at one distance, so that they can be joined."""
    return t.stride(-2) == t.shape[-1] * t.stride(-1)


def needs_long_index(*tensors: Tensor) -> bool:
    """Whether an element of one of them lies too far from the first for 32 bits to count."""
    return any(
        max(t.numel(), sum((n - 1) * abs(s) for n, s in zip(t.shape, t.stride(), strict=True)))
        > _MOST
        for t in tensors
    )
