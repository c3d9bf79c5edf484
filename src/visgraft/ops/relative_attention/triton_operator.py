"""Relative attention on GPUs as an operator of PyTorch, with its derivative."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from visgraft.ops._dispatch import Implementation
from visgraft.ops._gpu import refuse_unless_on_gpu
from visgraft.ops._strides import needs_long_index
from visgraft.ops.relative_attention._derivatives import describe
from visgraft.ops.relative_attention._logits import as_map, as_positions, offset_logits
from visgraft.ops.relative_attention.triton import forward_kernel, keys_kernel, queries_kernel

__all__ = ["TRITON"]

_QUERIES = {4: 32, 2: 64}  # of a program, by the bytes of a number
_DEEPEST = 128  # channels of a head
_WIDEST = 128  # columns of a map


def _options(
    query: Tensor, value: Tensor, by_row: Tensor, by_column: Tensor, *others: Tensor
) -> dict[str, Any]:
    """Returns what all launches have in common."""
    tensors = (query, value, by_row, by_column, *others)
    depth, value_depth = query.shape[2], value.shape[2]
    padded = [max(16, triton.next_power_of_2(d)) for d in (depth, value_depth)]
    columns = max(16, triton.next_power_of_2(by_column.shape[2]))
    return {
        "sizes": (by_row.shape[2], by_column.shape[2], depth, value_depth),
        "QUERIES": _QUERIES[query.element_size()],
        "COLUMNS": columns,
        "DEPTH": padded[0],
        "VALUE_DEPTH": padded[1],
        "PRECISION": "tf32x3",  # of float32: three products on tensor cores
        "INDEX": tl.int64 if needs_long_index(*tensors) else tl.int32,
        "num_warps": 4 if max(columns, *padded) <= 64 else 8,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }


def _grid(query: Tensor) -> tuple[int]:
    """Returns the number of blocks of queries."""
    return (query.shape[0] * triton.cdiv(query.shape[1], _QUERIES[query.element_size()]),)


@torch.library.custom_op("visgraft::biased_attention_triton", mutates_args=())
def _attend(
    query: Tensor, key: Tensor, value: Tensor, by_row: Tensor, by_column: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the output, and for the backward pass the logarithm of the sum of each query."""
    out, sums = _new_out(query, value)
    if query.shape[0]:
        kernel: Any = forward_kernel
        tensors = (query, key, value, by_row, by_column, out)
        options = _options(query, value, by_row, by_column, key, out)
        with torch.cuda.device_of(query):
            kernel[_grid(query)](*tensors, sums, *(t.stride() for t in tensors), **options)
    return out, sums


@torch.library.custom_op("visgraft::biased_attention_triton_backward", mutates_args=())
def _differentiate(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    by_row: Tensor,
    by_column: Tensor,
    out: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of the five arguments."""
    inputs = (query, key, value, by_row, by_column)
    to_query, to_key, to_value, to_row, to_column = (torch.empty_like(t) for t in inputs)
    grads = (to_query, to_key, to_value, to_row, to_column)
    if not query.shape[0]:
        return grads
    options = _options(query, value, by_row, by_column, key, grad, out, *grads)
    common = torch.empty_like(sums)
    kernel: Any
    with torch.cuda.device_of(query):
        kernel = queries_kernel
        tensors = (grad, *inputs, out, to_query, to_row, to_column)
        kernel[_grid(query)](*tensors, sums, common, *(t.stride() for t in tensors), **options)
        kernel = keys_kernel
        tensors = (grad, *inputs, to_key, to_value)
        grid = (query.shape[0] * by_row.shape[2],)
        kernel[grid](*tensors, sums, common, *(t.stride() for t in tensors), **options)
    return grads


def _new_out(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return value.new_empty(value.shape), query.new_empty(query.shape[:2], dtype=torch.float32)


@_attend.register_fake
def _(query: Tensor, _key: Tensor, value: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return _new_out(query, value)


_PACKETS = (
    torch.ops.visgraft.biased_attention_triton,
    torch.ops.visgraft.biased_attention_triton_backward,
)
describe(_attend, _differentiate, _PACKETS, outputs=2)


def _run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    h, w = query.shape[3:]
    q = as_positions(query) * query.shape[2] ** -0.5
    logits = offset_logits(q, rows, columns, h, w)
    out, _ = _attend(q, as_positions(key), as_positions(value), *logits)
    return as_map(out, query)


def _refusal(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor
) -> str | None:
    if query.shape[4] > _WIDEST:
        return f"the map has {query.shape[4]} columns, more than {_WIDEST}"
    for x in (query, value):
        if x.shape[2] > _DEEPEST:
            return f"heads have {x.shape[2]} channels, more than {_DEEPEST}"
    if not query.dtype == key.dtype == value.dtype:
        return f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}, not one"
    return refuse_unless_on_gpu(query, key, value, rows, columns)


TRITON = Implementation("triton", _run, _refusal)
