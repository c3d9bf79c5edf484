"""What the strides of a tensor allow a kernel to assume."""

from torch import Tensor

__all__ = ["is_channels_last", "is_flat", "needs_long_index"]

_MOST = 2**31 - 2**20  # elements, a margin of one program below what 32 bits count


def is_channels_last(t: Tensor) -> bool:
    """Whether the channels of a position follow each other, and not the positions of a row."""
    return t.stride(1) == 1 and t.stride(-1) > 1


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
