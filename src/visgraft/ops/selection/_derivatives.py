"""What PyTorch wants to know about an operator for the selection: shapes and gradients."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.library import CustomOpDef  # pyright: ignore[reportPrivateImportUsage]

from visgraft.ops._derivatives import keep
from visgraft.ops._strides import new_map

__all__ = ["describe"]


def describe(
    select: CustomOpDef, differentiate: CustomOpDef, backward: Callable[..., tuple[Any, ...]]
) -> None:
    """Registers shapes and derivatives of a pair of operators that keep the layout of maps.

    Args:
        select: Takes two maps and a share.
        differentiate: Takes the gradient of the result and these three; returns theirs.
        backward: With which ``select`` is differentiated.
    """

    def fake(first: Tensor, *_: Tensor) -> Tensor:
        return new_map(first)

    def fake_backward(
        _grad: Tensor, first: Tensor, _second: Tensor, share: Tensor
    ) -> tuple[Tensor, ...]:
        return new_map(first), new_map(first), share.new_empty(share.shape)

    select.register_fake(fake)
    differentiate.register_fake(fake_backward)
    select.register_autograd(backward, setup_context=keep)
