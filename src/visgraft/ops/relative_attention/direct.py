"""Relative attention with all logits in memory, for small maps and for exporters."""

import torch
from torch import Tensor

from visgraft.ops._dispatch import Implementation
from visgraft.ops._exporting import exporting
from visgraft.ops.relative_attention._logits import as_map, as_positions, offset_logits

__all__ = ["DIRECT", "relative_attention_weights"]

_MOST = 400  # positions


def _refusal(query: Tensor, *_: Tensor) -> str | None:
    if exporting():
        return None
    positions = query.shape[3] * query.shape[4]
    if positions > _MOST:
        return f"the map has {positions} positions, more than {_MOST}: its logits would fill memory"
    return None


def relative_attention_weights(query: Tensor, key: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns the weights ``(B * M, H * W, H * W)`` of the keys for each query; see the op."""
    h, w = query.shape[3:]
    q = as_positions(query) * query.shape[2] ** -0.5
    by_row, by_column = offset_logits(q, rows, columns, h, w)
    bias = (by_row.unsqueeze(3) + by_column.unsqueeze(2)).flatten(2)
    logits = torch.baddbmm(bias, q, as_positions(key).transpose(1, 2))
    return logits.softmax(2)


def _run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    weights = relative_attention_weights(query, key, rows, columns)
    return as_map(weights @ as_positions(value), query)


DIRECT = Implementation("direct", _run, _refusal)
