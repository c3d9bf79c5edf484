"""Window attention by unfolding: the definition every other implementation is tested against."""

import torch
from torch import Tensor
from torch.nn import functional

from visgraft.ops.window_attention._geometry import inside_map

__all__ = ["window_attention_reference"]


def window_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """Unfolds the padded keys and values, in float32 or wider."""
    b, m, d, h, w = query.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    reach = dilation * (kernel_size // 2)

    def windows(x: Tensor) -> Tensor:  # (B, M, D, K * K, Ho, Wo)
        for axis in (3, 4):
            size = x.shape[axis]
            positions = torch.arange(-reach, size + reach, device=x.device)
            x = x.index_select(axis, inside_map(positions, size, reach))
        columns = functional.unfold(x.flatten(0, 1).to(wide), kernel_size, dilation, 0, stride)
        return columns.view(b, m, d, kernel_size**2, h, w)

    logits = (query.to(wide).unsqueeze(3) * windows(key)).sum(2, keepdim=True) * d**-0.5
    return (logits.softmax(3) * windows(value)).sum(3).to(query.dtype)
