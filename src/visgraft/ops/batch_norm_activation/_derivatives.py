"""What PyTorch wants to know about an operator for the normalisation: shapes and gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # pyright: ignore[reportPrivateImportUsage]

from visgraft.ops._derivatives import by_definition
from visgraft.ops._strides import new_map
from visgraft.ops.batch_norm_activation.reference import batch_norm_activation_reference

__all__ = ["describe", "gradients", "keep"]


def describe(
    normalise: CustomOpDef, differentiate: CustomOpDef, backward: Callable[..., tuple[Any, ...]]
) -> None:
    """Registers shapes and derivatives of a pair of operators that keep the layout of maps.

    Args:
        normalise: Takes what the reference takes, and returns what it returns.
        differentiate: Takes the gradients of the first two results, x, weight, bias, mean,
            variance, epsilon and the activation; returns the gradients of x, weight and bias.
        backward: What ``gradients`` returns, with which ``normalise`` is differentiated.
    """

    def fake(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pooled = x.new_empty(x.shape[0], x.shape[1], 1, 1)
        return new_map(x), pooled, weight.new_empty(weight.shape), weight.new_empty(weight.shape)

    def fake_backward(
        _grad: Tensor, _pooled: Tensor, x: Tensor, weight: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return new_map(x), weight.new_empty(weight.shape), weight.new_empty(weight.shape)

    normalise.register_fake(fake)
    differentiate.register_fake(fake_backward)
    normalise.register_autograd(backward, setup_context=keep)


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Saves what the backward pass reads."""
    mean, variance = output[2:]
    ctx.save_for_backward(*inputs[:3], mean, variance)
    ctx.mark_non_differentiable(mean, variance)
    ctx.call = inputs[3:]


def gradients(differentiate: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Returns the backward pass, in which this function computes the three gradients."""

    def backward(ctx: Any, grad: Tensor, grad_pooled: Tensor, *_: Any) -> tuple[Any, ...]:
        saved, upstream = ctx.saved_tensors, (grad, grad_pooled)
        if torch.is_grad_enabled():  # these gradients are to be differentiated
            again = by_definition(batch_norm_activation_reference, saved[:3], ctx.call, upstream)
            return *again, None, None
        return *differentiate(*upstream, *saved, *ctx.call), None, None

    return backward
