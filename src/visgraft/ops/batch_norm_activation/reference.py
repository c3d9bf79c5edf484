"""Batch normalisation by the statistics of the batch, and an activation, in PyTorch's operators."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ACTIVATIONS", "batch_norm_activation_reference"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"none": lambda x: x, "relu": functional.relu, "silu": functional.silu}
)


def batch_norm_activation_reference(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalises, activates and averages; also returns the statistics, without a gradient."""
    normalised = functional.batch_norm(x, None, None, weight, bias, True, 0.0, epsilon)
    y = ACTIVATIONS[activation](normalised)
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    return y, y.mean((2, 3), keepdim=True), mean, variance
