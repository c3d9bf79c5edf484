"""Derivatives of operators whose backward pass cannot be differentiated itself."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["by_definition", "gradients", "keep"]


def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    """Saves the tensors of a call, which come first, and the numbers behind them."""
    ctx.save_for_backward(*(i for i in inputs if isinstance(i, Tensor)))
    ctx.call = tuple(i for i in inputs if not isinstance(i, Tensor))


def gradients(
    reference: Callable[..., Tensor], differentiate: Callable[..., Any]
) -> Callable[..., tuple[Any, ...]]:
    """Returns the backward pass of an operator with one result, to go with ``keep``.

    Args:
        reference: Computes the operation in PyTorch's operators; gradients that are to be
            differentiated are those of the reference.
        differentiate: Takes the gradient of the result and all of a call; returns the gradients of
            the tensors.
    """

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved, nothing = ctx.saved_tensors, [None] * len(ctx.call)
        if torch.is_grad_enabled():
            return *by_definition(reference, saved, ctx.call, (grad,)), *nothing
        return *differentiate(grad, *saved, *ctx.call), *nothing

    return backward


def by_definition(
    reference: Callable[..., Any],
    inputs: Sequence[Tensor],
    numbers: Sequence[Any],
    upstream: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of the inputs with a graph of their own.

    Args:
        reference: Computes the operation in PyTorch's operators.
        inputs: Its tensors; those that require no gradient get None.
        numbers: What else it takes.
        upstream: Gradients of its first results.
    """
    results = reference(*inputs, *numbers)
    outputs = (results,) if isinstance(results, Tensor) else results[: len(upstream)]
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, upstream, create_graph=True))
    return tuple(next(found) if t.requires_grad else None for t in inputs)
