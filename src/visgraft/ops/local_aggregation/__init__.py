"""Sum over a k x k neighbourhood, with weights of its own at each position."""

from importlib.util import find_spec

from torch import Tensor

from visgraft.ops._dispatch import Implementation, Op, missing
from visgraft.ops.local_aggregation.native import NATIVE
from visgraft.ops.local_aggregation.reference import local_aggregation_reference
from visgraft.ops.local_aggregation.shifted import SHIFTED
from visgraft.ops.local_aggregation.traced import local_aggregation_traced

if find_spec("triton"):
    from visgraft.ops.local_aggregation.triton_operator import TRITON
else:
    TRITON = missing("triton")

__all__ = ["LOCAL_AGGREGATION", "local_aggregation"]

LOCAL_AGGREGATION = Op(
    "local_aggregation",
    local_aggregation_reference,
    TRITON,
    NATIVE,
    SHIFTED,
    Implementation("traced", local_aggregation_traced, lambda *_: None),
)


def local_aggregation(
    x: Tensor,
    weight: Tensor,
    kernel_size: int,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Sums each neighbourhood of ``x`` under the weights that stand at its position.

    ``out[b, m * C + c, i, j]`` is the sum over ``u, v`` of ``weight[b, m, c % Cw, u * K + v, i, j]
    * x[b, c, i * stride - padding + u * dilation, j * stride - padding + v * dilation]``, with
    zeros outside the map. Channels ``c, c + Cw, c + 2 * Cw, ...`` share their weights. Every
    implementation adds up in float32 or wider.

    Args:
        x: Feature map, ``(B, C, H, W)``.
        weight: ``(B, M, Cw, K * K, Ho, Wo)`` with M heads and Cw a divisor of C.
        kernel_size: K.
        stride: Step from one neighbourhood to the next.
        padding: Zeros on each side; None for ``dilation * (kernel_size - 1) // 2``, which with an
            odd kernel and stride 1 keeps the size.
        dilation: Step from one tap to the next.
        backend: ``'triton'``, ``'native'``, ``'shifted'``, ``'traced'``, ``'reference'``, or None
            for the fastest that takes this call.

    Returns:
        ``(B, M * C, Ho, Wo)``, dtype of ``x``.

    Raises:
        ValueError: A number is out of range, the shapes do not belong together, a tensor is not
            floating point, or the named backend cannot take these arguments.

    Example:
        >>> import torch
        >>> x, weight = torch.ones(1, 8, 5, 7), torch.ones(1, 1, 2, 9, 5, 7)
        >>> local_aggregation(x, weight, 3)[0, 0, :2, :2]
        tensor([[4., 6.],
                [6., 9.]])
    """
    _check_integer("kernel_size", kernel_size, 1)
    _check_integer("stride", stride, 1)
    _check_integer("dilation", dilation, 1)
    if padding is None:
        padding = dilation * (kernel_size - 1) // 2
    _check_integer("padding", padding, 0)
    _check_tensors(x, weight, kernel_size, stride, padding, dilation)
    return LOCAL_AGGREGATION(x, weight, kernel_size, stride, padding, dilation, backend=backend)


def _check_integer(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"local_aggregation: {name} must be an integer >= {least}, got {value!r}")


def _check_tensors(
    x: Tensor, weight: Tensor, kernel_size: int, stride: int, padding: int, dilation: int
) -> None:
    """Raises ValueError unless the shapes belong together."""
    if x.ndim != 4:
        raise ValueError(f"local_aggregation: x must be (B, C, H, W), got {tuple(x.shape)}")
    if weight.ndim != 6:
        got = tuple(weight.shape)
        raise ValueError(f"local_aggregation: weight must be (B, M, Cw, K * K, Ho, Wo), got {got}")
    if not (x.is_floating_point() and weight.is_floating_point()):
        name, tensor = ("weight", weight) if x.is_floating_point() else ("x", x)
        raise ValueError(f"local_aggregation: {name} must be floating point, got {tensor.dtype}")
    b, c, h, w = x.shape
    reach = dilation * (kernel_size - 1) + 1
    if h + 2 * padding < reach or w + 2 * padding < reach:
        raise ValueError(
            f"local_aggregation: the kernel spans {reach} positions, but the map is {h} x {w} with "
            f"padding {padding}; use more padding, or a smaller kernel or dilation"
        )
    height = (h + 2 * padding - reach) // stride + 1
    width = (w + 2 * padding - reach) // stride + 1
    _, heads, groups, *_ = weight.shape
    if heads < 1:
        raise ValueError("local_aggregation: weight must have at least one head, got 0")
    if groups < 1 or c % groups:
        raise ValueError(
            f"local_aggregation: the weight's channels must divide those of x, got {groups} and {c}"
        )
    expected = (b, heads, groups, kernel_size**2, height, width)
    if weight.shape != expected:
        got = tuple(weight.shape)
        raise ValueError(f"local_aggregation: weight must be {expected} for this x, got {got}")
