"""Averages over axes of a map, with a gradient that takes no memory."""

import torch
from torch import Tensor

__all__ = ["mean_over"]


def mean_over(x: Tensor, *axes: int, keepdim: bool = False) -> Tensor:
    """Returns the mean over the axes.

    The gradient of ``Tensor.mean`` is a map of its own; that of a sum is one number seen from all
    positions. In half precision, where a sum could leave the range, it is ``Tensor.mean``.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.mean(axes, keepdim)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return x.sum(axes, keepdim) / count
