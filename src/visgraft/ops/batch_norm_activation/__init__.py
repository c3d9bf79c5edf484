"""Batch normalisation in training, an activation, and the mean of the result over positions."""

from importlib.util import find_spec

from torch import Tensor

from visgraft.ops._dispatch import Op, missing
from visgraft.ops.batch_norm_activation.native import NATIVE
from visgraft.ops.batch_norm_activation.reference import (
    ACTIVATIONS,
    batch_norm_activation_reference,
)

if find_spec("triton"):
    from visgraft.ops.batch_norm_activation.triton_operator import TRITON
else:
    TRITON = missing("triton")

__all__ = ["ACTIVATIONS", "BATCH_NORM_ACTIVATION", "batch_norm_activation"]

BATCH_NORM_ACTIVATION = Op("batch_norm_activation", batch_norm_activation_reference, NATIVE, TRITON)


def batch_norm_activation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    epsilon: float = 1e-5,
    activation: str = "none",
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalises each channel by the mean and the variance of this batch, and activates it.

    Args:
        x: Feature map, ``(B, C, H, W)``.
        weight: Of each channel, ``(C,)``.
        bias: Of each channel, ``(C,)``.
        epsilon: Added to the variance.
        activation: ``'none'``, ``'relu'`` or ``'silu'``.
        backend: ``'native'``, ``'triton'``, ``'reference'``, or None for the fastest that takes
            this call.

    Returns:
        The activated map, its mean over the positions ``(B, C, 1, 1)``, and each channel's mean
        and biased variance ``(C,)``, which have no gradient.

    Raises:
        ValueError: The shapes do not belong together, a channel has a single value, the activation
            is unknown, or the named backend cannot take these arguments.

    Example:
        >>> import torch
        >>> x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
        >>> y, *_ = batch_norm_activation(x, torch.ones(1), torch.ones(1), activation="relu")
        >>> y.flatten().round(decimals=2)
        tensor([0., 2.])
    """
    if x.ndim != 4:
        raise ValueError(f"batch_norm_activation: x must be (B, C, H, W), got {tuple(x.shape)}")
    if weight.shape != x.shape[1:2] or bias.shape != x.shape[1:2]:
        raise ValueError(
            f"batch_norm_activation: weight and bias must be ({x.shape[1]},) for this x, got "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if x.shape[0] * x.shape[2] * x.shape[3] < 2:
        raise ValueError(
            f"batch_norm_activation: needs two or more values in a channel, got {tuple(x.shape)}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"batch_norm_activation: activation must be one of {', '.join(ACTIVATIONS)}, got "
            f"{activation!r}"
        )
    return BATCH_NORM_ACTIVATION(x, weight, bias, epsilon, activation, backend=backend)
