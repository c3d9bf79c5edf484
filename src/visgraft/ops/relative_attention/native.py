"""Relative attention in C: a few queries at a time, with memory that grows with the positions.

The logits of the offsets come as two biases, by the key's row and by its column. Logits, softmax
and sums are in float32.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from visgraft.ops._dispatch import Implementation
from visgraft.ops._exporting import exporting
from visgraft.ops._native import NativeLibrary, tensor_refusal, threads_for, with_whole_maps
from visgraft.ops.relative_attention._derivatives import describe
from visgraft.ops.relative_attention._logits import by_pair

__all__ = ["NATIVE"]

_SMALL = 200  # positions
_LIBRARY = NativeLibrary("relative_attention", Path(__file__).with_name("cpu.c"))


def _run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    h, w = query.shape[3:]
    query = query * query.shape[2] ** -0.5
    by_row = torch.einsum("bmdyx,ypd->bmpyx", query, by_pair(rows, h).to(query.dtype))
    by_column = torch.einsum("bmdyx,xqd->bmqyx", query, by_pair(columns, w).to(query.dtype))
    return _attend(query, key, value, by_row.float(), by_column.float())


@torch.library.custom_op("visgraft::biased_attention_native", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    out = value.new_empty(value.shape)
    tensors = [with_whole_maps(t) for t in (query, key, value)]
    numbers = _numbers([*tensors, out], 1)
    biases = (by_row.contiguous(), by_column.contiguous())
    _LIBRARY.call("forward", (*tensors, None, *biases, out, *[None] * 4), *numbers)
    return out


@torch.library.custom_op("visgraft::biased_attention_native_backward", mutates_args=())
def _differentiate(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    by_row: Tensor,
    by_column: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (query, key, value, by_row, by_column)
    a, b, c, d, e = (t.new_empty(t.shape) for t in inputs)
    tensors = [with_whole_maps(t) for t in (query, key, value, grad.to(value.dtype))]
    biases = (by_row.contiguous(), by_column.contiguous())
    _LIBRARY.call("backward", (*tensors, *biases, a, b, c, d, e), *_numbers(tensors, 3))
    return a, b, c, d, e


def _numbers(tensors: Sequence[Tensor], times: int) -> tuple[int, ...]:
    """Returns what C calls `call_t`."""
    (b, m, d, h, w), value = tensors[0].shape, tensors[2]
    threads = threads_for(times * b * m * (d + value.shape[2]) * (h * w) ** 2)
    apart = (n for t in tensors for n in t.stride()[:3])
    return b, m, d, value.shape[2], h, w, value.dtype == torch.bfloat16, threads, *apart


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Tensor) -> Tensor:  # noqa: ARG001
    return value.new_empty(value.shape)


_PACKETS = (
    torch.ops.visgraft.biased_attention_native,
    torch.ops.visgraft.biased_attention_native_backward,
)
describe(_attend, _differentiate, _PACKETS, outputs=0, new=lambda t: t.new_empty(t.shape))


def _refusal(query: Tensor, key: Tensor, value: Tensor, *_: Tensor) -> str | None:
    if exporting():
        return "an exporter is recording and gets ordinary operators instead"
    positions = query.shape[3] * query.shape[4]
    if positions <= _SMALL:
        return f"the map has {positions} positions; up to {_SMALL} the direct form is faster"
    if not query.dtype == key.dtype == value.dtype:
        return f"needs one dtype, got {query.dtype}, {key.dtype} and {value.dtype}"
    return tensor_refusal(query, key, value) or _LIBRARY.refusal()


NATIVE = Implementation("native", _run, _refusal)
