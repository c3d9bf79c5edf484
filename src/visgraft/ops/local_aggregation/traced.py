"""Local aggregation by shifted slices in ordinary operators, for compilers and exporters."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["local_aggregation_traced"]


def local_aggregation_traced(
    x: Tensor, weight: Tensor, kernel_size: int, stride: int, padding: int, dilation: int
) -> Tensor:
    """Adds one shifted, weighted slice per tap; a compiler fuses them into one pass."""
    c = x.shape[1]
    heads, groups, _, height, width = weight.shape[1:]
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    padded = functional.pad(x.to(wide), [padding] * 4).unflatten(1, (1, c // groups, groups))

    def product(tap: int, by_group: Tensor) -> Tensor:
        top, left = (dilation * i for i in divmod(tap, kernel_size))
        rows = padded.narrow(-2, top, stride * (height - 1) + 1)
        window = rows.narrow(-1, left, stride * (width - 1) + 1)
        if stride > 1:
            window = window[..., ::stride, ::stride]
        return window * by_group  # (B, M, C / Cw, Cw, Ho, Wo)

    first, *others = enumerate(weight.to(wide).unsqueeze(2).unbind(4))
    out = product(*first)
    for other in others:
        out = out + product(*other)
    return out.reshape(x.shape[0], heads * c, height, width).to(x.dtype)
