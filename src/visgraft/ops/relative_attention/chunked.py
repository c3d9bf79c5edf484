"""Relative attention in chunks of queries, so that memory does not grow with the square of the map.

The backward pass computes the attention of each chunk again.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from visgraft.ops._dispatch import Implementation
from visgraft.ops.relative_attention._derivatives import describe
from visgraft.ops.relative_attention._logits import as_map, as_positions, offset_logits

__all__ = ["CHUNKED"]

_AT_ONCE_ON_CPU = 2**20  # logits: 4 MiB, that stay in cache
_AT_ONCE = 2**27

Chunk = tuple[slice, slice]


def _run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    h, w = query.shape[3:]
    q = as_positions(query) * query.shape[2] ** -0.5
    logits = offset_logits(q, rows, columns, h, w)
    return as_map(_biased_attention(q, as_positions(key), as_positions(value), *logits), query)


def _chunks(query: Tensor) -> Iterator[Chunk]:
    """Yields slices of heads and of queries whose logits may be in memory at once."""
    heads, positions = query.shape[:2]
    budget = _AT_ONCE_ON_CPU if query.device.type == "cpu" else _AT_ONCE
    some_heads = max(1, budget // positions**2)
    some_queries = max(1, min(positions, budget // positions))
    for head in range(0, heads, some_heads):
        for first in range(0, positions, some_queries):
            yield slice(head, head + some_heads), slice(first, first + some_queries)


def _attention(query: Tensor, key: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    logits = (query @ key.mT).unflatten(2, (by_row.shape[2], by_column.shape[2]))
    logits += by_row.unsqueeze(3)
    logits += by_column.unsqueeze(2)
    return logits.flatten(2).softmax(2)


@torch.library.custom_op("visgraft::biased_attention", mutates_args=())
def _biased_attention(
    query: Tensor, key: Tensor, value: Tensor, by_row: Tensor, by_column: Tensor
) -> Tensor:
    """Attends under a bias that is the sum of one for the key's row and one for its column."""
    out = torch.empty_like(value)
    for heads, some in _chunks(query):
        attention = _attention(
            query[heads, some], key[heads], by_row[heads, some], by_column[heads, some]
        )
        out[heads, some] = attention @ value[heads]
    return out


@torch.library.custom_op("visgraft::biased_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    by_row: Tensor,
    by_column: Tensor,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of the five arguments."""
    grad = grad.contiguous()
    grads = [torch.empty_like(x) for x in (query, by_row, by_column)]
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    common = (grad * out).sum(2, keepdim=True)
    for heads, some in _chunks(query):
        q, rows, columns = query[heads, some], by_row[heads, some], by_column[heads, some]
        attention = _attention(q, key[heads], rows, columns)
        grad_value[heads] += attention.mT @ grad[heads, some]
        logits = (grad[heads, some] @ value[heads].mT).sub_(common[heads, some]).mul_(attention)
        grad_key[heads] += logits.mT @ q
        grads[0][heads, some] = logits @ key[heads]
        logits = logits.unflatten(2, (rows.shape[2], columns.shape[2]))
        grads[1][heads, some] = logits.sum(3)
        grads[2][heads, some] = logits.sum(2)
    return grads[0], grad_key, grad_value, grads[1], grads[2]


@_biased_attention.register_fake
def _(*tensors: Tensor) -> Tensor:
    return torch.empty_like(tensors[2])


_PACKETS = (torch.ops.visgraft.biased_attention, torch.ops.visgraft.biased_attention_backward)
describe(_biased_attention, _backward, _PACKETS, outputs=1)

CHUNKED = Implementation("chunked", _run, lambda *_: None)
