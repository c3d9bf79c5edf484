"""Local aggregation in C: one pass over the map forward and one backward, sums in float32."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visgraft.ops._dispatch import Implementation
from visgraft.ops._exporting import exporting
from visgraft.ops._native import NativeLibrary, tensor_refusal, threads_for, unwatched
from visgraft.ops._strides import in_layout, is_channels_last
from visgraft.ops.local_aggregation._derivatives import describe, new_grads, new_out

__all__ = ["NATIVE"]

_LIBRARY = NativeLibrary("local_aggregation", Path(__file__).with_name("cpu.c"))


def _forward(
    x: Tensor, weight: Tensor, kernel_size: int, stride: int, padding: int, dilation: int
) -> Tensor:
    dtype, last = _dtype(x, weight), is_channels_last(x)
    source, weights = _map(x, dtype, last), _weights(weight, dtype, last)
    out = new_out(x, weight, dtype)
    numbers = _numbers(source, weights, last, kernel_size, stride, padding, dilation)
    _LIBRARY.call("forward", (source, weights, None, out, None, None), *numbers)
    return out if out.dtype == x.dtype else out.to(x.dtype)


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    dtype, last = _dtype(x, weight), is_channels_last(x)
    source, weights = _map(x, dtype, last), _weights(weight, dtype, last)
    upstream = _map(grad, dtype, last)
    grad_x, grad_weight = new_grads(x, weight, need_x, need_weight, dtype)
    grads = (grad_x if need_x else None, grad_weight if need_weight else None)
    numbers = _numbers(source, weights, last, kernel_size, stride, padding, dilation)
    _LIBRARY.call("backward", (source, weights, upstream, None, *grads), *numbers)
    if x.dtype != weight.dtype:
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype)
    return grad_x, grad_weight


def _dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == weight.dtype else torch.promote_types(x.dtype, weight.dtype)


def _map(t: Tensor, dtype: torch.dtype, last: bool) -> Tensor:
    return in_layout(t if t.dtype == dtype else t.to(dtype), last=last)


def _weights(t: Tensor, dtype: torch.dtype, last: bool) -> Tensor:
    """Returns weights in the order of maps: position by position where these are channels_last."""
    t = t if t.dtype == dtype else t.to(dtype)
    if not last:
        return t.contiguous()
    return t.permute(0, 4, 5, 1, 2, 3).contiguous().permute(0, 3, 4, 5, 1, 2)


def _numbers(x: Tensor, weight: Tensor, last: bool, *call: int) -> tuple[int, ...]:
    """Returns what C calls `call_t`."""
    kernel_size, stride, padding, dilation = call
    _, heads, groups, _, height, width = weight.shape
    threads = threads_for(weight.numel() * (x.shape[1] // groups))
    sizes = (*x.shape, heads, groups, kernel_size, height, width)
    return *sizes, stride, padding, dilation, x.dtype == torch.bfloat16, last, threads


def _refusal(x: Tensor, weight: Tensor, *_: int) -> str | None:
    if exporting():
        return "an exporter is recording and gets ordinary operators instead"
    return tensor_refusal(x, weight) or _LIBRARY.refusal()


_aggregate = torch.library.custom_op(
    "visgraft::local_aggregation_native", _forward, mutates_args=()
)
_differentiate = torch.library.custom_op(
    "visgraft::local_aggregation_native_backward", _backward, mutates_args=()
)
_OPERATORS = torch.ops.visgraft
describe(
    _aggregate,
    _differentiate,
    (_OPERATORS.local_aggregation_native, _OPERATORS.local_aggregation_native_backward),
)


class _Direct(torch.autograd.Function):
    """The operator, without PyTorch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *call: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, weight)
        ctx.call = call
        return _forward(x, weight, *call)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad[:2]
        again = torch.is_grad_enabled() or not unwatched(grad, *saved)  # or is to be differentiated
        grads = (_differentiate if again else _backward)(grad, *saved, *ctx.call, *needs)
        return grads[0] if needs[0] else None, grads[1] if needs[1] else None, *[None] * 4


def _run(
    x: Tensor, weight: Tensor, kernel_size: int, stride: int, padding: int, dilation: int
) -> Tensor:
    call = x, weight, kernel_size, stride, padding, dilation
    if not unwatched(x, weight):
        return _aggregate(*call)
    recorded = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return (_Direct.apply if recorded else _forward)(*call)


NATIVE = Implementation("native", _run, _refusal)
