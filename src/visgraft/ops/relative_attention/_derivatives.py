"""What PyTorch wants to know about an operator for the attention: shapes, gradients, flops."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # pyright: ignore[reportPrivateImportUsage]
from torch.utils.flop_counter import register_flop_formula

__all__ = ["describe"]


def describe(
    attend: CustomOpDef,
    differentiate: CustomOpDef,
    packets: Sequence[Any],
    *,
    outputs: int,
    new: Callable[[Tensor], Tensor] = torch.empty_like,
) -> None:
    """Registers derivative, flops and the shapes of the derivative of a pair of operators.

    Args:
        attend: Takes query, key, value, by_row and by_column, with the positions of a head in one
            dimension or two; returns the result and what else the backward pass wants.
        differentiate: Takes the gradient of the result, these five and some of what ``attend``
            returns; returns the gradients of the five.
        packets: The two in ``torch.ops.visgraft``.
        outputs: How many of the results ``differentiate`` takes.
        new: Returns an empty gradient of a tensor, laid out as ``differentiate`` lays it out.
    """

    def keep(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        results = (output,) if isinstance(output, Tensor) else output
        ctx.save_for_backward(*inputs, *results[:outputs])
        ctx.mark_non_differentiable(*results[1:])

    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, ...]:
        return differentiate(grad, *ctx.saved_tensors)

    def fake(_grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(new(t) for t in tensors[:5])

    attend.register_autograd(backward, setup_context=keep)
    differentiate.register_fake(fake)
    register_flop_formula(packets[0])(_flops)
    register_flop_formula(packets[1])(_backward_flops)


def _flops(*shapes: Any, **_: Any) -> int:
    """Two per multiply-add: each query meets each key and each value of its head."""
    heads, depth, positions = _sizes(shapes[0])
    return 2 * heads * positions**2 * (depth + _sizes(shapes[2])[1])


def _backward_flops(*shapes: Any, **_: Any) -> int:
    heads, depth, positions = _sizes(shapes[1])
    return 2 * heads * positions**2 * (3 * depth + 2 * _sizes(shapes[3])[1])


def _sizes(shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns heads of all images, depth and positions of ``(n, positions, d)`` or maps."""
    if len(shape) == 3:
        return shape[0], shape[2], shape[1]
    return shape[0] * shape[1], shape[2], prod(shape[3:])
