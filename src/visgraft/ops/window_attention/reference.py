"""Window attention by unfolding: the definition every other implementation is tested against."""

import torch
from torch import Tensor
from torch.nn import functional

from visgraft.ops.window_attention._geometry import inside_map

__all__ = ["window_attention_reference", "window_attention_weights"]


def window_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """Unfolds the padded keys and values, in float32 or wider."""
    weights = window_attention_weights(query, key, kernel_size, stride, dilation)
    values = _windows(value, weights, kernel_size, stride, dilation)
    return (weights * values).sum(3).to(query.dtype)


def window_attention_weights(
    query: Tensor, key: Tensor, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """Returns the weights ``(B, M, 1, K * K, Ho, Wo)`` of each window, in float32 or wider."""
    wide = query.to(torch.promote_types(query.dtype, torch.float32)).unsqueeze(3)
    keys = _windows(key, wide, kernel_size, stride, dilation)
    logits = (wide * keys).sum(2, keepdim=True) * query.shape[2] ** -0.5
    return logits.softmax(3)


def _windows(x: Tensor, like: Tensor, kernel_size: int, stride: int, dilation: int) -> Tensor:
    """Returns ``(B, M, D, K * K, Ho, Wo)`` in the dtype and on the positions of ``like``."""
    reach = dilation * (kernel_size // 2)
    shape = (*x.shape[:3], kernel_size**2, *like.shape[4:])
    for axis in (3, 4):
        size = x.shape[axis]
        positions = torch.arange(-reach, size + reach, device=x.device)
        x = x.index_select(axis, inside_map(positions, size, reach))
    columns = functional.unfold(x.flatten(0, 1).to(like.dtype), kernel_size, dilation, 0, stride)
    return columns.view(shape)
