"""What PyTorch wants to know about an operator for the aggregation: shapes, gradients, flops."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # pyright: ignore[reportPrivateImportUsage]
from torch.utils.flop_counter import register_flop_formula

__all__ = ["describe", "out_shape"]


def out_shape(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Returns the shape of the result."""
    return (x.shape[0], weight.shape[1] * x.shape[1], *weight.shape[4:])


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
    return x.new_empty(out_shape(x, weight))


def _fake_backward(
    _grad: Tensor, x: Tensor, weight: Tensor, *call: int | bool
) -> tuple[Tensor, Tensor]:
    need_x, need_weight = call[4:]
    grad_x = x.new_empty(x.shape if need_x else 0)
    return grad_x, weight.new_empty(weight.shape if need_weight else 0)


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
