"""Batch normalisation and activation in C: maps are read once forward, and once backward."""

import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visgraft.ops._dispatch import Implementation, being_traced
from visgraft.ops._native import NativeLibrary, tensor_refusal, threads_for, unwatched
from visgraft.ops.batch_norm_activation.reference import batch_norm_activation_reference

__all__ = ["NATIVE"]

_LIBRARY = NativeLibrary("batch_norm_activation", Path(__file__).with_name("cpu.c"))
_ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2}  # as numbered in C
_PER_VALUE = 8  # multiplications that a value counts for, when threads are counted


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = x.contiguous()
    y = torch.empty_like(source)
    pooled = weight.new_empty(x.shape[0], x.shape[1], 1, 1)
    mean, variance = weight.new_empty(x.shape[1]), weight.new_empty(x.shape[1])
    tensors = (source, weight.contiguous(), bias.contiguous(), y, pooled, mean, variance)
    _LIBRARY.call("forward", tensors, *_numbers(source, epsilon, activation))
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
    source = x.contiguous()
    grads = torch.empty_like(source), weight.new_empty(weight.shape), bias.new_empty(bias.shape)
    upstream = (grad.to(x.dtype).contiguous(), grad_pooled.to(weight.dtype).contiguous())
    tensors = (source, weight.contiguous(), bias.contiguous(), mean, variance, *upstream, *grads)
    _LIBRARY.call("backward", tensors, *_numbers(source, epsilon, activation))
    return grads


def _numbers(x: Tensor, epsilon: float, activation: str) -> tuple[int, ...]:
    """Returns what C calls `call_t`."""
    b, c, h, w = x.shape
    threads = threads_for(_PER_VALUE * x.numel())
    is_bf16 = x.dtype == torch.bfloat16
    return b, c, h * w, _ACTIVATIONS[activation], is_bf16, threads, _bits(epsilon)


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


@_normalise.register_fake
def _(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape)
    pooled = x.new_empty(x.shape[0], x.shape[1], 1, 1)
    return y, pooled, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


@_differentiate.register_fake
def _(
    _grad: Tensor, _pooled: Tensor, x: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    new = weight.new_empty(weight.shape), weight.new_empty(weight.shape)
    return x.new_empty(x.shape), *new


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    mean, variance = output[2:]
    ctx.save_for_backward(*inputs[:3], mean, variance)
    ctx.mark_non_differentiable(mean, variance)
    ctx.call = inputs[3:]


def _gradients(ctx: Any, grad: Tensor, grad_pooled: Tensor, *_: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    if torch.is_grad_enabled():  # these gradients are to be differentiated
        y, pooled = batch_norm_activation_reference(*saved[:3], *ctx.call)[:2]
        wanted = [t for t in saved[:3] if t.requires_grad]
        found = iter(
            torch.autograd.grad((y, pooled), wanted, (grad, grad_pooled), create_graph=True)
        )
        return *(next(found) if t.requires_grad else None for t in saved[:3]), None, None
    run = _backward if unwatched(grad, grad_pooled, *saved) else _differentiate
    return *run(grad, grad_pooled, *saved, *ctx.call), None, None


_normalise.register_autograd(_gradients, setup_context=_keep)


class _Direct(torch.autograd.Function):
    """The operator, without PyTorch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
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
    if not x.is_contiguous():
        return "needs maps that lie row by row in memory"
    return tensor_refusal(x, weight, bias) or _LIBRARY.refusal()


NATIVE = Implementation("native", _run, _refusal)
