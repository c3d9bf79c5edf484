"""The mean of a map over its positions, weighted by one softmax over all of them."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from visgraft.ops._dispatch import Implementation, Op, being_traced

__all__ = ["ATTENTION_POOLING", "attention_pooling"]


def attention_pooling(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Averages the positions of a map, weighted by ``softmax(weight . x + bias)`` over them.

    Args:
        x: A map, ``(B, C, H, W)``.
        weight: Of a 1 x 1 convolution to one channel, ``(1, C, 1, 1)``.
        bias: Of the same, ``(1,)``; the softmax does not depend on it.
        backend: ``'joint'``, ``'reference'``, or None for the fastest that takes this call.

    Returns:
        The mean, ``(B, C, 1, 1)``, and the map, to be used in place of ``x``: with ``'joint'`` one
        product makes the gradient of the mean and adds it to that of the map.

    Raises:
        ValueError: The shapes do not belong together, or the named backend cannot take these
            arguments.

    Example:
        >>> x = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
        >>> attention_pooling(x, torch.zeros(1, 1, 1, 1))[0].item()
        2.0
    """
    if x.ndim != 4 or weight.shape != (1, x.shape[1], 1, 1):
        raise ValueError(
            "attention_pooling: needs a map (B, C, H, W) and a weight (1, C, 1, 1), got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (1,):
        raise ValueError(f"attention_pooling: needs a bias (1,), got {tuple(bias.shape)}")
    return ATTENTION_POOLING(x, weight, bias, backend=backend)


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return _pool(x, weight, bias)[0], x


def _pool(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the mean ``(B, C, 1, 1)`` and the attention ``(B, 1, H * W)``."""
    logits = functional.conv2d(x, weight, bias).flatten(2)
    attention = logits.softmax(2)
    return (x.flatten(2) @ attention.transpose(1, 2)).unsqueeze(3), attention


class _Joint(torch.autograd.Function):
    """The gradient of the map is what it gets from elsewhere plus a product of rank two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.set_materialize_grads(False)
        mean, attention = _pool(x, weight, bias)
        ctx.save_for_backward(x, weight, bias, attention)
        return mean, x

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, of_map: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if grad is None:
            return of_map, None, None
        x, weight, bias, attention = ctx.saved_tensors
        if torch.is_grad_enabled():  # these gradients are to be differentiated
            return _differentiable(grad, of_map, x, weight, bias)
        flat, grad = x.flatten(2), grad.flatten(2)
        of_attention = grad.transpose(1, 2) @ flat
        of_logits = (of_attention - (of_attention * attention).sum(2, keepdim=True)) * attention
        of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            of_weight = (flat @ of_logits.transpose(1, 2)).sum(0).view_as(weight)
        if ctx.needs_input_grad[2]:
            of_bias = of_logits.sum().view(1)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, of_bias
        channels = torch.cat([grad, weight.view(1, -1, 1).expand_as(grad)], 2)
        positions = torch.cat([attention, of_logits], 1)
        if of_map is None:
            return (channels @ positions).view_as(x), of_weight, of_bias
        of_x = torch.baddbmm(of_map.flatten(2), channels, positions)
        return of_x.view_as(x), of_weight, of_bias


def _differentiable(
    grad: Tensor, of_map: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    inputs = (x, weight, bias)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    mean = _reference(*inputs)[0]
    found = iter(torch.autograd.grad(mean, wanted, grad, create_graph=True))
    grads = [next(found) if t is not None and t.requires_grad else None for t in inputs]
    if grads[0] is not None and of_map is not None:
        grads[0] = grads[0] + of_map
    return tuple(grads)


def _joint(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    wanted = any(t is not None and t.requires_grad for t in (x, weight, bias))
    return (_Joint.apply if wanted and torch.is_grad_enabled() else _reference)(x, weight, bias)  # pyright: ignore[reportReturnType]


def _refusal(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    if being_traced():
        return "a compiler or exporter is tracing and gets ordinary operators instead"
    if x.device.type != "cpu":
        return f"has been measured with CPU tensors only, got {x.device.type}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the precision of ordinary operators"
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        return f"needs one dtype, got {x.dtype} and {weight.dtype}"
    if not x.is_contiguous():
        return "needs maps that lie row by row in memory"
    return None


ATTENTION_POOLING = Op("attention_pooling", _reference, Implementation("joint", _joint, _refusal))
