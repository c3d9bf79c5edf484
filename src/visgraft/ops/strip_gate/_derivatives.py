"""The gradient of the means of rows and columns, whichever form computes it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from visgraft.ops._native import unwatched
from visgraft.ops._strides import is_channels_last, layout_of

__all__ = ["gradient", "handing_on", "keep_map"]


def keep_map(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:  # noqa: ARG001
    """Notes the size of the map, and whether its channels lie last."""
    (x,) = inputs
    ctx.map = x.shape[2], x.shape[3], is_channels_last(x)


def gradient(differentiate: Callable[..., Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Returns the backward pass, in which this function spreads the gradient over a new map."""

    def backward(ctx: Any, grad: Tensor) -> Tensor:
        height, width, _ = ctx.map
        if torch.is_grad_enabled():  # this gradient is to be differentiated
            rows, columns = grad.split([height, width], 2)
            return rows / width + columns.transpose(2, 3) / height
        return differentiate(grad, *ctx.map)

    return backward


def handing_on(
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Any, Tensor], Tensor],
    spread: Callable[[Tensor, Tensor, Tensor], None],
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Returns a function that computes the means and hands on the map.

    So the gradient of the means is added to that of the map where it lies.

    Args:
        forward: Computes the means.
        backward: What ``gradient`` returns.
        spread: Takes the gradient of the means, that of the map, and where to write their sum,
            which may be the second.
    """

    class Means(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
            ctx.set_materialize_grads(False)
            keep_map(ctx, (x,), None)
            return forward(x), x

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None, of_map: Tensor | None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            if grad is None:
                return of_map
            if of_map is None:
                return backward(ctx, grad)
            layout = torch.channels_last if ctx.map[2] else torch.contiguous_format
            if (
                torch.is_grad_enabled()
                or layout_of(of_map) != layout
                or not of_map.is_contiguous(memory_format=layout)
                or not unwatched(grad, of_map)
            ):
                return of_map + backward(ctx, grad)
            spread(grad, of_map, of_map)
            return of_map

    return Means.apply  # pyright: ignore[reportReturnType]
