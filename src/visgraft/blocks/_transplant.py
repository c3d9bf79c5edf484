"""What `from_conv` of a block asks of the convolution whose place it takes."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.utils import _pair  # pyright: ignore[reportPrivateImportUsage]

__all__ = ["Geometry", "geometry_of", "give_values"]


class Geometry(NamedTuple):
    """The numbers of a convolution, each as (vertical, horizontal)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def reach(self) -> tuple[int, int]:
        """Pixels that the kernel spans."""
        (kh, kw), (dh, dw) = self.kernel_size, self.dilation
        return dh * (kh - 1) + 1, dw * (kw - 1) + 1

    def check_size(self, owner: str, x: Tensor) -> None:
        """Raises ValueError where the kernel is larger than the padded map."""
        for size, reach, padding in zip(x.shape[2:], self.reach, self.padding, strict=True):
            if reach > 2 * padding + 1 and size + 2 * padding < reach:
                raise ValueError(
                    f"{owner}: the kernel spans {reach} positions, but the map of "
                    f"{tuple(x.shape[2:])} has {size} and padding {padding}; use more padding, or "
                    "a smaller kernel or dilation"
                )


def geometry_of(owner: str, conv: nn.Module) -> Geometry:
    """Returns the numbers of a plain convolution.

    Raises:
        ValueError: It is no Conv2d, computes something else than one, or is not built yet.
    """
    kind = type(conv).__name__
    if (
        not isinstance(conv, nn.Conv2d)
        or type(conv).forward is not nn.Conv2d.forward
        or type(conv)._conv_forward is not nn.Conv2d._conv_forward
    ):
        raise ValueError(f"{owner}: expected a convolution that computes as nn.Conv2d, got {kind}")
    if nn.parameter.is_lazy(conv.weight):
        raise ValueError(f"{owner}: {kind} has no weights yet; run the model once first")
    kernel, stride, dilation = (_pair(n) for n in (conv.kernel_size, conv.stride, conv.dilation))
    if conv.padding == "valid":
        padding = (0, 0)
    elif conv.padding == "same":
        margins = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(m % 2 for m in margins):
            raise ValueError(
                f"{owner}: padding='same' pads a kernel of {kernel[0]} x {kernel[1]} unevenly, "
                "which the block cannot hold"
            )
        padding = (margins[0] // 2, margins[1] // 2)
    else:
        padding = _pair(conv.padding)
    return Geometry(kernel, stride, padding, dilation)


def give_values(target: nn.Module, conv: nn.Conv2d, *, weight: Tensor) -> None:
    """Gives ``target`` the weight and a copy of the bias, trainable where those of ``conv`` are."""
    target.register_parameter("weight", nn.Parameter(weight, conv.weight.requires_grad))
    if conv.bias is not None:
        bias = nn.Parameter(conv.bias.detach().clone(), conv.bias.requires_grad)
        target.register_parameter("bias", bias)
