"""The operations as they circulate: every neighbourhood unfolded, every logit in memory.

Without parameters, checks and options; the same values as the references of `visgraft.ops`, in the
dtype of the input.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "plain_relative_attention",
    "sliced_space_to_depth",
    "unfolded_aggregation",
    "unfolded_window_attention",
]


def unfolded_aggregation(x: Tensor, weight: Tensor) -> Tensor:
    """Sums 3 x 3 neighbourhoods of ``x`` under ``weight``, ``(B, 1, C / 8, 9, H, W)``."""
    b, c, h, w = x.shape
    columns = functional.unfold(x, 3, padding=1).view(b, -1, weight.shape[2], 9, h, w)
    return (columns * weight).sum(3).view(b, c, h, w)


def unfolded_window_attention(query: Tensor, key: Tensor, value: Tensor, size: int) -> Tensor:
    """Attends to the reflected window around each position; ``(B, M, D, H, W)`` each."""
    b, m, d, h, w = query.shape
    pad = size // 2

    def windows(x: Tensor) -> Tensor:
        padded = functional.pad(x.reshape(b * m, d, h, w), (pad,) * 4, "reflect")
        return functional.unfold(padded, size).view(b * m, d, size**2, h, w)

    queries = query.reshape(b * m, d, 1, h, w) * d**-0.5
    attention = (queries * windows(key)).sum(1).softmax(1)
    return (attention.unsqueeze(1) * windows(value)).sum(2).view(b, m, d, h, w)


def plain_relative_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """Attends to all positions, with a logit for each difference of rows and of columns."""
    b, m, d, h, w = query.shape
    q, k, v = (t.reshape(b, m, d, h * w).transpose(2, 3) for t in (query, key, value))
    q = q * d**-0.5
    map_ = q.view(b, m, h, w, d)
    y, x = torch.arange(h, device=q.device), torch.arange(w, device=q.device)
    below = torch.einsum("bmyxd,ypd->bmyxp", map_, rows[y - y[:, None] + h - 1])
    beside = torch.einsum("bmyxd,xqd->bmyxq", map_, columns[x - x[:, None] + w - 1])
    bias = (below[..., :, None] + beside[..., None, :]).reshape(b, m, h * w, h * w)
    attention = (q @ k.transpose(2, 3) + bias).softmax(3)
    return (attention @ v).transpose(2, 3).reshape(b, m, -1, h, w)


def sliced_space_to_depth(x: Tensor) -> Tensor:
    """Joins the four slices of every second row and column."""
    parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
    return torch.cat(parts, -3)
