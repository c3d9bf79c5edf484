"""Space to depth: the pixels of each small square become channels of one position."""

import torch
from torch import Tensor
from torch.nn import functional

from visgraft.ops._dispatch import being_traced

__all__ = ["space_to_depth", "whole_squares_to_depth"]


def space_to_depth(x: Tensor, scale: int = 2) -> Tensor:
    """Moves each ``scale`` x ``scale`` square of pixels into the channels, losing none.

    Pixel ``(i, j)`` of a square goes to the channels ``(scale * j + i) * C`` up to the next ``C``:
    the row within the square varies fastest, as in the published code. (``pixel_unshuffle`` orders
    ``c, i, j`` instead.) A map whose size is no multiple of ``scale`` is first continued with zeros
    below and to the right.

    Args:
        x: ``(..., C, H, W)``, of any dtype.
        scale: Side of the square.

    Returns:
        ``(..., scale**2 * C, ceil(H / scale), ceil(W / scale))``.

    Raises:
        ValueError: ``scale`` is not an integer of at least 1, or ``x`` has fewer than 3 dimensions.

    Example:
        >>> space_to_depth(torch.arange(6).reshape(1, 2, 3))[:, 0]
        tensor([[0, 2],
                [3, 5],
                [1, 0],
                [4, 0]])
    """
    if not isinstance(scale, int) or isinstance(scale, bool) or scale < 1:
        raise ValueError(f"space_to_depth: scale must be an integer >= 1, got {scale!r}")
    if x.ndim < 3:
        raise ValueError(f"space_to_depth: expected (..., C, H, W), got {tuple(x.shape)}")
    if being_traced():  # a fixed margin, cut off again where it was not needed
        below = right = scale - 1
    else:
        below, right = (-n % scale for n in x.shape[-2:])
    if below or right:
        x = functional.pad(x, (0, right, 0, below))
    return whole_squares_to_depth(x, scale)


def whole_squares_to_depth(x: Tensor, scale: int) -> Tensor:
    """Does the same for the squares that lie wholly in the map, and drops the rest."""
    if being_traced():  # reshaping would fix the size to a multiple of scale
        ranges = [slice(i, i + 1 - scale or None, scale) for i in range(scale)]
        return torch.cat([x[..., rows, columns] for columns in ranges for rows in ranges], -3)
    *batch, c, h, w = x.shape
    h, w = h // scale, w // scale
    x = x[..., : h * scale, : w * scale].reshape(*batch, c, h, scale, w, scale)
    order = (-1, -3, -5, -4, -2)  # (column, row, channel, h, w)
    x = x.permute(*range(len(batch)), *(x.ndim + d for d in order))
    return x.reshape(*batch, c * scale**2, h, w)
