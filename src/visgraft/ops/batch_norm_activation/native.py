"""Batch normalisation and activation in C: maps are read once forward, and once backward."""

import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visgraft.ops._dispatch import Implementation, being_traced
from visgraft.ops._native import NativeLibrary, tensor_refusal, threads_for, unwatched
from visgraft.ops._strides import in_layout, is_channels_last, layout_of, new_map
from visgraft.ops.batch_norm_activation._derivatives import describe, gradients, keep

__all__ = ["NATIVE"]

_LIBRARY = NativeLibrary("batch_norm_activation", Path(__file__).with_name("cpu.c"))
_ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2}  # as numbered in C
_PER_VALUE = 8  # multiplications that a value counts for, when threads are counted


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    last = is_channels_last(x)
    source, y = in_layout(x, last=last), new_map(x)
    pooled = weight.new_empty(x.shape[0], x.shape[1], 1, 1)
    mean, variance = weight.new_empty(x.shape[1]), weight.new_empty(x.shape[1])
    tensors = (source, weight.contiguous(), bias.contiguous(), y, pooled, mean, variance)
    _LIBRARY.call("forward", tensors, *_numbers(x, last, epsilon, activation))
    return y, pooled.to(x.dtype), mean, variance


def _backward(
    grad: Tensor,
    grad_pooled: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    last = is_channels_last(x)
    source, upstream = (in_layout(t.to(x.dtype), last=last) for t in (x, grad))
    pooled = grad_pooled.to(weight.dtype).contiguous()
    grads = new_map(x), weight.new_empty(weight.shape), bias.new_empty(bias.shape)
    tensors = (source, weight.contiguous(), bias.contiguous(), mean, variance, upstream, pooled)
    _LIBRARY.call("backward", (*tensors, *grads), *_numbers(x, last, epsilon, activation))
    return grads


def _numbers(x: Tensor, last: bool, epsilon: float, activation: str) -> tuple[int, ...]:
    """Returns what C calls `call_t`."""
    b, c, h, w = x.shape
    threads = threads_for(_PER_VALUE * x.numel())
    is_bf16 = x.dtype == torch.bfloat16
    return b, c, h * w, _ACTIVATIONS[activation], is_bf16, last, threads, _bits(epsilon)


@cache
def _bits(number: float) -> int:
    """Returns the number's 64 bits as an integer."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


_normalise = torch.library.custom_op(
    "visgraft::batch_norm_activation_native", _forward, mutates_args=()
)
_differentiate = torch.library.custom_op(
    "visgraft::batch_norm_activation_native_backward", _backward, mutates_args=()
)


def _differentiate_fast(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    run = _backward if unwatched(*args[:-2]) else _differentiate
    return run(*args)


_gradients = gradients(_differentiate_fast)
describe(_normalise, _differentiate, _gradients)


class _Direct(torch.autograd.Function):
    """The operator, without PyTorch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        output = _forward(*inputs)
        keep(ctx, inputs, output)
        return output

    backward = staticmethod(_gradients)  # pyright: ignore[reportAssignmentType]


def _run(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    run = _Direct.apply if unwatched(x, weight, bias) else _normalise
    return run(x, weight, bias, epsilon, activation)


def _refusal(x: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> str | None:
    if being_traced():
        return "a compiler or exporter is tracing and gets ordinary operators instead"
    if weight.dtype != torch.float32 or bias.dtype != torch.float32:
        return f"needs float32 weight and bias, got {weight.dtype} and {bias.dtype}"
    if not x.is_contiguous(memory_format=layout_of(x)):
        return "needs maps that lie row by row in memory, or channels_last"
    return tensor_refusal(x, weight, bias) or _LIBRARY.refusal()


NATIVE = Implementation("native", _run, _refusal)
