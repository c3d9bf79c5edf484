"""Window attention on small maps: every query looks at the whole map, under a bias.

A position that padding repeats n times in a window counts n times in its softmax, which is a bias
of log(n); a position outside the window has the bias log(0).
"""

import torch
from torch import Tensor
from torch.nn import functional

from visgraft.ops._dispatch import Implementation
from visgraft.ops._exporting import exporting
from visgraft.ops.window_attention._geometry import divide_axis, inside_map

__all__ = ["DENSE"]

_WORTH = 1.25  # keys of the map per key of a tile, up to which gathering tiles does not pay


def _refusal(
    query: Tensor, key: Tensor, _: Tensor, kernel_size: int, stride: int, dilation: int
) -> str | None:
    if exporting():
        return "an exported graph serves every map size"
    rows, columns = (divide_axis(n, kernel_size, stride, dilation) for n in query.shape[3:])
    keys, read = key.shape[3] * key.shape[4], rows.span * columns.span
    if keys > _WORTH * read:
        return f"the map has {keys} positions, over {_WORTH} times the {read} that a tile reads"
    return None


def _run(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    b, m, d, h, w = query.shape
    height, width = key.shape[3:]
    reach = dilation * (kernel_size // 2)
    wide = torch.promote_types(query.dtype, torch.float32)

    def log_counts(size: int, queries: int) -> Tensor:  # (queries, size)
        centre = torch.arange(queries, device=query.device)[:, None] * stride
        taps = torch.arange(kernel_size, device=query.device) * dilation - reach
        read = inside_map(centre + taps, size, reach)
        ones = torch.ones(read.shape, dtype=wide, device=query.device)
        return ones.new_zeros(queries, size).scatter_add_(1, read, ones).log()

    def positions(x: Tensor) -> Tensor:  # (B, M, H * W, D), D contiguous
        x = x.permute(0, 3, 4, 1, 2)
        return x.reshape(b, x.shape[1] * x.shape[2], m, d).transpose(1, 2)

    rows, columns = log_counts(height, h), log_counts(width, w)
    bias = (rows[:, None, :, None] + columns[None, :, None, :]).view(h * w, height * width)
    out = functional.scaled_dot_product_attention(
        positions(query), positions(key), positions(value), bias.to(query.dtype)
    )
    return out.transpose(1, 2).reshape(b, h, w, m, d).permute(0, 3, 4, 1, 2)


DENSE = Implementation("dense", _run, _refusal)
