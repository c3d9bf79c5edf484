"""Window attention in C: windows are never formed, and the backward computes the softmax again.

Logits, softmax and sums are in float32.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from visgraft.ops._dispatch import Implementation
from visgraft.ops._exporting import exporting
from visgraft.ops._native import (
    NativeLibrary,
    tensor_refusal,
    threads_for,
    unwatched,
    with_whole_maps,
)

__all__ = ["NATIVE"]

_SMALL = 64  # positions
_LIBRARY = NativeLibrary("window_attention", Path(__file__).with_name("cpu.c"))


def _forward(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    out = query.new_empty(query.shape)
    tensors = [with_whole_maps(t) for t in (query, key, value)]
    numbers = _numbers([*tensors, out], kernel_size, stride, dilation, 2)
    _LIBRARY.call("forward", (*tensors, out), *numbers)
    return out


def _gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = (query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape))
    tensors = [with_whole_maps(t) for t in (query, key, value, grad.to(query.dtype))]
    numbers = _numbers(tensors, kernel_size, stride, dilation, 5)
    _LIBRARY.call("backward", (*tensors, *grads), *numbers)
    return grads


def _numbers(tensors: Sequence[Tensor], *call: int) -> tuple[int, ...]:
    """Returns what C calls `call_t`."""
    kernel_size, stride, dilation, sums = call
    query, key = tensors[:2]
    threads = threads_for(sums * query.numel() * kernel_size**2)
    apart = (n for t in tensors for n in t.stride()[:3])
    is_bf16 = query.dtype == torch.bfloat16
    sizes = (*key.shape, *query.shape[3:], kernel_size, stride, dilation)
    return *sizes, is_bf16, threads, *apart


_attend = torch.library.custom_op("visgraft::window_attention_native", _forward, mutates_args=())
_differentiate = torch.library.custom_op(
    "visgraft::window_attention_native_backward", _gradients, mutates_args=()
)


@_attend.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape)


@_differentiate.register_fake
def _(_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: int) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (query, key, value))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:3])
    ctx.call = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    again = torch.is_grad_enabled() or not unwatched(grad, *saved)  # or is to be differentiated
    grads = (_differentiate if again else _gradients)(grad, *saved, *ctx.call)
    return *grads, None, None, None


_attend.register_autograd(_backward, setup_context=_keep)


class _Direct(torch.autograd.Function):
    """The operator, without PyTorch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        _keep(ctx, inputs, None)
        return _forward(*inputs)

    backward = staticmethod(_backward)  # pyright: ignore[reportAssignmentType]


def _run(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    tensors, call = (query, key, value), (kernel_size, stride, dilation)
    if not unwatched(*tensors):
        return _attend(*tensors, *call)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return (_Direct.apply if recorded else _forward)(*tensors, *call)


@register_flop_formula(torch.ops.visgraft.window_attention_native)
def _flops(query: Sequence[int], *call: Any, **__: Any) -> int:
    """Two per multiply-add of queries with keys, and of shares with values."""
    return 2 * 2 * torch.Size(query).numel() * call[2] ** 2


@register_flop_formula(torch.ops.visgraft.window_attention_native_backward)
def _backward_flops(*call: Any, **__: Any) -> int:
    return 5 * _flops(*call[1:]) // 2


def _refusal(query: Tensor, key: Tensor, value: Tensor, *_: int) -> str | None:
    if exporting():
        return "an exporter is recording and gets ordinary operators instead"
    positions = key.shape[3] * key.shape[4]
    if positions <= _SMALL:
        return f"the map has {positions} positions; up to {_SMALL} the dense form is faster"
    on_shapes_alone = query.is_meta or isinstance(query, FakeTensor)
    if on_shapes_alone and not torch.compiler.is_compiling():
        return None  # where operations are counted, no library is needed
    return tensor_refusal(query, key, value) or _LIBRARY.refusal()


NATIVE = Implementation("native", _run, _refusal)
