"""Batch normalisation with its activation on GPUs as an operator of PyTorch."""

from typing import Any

import torch
import triton
from torch import Tensor

from visgraft.ops._dispatch import Implementation
from visgraft.ops._map_tiles.division import Division, aligned, refuse_maps
from visgraft.ops._strides import new_map
from visgraft.ops.batch_norm_activation._derivatives import describe, gradients
from visgraft.ops.batch_norm_activation.triton import (
    apply_kernel,
    backward_kernel,
    combine_kernel,
    statistics_kernel,
    sums_kernel,
)

__all__ = ["TRITON"]

_ROWS, _CHANNELS = 64, 32  # partial statistics that a program reads at a time


def _statistics(x: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Fills mean and variance."""
    division = Division.of(x)
    batch, channels, height, width = x.shape
    parts = mean.new_empty(2, division.parts, batch, channels)  # means, squared differences
    kernel: Any = statistics_kernel
    kernel[division.programs](x, *parts, **division.options)
    part_size = division.options["steps"] * division.options["POSITIONS"]
    sizes = batch, division.parts, channels, height * width, part_size, x.numel() // channels
    kernel = combine_kernel
    kernel[(triton.cdiv(channels, _CHANNELS),)](
        *(x, *parts, mean, variance),
        *sizes,
        x.stride(1),
        ROWS=_ROWS,
        CHANNELS=_CHANNELS,
        enable_fp_fusion=True,
    )


@torch.library.custom_op("visgraft::batch_norm_activation_triton", mutates_args=())
def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = new_map(x)
    source = aligned(x, y)
    mean, variance = weight.new_empty(weight.shape), weight.new_empty(weight.shape)
    if not x.numel():
        return y, x.new_empty(*x.shape[:2], 1, 1), mean, variance
    division = Division.of(y)
    sums = mean.new_empty(division.parts, *x.shape[:2], 1, 1)
    tensors = (source, weight.contiguous(), bias.contiguous(), mean, variance, y, sums)
    kernel: Any = apply_kernel
    with torch.cuda.device_of(x):
        _statistics(source, mean, variance)
        kernel[division.programs](*tensors, epsilon, ACTIVATION=activation, **division.options)
    return y, sums.sum(0).to(x.dtype), mean, variance


@torch.library.custom_op("visgraft::batch_norm_activation_triton_backward", mutates_args=())
def _differentiate(
    grad: Tensor,
    grad_pooled: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = new_map(x)
    if not x.numel():
        return grad_x, torch.zeros_like(weight), torch.zeros_like(bias)
    division = Division.of(grad_x)
    parts = mean.new_empty(2, division.parts * x.shape[0], x.shape[1])
    of_maps = aligned(grad, grad_x), grad_pooled.contiguous(), aligned(x, grad_x)
    tensors = (*of_maps, weight.contiguous(), bias.contiguous(), mean, variance)
    options = division.options | {"ACTIVATION": activation}
    kernel: Any
    with torch.cuda.device_of(x):
        kernel = sums_kernel
        kernel[division.programs](*tensors, *parts, epsilon, **options)
        plain, by_x = parts[0].sum(0), parts[1].sum(0)
        kernel = backward_kernel
        count = x.numel() // x.shape[1]
        kernel[division.programs](*tensors, plain, by_x, grad_x, epsilon, count, **options)
    return grad_x, by_x, plain


describe(_normalise, _differentiate, gradients(_differentiate))


def _refusal(x: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> str | None:
    reason = refuse_maps(x, others=(weight, bias))
    if reason is None and not (weight.dtype == bias.dtype == torch.float32):
        return f"needs float32 weight and bias, got {weight.dtype} and {bias.dtype}"
    return reason


TRITON = Implementation("triton", _normalise, _refusal)
