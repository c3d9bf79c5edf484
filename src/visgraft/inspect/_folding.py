"""The arithmetic of folding a batch normalisation into the layer before it."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from visgraft.blocks.deform_conv import DeformConv

__all__ = [
    "agree",
    "fold",
    "give",
    "is_layer",
    "is_norm",
    "refusal_of_layer",
    "refusal_of_norm",
    "remainder",
]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear, DeformConv)


def is_layer(module: nn.Module) -> bool:
    """Whether a normalisation behind it could be folded into it: its output is linear in it."""
    return isinstance(module, _LAYERS)


def is_norm(module: nn.Module) -> bool:
    """Whether it normalises by batch statistics: PyTorch's classes, or frozen ones like them."""
    names = ("weight", "bias", "running_mean", "running_var")
    frozen = "BatchNorm" in type(module).__name__ and all(hasattr(module, name) for name in names)
    return isinstance(module, _BatchNorm) or frozen


def refusal_of_norm(norm: nn.Module) -> str | None:
    """Says why a normalisation cannot be folded anywhere, or None."""
    if getattr(norm, "running_mean", None) is None or getattr(norm, "running_var", None) is None:
        return "it normalises by the statistics of each batch, even in eval mode"
    if parametrize.is_parametrized(norm):
        return "its parameters are computed (parametrized)"
    return "something hooks into it, a graft or an observer" if _is_hooked(norm) else None


def refusal_of_layer(layer: nn.Module) -> str | None:
    """Says why nothing can be folded into a layer, or None."""
    if parametrize.is_parametrized(layer):
        return "its weight is computed (parametrized)"
    return "something hooks into it, a graft or an observer" if _is_hooked(layer) else None


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def fold(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns the weight and the bias of the layer that does the work of both.

    They are computed in float64 and rounded once.
    """
    of: Any = norm
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    mean, variance = (t.detach().double() for t in (of.running_mean, of.running_var))
    scale = (variance + getattr(norm, "eps", 1e-5)).rsqrt()
    if of.weight is not None:
        scale = scale * of.weight.detach().double()
    shift = -mean if bias is None else bias.detach().double() - mean
    shift = shift * scale
    if of.bias is not None:
        shift = shift + of.bias.detach().double()
    wide = weight.detach().double()
    if isinstance(layer, _TRANSPOSED):  # (in, out / groups, ...)
        grouped = wide.unflatten(0, (layer.groups, -1))
        by_group = scale.view(layer.groups, 1, -1, *(1,) * (wide.ndim - 2))
        wide = (grouped * by_group).flatten(0, 1)
    else:
        wide = wide * scale.view(-1, *(1,) * (wide.ndim - 1))
    return wide.to(weight.dtype), shift.to(weight.dtype)


def remainder(norm: nn.Module) -> nn.Module:
    """Returns what is left of a normalisation: nothing, or the activation that it also applies."""
    rest = [getattr(norm, name, None) for name in ("drop", "act")]
    modules = [m for m in rest if isinstance(m, nn.Module) and not isinstance(m, nn.Identity)]
    left = nn.Identity() if not modules else modules[0] if len(modules) == 1 else None
    return (nn.Sequential(*modules) if left is None else left).train(norm.training)


def give(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Gives a layer its new tensors; whether they require a gradient follows the old weight."""
    needs_grad = layer.get_parameter("weight").requires_grad
    for name, value in (("weight", weight), ("bias", bias)):
        setattr(layer, name, nn.Parameter(value.detach().clone(), requires_grad=needs_grad))


def agree(mine: Any, theirs: Any) -> float:
    """Returns the largest difference, as a fraction of the largest value; inf for other shapes."""
    if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor) or mine.shape != theirs.shape:
        return float("inf")
    if not mine.numel():
        return 0.0
    difference = (mine.double() - theirs.double()).abs().max()
    largest = theirs.double().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    value = (difference / largest).item()
    return float("inf") if math.isnan(value) else value
