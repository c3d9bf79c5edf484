"""Selection between two maps in PyTorch's own operator."""

import torch
from torch import Tensor

__all__ = ["selection_reference"]


def selection_reference(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Interpolates from the first map to the second."""
    return torch.lerp(first, second, share.to(first.dtype))
