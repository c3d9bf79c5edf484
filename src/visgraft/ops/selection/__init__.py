"""Selection between two maps by a share per image and channel."""

from importlib.util import find_spec

from torch import Tensor

from visgraft.ops._dispatch import Op, missing
from visgraft.ops.selection.native import NATIVE
from visgraft.ops.selection.reference import selection_reference

if find_spec("triton"):
    from visgraft.ops.selection.triton_operator import TRITON
else:
    TRITON = missing("triton")

__all__ = ["SELECTION", "selection"]

SELECTION = Op("selection", selection_reference, NATIVE, TRITON)


def selection(
    first: Tensor, second: Tensor, share: Tensor, *, backend: str | None = None
) -> Tensor:
    """Returns ``first * (1 - share) + second * share``.

    Args:
        first: A map, ``(B, C, H, W)``.
        second: Another of the same shape and dtype.
        share: Of the second map, ``(B, C, 1, 1)``.
        backend: ``'native'``, ``'triton'``, ``'reference'``, or None for the fastest that takes
            this call.

    Returns:
        ``(B, C, H, W)``, dtype of the maps.

    Raises:
        ValueError: The shapes do not belong together, or the named backend cannot take these
            arguments.

    Example:
        >>> import torch
        >>> first, second = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
        >>> selection(first, second, torch.full((1, 1, 1, 1), 0.25))
        tensor([[[[0.2500, 0.2500]]]])
    """
    if first.ndim != 4 or first.shape != second.shape or share.shape != (*first.shape[:2], 1, 1):
        raise ValueError(
            "selection: needs two maps (B, C, H, W) and a share (B, C, 1, 1), got "
            f"{tuple(first.shape)}, {tuple(second.shape)} and {tuple(share.shape)}"
        )
    return SELECTION(first, second, share, backend=backend)
