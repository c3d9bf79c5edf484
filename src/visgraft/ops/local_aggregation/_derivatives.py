"""What PyTorch wants to know about an operator for the aggregation: shapes, gradients, flops."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # pyright: ignore[reportPrivateImportUsage]
from torch.utils.flop_counter import register_flop_formula

from visgraft.ops._strides import is_channels_last, new_map

__all__ = ["describe", "new_grads", "new_out"]


def new_out(x: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns an unfilled result for maps that lie as ``x``: row by row, or channels_last."""
    shape = (x.shape[0], weight.shape[1] * x.shape[1], *weight.shape[4:])
    return new_map(x, shape, dtype)


def new_grads(
    x: Tensor,
    weight: Tensor,
    need_x: bool,
    need_weight: bool,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns unfilled gradients that lie as ``x``; empty ones that nobody needs."""
    grad_x = new_map(x, dtype=dtype) if need_x else x.new_empty(0, dtype=dtype or x.dtype)
    options: dict[str, Any] = {"dtype": dtype or weight.dtype}
    if not need_weight:
        return grad_x, weight.new_empty(0, **options)
    if not is_channels_last(x):
        return grad_x, weight.new_empty(weight.shape, **options)
    b, heads, groups, taps, height, width = weight.shape
    rows = weight.new_empty((b, height, width, heads, groups, taps), **options)
    return grad_x, rows.permute(0, 3, 4, 5, 1, 2)


def describe(aggregate: CustomOpDef, differentiate: CustomOpDef, packets: Sequence[Any]) -> None:
    """Registers shapes, first and second derivatives and flops of a pair of operators.

    Args:
        aggregate: Takes x, weight and the four numbers of a call.
        differentiate: Takes the gradient of the result, these six, and whether the gradients of x
            and of weight are needed; returns the two, empty where not.
        packets: The two in ``torch.ops.visgraft``.
    """
    aggregate.register_fake(_fake)
    differentiate.register_fake(_fake_backward)
    aggregate.register_autograd(_first(differentiate), setup_context=_keep)
    differentiate.register_autograd(_second(aggregate, differentiate), setup_context=_keep)
    register_flop_formula(packets[0])(_flops)
    register_flop_formula(packets[1])(_backward_flops)


def _fake(x: Tensor, weight: Tensor, *_: int) -> Tensor:
    return new_out(x, weight)


def _fake_backward(
    _grad: Tensor, x: Tensor, weight: Tensor, *call: int | bool
) -> tuple[Tensor, Tensor]:
    return new_grads(x, weight, *call[4:])  # pyright: ignore[reportArgumentType]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    ctx.save_for_backward(*(i for i in inputs if isinstance(i, Tensor)))
    ctx.call = tuple(i for i in inputs if not isinstance(i, Tensor))


def _first(differentiate: CustomOpDef) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_x, need_weight = ctx.needs_input_grad[:2]
        grads = differentiate(grad, *ctx.saved_tensors, *ctx.call, need_x, need_weight)
        return (grads[0] if need_x else None, grads[1] if need_weight else None, *[None] * 4)

    return backward


def _second(
    aggregate: CustomOpDef, differentiate: CustomOpDef
) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, along_x: Tensor, along_weight: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiates the backward, which is linear in each of its three tensors."""
        grad, x, weight = ctx.saved_tensors
        *call, need_x, need_weight = ctx.call
        along_x = along_x if need_x else torch.zeros_like(x)
        along_weight = along_weight if need_weight else torch.zeros_like(weight)
        along_grad = aggregate(along_x, weight, *call) + aggregate(x, along_weight, *call)
        grads = differentiate(grad, along_x, along_weight, *call, True, True)
        return along_grad, *grads, *[None] * 6

    return backward


def _flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Two per multiply-add: each weight meets each channel that shares it."""
    return 2 * prod(weight) * x[1] // weight[2]


def _backward_flops(*call: Any, **__: Any) -> int:
    _, x, weight, *_, need_x, need_weight = call
    return (need_x + need_weight) * _flops(x, weight)
