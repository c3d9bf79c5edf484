"""Window attention on GPUs as an operator of PyTorch, with its derivative."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from visgraft.ops._dispatch import Implementation
from visgraft.ops._gpu import refuse_unless_on_gpu
from visgraft.ops._strides import needs_long_index
from visgraft.ops.window_attention.triton import forward_kernel, keys_kernel, queries_kernel

__all__ = ["TRITON"]

_ROWS, _COLUMNS = 4, 8  # of a tile: larger ones look at more keys outside a query's window
_KEYS = 32  # at once
_DEEPEST = 128  # channels of a head


def _options(
    query: Tensor, key: Tensor, others: list[Tensor], call: tuple[int, ...]
) -> dict[str, Any]:
    """Returns what all launches have in common."""
    kernel_size, stride, dilation = call
    reach = dilation * (kernel_size // 2)
    _, heads, depth, *out_size = query.shape
    padded_depth = max(16, triton.next_power_of_2(depth))
    return {
        "sizes": (heads, depth, *key.shape[3:], *out_size),
        "scale": depth**-0.5 * math.log2(math.e),
        "STRIDE": stride,
        "KERNEL": kernel_size,
        "DILATION": dilation,
        "REFLECTS": tuple(n > reach for n in key.shape[3:]),
        "ROWS": _ROWS,
        "COLUMNS": _COLUMNS,
        "KEYS": _KEYS,
        "DEPTH": padded_depth,
        "PRECISION": "tf32x3",  # of float32: three products on tensor cores
        "INDEX": tl.int64 if needs_long_index(query, key, *others) else tl.int32,
        "num_warps": 2 if padded_depth == 16 else 4 if padded_depth <= 64 else 8,
        "enable_fp_fusion": True,
    }


def _grid(x: Tensor) -> tuple[int]:
    """Returns the number of tiles."""
    b, m, _, h, w = x.shape
    return (b * m * triton.cdiv(h, _ROWS) * triton.cdiv(w, _COLUMNS),)


@torch.library.custom_op("visgraft::window_attention_triton", mutates_args=())
def _attend(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Returns the output, and for the backward pass the logarithm of the sum of each query."""
    out, sums = _new_out(query)
    if out.numel():
        options = _options(query, key, [value, out], (kernel_size, stride, dilation))
        kernel: Any = forward_kernel
        tensors = (query, key, value, out)
        with torch.cuda.device_of(query):
            kernel[_grid(query)](*tensors, sums, *(t.stride() for t in tensors), **options)
    return out, sums


@torch.library.custom_op("visgraft::window_attention_triton_backward", mutates_args=())
def _differentiate(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    if not out.numel():
        return grads
    call = (kernel_size, stride, dilation)
    options = _options(query, key, [value, grad, out, *grads], call)
    common = torch.empty_like(sums)
    inputs = (grad, query, key, value)
    kernel: Any
    with torch.cuda.device_of(query):
        kernel = queries_kernel
        strides = (t.stride() for t in (*inputs, out, grads[0]))
        kernel[_grid(query)](*inputs, out, sums, common, grads[0], *strides, **options)
        kernel = keys_kernel
        strides = (t.stride() for t in (*inputs, *grads[1:]))
        kernel[_grid(key)](*inputs, sums, common, *grads[1:], *strides, **options)
    return grads


def _new_out(query: Tensor) -> tuple[Tensor, Tensor]:
    b, m, _, h, w = query.shape
    return torch.empty_like(query), query.new_empty((b, m, h, w), dtype=torch.float32)


@_attend.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _new_out(query)


@_differentiate.register_fake
def _(_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.mark_non_differentiable(output[1])
    ctx.call = inputs[3:]


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_differentiate(grad, *ctx.saved_tensors, *ctx.call), None, None, None


_attend.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.visgraft.window_attention_triton)
def _flops(query: Sequence[int], *call: Any, **_: Any) -> int:
    """Two products of each query with the keys of its window."""
    return 4 * math.prod(query) * call[2] ** 2


@register_flop_formula(torch.ops.visgraft.window_attention_triton_backward)
def _backward_flops(_grad: Sequence[int], query: Sequence[int], *call: Any, **_: Any) -> int:
    return 10 * math.prod(query) * call[4] ** 2


def _run(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    return _attend(query, key, value, kernel_size, stride, dilation)[0]


def _refusal(query: Tensor, key: Tensor, value: Tensor, *_: int) -> str | None:
    if query.shape[2] > _DEEPEST:
        return f"heads have {query.shape[2]} channels, more than {_DEEPEST}"
    return refuse_unless_on_gpu(query, key, value)


TRITON = Implementation("triton", _run, _refusal)
