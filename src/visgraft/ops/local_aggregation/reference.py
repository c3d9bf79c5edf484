"""Local aggregation by unfolding: the definition every other implementation is tested against."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["local_aggregation_reference"]


def local_aggregation_reference(
    x: Tensor, weight: Tensor, kernel_size: int, stride: int, padding: int, dilation: int
) -> Tensor:
    """Multiplies the unfolded map by its weights and sums over the taps, in float32 or wider."""
    b, c = x.shape[:2]
    _, heads, groups, taps, height, width = weight.shape
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    columns = functional.unfold(x.to(wide), kernel_size, dilation, padding, stride)
    columns = columns.view(b, 1, c // groups, groups, taps, height, width)
    out = (columns * weight.to(wide).unsqueeze(2)).sum(4)  # (B, M, C / Cw, Cw, Ho, Wo)
    return out.reshape(b, heads * c, height, width).to(x.dtype)
