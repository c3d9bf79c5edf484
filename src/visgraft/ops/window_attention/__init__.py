"""Attention of each position to the k x k window around it, with the map padded by reflection."""

from importlib.util import find_spec

from torch import Tensor

from visgraft.ops._dispatch import Op, missing
from visgraft.ops.window_attention.dense import DENSE
from visgraft.ops.window_attention.native import NATIVE
from visgraft.ops.window_attention.reference import window_attention_reference
from visgraft.ops.window_attention.tiles import TILES

if find_spec("triton"):
    from visgraft.ops.window_attention.triton_operator import TRITON
else:
    TRITON = missing("triton")

__all__ = ["WINDOW_ATTENTION", "window_attention"]

WINDOW_ATTENTION = Op("window_attention", window_attention_reference, TRITON, NATIVE, DENSE, TILES)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Mixes the values in the window around each query, by a softmax over ``query . key``.

    The query at ``i, j`` stands at ``i * stride, j * stride`` of the map and reads the positions
    ``(u - kernel_size // 2) * dilation`` from there, ``u`` from 0 to ``kernel_size - 1``, along
    each axis. Positions outside the map are reflected at its edge along an axis longer than
    ``dilation * (kernel_size // 2)``, and replaced by the nearest one along a shorter axis. Logits
    are scaled by ``D**-0.5``.

    ``dense`` takes maps of at most 1.25 times the positions that a tile reads (with a window of 7,
    up to 14 x 14) and computes each query with each key. ``tiles`` takes any map: 8 x 8 queries
    with the keys of their tile and its halo, three to four times as many as the window has. Both
    use PyTorch's fused attention and never hold the windows. ``triton`` is one kernel on CUDA that
    reads the map where it lies; ``native`` does the same in C on a CPU, in float32 and bfloat16, on
    maps of more than 64 positions. None of them can be differentiated twice, which ``reference``
    can. While exporting, ``tiles`` serves every size.

    Args:
        query: ``(B, M, D, Ho, Wo)``, M heads of D channels; ``Ho = ceil(H / stride)``.
        key: ``(B, M, D, H, W)``.
        value: ``(B, M, D, H, W)``.
        kernel_size: Odd size of the window.
        stride: Distance of the queries on the map.
        dilation: Distance of the keys in a window.
        backend: ``'triton'``, ``'native'``, ``'dense'``, ``'tiles'``, ``'reference'``, or None for
            the first of them that takes this call.

    Returns:
        ``(B, M, D, Ho, Wo)``, dtype of ``query``.

    Raises:
        ValueError: A number is out of range, the tensors do not belong together, or the named
            backend cannot take these arguments.

    Example:
        >>> import torch
        >>> query, value = torch.zeros(1, 1, 1, 2, 3), torch.arange(6.0).view(1, 1, 1, 2, 3)
        >>> window_attention(query, query, value, 1).squeeze()
        tensor([[0., 1., 2.],
                [3., 4., 5.]])
    """
    for name, number in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"window_attention: {name} must be an integer >= 1, got {number!r}")
    if kernel_size % 2 == 0:
        raise ValueError(f"window_attention: kernel_size must be odd, got {kernel_size}")
    _check_tensors(query, key, value, stride)
    return WINDOW_ATTENTION(query, key, value, kernel_size, stride, dilation, backend=backend)


def _check_tensors(query: Tensor, key: Tensor, value: Tensor, stride: int) -> None:
    """Raises ValueError unless the tensors belong together."""
    named = {"query": query, "key": key, "value": value}
    for name, x in named.items():
        if x.ndim != 5 or not x.is_floating_point():
            raise ValueError(
                f"window_attention: {name} must be floating point and (B, M, D, H, W), got "
                f"{x.dtype} {tuple(x.shape)}"
            )
        if (x.dtype, x.device) != (query.dtype, query.device):
            raise ValueError(
                f"window_attention: {name} must have dtype and device of query, got {x.dtype} on "
                f"{x.device}, not {query.dtype} on {query.device}"
            )
    if key.shape != value.shape:
        raise ValueError(
            f"window_attention: key and value must have one shape, got {tuple(key.shape)} and "
            f"{tuple(value.shape)}"
        )
    if key.shape[3] < 1 or key.shape[4] < 1:
        raise ValueError(f"window_attention: the map has no positions, key is {tuple(key.shape)}")
    expected = (*key.shape[:3], *(-(-n // stride) for n in key.shape[3:]))
    if tuple(query.shape) != expected:
        raise ValueError(
            f"window_attention: query must be {expected} for this key and stride {stride}, got "
            f"{tuple(query.shape)}"
        )
