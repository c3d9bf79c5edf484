"""Relative attention with all logits in memory, for small maps and for exporters."""

import torch
from torch import Tensor

from visgraft.ops._dispatch import Implementation
from visgraft.ops._exporting import exporting
from visgraft.ops.relative_attention._logits import as_map, as_positions, offset_logits

__all__ = ["DIRECT"]

_MOST = 400  # positions


def _refusal(query: Tensor, *_: Tensor) -> str | None:
    if exporting():
        return None
    positions = query.shape[3] * query.shape[4]
    if positions > _MOST:
        return f"the map has {positions} positions, more than {_MOST}: its logits would fill memory"
    return None


def _run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    h, w = query.shape[3:]
    q = as_positions(query) * query.shape[2] ** -0.5
    by_row, by_column = offset_logits(q, rows, columns, h, w)
    bias = (by_row.unsqueeze(3) + by_column.unsqueeze(2)).flatten(2)
    logits = torch.baddbmm(bias, q, as_positions(key).transpose(1, 2))
    return as_map(logits.softmax(2) @ as_positions(value), query)


DIRECT = Implementation("direct", _run, _refusal)
