"""Logits of the offsets, one axis at a time, and the layout in which attention is computed."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["as_map", "as_positions", "by_pair", "offset_logits"]


def as_positions(x: Tensor) -> Tensor:
    """Returns ``(B * M, H * W, D)`` of a map ``(B, M, D, H, W)``."""
    b, m, d, h, w = x.shape
    return x.permute(0, 1, 3, 4, 2).reshape(b * m, h * w, d)


def as_map(x: Tensor, like: Tensor) -> Tensor:
    """Returns ``(B, M, D, H, W)`` of ``(B * M, H * W, D)``."""
    b, m, _, h, w = like.shape
    return x.view(b, m, h, w, x.shape[2]).permute(0, 1, 4, 2, 3)


def offset_logits(
    query: Tensor, rows: Tensor, columns: Tensor, h: int, w: int
) -> tuple[Tensor, Tensor]:
    """Returns ``(B * M, H * W, H)`` and ``(B * M, H * W, W)``: by the key's row and column.

    Args:
        query: Scaled queries, ``(B * M, H * W, D)``.
        rows: ``(2 * H - 1, D)``.
        columns: ``(2 * W - 1, D)``.
        h: H.
        w: W.
    """
    grid = query.view(query.shape[0], h, w, query.shape[2])
    by_row = torch.einsum("gyxd,ypd->gyxp", grid, by_pair(rows, h))
    by_column = torch.einsum("gyxd,xqd->gyxq", grid, by_pair(columns, w))
    return by_row.flatten(1, 2), by_column.flatten(1, 2)


def by_pair(table: Tensor, length: int) -> Tensor:
    """Returns ``(length, length, D)``: the entry for the offset of the second from the first."""
    position = torch.arange(length, device=table.device)
    return functional.embedding(position - position[:, None] + length - 1, table)
